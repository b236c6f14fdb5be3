"""Grid GPs with many gaps and a noise variance per cell: by iterations, beside the exact path."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest

import kronax as kx
from tests.everyday import full

DAY, PLACE = np.arange(14.0), np.linspace(0, 1, 11) ** 2
GRID = (DAY.size, PLACE.size)
AHEAD = {"day": np.arange(12.0, 18.0)}
FEW = kx.Iteration(box_size=12, tolerance=1e-8)


def make_gp(gaps, noise=0.1, iteration=FEW, **options):
    return kx.GridGP(
        {"day": 1.5 * kx.Matern32(4.0), "place": kx.RBF(0.3)},
        {"day": DAY, "place": PLACE},
        noise=noise,
        gaps=gaps,
        iteration=iteration,
        **options,
    )


def draw_data(seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    y = np.array(make_gp("auto").sample(jax.random.key(seed), include_noise=True))
    y[rng.random(GRID) < share] = np.nan
    return y


Y = draw_data()
UNEVEN = 0.1 * np.exp(np.random.default_rng(1).normal(size=GRID))
UNEVEN[2, 3] = UNEVEN[5, 5] = np.inf
NOISES = {"even": 0.1, "uneven": UNEVEN}


def dense_parts(noise):
    """Prior covariance, noise variances and observed cells, all flat."""
    prior = make_gp("auto").covariance(include_noise=False).to_dense()
    levels = np.broadcast_to(noise, GRID).ravel()
    return np.asarray(prior), levels, np.isfinite(levels) & ~np.isnan(Y.ravel())


@pytest.fixture(scope="module", params=[full("even"), "uneven"])
def both(request):
    """The exact and the iterative posterior of the same data."""
    noise = NOISES[request.param]
    return tuple(make_gp(gaps, noise).condition(Y) for gaps in ("exact", "iterative"))


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_exact_uneven_noise_is_that_of_the_dense_matrix(noise):
    prior, levels, seen = dense_parts(noise)
    matrix = (prior + np.diag(np.where(seen, levels, 1)))[np.ix_(seen, seen)]
    y = Y.ravel()[seen]
    expected = -0.5 * (
        y @ np.linalg.solve(matrix, y)
        + np.linalg.slogdet(matrix)[1]
        + seen.sum() * np.log(2 * np.pi)
    )
    gp = make_gp("exact", noise)
    np.testing.assert_allclose(gp.log_marginal_likelihood(Y), expected, rtol=1e-11)
    post = gp.condition(Y)
    cross = prior[:, seen]
    mean = cross @ np.linalg.solve(matrix, y)
    variance = np.diag(prior - cross @ np.linalg.solve(matrix, cross.T))
    np.testing.assert_allclose(post.mean().ravel(), mean, atol=1e-10)
    np.testing.assert_allclose(post.variance().ravel(), variance, rtol=1e-9)


def test_likelihood_is_inside_its_error(both):
    exact, iterative = (post.gp for post in both)
    assert iterative.is_iterative
    assert not exact.is_iterative
    estimate = iterative.log_marginal_likelihood_estimate(Y)
    known = exact.log_marginal_likelihood(Y)
    assert abs(estimate.value - known) <= estimate.error < 1
    assert estimate.standard_error > 0
    assert estimate.num_steps > 1
    np.testing.assert_allclose(iterative.log_marginal_likelihood(Y), estimate.value)
    assert exact.log_marginal_likelihood_estimate(Y).error == 0


def test_posterior_means_agree(both):
    exact, iterative = both
    assert exact.estimate is None
    assert iterative.estimate.converged
    for axes in (None, AHEAD):
        np.testing.assert_allclose(iterative.mean(axes), exact.mean(axes), atol=1e-6)
    points = np.array([[3.5, 0.2], [20.0, 0.9]])
    np.testing.assert_allclose(iterative.mean(points=points), exact.mean(points=points), atol=1e-6)


def test_posterior_variances_are_inside_their_errors(both):
    exact, iterative = both
    for axes in (None, AHEAD):
        found, known = iterative.variance_estimate(axes), exact.variance(axes)
        assert np.mean(np.abs(found.value - known) <= found.error) >= 0.95
        assert np.median(found.standard_error / known) < 0.09  # plain draws: 0.18
        assert exact.variance_estimate(axes).error == 0
    points = np.array([[3.5, 0.2], [20.0, 0.9]])
    np.testing.assert_allclose(
        iterative.variance(points=points), exact.variance(points=points), rtol=1e-6
    )


def test_draws_have_the_moments_of_the_posterior(both):
    exact, iterative = both
    draws = iterative.sample(jax.random.key(3), AHEAD, sample_shape=(400,))
    known = exact.variance(AHEAD)
    z = (draws.mean(0) - exact.mean(AHEAD)) / np.sqrt(known / 400)
    assert np.abs(z).max() < 4.5
    ratio = draws.var(0) / known
    assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 400)
    noisy = iterative.sample(jax.random.key(4), include_noise=True)
    levels = np.broadcast_to(iterative.gp.noise_term(), GRID)
    np.testing.assert_array_equal(np.isnan(noisy), np.isinf(levels))


few_draws = pytest.mark.filterwarnings("ignore:Leave-one-out variances from 128 draws")


@few_draws
def test_leave_one_out_agrees(both):
    exact, iterative = (post.leave_one_out() for post in both)
    assert exact.variance_error is None
    error = np.abs(iterative.variance - exact.variance) / iterative.variance_error
    assert np.mean(error[~np.isnan(error)] < 3) > 0.95
    np.testing.assert_array_equal(np.isnan(iterative.mean), np.isnan(exact.mean))
    assert exact.mean_error is None
    off = np.abs(iterative.mean - exact.mean) - 1e-3 * np.abs(
        exact.error
    )  # solves have a tolerance
    off = off / iterative.mean_error
    assert np.mean(off[~np.isnan(off)] < 3) > 0.95
    assert abs(iterative.log_score - exact.log_score) < 0.1 * abs(exact.log_score)


def test_gradients_agree_and_second_ones_are_refused(both):
    exact, iterative = (post.gp for post in both)

    def value(gp, scale):
        kernel = dataclasses.replace(gp.kernels[0], lengthscale=4.0 * scale)
        return kx.replace(
            gp, {"kernels[0].lengthscale": kernel.lengthscale}
        ).log_marginal_likelihood(Y)

    known = jax.grad(lambda s: value(exact, s))(1.0)
    found = jax.grad(lambda s: value(iterative, s))(1.0)
    np.testing.assert_allclose(found, known, atol=0.3)
    steps = [value(iterative, 1 + h) for h in (1e-4, -1e-4)]
    # The gradient is that of the estimator itself up to what its probes leave.
    np.testing.assert_allclose((steps[0] - steps[1]) / 2e-4, found, atol=0.3)
    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(lambda s: value(iterative, s))), 1.0)


@pytest.mark.slow
def test_a_fit_by_iterations_ends_where_the_exact_one_does():
    exact, iterative = (
        kx.fit(make_gp(gaps, UNEVEN).initialise(Y), Y, num_steps=60)
        for gaps in ("exact", "iterative")
    )
    assert iterative.converged
    rows = {p.path: p.value for p in exact.parameters if p.trainable}
    errors = exact.laplace().standard_errors
    for p in iterative.parameters:
        if p.trainable:
            assert abs(p.value - rows[p.path]) < 0.3 * errors[p.path]
    assert exact.model.noise.scale != 1  # the common scale of the variances trains
    approximation = iterative.laplace()
    assert approximation.by_differences
    for path, error in errors.items():
        np.testing.assert_allclose(approximation.standard_errors[path], error, rtol=0.3)
    assert "±" in iterative.summary()
    assert "differences" in iterative.summary()


def test_infinite_variances_are_gaps():
    y = np.where(np.isinf(UNEVEN), 1e6, Y)  # what is there does not count
    gp = make_gp("exact", UNEVEN)
    assert gp.observed.array.sum() == Y.size - 2
    np.testing.assert_array_equal(gp.log_marginal_likelihood(y), gp.log_marginal_likelihood(Y))
    start = gp.initialise(y)
    np.testing.assert_allclose(start.variance, gp.initialise(Y).variance)
    assert np.isnan(gp.sample(jax.random.key(0), include_noise=True)).sum() == 2
    assert np.isinf(gp.condition(Y).variance(include_noise=True)).sum() == 2


def test_replaced_variances_count():
    gp = make_gp("exact", np.full(GRID, 0.1))
    moved = kx.replace(gp, {"noise.variances": UNEVEN})
    known = make_gp("exact", UNEVEN).log_marginal_likelihood(Y)
    np.testing.assert_allclose(moved.log_marginal_likelihood(Y), known)


def test_traced_variances_and_masks():
    known = make_gp("exact", UNEVEN).log_marginal_likelihood(Y)
    seen = jnp.nan_to_num(Y)
    variances = np.where(np.isnan(Y), np.inf, UNEVEN)

    @jax.jit
    def value(noise):
        return make_gp("iterative", noise, kx.Iteration()).log_marginal_likelihood(seen)

    np.testing.assert_allclose(value(variances), known, rtol=1e-6)
    exactly = jax.jit(lambda noise: make_gp("exact", noise).log_marginal_likelihood(seen))
    np.testing.assert_allclose(exactly(variances), known, rtol=1e-11)
    batched = jax.vmap(value)(jnp.stack([variances, 2 * variances]))
    np.testing.assert_allclose(batched[0], known, rtol=1e-6)


@few_draws
def test_low_noise_keeps_the_mean_to_a_share_of_its_deviation():
    """Signal over noise of 1e5: the error of `S⁻¹y` times a covariance would be many deviations."""
    rng = np.random.default_rng(5)
    noise = 1e-5 * np.exp(rng.normal(size=GRID))
    noise[rng.random(GRID) < 0.3] = np.inf
    exact = make_gp("exact", noise)
    y = np.array(exact.sample(jax.random.key(1), include_noise=True))
    post, iterative = (
        make_gp(gaps, noise, kx.Iteration(box_size=40)).condition(y)
        for gaps in ("exact", "iterative")
    )
    deviation = np.sqrt(post.variance())
    off = np.max(np.abs(iterative.mean() - post.mean()) / deviation)
    assert off <= iterative.estimate.error < 0.1
    draws = iterative.sample(jax.random.key(2), sample_shape=(50,))
    z = (draws - post.mean()[None]) / deviation[None]
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1
    left_out, known = iterative.leave_one_out(), post.leave_one_out()
    assert (left_out.variance[np.isfinite(noise)] > 0).all()
    z = (left_out.mean - known.mean) / np.sqrt(known.variance)
    assert np.nanmedian(np.abs(z)) < 0.3
    # Of the variances, the mean of squares stands in where the difference is the less certain.
    found = iterative.variance_estimate()
    assert (found.value > 0).all()
    assert np.mean(np.abs(found.value - post.variance()) <= found.error) >= 0.9


def test_what_did_not_converge_has_no_gradient():
    gp = make_gp("iterative", UNEVEN, kx.Iteration(max_steps=1, box_size=1))

    def value(scale):
        return kx.replace(gp, {"variance": scale}).log_marginal_likelihood(jnp.nan_to_num(Y))

    assert np.isnan(jax.jit(jax.grad(value))(1.5))
    with pytest.raises(kx.ConvergenceError, match="max_steps"):
        kx.fit(gp, Y, optimizer=optax.adam(0.1))


def test_nan_beyond_a_mask_that_was_given_is_refused():
    mask = np.ones(GRID, bool)
    mask[0, 0] = False
    with pytest.raises(ValueError, match="at all cells that `observed` marks"):
        make_gp("exact", UNEVEN, observed=mask).log_marginal_likelihood(Y)


def test_pictures_have_no_band_where_there_is_no_observation():
    mpl.use("agg")
    post = make_gp("exact", UNEVEN).condition(Y)
    assert kx.plot_series(post, "day", at={"place": PLACE[3]}) is not None


def test_a_batch_shares_one_solve():
    gp = make_gp("iterative", UNEVEN)
    both = gp.condition(np.stack([Y, 2 * Y]))
    np.testing.assert_allclose(both.mean()[1], 2 * gp.condition(Y).mean(), atol=1e-5)
    values = gp.log_marginal_likelihood(np.stack([Y, 2 * Y]))
    np.testing.assert_allclose(values[0], gp.log_marginal_likelihood(Y), rtol=1e-8)


def test_coefficients_are_integrated_out_by_iterations_too():
    mean = kx.MarginalMean(kx.LinearMean("day"))
    exact, iterative = (make_gp(gaps, UNEVEN, mean=mean) for gaps in ("exact", "iterative"))
    estimate = iterative.log_marginal_likelihood_estimate(Y)
    assert abs(estimate.value - exact.log_marginal_likelihood(Y)) <= estimate.error + 1e-6
    one, other = exact.condition(Y), iterative.condition(Y)
    np.testing.assert_allclose(
        other.regression.coefficients, one.regression.coefficients, rtol=1e-5
    )
    found = other.variance_estimate()
    assert np.mean(np.abs(found.value - one.variance()) <= found.error + 1e-9) >= 0.95


def test_appended_slices_bring_their_variances():
    ahead = make_gp("exact", UNEVEN).condition(Y).mean({"day": np.array([14.0, 15.0])})
    longer = np.concatenate([UNEVEN, np.full((2, GRID[1]), 0.2)])
    whole = kx.GridGP(
        {"day": 1.5 * kx.Matern32(4.0), "place": kx.RBF(0.3)},
        {"day": np.arange(16.0), "place": PLACE},
        noise=longer,
    )
    post = make_gp("exact", UNEVEN).condition(Y)
    with pytest.raises(ValueError, match="variance of its own at every cell"):
        post.append(ahead, axes={"day": np.array([14.0, 15.0])})
    found = post.append(ahead, axes={"day": np.array([14.0, 15.0])}, noise=0.2)
    known = whole.condition(np.concatenate([Y, ahead]))
    np.testing.assert_allclose(found.mean(), known.mean(), atol=1e-10)


def test_the_choice_is_described():
    few = make_gp("auto").observing(Y)
    assert "exact: " in few.describe()
    asked = make_gp("iterative").observing(Y)
    assert "iterative: " in asked.describe()
    assert "'iterative' was asked for" in asked.describe()
    large = kx.GridGP(
        (kx.RBF(3.0), kx.RBF(3.0)), (np.arange(300.0), np.arange(300.0)), noise=0.1
    ).observing(np.random.default_rng(0).random((300, 300)) < 0.8)
    assert large.is_iterative
    assert "exactly it would take" in large.describe()
    slab = np.ones(GRID, bool)
    slab[3:5] = slab[0, 0] = False
    assert "dropped exactly: 2 of day" in make_gp("auto").observing(slab).describe()


def test_what_does_not_converge_raises():
    hopeless = kx.Iteration(max_steps=1, box_size=1)
    gp = make_gp("iterative", UNEVEN, hopeless)
    for call in (gp.log_marginal_likelihood, gp.log_marginal_likelihood_estimate, gp.condition):
        with pytest.raises(kx.ConvergenceError, match="max_steps"):
            call(Y)
    assert np.isnan(jax.jit(gp.log_marginal_likelihood)(jnp.nan_to_num(Y)))
    flagged = make_gp("iterative", UNEVEN, dataclasses.replace(hopeless, on_failure="flag"))
    assert not flagged.log_marginal_likelihood_estimate(Y).converged
    post = flagged.condition(Y)
    assert not post.estimate.converged
    assert not post.variance_estimate().converged
    stopped = dataclasses.replace(post, gp=gp, operator=gp.observing(Y).data_covariance())
    for call in (stopped.variance, lambda: stopped.sample(jax.random.key(0))):
        with pytest.raises(kx.ConvergenceError, match="max_steps"):
            call()


def bad_noise(place, value):
    noise = np.ones(GRID)
    noise[place] = value
    return noise


BAD = {
    "zero": (
        lambda: make_gp("auto", bad_noise((1, 2), 0.0)),
        r"positive; got 0.0 at cell \(1, 2\)",
    ),
    "negative": (lambda: make_gp("auto", bad_noise((0, 0), -1.0)), "positive; got -1.0"),
    "NaN": (lambda: make_gp("auto", bad_noise((0, 0), np.nan)), "positive; got nan"),
    "shape": (lambda: make_gp("auto", np.ones(GRID[0])), "one per cell of the grid"),
    "all infinite": (lambda: make_gp("auto", np.full(GRID, np.inf)), "At least one cell"),
    "choice": (lambda: make_gp("dense"), "'auto', 'exact' or 'iterative'"),
    "new cells": (
        lambda: make_gp("exact", UNEVEN).condition(Y).variance(AHEAD, include_noise=True),
        "not defined at its new coordinates",
    ),
    "places": (
        lambda: (
            make_gp("exact", UNEVEN)
            .condition(Y)
            .variance(points=np.zeros((1, 2)), include_noise=True)
        ),
        "not defined at scattered points",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_iterations_cannot_do_is_refused():
    with pytest.raises(TypeError, match=r"kx\.Iteration"):
        make_gp("iterative", iteration="fast")
    post = make_gp("iterative", UNEVEN).condition(Y)
    for call in (post.diagnostics, lambda: post.leave_slice_out("day"), post.gp.numpyro_dist):
        with pytest.raises(NotImplementedError):
            call()
    correlated = kx.Kronecker(kx.Matern32(2.0)(DAY, DAY), jnp.eye(GRID[1]))
    gp = kx.GridGP((kx.RBF(3.0), kx.RBF(0.3)), (DAY, PLACE), noise=correlated, gaps="iterative")
    with pytest.raises(NotImplementedError, match="correlated"):
        gp.log_marginal_likelihood(Y)
    with pytest.raises(TypeError, match="KroneckerPlusDiagonal"):
        kx.Iterative(correlated)


def of_one_product(shape):
    return (kx.Matern32(0.3), kx.Matern32(0.3)), {"noise": np.full(shape, 0.1)}


def of_three_terms(_):
    first, second = kx.Matern32(0.3), kx.Matern12(0.5)
    pairs = {"a": (first, second), "b": (second, kx.Matern52(0.2)), "c": (first, first)}
    return None, {"noise": 0.1, "terms": pairs}


def of_a_filter(shape):
    observed = np.random.default_rng(0).random(shape) < 0.8
    return (kx.Matern32(0.3), kx.Matern32(0.3)), {
        "noise": 0.1,
        "observed": observed,
        "structure": ("markov", None),
    }


def described(make, shape, iteration):
    """The process, and the bytes that it says its iterations hold."""
    axes = tuple(np.linspace(0, 1, n) ** 1.1 for n in shape)
    kernels, options = make(shape)
    gp = kx.GridGP(kernels, axes, gaps="iterative", iteration=iteration, **options)
    (line,) = [line for line in gp.describe().splitlines() if "iterations do" in line]
    return gp, 1e9 * float(line.split()[-2])


@pytest.mark.parametrize(
    ("make", "shape", "num_probes", "planned"),
    [
        (of_one_product, (240, 320), 4, 14.4e6),
        (of_three_terms, (240, 320), 4, 41.9e6),
        (of_three_terms, (240, 320), 16, 86.3e6),
        (of_a_filter, (3000, 50), 4, 25.0e6),
        (of_a_filter, (3000, 50), 16, 79.0e6),
    ],
)
def test_a_description_says_what_iterations_hold(make, shape, num_probes, planned):
    """Beside the numbers that XLA plans for a value and gradient, of eight bytes each."""
    _, held = described(make, shape, kx.Iteration(num_probes=num_probes))
    assert 0.7 < held / (8 * planned) < 1.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [(of_one_product, (60, 80)), (of_three_terms, (60, 80)), (of_a_filter, (600, 20))],
)
def test_xla_plans_what_iterations_are_said_to_hold(make, shape):
    gp, held = described(make, shape, kx.Iteration(num_probes=8))
    value = jax.value_and_grad(lambda gp, y: gp.log_marginal_likelihood(y))
    plan = jax.jit(value).lower(gp, jnp.zeros(shape)).compile().memory_analysis()
    assert 0.67 < held / plan.temp_size_in_bytes < 1.5
