"""The normal distribution with missing cells is the dense one of its observed cells."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.util import initialize_model, log_density, log_likelihood

import kronax as kx
from tests.distributions.cases import AB, CASES, LOC, A, B, direction, value_of
from tests.everyday import everyday, full
from tests.programs import num_eigh
from tests.tolerances import assert_close

OBSERVED = np.ones(12, bool)
OBSERVED[[1, 6, 7, 11]] = False
MASK = OBSERVED.reshape(3, 4)
WITH_SLAB = OBSERVED & (np.arange(12) >= 4)  # on 3 × 4 cells: the first row is missing
Y = np.random.default_rng(0).normal(size=(3, 4))
GAPPED = np.where(MASK, Y, np.nan)
NOISY = AB + 0.1 * np.eye(12)
# One of each way to state a matrix; tests/linalg has gaps with every kind of factor.
EVERY = {
    "noise-free": full,
    "full noise": pytest.param,
    "Cholesky factors": full,
    "flat precision factors": full,
    "precision factors and noise": pytest.param,
    "three axes": pytest.param,
    "batched loc, noise and a factor": full,
}
FEW = ("flat precision factors", "batched factors")
few = pytest.mark.parametrize("name", FEW)
batched = pytest.mark.parametrize("name", everyday(FEW, ["batched factors"]))


def masked(case, cells=OBSERVED, **options):
    grid = case.make().grid_shape
    arguments = {**case.arguments, **options, "observed": cells.reshape(grid)}
    return kx.MaskedKroneckerNormal(**arguments)


def make(observed=MASK, **options):
    return kx.MaskedKroneckerNormal(LOC, (A, B), 0.1, observed=observed, **options)


def of_observed(frozen, cells=OBSERVED):
    return scipy.stats.multivariate_normal(frozen.mean[cells], frozen.cov[np.ix_(cells, cells)])


def dense_log_prob(value, loc=LOC, matrix=NOISY, cells=OBSERVED):
    loc = np.broadcast_to(loc, (3, 4)).ravel()
    part = scipy.stats.multivariate_normal(loc[cells], matrix[np.ix_(cells, cells)])
    return part.logpdf(value.ravel()[cells])


def log_prob(d, value):
    return d.log_prob(value)


density = jax.jit(log_prob)
density_and_entropy = jax.jit(lambda d, value: (d.log_prob(value), d.entropy()))
summaries = jax.jit(lambda d, key: (d.mean, d.variance, d.covariance_matrix, d.sample(key, (2,))))


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        *(case(name, OBSERVED) for name, case in EVERY.items()),
        full("variance", WITH_SLAB),
        ("batched factors", WITH_SLAB),
    ],
)
def test_the_density_is_that_of_the_observed_cells(name, cells):
    case = CASES[name]
    d = masked(case, cells)
    value = value_of(case, d)
    flat = value.reshape(*case.batch, 12)
    expected = case.each(lambda frozen, k: of_observed(frozen, cells).logpdf(flat[k][cells]))
    holed = np.where(cells, flat, np.nan).reshape(value.shape)
    found, entropy = density_and_entropy(d, holed)
    assert_close(found, expected)
    assert_close(entropy, case.each(lambda frozen, _: of_observed(frozen, cells).entropy()))


def test_without_gaps_it_is_the_plain_normal():
    whole = make(np.ones((3, 4), bool))
    plain = kx.KroneckerNormal(LOC, (A, B), 0.1)
    assert_close(whole.log_prob(Y), plain.log_prob(Y))
    assert_close(whole.entropy(), plain.entropy())


@few
def test_draws_and_moments_are_those_of_the_whole_grid(name):
    case = CASES[name]
    plain, d = case.make(), masked(case)
    key = jax.random.key(0)
    for one, other in zip(summaries(d, key), summaries(plain, key), strict=True):
        assert np.isfinite(one).all()
        assert_close(one, other)


def test_what_lies_at_the_gaps_is_ignored():
    function = jax.value_and_grad(make(validate_args=True).log_prob)
    compiled = jax.jit(function)
    precision = np.linalg.inv(NOISY[np.ix_(OBSERVED, OBSERVED)])
    calls = [(compiled, gap) for gap in (np.nan, np.inf, -np.inf, 1e300, 0.0)]
    for call, gap in [*calls, (function, np.nan)]:
        found, gradient = call(np.where(MASK, Y, gap))
        assert_close(found, dense_log_prob(Y))
        assert (np.asarray(gradient)[~MASK] == 0).all()
        assert_close(np.asarray(gradient)[MASK], -precision @ (Y - LOC)[MASK], order=1)


def test_derivatives_in_the_parameters_are_those_of_the_dense_density():
    """By NumPyro's dense normal; second derivatives are in tests/linalg."""
    x1, x2 = np.array([0.0, 0.3, 1.0]), np.array([0.0, 0.2, 0.5, 1.0])

    def factors(theta):
        return kx.RBF(theta[0])(x1, x1), kx.Matern32(theta[1])(x2, x2)

    def found(theta):
        d = kx.MaskedKroneckerNormal(theta[2] * LOC, factors(theta), theta[3], observed=MASK)
        return d.log_prob(GAPPED)

    def expected(theta):
        dense = jnp.kron(*factors(theta)) + theta[3] * jnp.eye(12)
        dense = dense[np.ix_(OBSERVED, OBSERVED)]
        return dist.MultivariateNormal(theta[2] * LOC[MASK], dense).log_prob(Y[MASK])

    theta = jnp.array([0.5, 0.8, 1.5, 0.2])
    values, gradients = zip(
        *(jax.jit(jax.value_and_grad(f))(theta) for f in (found, expected)), strict=True
    )
    assert_close(*values)
    assert_close(*gradients, order=1)


def test_a_gradient_decomposes_each_factor_once():
    start = {"noise": jnp.array(1.0), "shift": jnp.array(0.0)}
    potential = lambda values: -log_density(model, (GAPPED,), {}, values)[0]  # noqa: E731
    assert num_eigh(jax.value_and_grad(potential), start) == 2


def test_single_precision_stays_single():
    a, b, y = (m.astype(np.float32) for m in (A, B, GAPPED))
    d = kx.MaskedKroneckerNormal(0.5, (a, b), 0.1, observed=MASK)
    value, gradient = jax.jit(jax.value_and_grad(d.log_prob))(y)
    assert value.dtype == gradient.dtype == jnp.float32
    assert_close(value, dense_log_prob(Y, 0.5))
    assert np.isfinite(gradient).all()


@batched
def test_it_is_a_pytree_that_maps_and_becomes_a_batch(name):
    case = CASES[name]
    d = masked(case)
    leaves, tree = jax.tree.flatten(d)
    assert all(leaf.dtype != bool for leaf in leaves), "the mask is no leaf"
    assert tree == jax.tree.structure(masked(case))
    assert tree != jax.tree.structure(masked(case, WITH_SLAB))
    np.testing.assert_array_equal(jax.tree.unflatten(tree, leaves).observed, d.observed)
    value = value_of(case, d)
    twice = jax.tree.map(lambda leaf, t: np.stack([leaf, leaf + 0.01 * t]), d, direction(d))
    mapped = jax.jit(jax.vmap(log_prob, in_axes=(0, None)))(twice, value)
    assert_close(mapped[0], density(d, value))
    promoted = jax.jit(dist.batch_util.promote_batch_shape)(twice)
    assert promoted.batch_shape == (2, *case.batch)
    assert_close(density(promoted, value), mapped)
    axes = dist.batch_util.vmap_over(d, loc=0)
    lifted = jax.vmap(lambda loc: masked(case, loc=loc), out_axes=axes)(jnp.stack([d.loc, d.loc]))
    assert jax.tree.structure(lifted) == tree


@batched
def test_batches_expand_sum_and_are_masked(name):
    case = CASES[name]
    d = masked(case, validate_args=True)
    many = d.expand((3, *case.batch))
    assert (many.batch_shape, many.event_shape) == ((3, *case.batch), d.event_shape)
    value = np.random.default_rng(0).normal(size=many.shape())
    keep = np.array([True, False, True]).reshape(3, *(1,) * len(case.batch))
    holed = np.where(keep.reshape(*keep.shape, *(1,) * d.event_dim), value, np.nan)

    @jax.jit
    def densities(many, value, holed):
        kept, pull = jax.vjp(many.mask(keep).log_prob, holed)
        return many.log_prob(value), many.to_event(1).log_prob(value), kept, *pull(kept)

    each, joint, kept, gradient = densities(many, value, holed)
    assert_close(joint, np.asarray(each).sum(-1))
    assert_close(kept, np.where(keep, each, 0))  # the second events are missing as a whole
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"shape of the batch.*kx\.MaskedKroneckerNormal"):
        many.mask(np.ones(d.event_shape, bool))
    with pytest.warns(UserWarning, match="counts 3 times"):
        many.log_prob(np.zeros((*case.batch, *d.event_shape)))


def test_a_mask_over_the_cells_of_the_plain_normal_names_this_one():
    with pytest.raises(ValueError, match=r"kx\.MaskedKroneckerNormal\(\.\.\., observed=mask\)"):
        kx.KroneckerNormal(LOC, (A, B), 0.1).mask(MASK)


@pytest.mark.parametrize("cells", [MASK, OBSERVED], ids=["mask of the grid", "flat mask"])
def test_flat_events(cells):
    d = make(cells, flatten=True, validate_args=True)
    assert (d.event_shape, d.observed.shape) == ((12,), (3, 4))
    assert_close(d.log_prob(GAPPED.ravel()), dense_log_prob(Y))
    assert d.support(GAPPED.ravel())


def test_the_support_has_numbers_at_the_observed_cells():
    d = make()
    beyond = np.where(np.arange(12).reshape(3, 4) == 5, np.nan, GAPPED)
    assert d.support.event_dim == 2
    np.testing.assert_array_equal(
        d.support(np.stack([GAPPED, Y, beyond, np.where(MASK, np.inf, Y)])),
        [True, True, False, False],
    )
    assert d.support == make().support
    assert d.support != make(WITH_SLAB.reshape(3, 4)).support
    tree = jax.tree.structure(d.support)
    assert jax.tree.unflatten(tree, []) == d.support
    assert jax.jit(make(validate_args=True).log_prob)(beyond) == -np.inf  # for a sampler to see
    assert np.isnan(make(validate_args=False).log_prob(beyond))


def test_shapes_are_inferred_from_shapes():
    infer = kx.MaskedKroneckerNormal.infer_shapes
    assert infer((), ((3, 3), (2, 4, 4)), (), observed=(3, 4)) == ((2,), (3, 4))
    assert infer((5, 3, 4), scale_trils=((3, 3), (4, 4)), flatten=True) == ((5,), (12,))
    d = make(validate_args=True)
    assert set(d.get_args()) == set(d.arg_constraints)
    assert d.has_rsample


def model(y=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
    d = kx.MaskedKroneckerNormal(shift, (A, B), noise, observed=MASK)
    numpyro.sample("y", d, obs=y)


@jax.jit
def sampled(key, y):
    """The data are traced, as with `jit_model_args=True`."""
    mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=200, progress_bar=False)
    mcmc.run(key, y=y)
    return mcmc.get_samples()


def test_observed_under_nuts_it_gives_the_posterior():
    """Beside quadrature of the two-parameter posterior, with dense normals."""
    shifts, noises = np.linspace(-6, 6, 61), np.linspace(0.005, 4, 80)
    values, vectors = np.linalg.eigh(AB[np.ix_(OBSERVED, OBSERVED)])
    spectrum = values + noises[:, None]
    squares = np.square((Y[MASK] - shifts[:, None]) @ vectors)
    log_post = -0.5 * (squares @ (1 / spectrum).T + np.log(spectrum).sum(-1))
    log_post += scipy.stats.norm(0, 2).logpdf(shifts)[:, None]
    log_post += scipy.stats.halfnorm.logpdf(noises)
    weights = np.exp(log_post - log_post.max())
    weights /= weights.sum()
    with jax.numpy_dtype_promotion("standard"):
        found = sampled(jax.random.key(0), GAPPED)
    for name, grid, marginal in (
        ("shift", shifts, weights.sum(1)),
        ("noise", noises, weights.sum(0)),
    ):
        mean = grid @ marginal
        spread = np.sqrt((grid - mean) ** 2 @ marginal)
        draws = found[name]
        assert abs(draws.mean() - mean) < 0.3 * spread
        assert 0.7 < draws.std() / spread < 1.4


def test_other_data_run_with_the_same_mask():
    """Traced data, whose NaN is still ignored."""
    with jax.numpy_dtype_promotion("standard"):
        before, after = (sampled(jax.random.key(1), GAPPED + step)["shift"] for step in (0, 5))
    assert after.mean() > before.mean() + 1


def test_predictions_are_full_fields_and_likelihoods_of_the_observed_cells():
    shifts, noises = np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.4])
    draws = {"shift": jnp.asarray(shifts), "noise": jnp.asarray(noises)}
    fields = Predictive(model, draws)(jax.random.key(0))["y"]
    assert fields.shape == (3, 3, 4)
    assert np.isfinite(fields).all()
    expected = [
        dense_log_prob(Y, s, AB + v * np.eye(12)) for s, v in zip(shifts, noises, strict=True)
    ]
    found = jax.jit(lambda draws: log_likelihood(model, draws, y=GAPPED)["y"])(draws)
    assert_close(found, np.array(expected))


def test_variational_inference_sees_the_same_density():
    start = {"shift": 0.5, "noise": 0.3}

    @jax.jit
    def losses(key):
        guide = autoguide.AutoDelta(model, init_loc_fn=numpyro.infer.init_to_value(values=start))
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        first = svi.init(key, y=GAPPED)
        second, _ = svi.update(first, y=GAPPED)
        return svi.evaluate(first, y=GAPPED), svi.evaluate(second, y=GAPPED)

    with jax.numpy_dtype_promotion("standard"):
        loss, later = losses(jax.random.key(0))
    assert later < loss
    expected = dense_log_prob(Y, 0.5, AB + 0.3 * np.eye(12))
    expected += scipy.stats.norm(0, 2).logpdf(0.5) + scipy.stats.halfnorm.logpdf(0.3)
    assert_close(loss, -expected)


def test_replicates_in_a_plate_share_the_mask():
    def replicated(y):
        with numpyro.plate("replicates", 2), handlers.mask(mask=np.array([True, False])):
            numpyro.sample("y", make(), obs=y)

    y = np.stack([GAPPED, np.full((3, 4), np.nan)])
    value = jax.jit(lambda y: log_density(replicated, (y,), {}, {})[0])(y)
    assert_close(value, dense_log_prob(Y))


def test_samplers_refuse_data_with_more_gaps_than_the_mask():
    y = np.where(np.arange(12).reshape(3, 4) == 5, np.nan, GAPPED)
    mcmc = MCMC(NUTS(model), num_warmup=1, num_samples=1, jit_model_args=True, progress_bar=False)
    with pytest.raises(ValueError, match=r"got NaN in 1 of these 8 cells"):
        mcmc.run(jax.random.key(0), y=y)


def test_a_latent_site_with_gaps_is_refused():
    with pytest.raises(ValueError, match=r"must be observed.*at its 4 gaps.*kx\.KroneckerNormal"):
        initialize_model(jax.random.key(0), model)


def test_it_draws_in_a_prior_predictive_without_data():
    with warnings.catch_warnings(action="error"):
        drawn = jax.eval_shape(Predictive(model, num_samples=2), jax.random.key(0))
    assert drawn["y"].shape == (2, 3, 4)


@pytest.mark.parametrize("under_jit", [False, True], ids=["outside jit", "under jit"])
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: make(~np.ones((3, 4), bool)), ValueError, "one cell must be observed.*12 gaps"),
        (lambda: make(MASK.T), ValueError, r"shape of the grid, \(3, 4\); got \(4, 3\)"),
        (lambda: make(OBSERVED), ValueError, r"shape of the grid, \(3, 4\); got \(12,\)"),
        (lambda: make(np.stack([MASK, MASK])), ValueError, "One mask holds for a whole batch"),
        (lambda: make(MASK.astype(int)), TypeError, "must be boolean.*got dtype int64"),
        (lambda: make(GAPPED), TypeError, "must be boolean.*got dtype float64.*isnan"),
        (lambda: make(None), TypeError, "must be boolean"),
        (lambda: jax.jit(make)(MASK), TypeError, "must have concrete values.*traced.*Close over"),
        (lambda: kx.MaskedKroneckerNormal(LOC, (A, B), 0.1), TypeError, "observed"),
        (
            lambda: make().log_prob(np.where(np.roll(MASK, 1), GAPPED, np.nan)),
            ValueError,
            r"wherever `observed` is true; got NaN in 3 of these 8 cells.*~np\.isnan\(y\)",
        ),
        (lambda: make().log_prob(Y.T), ValueError, r"got shape \(4, 3\).*in another order"),
        (lambda: make().log_prob(Y.ravel()), ValueError, r"got shape \(12,\).*flatten=True"),
        (
            lambda: kx.MaskedKroneckerNormal(0.0, (A, -B), 0.1, observed=MASK).log_prob(Y),
            np.linalg.LinAlgError,
            "factor 1 of the signal must be positive semidefinite",
        ),
        (
            lambda: kx.MaskedKroneckerNormal(observed=MASK),
            TypeError,
            "MaskedKroneckerNormal needs exactly one of `factors`",
        ),
    ],
)
def test_bad_input_raises(call, error, match, under_jit):
    with pytest.raises(error, match=match):
        (jax.jit(call) if under_jit else call)()


def test_traced_factors_that_are_no_covariance_give_nan():
    def value(a):
        return kx.MaskedKroneckerNormal(0.0, (a, B), 0.1, observed=MASK).log_prob(GAPPED)

    assert np.isnan(jax.jit(value)(A - 5 * np.eye(3)))
