"""Kernels of other libraries and of users: their values, their shapes, their missing gradients."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tinygp
from numpyro.distributions import constraints

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.tolerances import assert_close

X = np.array([0.0, 0.3, 1.1, 2.0])
Z = np.array([0.3, 5.0, -1.0])


@pytest.fixture(autouse=True)
def promotion_of_the_other_libraries():
    with jax.numpy_dtype_promotion("standard"):
        yield


class OnePair(eqx.Module):
    """The interface of GPJax: a call is one pair of points, of coordinates `(n, p)` alone.

    GPJax itself holds JAX back, so that the tests cannot ask for it: where it is installed, its own
    kernels are tested too.
    """

    lengthscale: jax.Array
    variance: jax.Array

    def __call__(self, x, z):
        assert x.ndim == 1
        r2 = jnp.sum(jnp.square((x - z) / self.lengthscale))
        r = jnp.sqrt(3 * jnp.maximum(r2, 1e-36))
        return self.variance * (1 + r) * jnp.exp(-r)

    def cross_covariance(self, x, z):
        return jax.vmap(lambda p: jax.vmap(lambda q: self(p, q))(z))(x)


def tiny(x, z):
    return 1.5 * dense.matern32(x, z, 0.7)


OTHERS = {
    "tinygp": (1.5 * tinygp.kernels.Matern32(0.7), tiny),
    "tinygp, L2": (
        1.5 * tinygp.kernels.Matern32(0.7, distance=tinygp.kernels.distance.L2Distance()),
        tiny,
    ),
    "one pair": (OnePair(jnp.array(0.7), jnp.array(1.5)), tiny),
}


@pytest.mark.parametrize("name", everyday(OTHERS, ["tinygp, L2", "one pair"]))
def test_a_kernel_of_another_library_is_a_kernel(name):
    kernel, formula = OTHERS[name]
    gp = kx.GridGP((kernel, kx.RBF(0.5)), (X, Z), noise=0.1)
    together = 2.0 * kx.RBF(0.4) + gp.kernels[0]
    alone, added = jax.jit(lambda: (gp.covariance().factors[0].to_dense(), together(X, Z)))()
    assert_close(alone, formula(X, X))
    assert_close(added, 2 * dense.squared_exponential(X, Z, 0.4) + formula(X, Z))
    y, new = np.ones((4, 3)), (np.array([0.5]), None)
    assert jax.eval_shape(lambda: gp.condition(y).mean(new)).shape == (1, 3)
    assert not any(p.trainable for p in kx.parameters(gp) if "function" in p.path)


@pytest.mark.parametrize("name", ["tinygp, L2", "one pair"])
def test_a_kernel_of_another_library_takes_places(name):
    kernel, formula = OTHERS[name]
    gp = kx.GridGP((kernel,), (dense.PLACES,), noise=0.1)
    assert_close(gp.covariance().factors[0].to_dense(), formula(dense.PLACES, dense.PLACES))


def test_kernels_of_gpjax_itself():
    """GPJax keeps parameters unconstrained: their domain is real, whatever they mean."""
    gpjax = pytest.importorskip("gpjax", reason="GPJax is not installed: it holds JAX back")
    smooth = gpjax.kernels.RBF(lengthscale=0.4)
    kernel = gpjax.kernels.Matern32(lengthscale=0.7, variance=1.5) + smooth * smooth
    gp = kx.GridGP((kernel, kx.RBF(0.5)), (X, Z), noise=0.1)
    expected = tiny(X, X) + dense.squared_exponential(X, X, 0.4) ** 2
    assert_close(gp.covariance().factors[0].to_dense(), expected)
    raw, build = kx.unconstrain(gp, domains={"kernels[0].function": constraints.real})
    slope = jax.grad(lambda r: build(r).log_marginal_likelihood(jnp.ones((4, 3))))(raw)
    inner = [leaf for path, leaf in slope.items() if "function" in path]
    assert len(inner) == 6
    assert all(np.isfinite(leaf) and leaf != 0 for leaf in inner)
    with pytest.raises(TypeError, match=r"axis 0 must be.*got <class.*Pass an instance"):
        kx.GridGP((gpjax.kernels.RBF,), (X,), noise=0.1)


class Rootless(kx.Kernel):
    """What many people write; the lengthscale stands inside of the square root."""

    lengthscale: jax.Array = kx.parameter(constraints.positive)

    def evaluate(self, x, z):
        return jnp.exp(-jnp.sqrt(jnp.square((x - z) / self.lengthscale)))


class Guarded(Rootless):
    """The same kernel as the warning advises."""

    def evaluate(self, x, z):
        r2 = jnp.square((x - z) / self.lengthscale)
        return jnp.exp(-jnp.where(r2 > 0, jnp.sqrt(jnp.where(r2 > 0, r2, 1.0)), 0.0))


class RootlessMatrix(eqx.Module):
    """A callable with a number inside."""

    scale: jax.Array

    def __call__(self, x, z):
        return jnp.exp(-jnp.sqrt(jnp.square((x[:, None] - z[None]) / self.scale)))


BROKEN = {
    "alone": (lambda: Rootless(0.5), r"axis 0, Rootless,.* infinite in lengthscale, "),
    "in a sum": (lambda: kx.RBF(1.0) + 2.0 * Rootless(0.5), "axis 0, Rootless"),
    "a callable": (
        lambda: RootlessMatrix(jnp.array(0.5)),
        r"axis 0, RootlessMatrix,.* infinite in function\.scale, ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_gradient_that_is_nan_where_points_coincide_is_seen_at_construction(name):
    make, match = BROKEN[name]
    with pytest.warns(UserWarning, match=match) as record:
        gp = kx.GridGP((make(),), (X,), noise=0.1)
    assert record[0].filename == __file__
    slope = eqx.filter_grad(lambda model: model.log_marginal_likelihood(jnp.ones(4)))(gp)
    assert any(np.isnan(leaf) for leaf in jax.tree.leaves(slope))


def test_it_is_seen_under_jit_and_through_active_dimensions():
    kernel = Rootless(0.5)

    @jax.jit
    def value(noise):
        return kx.GridGP((kernel,), (X,), noise=noise).log_marginal_likelihood(jnp.ones(4))

    with pytest.warns(UserWarning, match="axis 0, Rootless"):
        value(0.1)
    with pytest.warns(UserWarning, match="axis 0, ActiveDims"):
        kx.GridGP((kx.ActiveDims(kernel, 0),), (X[:, None],), noise=0.1)


def test_kernels_with_a_gradient_are_not_blamed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gp = kx.GridGP((Guarded(0.5),), (X,), noise=0.1)
        # Nothing inside that could be trained, and something traced inside.
        kx.GridGP((lambda x, z: jnp.exp(-jnp.abs(x[:, None] - z[None])),), (X,), noise=0.1)
        jax.jit(lambda k: kx.GridGP((k,), (X,), noise=0.1).variance)(Rootless(0.5))
    slope = jax.grad(lambda model: model.log_marginal_likelihood(jnp.ones(4)))(gp)
    assert np.isfinite(slope.kernels[0].lengthscale)


class Exponential(kx.Kernel):
    """Its rate comes from outside, perhaps traced: it shows in no leaf."""

    stationary = True
    rate: object

    def evaluate(self, x, z):
        return jnp.exp(-self.rate() * jnp.abs(x - z))


def test_models_of_concrete_kernels_can_be_built_under_jit():
    """Their kernels are looked at there too; one that closes over a tracer is let be."""
    axis = np.linspace(0, 1, 16)

    def value(noise, rate):
        gp = kx.GridGP((Exponential(lambda: rate), kx.RBF(0.3)), (axis, axis), noise=noise)
        assert [s.kind for s in gp.structures] == ["toeplitz", "toeplitz"]
        return gp.log_marginal_likelihood(jnp.ones((16, 16)))

    assert_close(jax.jit(value)(0.1, 2.0), value(0.1, 2.0))


def test_concrete_low_rank_axes_are_checked_under_jit():
    gp = kx.GridGP((kx.RBF(0.3),), (np.linspace(0, 1, 16),), noise=0.1, structure=(3,))
    with pytest.raises(ValueError, match="axis 0 must be carried by 3 columns"):
        jax.jit(lambda key: gp.sample(key))(jax.random.key(0))


class Wrong:
    """A matrix of the wrong shape or kind."""

    def __init__(self, result):
        self.result = result

    def __call__(self, x, z):
        raise AssertionError

    def cross_covariance(self, x, z):
        return self.result


@pytest.mark.parametrize(
    ("kernel", "error", "match"),
    [
        (
            Wrong(jnp.ones((1, 4, 4))),
            ValueError,
            r"shape \(4, 4\) for 4 and 4 points; got \(1, 4, 4\) from Wrong.*subclass kx.Kernel",
        ),
        (Wrong(None), ValueError, "got NoneType from Wrong"),
        (Wrong(jnp.ones((4, 4), int)), TypeError, "Wrong returned int64"),
        (lambda x, z: jnp.exp(-((x - z) ** 2)), ValueError, r"got \(4,\) from <lambda>"),
        (tinygp.kernels.Matern32, TypeError, "axis 0 must be.*got <class.*Pass an instance"),
    ],
)
def test_a_kernel_of_the_wrong_kind_raises(kernel, error, match):
    with pytest.raises(error, match=match):
        kx.GridGP((kernel,), (X,), noise=0.1).covariance()


def test_an_error_inside_a_kernel_says_which_and_what_it_was_called_with():
    def pairs(x, z):
        return jnp.exp(-((x - z) ** 2))

    with pytest.raises(TypeError, match="incompatible shapes") as caught:
        (kx.RBF(1.0) + pairs)(X, Z)
    assert any(
        "kernel pairs, called with points of shape (4,) and (3,)" in note
        for note in caught.value.__notes__
    )
