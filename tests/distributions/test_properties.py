"""What holds for every distribution: every form, noise, layout and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import kronax as kx
from tests.distributions.cases import CASES, FEW
from tests.tolerances import assert_close

NUM_DRAWS = 20_000
every = pytest.mark.parametrize("name", CASES)
few = pytest.mark.parametrize("name", FEW)
PREPENDED = ((), (2,), (4, 2))


def log_prob(d, value):
    return d.log_prob(value)


def value_of(case, d, seed=0):
    shape = (*case.batch, *d.event_shape)
    return np.random.default_rng(seed).normal(size=shape)


@jax.jit
def draw(d, key):
    return d.sample(key)


density = jax.jit(log_prob)
entropy = jax.jit(lambda d: d.entropy())
moments = jax.jit(lambda d: (d.mean, d.variance, d.covariance_matrix, d.covariance.to_dense()))
many_draws = jax.jit(lambda d, key: d.sample(key, (NUM_DRAWS,)))


@every
def test_the_shapes_are_those_of_numpyro(name):
    case = CASES[name]
    d = case.make()
    shape = (*case.batch, *d.event_shape)
    assert d.batch_shape == case.batch
    assert np.prod(d.event_shape) == case.size
    assert d.support.event_dim == d.event_dim
    key = jax.random.key(0)
    for lead in PREPENDED:
        drawn = jax.eval_shape(lambda k, lead=lead: d.sample(k, lead), key)
        assert drawn.shape == (*lead, *shape)
        assert jax.eval_shape(d.log_prob, drawn).shape == (*lead, *case.batch)
    assert jax.eval_shape(d.entropy).shape == case.batch
    for part in ("mean", "variance"):
        assert jax.eval_shape(lambda part=part: getattr(d, part)).shape == shape


@every
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


@every
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


@every
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


def direction(d, seed=0):
    """A random direction in the parameters, symmetric where a matrix is, triangular likewise."""
    rng = np.random.default_rng(seed)

    def one(leaf):
        t = rng.normal(size=leaf.shape)
        if leaf.ndim < 2 or leaf.shape[-1] != leaf.shape[-2]:
            return t
        symmetric = np.allclose(leaf, np.swapaxes(leaf, -1, -2))
        return t + np.swapaxes(t, -1, -2) if symmetric else np.tril(t)

    return jax.tree.map(one, d)


@every
def test_gradients_are_those_of_differences(name):
    """Along random directions, which mix the eigenspaces of repeated eigenvalues."""
    case = CASES[name]
    d = case.make()
    value, weights = value_of(case, d), value_of(case, d, seed=1)
    # The draws of a χ² by rejection have a pathwise derivative in df that differences cannot see.
    held = {} if case.df is None else {"df": d.df}

    @jax.jit
    def of_density_and_draws(d):
        density = jnp.sum(d.log_prob(value))
        for field, kept in held.items():
            setattr(d, field, kept)
        return jnp.stack([density, jnp.sum(weights * d.sample(jax.random.key(0)))])

    step, t = 1e-5, direction(d)
    slopes = jax.jit(jax.jacrev(of_density_and_draws))(d)
    exact = sum(
        np.tensordot(g, s, np.ndim(s))
        for g, s in zip(jax.tree.leaves(slopes), jax.tree.leaves(t), strict=True)
    )
    ends = [
        of_density_and_draws(jax.tree.map(lambda x, s, h=h: x + h * s, d, t)) for h in (step, -step)
    ]
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


@every
def test_it_is_a_pytree_under_jit_and_map(name):
    case = CASES[name]
    d = case.make()
    back = jax.tree.unflatten(*jax.tree.flatten(d)[::-1])
    assert (back.batch_shape, back.event_shape) == (d.batch_shape, d.event_shape)
    assert jax.tree.structure(back) == jax.tree.structure(d)
    key = jax.random.key(0)
    made = jax.jit(lambda: jax.lax.map(lambda _: case.make(), jnp.zeros(2)))()
    first = jax.tree.map(lambda leaf: leaf[0], made)
    assert_close(draw(first, key), draw(d, key))


@every
def test_constructors_map_and_become_batches(name):
    """`vmap` over every array of a distribution, then one density of all, by NumPyro's rules."""
    case = CASES[name]
    d = case.make()
    value = value_of(case, d)
    twice = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf]), d)
    mapped = jax.jit(jax.vmap(log_prob, in_axes=(0, None)))(twice, value)
    assert_close(mapped[0], density(d, value))
    promoted = jax.jit(dist.batch_util.promote_batch_shape)(twice)
    assert promoted.batch_shape == (2, *case.batch)
    assert_close(density(promoted, value), mapped)
    drawn = jax.eval_shape(lambda: promoted.sample(jax.random.key(0), (3,)))
    assert drawn.shape == (3, 2, *case.batch, *d.event_shape)
    assert jax.eval_shape(promoted.entropy).shape == promoted.batch_shape


@few
def test_expanding_repeats_the_density_and_draws_anew(name):
    case = CASES[name]
    d = case.make()
    many = d.expand((5, *case.batch))
    assert (many.batch_shape, many.event_shape) == ((5, *case.batch), d.event_shape)
    drawn = many.sample(jax.random.key(0), (2,))
    assert drawn.shape == (2, 5, *case.batch, *d.event_shape)
    assert np.abs(drawn[:, 0] - drawn[:, 1]).min() > 0
    value = value_of(case, d)
    expected = np.broadcast_to(d.log_prob(value), many.batch_shape)
    assert_close(many.log_prob(value), expected)
    assert many.entropy().shape == many.batch_shape
    assert many.variance.shape == many.mean.shape == (*many.batch_shape, *many.event_shape)
    assert d.expand(d.batch_shape) is d
    with pytest.raises(ValueError, match="Cannot broadcast distribution of shape"):
        many.expand((3, *case.batch))
    with pytest.raises(ValueError, match="Cannot broadcast distribution of shape"):
        many.expand(case.batch)


@few
def test_independent_sums_and_a_mask_leaves_out(name):
    case = CASES[name]
    many = case.make().expand((5, *case.batch))
    one = many.to_event(1)
    joint = (*many.batch_shape, *many.event_shape)
    assert (one.batch_shape, one.event_shape) == (
        joint[: len(case.batch)],
        joint[len(case.batch) :],
    )
    value = np.random.default_rng(0).normal(size=joint)
    each = np.asarray(many.log_prob(value))
    assert_close(one.log_prob(value), each.sum(-1))
    mask = np.arange(5 * int(np.prod(case.batch, dtype=int))).reshape(many.batch_shape) % 2 == 0
    assert_close(many.mask(mask).log_prob(value), np.where(mask, each, 0))
    for shape in {many.event_shape, many.grid_shape}:
        with pytest.raises(ValueError, match=r"shape of the batch.*kx\.MaskedKroneckerNormal"):
            many.mask(np.ones(shape, bool))


@few
def test_the_parameters_are_numpyros(name):
    d = CASES[name].make(validate_args=True)
    assert d.has_rsample
    assert set(d.get_args()) == set(d.arg_constraints)
    assert not d.is_discrete
    assert d.rsample(jax.random.key(0)).shape == d.shape()
    with pytest.warns(UserWarning, match="Out-of-support"):
        d.log_prob(np.full(d.shape(), np.nan))
    mapped = jax.vmap(
        lambda loc: CASES[name].make(loc=loc, validate_args=True),
        out_axes=dist.batch_util.vmap_over(d, loc=0),
    )(jnp.stack([d.loc, d.loc]))
    assert (mapped.loc.shape, mapped.batch_shape) == ((2, *d.loc.shape), d.batch_shape)
    assert jax.tree.structure(mapped) == jax.tree.structure(d)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda f: f((), ((3, 3), (4, 4))), ((), (3, 4))),
        (lambda f: f((3, 4), ((3, 3), (4, 4)), ()), ((), (3, 4))),
        (lambda f: f((2, 12), ((3, 3), (4, 4))), ((2,), (3, 4))),
        (lambda f: f((2, 1, 4), ((5, 1, 3, 3), (4, 4))), ((5, 2), (3, 4))),
        (lambda f: f((), scale_trils=((3, 3), (2, 4, 4))), ((2,), (3, 4))),
        (lambda f: f((), precision_factors=((12, 12),)), ((), (12,))),
        (lambda f: f((), ((3, 3), (4, 4)), flatten=True), ((), (12,))),
        (lambda f: f((5, 3, 4), ((3, 3), (4, 4)), (5,)), ((5,), (3, 4))),
        (lambda f: f((), ((3, 3), (4, 4)), ((2, 3, 3), (4, 4))), ((2,), (3, 4))),
    ],
)
def test_shapes_are_inferred_from_shapes(call, expected):
    assert call(kx.KroneckerNormal.infer_shapes) == expected
    with_df = call(lambda *args, **kwargs: kx.KroneckerStudentT.infer_shapes((), *args, **kwargs))
    assert with_df == expected


def test_shapes_that_say_too_little_are_not_guessed():
    with pytest.raises(NotImplementedError, match=r"one shape \(\*batch, n, n\) per axis"):
        kx.KroneckerNormal.infer_shapes((3, 4), ())


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("sigma", [None, 1.0])
def test_the_sample_sizes_of_pymc(n, sigma):
    """The model of PyMC's own tests, KroneckerNormal with N = 3 axes; it has σ and flat events."""
    factors = tuple(np.eye(n) + 0.3 for _ in range(3))
    noise = None if sigma is None else sigma**2
    d = kx.KroneckerNormal(np.ones(n**3), factors, noise, flatten=True)
    key = jax.random.key(0)
    for shape in ((), (1,), (5,), (4, 5), (2, 4, 2)):
        drawn = jax.eval_shape(lambda shape=shape: d.sample(key, shape))
        assert drawn.shape == (*shape, n**3)
    dense = np.kron(np.kron(*factors[:2]), factors[2]) + (noise or 0) * np.eye(n**3)
    value = np.random.default_rng(0).normal(size=(4, 5, n**3))
    expected = scipy.stats.multivariate_normal(np.ones(n**3), dense).logpdf(value)
    assert_close(density(d, value), expected)


def test_two_cholesky_factors_are_numpyros_matrix_normal():
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(3, 4))
    row, column = (np.linalg.cholesky(np.eye(n) + 0.5) for n in (3, 4))
    ours = kx.KroneckerNormal(loc, scale_trils=(row, column))
    theirs = dist.MatrixNormal(loc, row, column)
    value = rng.normal(size=(5, 3, 4))
    assert_close(ours.log_prob(value), theirs.log_prob(value))
    assert_close(ours.mean, theirs.mean)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    key = jax.random.key(0)
    assert_close(ours.sample(key, (5,)), theirs.sample(key, (5,)))


@pytest.mark.parametrize("name", ["Cholesky factors", "precision factors", "variance", "t"])
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
