"""What holds for every distribution: every form, noise, layout and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import kronax as kx
from tests.cases import covariance
from tests.distributions.cases import (
    CASES,
    DIFFERENTIATED,
    DIFFERENTIATED_EVERYDAY,
    FEW,
    direction,
    each_case,
    some_cases,
    value_of,
)
from tests.everyday import everyday
from tests.tolerances import assert_close

NUM_DRAWS = 20_000
density = jax.jit(lambda d, value: d.log_prob(value))
entropy = jax.jit(lambda d: d.entropy())
moments = jax.jit(lambda d: (d.mean, d.variance, d.covariance_matrix, d.covariance.to_dense()))
many_draws = jax.jit(lambda d, key: d.sample(key, (NUM_DRAWS,)))


@each_case
def test_the_density_is_that_of_scipy(name):
    case = CASES[name]
    d = case.make()
    value = value_of(case, d)
    flat = value.reshape(*case.batch, case.size)
    expected = case.each(lambda frozen, k: frozen.logpdf(flat[k]))
    assert_close(density(d, value), expected)
    if name in FEW:  # outside jit, where results are looked at
        assert_close(d.log_prob(value), expected)
    assert_close(entropy(d), case.each(lambda frozen, _: frozen.entropy()))


@each_case
def test_the_moments_are_those_of_the_matrix(name):
    case = CASES[name]
    d = case.make()
    shape = (*case.batch, *d.event_shape)
    loc = np.broadcast_to(case.loc, (*case.batch, case.size))
    mean, variance, matrix, lazy = moments(d)
    assert_close(mean, loc.reshape(shape))
    assert_close(variance, np.diagonal(case.covariance, axis1=-2, axis2=-1).reshape(shape))
    assert_close(matrix, case.covariance)
    assert_close(np.broadcast_to(lazy, case.covariance.shape), case.covariance)


@some_cases
def test_the_draws_have_these_moments(name):
    case = CASES[name]
    d = case.make()
    drawn = np.asarray(many_draws(d, jax.random.key(1)))
    drawn = drawn.reshape(NUM_DRAWS, *case.batch, case.size)
    centred = drawn - case.loc
    scale = np.sqrt(np.diagonal(case.covariance, axis1=-2, axis2=-1))
    error = centred.std(0) / np.sqrt(NUM_DRAWS)
    assert (np.abs(centred.mean(0)) < 5 * error).all()
    products = np.einsum("s...i,s...j->s...ij", centred / scale, centred / scale)
    error = products.std(0) / np.sqrt(NUM_DRAWS)
    expected = case.covariance / (scale[..., :, None] * scale[..., None, :])
    assert (np.abs(products.mean(0) - expected) < 5 * error).all()


@pytest.mark.parametrize("name", everyday(DIFFERENTIATED, DIFFERENTIATED_EVERYDAY))
def test_gradients_are_those_of_differences(name):
    """Along random directions, which mix the eigenspaces of repeated eigenvalues."""
    case = CASES[name]
    d = case.make()
    value, weights = value_of(case, d), value_of(case, d, seed=1)
    # The draws of a χ² by rejection have a pathwise derivative in df that differences cannot see.
    held = {} if case.df is None else {"df": d.df}

    def of_density_and_draws(d):
        density = jnp.sum(d.log_prob(value))
        for field, kept in held.items():
            setattr(d, field, kept)
        return jnp.stack([density, jnp.sum(weights * d.sample(jax.random.key(0)))])

    step, t = 1e-5, direction(d)
    both = jax.jit(lambda d: (of_density_and_draws(d), jax.jacrev(of_density_and_draws)(d)))
    _, slopes = both(d)
    exact = sum(
        np.tensordot(g, s, np.ndim(s))
        for g, s in zip(jax.tree.leaves(slopes), jax.tree.leaves(t), strict=True)
    )
    ends = [both(jax.tree.map(lambda x, s, h=h: x + h * s, d, t))[0] for h in (step, -step)]
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


# The model of PyMC's own tests of KroneckerNormal: n × 3 places, σ, flat events, these sizes.
SIZES = {
    None: (),
    (): (),
    1: (1,),
    (1,): (1,),
    5: (5,),
    (4, 5): (4, 5),
    (2, 4, 2): (2, 4, 2),
}


def of_pymc(n, sigma, way="covs"):
    covs, mu = (covariance(n), covariance(3, 1)), np.ones(3 * n)
    chols = tuple(np.linalg.cholesky(k) for k in covs)
    evds = [np.linalg.eigh(k) for k in covs]
    given = {
        "covs": {"factors": covs},
        "chols": {"scale_trils": chols},
        "evds": {"factors": tuple((q * v) @ q.T for v, q in evds)},
    }
    d = kx.KroneckerNormal(mu, noise=sigma**2, flatten=True, **given[way])
    dense = np.kron(*covs) + sigma**2 * np.eye(3 * n)
    return d, scipy.stats.multivariate_normal(mu, dense)


@pytest.mark.parametrize("way", ["covs", "chols", "evds"])
@pytest.mark.parametrize("sigma", [0, 1])
@pytest.mark.parametrize("n", everyday([2, 3], [3]))
def test_the_densities_of_pymcs_tests(n, sigma, way):
    d, dense = of_pymc(n, sigma, way)
    for shape in ((3 * n,), (2, 3 * n)):
        value = 0.1 * np.random.default_rng(5).normal(size=shape)
        assert_close(d.log_prob(value), dense.logpdf(value))


@pytest.mark.parametrize("sigma", [0, 1])
@pytest.mark.parametrize("n", everyday([2, 3], [3]))
def test_the_sample_sizes_of_pymcs_tests(n, sigma):
    d, dense = of_pymc(n, sigma)
    key = jax.random.key(0)
    for size, lead in SIZES.items():
        given = () if size is None else (size,)
        drawn = jax.eval_shape(lambda key, given=given: d.sample(key, *given), key)
        assert drawn.shape == jax.eval_shape(d.expand(lead).sample, key).shape == (*lead, 3 * n)
    value = np.random.default_rng(0).normal(size=(2, 4, 2, 3 * n))
    assert_close(d.expand((2, 4, 2)).log_prob(value), dense.logpdf(value))


def test_two_cholesky_factors_are_numpyros_matrix_normal():
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(3, 4))
    row, column = (np.linalg.cholesky(np.eye(n) + 0.5) for n in (3, 4))
    ours = kx.KroneckerNormal(loc, scale_trils=(row, column))
    theirs = dist.MatrixNormal(loc, row, column)
    value = rng.normal(size=(5, 3, 4))
    key = jax.random.key(0)
    with jax.numpy_rank_promotion("allow"):  # NumPyro broadcasts as NumPy does
        density, draws = jax.jit(lambda: (theirs.log_prob(value), theirs.sample(key, (5,))))()
    found = jax.jit(lambda: (ours.log_prob(value), ours.sample(key, (5,))))()
    assert_close(found[0], density)
    assert_close(ours.mean, theirs.mean)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert_close(found[1], draws)


@pytest.mark.parametrize(
    "name",
    everyday(["Cholesky factors", "precision factors", "variance", "t"], ["variance", "t"]),
)
def test_single_precision_stays(name):
    case = CASES[name]
    single = jax.tree.map(
        lambda x: np.asarray(x, np.float32) if isinstance(x, np.ndarray) else x, case.arguments
    )
    d = case._replace(arguments=single).make()
    value = value_of(case, d)
    actual = d.log_prob(value.astype(np.float32))
    assert actual.dtype == d.sample(jax.random.key(0)).dtype == d.entropy().dtype == np.float32
    assert_close(actual, case.frozen().logpdf(value.ravel()), dtype="float32")
    with pytest.raises(TypeError, match=r"value must not.*got float64 with float32 parameters"):
        d.log_prob(value)
