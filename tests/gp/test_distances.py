"""Kernels at every distance: values, gradients and Hessians, in both precisions.

Truth is the closed form in extended precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import everyday, full

LENGTHSCALE, ALPHA = 0.75, 1.25  # exact in binary
E = np.exp


def rational(r):
    inside = 1 + r * r / (2 * ALPHA)
    power = inside ** (-ALPHA - 1)
    second = -power + (ALPHA + 1) / ALPHA * r * (r * inside ** (-ALPHA - 2))
    return inside**-ALPHA, -r * power, second


def matern32(r):
    s = np.sqrt(np.longdouble(3)) * r
    return (1 + s) * E(-s), -3 * r * E(-s), -3 * (1 - s) * E(-s)


def matern52(r):
    s = np.sqrt(np.longdouble(5)) * r
    slope = np.longdouble(5) / 3 * E(-s)
    return (1 + s + s * s / 3) * E(-s), -slope * r * (1 + s), -slope * (1 + s - s * s)


# `f(r)`, `f′(r)` and `f″(r)`.
RADIAL = {
    "RBF": (kx.RBF(LENGTHSCALE), lambda r: [p * E(-r * r / 2) for p in (1, -r, r * r - 1)]),
    "Matern12": (kx.Matern12(LENGTHSCALE), lambda r: [p * E(-r) for p in (1, -1, 1)]),
    "Matern32": (kx.Matern32(LENGTHSCALE), matern32),
    "Matern52": (kx.Matern52(LENGTHSCALE), matern52),
    "RationalQuadratic": (kx.RationalQuadratic(LENGTHSCALE, ALPHA), rational),
}
DISTANCES = [1e-30, 1e-20, 1e-12, 1e-8, 1e-6, 1e-3, 0.1, 0.6, 2.0, 9.0, 70.0]
DISTANCES += [1e3, 6e4, 1e6, 1e9, 1e10, 1e14, 1e19, 1e25, 1e37]


def derivatives(kernel, dtype):
    kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), kernel)

    def value(x, lengthscale):
        changed = kx.replace(kernel, {"lengthscale": lengthscale})
        return changed.evaluate(x, jnp.zeros_like(x))

    def all_of(x):
        at = (x, kernel.lengthscale)
        return value(*at), jax.grad(value, (0, 1))(*at), jax.hessian(value, (0, 1))(*at)

    return jax.jit(jax.vmap(all_of))


def check(got, expected, dtype, what):
    """To rounding, which `exp` magnifies by its argument; what underflows may be anything small."""
    expected, limits = np.asarray(expected, np.longdouble), np.finfo(dtype)
    magnified = 1 + np.maximum(0, -np.log(np.maximum(np.abs(expected[0]), limits.tiny)))
    for name, ours, truth in zip(what, got, expected, strict=True):
        ours = np.asarray(ours, np.longdouble)
        assert np.isfinite(ours).all(), name
        slack = 60 * limits.eps * magnified * np.abs(truth) + 1e4 * limits.tiny
        np.testing.assert_array_less(np.abs(ours - truth), slack, err_msg=name)


SINGLE = ("RBF", "Matern32", "RationalQuadratic")


@pytest.mark.parametrize(
    "case",
    everyday(
        [f"{name}-float{bits}" for name in RADIAL for bits in (32, 64)],
        [f"{name}-float{32 if name in SINGLE else 64}" for name in RADIAL],
    ),
)
def test_derivatives_at_every_distance(case):
    name, dtype = case.split("-")
    dtype = np.dtype(dtype).type
    kernel, radial = RADIAL[name]
    x = np.asarray(DISTANCES, dtype)
    value, (dx, dl), ((dxx, dxl), (_, dll)) = derivatives(kernel, dtype)(x)
    r = x.astype(np.longdouble) / LENGTHSCALE
    f, first, second = radial(r)
    one = 1 / np.longdouble(LENGTHSCALE)
    expected = [f, first * one, -r * first * one, second * one**2]
    expected += [-(first + r * second) * one**2, r * (2 * first + r * second) * one**2]
    got = [value, dx, dl, dxx, dxl, dll]
    keep = slice(None) if name != "RationalQuadratic" else np.abs(r) < 1e14  # r² B^(−α−2), so
    check(
        [g[keep] for g in got],
        [e[keep] for e in expected],
        dtype,
        ["k", "x", "l", "xx", "xl", "ll"],
    )


@pytest.mark.parametrize("dtype", [np.float32, full(np.float64)])
def test_derivatives_where_two_points_coincide(dtype):
    curvatures = {"RBF": 1, "Matern32": 3, "Matern52": 5 / 3, "RationalQuadratic": 1}
    for name, curvature in curvatures.items():
        found = derivatives(RADIAL[name][0], dtype)(np.zeros(1, dtype))
        value, (dx, dl), ((dxx, dxl), (_, dll)) = jax.tree.map(lambda v: v[0], found)
        assert (value, dx, dl, dxl, dll) == (1, 0, 0, 0, 0), name
        np.testing.assert_allclose(dxx, -curvature / LENGTHSCALE**2, rtol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, full(np.float64)])
def test_the_exponent_of_a_rational_quadratic(dtype):
    """Its derivative is `−(log(1 + v) − v/(1 + v))`, of which `v²/2` is left where `v` is small."""
    slope = jax.jit(
        jax.vmap(
            jax.grad(
                lambda a, x: kx.RationalQuadratic(jnp.ones_like(a), a).evaluate(
                    x, jnp.zeros_like(x)
                )
            ),
            (None, 0),
        )
    )
    x = np.geomspace(1e-4, 100, 41).astype(dtype)
    alpha = np.longdouble(ALPHA)
    v = x.astype(np.longdouble) ** 2 / (2 * alpha)
    left = sum((-1) ** k * np.longdouble(k - 1) / k * v**k for k in range(2, 40))
    left = np.where(v < 0.1, left, np.log1p(v) - v / (1 + v))
    expected = -left * np.exp(-alpha * np.log1p(v))
    np.testing.assert_allclose(
        slope(dtype(ALPHA), x), expected.astype(dtype), rtol=40 * np.finfo(dtype).eps
    )


@jax.jit
def value_and_slopes(kernel, x):
    def value(kernel, x):
        return kernel.evaluate(x, jnp.zeros_like(x))

    return jax.vmap(jax.value_and_grad(value, (0, 1)), (None, 0))(kernel, x)


@pytest.mark.parametrize("dtype", [np.float32, full(np.float64)])
def test_other_kernels_are_finite_at_every_distance(dtype):
    plane = np.zeros((len(DISTANCES), 2), dtype)
    plane[:, 0] = DISTANCES
    kernels = {
        "in the plane": (kx.Matern12([0.7, 0.2]) + kx.Matern32([0.7, 0.2]) * kx.RBF(0.3), plane),
        "of a dimension": (
            kx.ActiveDims(kx.Matern52(0.3), 0) + kx.RationalQuadratic(0.1, 2.0),
            plane,
        ),
        "periodic": (kx.Periodic(1.5, 0.6) * kx.RBF(2.0), plane[:, 0]),
        "narrow": (kx.Periodic(1.5, 1e-12), plane[:, 0]),
        "mixture": (kx.SpectralMixture([0.7, 0.3], [0.4, 1.3], [0.05, 0.3]), plane[:, 0]),
    }
    for name, (kernel, x) in kernels.items():
        raw = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), kernel)
        for leaf in jax.tree.leaves(value_and_slopes(raw, x)):
            assert np.isfinite(leaf).all(), name


def test_a_direction_where_squares_underflow():
    slope = jax.jit(
        jax.grad(lambda x: kx.Matern12(jnp.float32(1.0)).evaluate(x, jnp.zeros(2, "float32")))
    )
    np.testing.assert_allclose(
        slope(jnp.asarray([3e-25, 4e-25], "float32")), [-0.6, -0.8], rtol=1e-6
    )
