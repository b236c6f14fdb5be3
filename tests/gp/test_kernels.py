"""Kernels: their formulas, their algebra, their derivatives, and what they refuse."""

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tinygp
from hypothesis import given, settings
from numpyro.distributions import constraints

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.tolerances import assert_close

X = np.array([0.0, 0.3, 1.1, 2.0])
Z = np.array([0.3, 5.0, -1.0])

KERNELS = {
    "SquaredExponential": (
        kx.SquaredExponential(0.7),
        lambda x, z: dense.squared_exponential(x, z, 0.7),
    ),
    "Matern12": (kx.Matern12(0.7), lambda x, z: dense.matern12(x, z, 0.7)),
    "Matern32": (kx.Matern32(0.7), lambda x, z: dense.matern32(x, z, 0.7)),
    "Matern52": (kx.Matern52(0.7), lambda x, z: dense.matern52(x, z, 0.7)),
    "RationalQuadratic": (
        kx.RationalQuadratic(0.7, 1.3),
        lambda x, z: dense.rational_quadratic(x, z, 0.7, 1.3),
    ),
    "Periodic": (
        kx.Periodic(period=1.5, lengthscale=0.6),
        lambda x, z: dense.periodic(x, z, 1.5, 0.6),
    ),
    "Constant": (kx.Constant(2.5), lambda x, z: dense.constant(x, z, 2.5)),
    "Cosine": (kx.Cosine(1.5), lambda x, z: dense.cosine(x, z, 1.5)),
    "SpectralMixture": (
        kx.SpectralMixture([0.7, 0.3], [0.4, 1.3], [0.05, 0.3]),
        lambda x, z: dense.spectral_mixture(
            x[:, None], z[:, None], [0.7, 0.3], [[0.4], [1.3]], [[0.05], [0.3]]
        ),
    ),
    "White": (kx.White(0.7), lambda x, z: dense.white(x, z, 0.7)),
    "Linear": (kx.Linear(0.4), lambda x, z: dense.linear(x, z, 0.4)),
    "a line in a field": (
        kx.Matern32(0.5) + 0.3 * kx.Linear(2.0) + kx.White(0.2),
        lambda x, z: (
            dense.matern32(x, z, 0.5) + 0.3 * dense.linear(x, z, 2.0) + dense.white(x, z, 0.2)
        ),
    ),
    "a sum": (
        kx.Matern12(0.5) + 2.0 * kx.RBF(0.3),
        lambda x, z: dense.matern12(x, z, 0.5) + 2 * dense.squared_exponential(x, z, 0.3),
    ),
    "a product": (
        kx.Periodic(1.0, 0.5) * kx.Matern32(2.0),
        lambda x, z: dense.periodic(x, z, 1.0, 0.5) * dense.matern32(x, z, 2.0),
    ),
}
OF_PLACES = (
    (kx.SquaredExponential, dense.squared_exponential),
    (kx.Matern12, dense.matern12),
    (kx.Matern32, dense.matern32),
    (kx.Matern52, dense.matern52),
)
# Among them is every formula but Matérn-5/2, constants and cosines.
COMPOSED = {"RationalQuadratic", "SpectralMixture", "a line in a field", "a sum", "a product"}
every_kernel = pytest.mark.parametrize("name", KERNELS)


@eqx.filter_jit
def first_factor(gp):
    return gp.covariance().factors[0].to_dense()


@eqx.filter_jit
def matrix(kernel, x, z):
    return kernel(x, z)


@eqx.filter_jit
def values_of(kernel, x, z):
    return kernel(x, z), kernel.diagonal(x), kernel.evaluate(x[1], z[1])


@every_kernel
def test_the_formula_holds_on_pairs(name):
    kernel, formula = KERNELS[name]
    pairs, diagonal, one = values_of(kernel, jnp.asarray(X), jnp.asarray(Z))
    assert_close(pairs, formula(X, Z))
    assert_close(diagonal, np.diagonal(formula(X, X)))
    assert_close(one, formula(X, Z)[1, 1])


@pytest.mark.parametrize("kernel", OF_PLACES, ids=lambda pair: pair[1].__name__)
@pytest.mark.parametrize("lengthscale", [0.7, np.array([0.7, 0.2])])
def test_the_formula_holds_on_places(kernel, lengthscale):
    kind, formula = kernel
    assert_close(
        matrix(kind(lengthscale), dense.PLACES, dense.PLACES[:2]),
        formula(dense.PLACES, dense.PLACES[:2], lengthscale),
    )


def test_a_periodic_kernel_of_places_is_the_product_over_dimensions():
    kernel = kx.Periodic(1.5, np.array([0.6, 0.9]))
    expected = np.prod(
        [
            dense.periodic(dense.PLACES[:, k], dense.PLACES[:, k], 1.5, lengthscale)
            for k, lengthscale in enumerate((0.6, 0.9))
        ],
        axis=0,
    )
    assert_close(matrix(kernel, dense.PLACES, dense.PLACES), expected)


@pytest.mark.parametrize("name", everyday(KERNELS, COMPOSED))
@settings(max_examples=20, deadline=None)
@given(points=st.lists(st.floats(-20, 20), min_size=6, max_size=6))
def test_matrices_are_symmetric_and_positive_semidefinite(name, points):
    values = np.asarray(matrix(KERNELS[name][0], np.array(points), np.array(points)))
    np.testing.assert_array_equal(values, values.T)
    assert np.linalg.eigvalsh(values).min() > -1e-12 * np.abs(values).max() * len(points)


@pytest.mark.parametrize("name", everyday(KERNELS, COMPOSED))
def test_gradients_and_hessians_are_finite_where_points_coincide(name):
    kernel = KERNELS[name][0]
    raw, build = kx.unconstrain(kernel)
    x = jnp.asarray(X)

    def total(values, x):
        return jnp.sum(build(values)(x, x))

    @jax.jit
    def derivatives(*arguments):
        return [d(total, argnums=(0, 1))(*arguments) for d in (jax.grad, jax.hessian)]

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(derivatives(raw, x)))


@every_kernel
def test_the_formula_holds_in_float32(name):
    kernel, formula = KERNELS[name]
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), kernel)
    values = matrix(single, X.astype(np.float32), Z.astype(np.float32))
    assert values.dtype == np.float32
    assert_close(values, formula(X, Z))


@pytest.mark.parametrize("kind", [kernel for kernel, _ in OF_PLACES], ids=lambda k: k.__name__)
def test_gradients_of_places_are_finite_and_right(kind):
    """Against differences: the diagonal, where the distance is zero, must add nothing."""
    places = jnp.asarray(dense.PLACES)

    @jax.jit
    def total(lengthscale, x):
        def value(lengthscale, x):
            return jnp.sum(np.cos(np.arange(36.0)).reshape(6, 6) * kind(lengthscale)(x, x))

        return jax.value_and_grad(value, argnums=(0, 1))(lengthscale, x)

    lengthscale = jnp.array([0.7, 0.2])
    for argument, value in enumerate((lengthscale, places)):
        arguments = [lengthscale, places]
        slope = np.asarray(total(*arguments)[1][argument])
        direction = np.random.default_rng(argument).normal(size=value.shape)
        ends = []
        for step in (1e-6, -1e-6):
            arguments[argument] = value + step * direction
            ends.append(total(*arguments)[0])
        np.testing.assert_allclose(
            np.sum(slope * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    "number", [2, 2.0, np.int64(2), np.float64(2), np.array(2.0), jnp.array(2.0)], ids=repr
)
def test_a_number_times_a_kernel_scales_its_variance(number):
    for scaled in (number * kx.RBF(0.7), kx.RBF(0.7) * number):
        assert scaled.variance.item() == 2.0
        assert scaled.variance.ndim == 0
        assert_close(scaled(X, Z), 2 * dense.squared_exponential(X, Z, 0.7))


def test_nested_scales_gather_in_one_parameter():
    nested = 2.0 * (kx.RBF(0.7) * 3.0)
    assert [p.path for p in kx.parameters(nested)] == ["kernel.lengthscale", "variance"]
    assert nested.variance.item() == 6.0
    times = (2.0 * kx.RBF(0.7)) * (5.0 * kx.Matern12(0.3))
    assert times.variance.item() == 10.0
    assert_close(times(X, Z), 10 * dense.squared_exponential(X, Z, 0.7) * dense.matern12(X, Z, 0.3))


def test_sums_keep_the_scales_of_their_terms():
    both = 2.0 * kx.RBF(0.7) + 3.0 * kx.Matern12(0.3)
    assert [p.value.item() for p in kx.parameters(both) if p.path.endswith("variance")] == [2, 3]


def test_constants_and_white_are_scales_too():
    """So that an amplitude is never counted twice."""
    assert [p.path for p in kx.parameters(2.0 * kx.White(0.5))] == ["variance"]
    both = kx.Constant(2.0) * kx.RBF(0.7) * kx.Constant(3.0)
    assert {p.path: p.value.item() for p in kx.parameters(both)} == {
        "kernel.lengthscale": 0.7,
        "variance": 6.0,
    }
    assert_close(both(X, Z), 6 * dense.squared_exponential(X, Z, 0.7))


def test_a_process_gathers_the_scales_of_a_sum():
    """`2 k + 3 k'` has as many free amplitudes as it shows: the first is the process'."""
    kernel = 2.0 * kx.RBF(0.7) + (3.0 * kx.Matern12(0.3) + kx.White(4.0))
    gp = kx.GridGP((kernel, 5.0 * kx.ActiveDims(7.0 * kx.RBF(1.0), 0)), (X, X[:, None]), noise=0.1)
    values = {p.path: p.value.item() for p in kx.parameters(gp) if p.path.endswith("variance")}
    assert values == {
        "kernels[0].second.variance": 1.5,
        "kernels[0].second.kernel.second.variance": pytest.approx(4 / 3),
        "variance": 70.0,
    }
    first = 2 * dense.squared_exponential(X, X, 0.7) + 3 * dense.matern12(X, X, 0.3) + 4 * np.eye(4)
    truth = np.kron(first, 35 * dense.squared_exponential(X, X, 1.0))
    assert_close(gp.covariance(include_noise=False).to_dense(), truth)


def test_any_callable_is_a_kernel_in_sums_and_products():
    def triangle(x, z):
        return jnp.maximum(1 - jnp.abs(x[:, None] - z[None]), 0)

    expected = np.maximum(1 - np.abs(X[:, None] - Z), 0)
    assert_close(
        matrix(kx.RBF(0.7) + triangle, X, Z), dense.squared_exponential(X, Z, 0.7) + expected
    )
    assert_close(
        matrix(triangle * kx.RBF(0.7), X, Z), dense.squared_exponential(X, Z, 0.7) * expected
    )
    gp = kx.GridGP((triangle, kx.RBF(0.5)), (X, Z), noise=0.1)
    assert_close(first_factor(gp), np.maximum(1 - np.abs(X[:, None] - X), 0))
    assert_close(gp.kernels[0].diagonal(X), np.ones(4))


def test_a_tinygp_kernel_is_a_kernel():
    with jax.numpy_dtype_promotion("standard"):
        gp = kx.GridGP((1.5 * tinygp.kernels.Matern32(0.7), kx.RBF(0.5)), (X, Z), noise=0.1)
        assert_close(first_factor(gp), 1.5 * dense.matern32(X, X, 0.7))


class Triangle(kx.Kernel):
    """What a user writes."""

    width: jax.Array = kx.parameter(constraints.positive)
    power: jax.Array = kx.parameter(constraints.unit_interval, default=0.5)

    def evaluate(self, x, z):
        return jnp.maximum(1 - jnp.abs(x - z) / self.width, 0) ** self.power


def test_a_users_kernel_is_vectorised_and_its_parameters_have_domains():
    kernel = 2 * Triangle(2)
    expected = 2 * np.sqrt(np.maximum(1 - np.abs(X[:, None] - Z) / 2, 0))
    assert_close(kernel(X, Z), expected)
    domains = {p.path: p.domain for p in kx.parameters(kernel)}
    assert domains["kernel.width"] is constraints.positive
    assert domains["kernel.power"] is constraints.unit_interval
    with pytest.raises(ValueError, match=r"power must be .*; got 1\.5"):
        Triangle(2.0, 1.5)


def test_a_kernel_without_evaluate_is_abstract():
    class Nothing(kx.Kernel):
        pass

    with pytest.raises(TypeError, match="evaluate"):
        Nothing()


def test_numbers_follow_the_precision_of_the_kernel():
    kernel = 2.0 * kx.RBF(np.float32(0.7))
    assert kernel.variance.dtype == np.float32
    assert kernel(X, Z).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.Matern32(-0.5), ValueError, r"lengthscale must be positive; got -0\.5"),
        (lambda: kx.RBF(0), ValueError, r"lengthscale must be positive; got 0\.0"),
        (lambda: kx.RBF([0.1, -2.0]), ValueError, r"lengthscale must be positive; got .*-2"),
        (lambda: kx.RBF(np.nan), ValueError, "lengthscale must be positive; got nan"),
        (lambda: kx.RationalQuadratic(1.0, -3.0), ValueError, r"alpha .*got -3\.0"),
        (lambda: kx.RBF("short"), TypeError, "lengthscale must be a number.*got 'short'"),
        (lambda: kx.RBF(None), TypeError, "lengthscale must be a number.*got None"),
        (lambda: kx.RBF(True), TypeError, "lengthscale must be a number.*got True"),
        (lambda: kx.RBF(1j), TypeError, r"real numbers; got 1j of dtype complex128"),
        (lambda: kx.RBF(["a"]), TypeError, r"real numbers; got \['a'\]"),
        (lambda: kx.RBF(1.0) * 0, ValueError, r"variance must be positive; got 0\.0"),
        (lambda: -1.5 * kx.RBF(1.0), ValueError, r"variance must be positive; got -1\.5"),
        (lambda: True * kx.RBF(1.0), TypeError, "variance must be a number.*got True"),
        (lambda: kx.RBF(1.0) * np.ones(2), ValueError, r"single number; got shape \(2,\)"),
        (lambda: kx.RBF(1.0) * "a", TypeError, "a number, a kronax kernel.*got 'a'"),
        (lambda: kx.RBF(1.0) + 3.5, TypeError, r"added to a kernel.*got 3\.5"),
        (lambda: kx.RBF(1.0) + kx.RBF, TypeError, "SquaredExponential.*Pass an instance"),
        (
            lambda: (kx.RBF(1.0) + (lambda a, b: jnp.ones(3)))(X, Z),
            ValueError,
            r"shape \(4, 3\) for 4 and 3 points; got \(3,\)",
        ),
        (
            lambda: (kx.RBF(1.0) + (lambda a, b: 1.0))(X, Z),
            ValueError,
            r"shape \(4, 3\) for 4 and 3 points; got float",
        ),
        (lambda: kx.Cosine(-1.0), ValueError, r"period must be positive; got -1\.0"),
        (lambda: kx.White(0.0), ValueError, r"variance must be positive; got 0\.0"),
        (
            lambda: kx.SpectralMixture([0.5, 0.6], [1.0, 2.0], [1.0, 2.0]),
            ValueError,
            r"weights must be Simplex.*got \[0\.5 0\.6\]",
        ),
        (
            lambda: kx.SpectralMixture([0.5, 0.5], [1.0], [1.0, 2.0]),
            ValueError,
            r"got shapes \(2,\), \(1,\) and \(2,\)",
        ),
        (
            lambda: kx.SpectralMixture([1.0], [[1.0, 2.0]], [[1.0, 2.0]])(X, Z),
            ValueError,
            r"mean of a spectral mixture .* got shape \(2,\) for coordinates \(n,\)",
        ),
        (lambda: kx.Linear(np.nan), TypeError, "finite number, or one per dimension; got nan"),
        (lambda: kx.Linear("here"), TypeError, "finite number.*got 'here'"),
        (lambda: jax.jit(kx.Linear)(1.0), TypeError, "centre .* must be concrete.*kx.Constant"),
        (lambda: kx.RBF([0.1, 0.2])(X, Z), ValueError, r"got shape \(2,\) for coordinates \(n,\)"),
        (
            lambda: kx.Matern32([0.1, 0.2])(X, Z),
            ValueError,
            r"got shape \(2,\) for coordinates \(n,\)",
        ),
        (
            lambda: kx.Periodic(1.0, [0.1, 0.2])(X, Z),
            ValueError,
            r"got shape \(2,\) for coordinates \(n,\)",
        ),
        (
            lambda: kx.RBF([0.1, 0.2, 0.3])(dense.PLACES, dense.PLACES),
            ValueError,
            r"got shape \(3,\) for places in 2 dimensions",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_spectral_mixture_has_weights_that_a_fit_can_move():
    kernel = kx.SpectralMixture([0.7, 0.3], [0.4, 1.3], [0.05, 0.3])
    raw, build = kx.unconstrain(kernel)
    moved = build({path: value + 0.3 for path, value in raw.items()})
    assert_close(moved.weights.sum(), 1.0)
    assert_close(moved.diagonal(X), np.ones(4))
    single = kx.SpectralMixture([1.0], [0.4], [0.05])
    back = kx.unconstrain(single)[1](kx.unconstrain(single)[0])
    assert_close(matrix(back, X, Z), matrix(single, X, Z))
