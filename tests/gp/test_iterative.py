"""Grid GPs with many gaps and a noise variance per cell: by iterations, beside matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import matern32, squared_exponential

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


POINTS = np.array([[3.5, 0.2], [20.0, 0.9]])


def signal(rows, columns, by_day=4.0, by_place=0.3, variance=1.5):
    """The covariance of the function between two lists of axes."""
    (day, place), (other_day, other_place) = rows, columns
    second = squared_exponential(place, other_place, by_place)
    return variance * np.kron(matern32(day, other_day, by_day), second)


class Dense:
    """The same as matrices, of the cells that were observed."""

    def __init__(self, noise, y=Y, *parameters):
        levels = np.broadcast_to(noise, GRID).ravel()
        self.seen = np.isfinite(levels) & ~np.isnan(y.ravel())
        self.y, self.levels = y.ravel()[self.seen], levels[self.seen]
        prior = signal((DAY, PLACE), (DAY, PLACE), *parameters)
        self.matrix = prior[np.ix_(self.seen, self.seen)] + np.diag(self.levels)
        self.inverse = np.linalg.inv(self.matrix)

    def log_likelihood(self):
        return scipy.stats.multivariate_normal(cov=self.matrix).logpdf(self.y)

    def posterior(self, day=DAY, place=PLACE):
        """Mean and variance on a grid, grid-shaped."""
        cross = signal((day, place), (DAY, PLACE))[:, self.seen]
        variance = 1.5 - np.sum(cross * np.linalg.solve(self.matrix, cross.T).T, axis=1)
        shape = (len(day), len(place))
        mean = cross @ np.linalg.solve(self.matrix, self.y)
        return mean.reshape(shape), variance.reshape(shape)

    def left_out(self):
        """Error and variance of every observed cell given the others."""
        variance = 1 / np.diagonal(self.inverse)
        return self.inverse @ self.y * variance, variance


@pytest.fixture(scope="module", params=[full("even"), "uneven"])
def both(request):
    """The posterior by iterations, and the matrices of the same data."""
    noise = NOISES[request.param]
    return Dense(noise), make_gp("iterative", noise).condition(Y)


@pytest.mark.parametrize("name", everyday(NOISES, ["uneven"]))
def test_exact_noise_is_that_of_the_dense_matrix(name):
    gp, dense = make_gp("exact", NOISES[name]), Dense(NOISES[name])
    assert not gp.is_iterative
    known = dense.log_likelihood()
    np.testing.assert_allclose(gp.log_marginal_likelihood(Y), known, rtol=1e-11)
    assert gp.log_marginal_likelihood_estimate(Y).error == 0
    post = gp.condition(Y)
    assert post.estimate is None
    mean, variance = dense.posterior()
    np.testing.assert_allclose(post.mean(), mean, atol=1e-10)
    found = post.variance_estimate()
    np.testing.assert_allclose(found.value, variance, rtol=1e-9)
    assert found.error == 0
    noisy = post.sample(jax.random.key(4), include_noise=True)
    levels = np.broadcast_to(gp.noise_term(), GRID)
    np.testing.assert_array_equal(np.isnan(noisy), np.isinf(levels))


def test_likelihood_is_inside_its_error(both):
    dense, iterative = both
    assert iterative.gp.is_iterative
    estimate = iterative.gp.log_marginal_likelihood_estimate(Y)
    assert abs(estimate.value - dense.log_likelihood()) <= estimate.error < 1
    assert estimate.standard_error > 0
    assert estimate.num_steps > 1


def test_posterior_means_agree(both):
    dense, iterative = both
    assert iterative.estimate.converged
    for axes in (None, AHEAD):
        known, _ = dense.posterior(**axes or {})
        np.testing.assert_allclose(iterative.mean(axes), known, atol=1e-6)
    known = [dense.posterior(p[:1], p[1:])[0].item() for p in POINTS]
    np.testing.assert_allclose(iterative.mean(points=POINTS), known, atol=1e-6)


def test_posterior_variances_are_inside_their_errors(both):
    dense, iterative = both
    found, (_, known) = iterative.variance_estimate(AHEAD), dense.posterior(**AHEAD)
    assert np.mean(np.abs(found.value - known) <= found.error) >= 0.95
    assert np.median(found.standard_error / known) < 0.09  # plain draws: 0.18
    known = [dense.posterior(p[:1], p[1:])[1].item() for p in POINTS]
    np.testing.assert_allclose(iterative.variance(points=POINTS), known, rtol=1e-6)


def test_draws_have_the_moments_of_the_posterior(both):
    dense, iterative = both
    draws = iterative.sample(jax.random.key(3), AHEAD, sample_shape=(400,))
    mean, known = dense.posterior(**AHEAD)
    z = (draws.mean(0) - mean) / np.sqrt(known / 400)
    assert np.abs(z).max() < 4.5
    ratio = draws.var(0) / known
    assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 400)


few_draws = pytest.mark.filterwarnings("ignore:Leave-one-out variances from 128 draws")


@few_draws
def test_leave_one_out_agrees(both):
    dense, iterative = both
    found, (error, variance) = iterative.leave_one_out(), dense.left_out()
    seen = dense.seen.reshape(GRID)
    np.testing.assert_array_equal(np.isnan(found.mean), ~seen)
    off = np.abs(found.variance[seen] - variance) / found.variance_error[seen]
    assert np.mean(off < 3) > 0.95
    off = np.abs(found.mean[seen] - (dense.y - error)) - 1e-3 * np.abs(error)
    off = off / found.mean_error[seen]  # solves have a tolerance
    assert np.mean(off < 3) > 0.95
    score = scipy.stats.norm.logpdf(error, scale=np.sqrt(variance)).sum()
    assert abs(found.log_score - score) < 0.1 * abs(score)


def test_gradients_agree_and_second_ones_are_refused():
    gp = make_gp("iterative", UNEVEN).observing(Y)

    def value(scale):
        return kx.replace(gp, {"kernels[0].lengthscale": 4.0 * scale}).log_marginal_likelihood(Y)

    def known(scale):
        return Dense(UNEVEN, Y, 4.0 * scale).log_likelihood()

    (same, found), *steps = map(jax.jit(jax.value_and_grad(value)), (1.0, 1.0001, 0.9999))
    np.testing.assert_allclose(same, gp.log_marginal_likelihood_estimate(Y).value)
    np.testing.assert_allclose(found, (known(1.0001) - known(0.9999)) / 2e-4, atol=0.3)
    # The gradient is that of the estimator itself up to what its probes leave.
    np.testing.assert_allclose((steps[0][0] - steps[1][0]) / 2e-4, found, atol=0.3)
    with pytest.raises(kx.DerivativeOrderError):
        jax.eval_shape(jax.grad(jax.grad(value)), 1.0)


@pytest.mark.slow
def test_a_fit_by_iterations_ends_at_the_maximum_of_the_dense_likelihood():
    result = kx.fit(make_gp("iterative", UNEVEN).initialise(Y), Y, num_steps=60)
    assert result.converged
    values = {p.path: float(p.value) for p in result.parameters if p.trainable}
    paths = [f"kernels[{i}].lengthscale" for i in (0, 1)] + ["variance", "noise.scale"]
    assert set(values) == set(paths)
    assert values["noise.scale"] != 1  # the common scale of the variances trains
    end = np.log([values[path] for path in paths])

    def negative(raw):
        *parameters, scale = np.exp(end + raw)
        return -Dense(scale * UNEVEN, Y, *parameters).log_likelihood()

    steps = 1e-3 * np.eye(4)
    slope = np.array([(negative(h) - negative(-h)) / 2e-3 for h in steps])
    bend = [[negative(h + k) - negative(h - k) for k in steps] for h in steps]
    bend -= np.array([[negative(k - h) - negative(-h - k) for k in steps] for h in steps])
    covariance = np.linalg.inv(bend / 4e-6)
    errors = np.sqrt(np.diagonal(covariance))
    assert np.all(np.abs(covariance @ slope) < 0.3 * errors)
    approximation = result.laplace()
    assert approximation.by_differences
    for path, error in zip(paths, errors, strict=True):
        known = values[path] * error
        np.testing.assert_allclose(approximation.standard_errors[path], known, rtol=0.3)
    assert "±" in result.summary()
    assert "differences" in result.summary()


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
    known = Dense(UNEVEN).log_likelihood()
    np.testing.assert_allclose(moved.log_marginal_likelihood(Y), known)


def test_traced_variances_and_masks():
    known = Dense(UNEVEN).log_likelihood()
    seen = jnp.nan_to_num(Y)
    variances = np.where(np.isnan(Y), np.inf, UNEVEN)

    def value(noise):
        return make_gp("iterative", noise, kx.Iteration()).log_marginal_likelihood(seen)

    batched = jax.jit(jax.vmap(value))(jnp.stack([variances, 2 * variances]))
    np.testing.assert_allclose(batched[0], known, rtol=1e-6)
    exactly = jax.jit(lambda noise: make_gp("exact", noise).log_marginal_likelihood(seen))
    np.testing.assert_allclose(exactly(variances), known, rtol=1e-11)


@few_draws
def test_low_noise_keeps_the_mean_to_a_share_of_its_deviation():
    """Signal over noise of 1e5: the error of `S⁻¹y` times a covariance would be many deviations."""
    rng = np.random.default_rng(5)
    noise = 1e-5 * np.exp(rng.normal(size=GRID))
    noise[rng.random(GRID) < 0.3] = np.inf
    exact = make_gp("exact", noise)
    y = np.array(exact.sample(jax.random.key(1), include_noise=True))
    dense = Dense(noise, y)
    iterative = make_gp("iterative", noise, kx.Iteration(box_size=40)).condition(y)
    mean, variance = dense.posterior()
    off = np.max(np.abs(iterative.mean() - mean) / np.sqrt(variance))
    assert off <= iterative.estimate.error < 0.1
    draws = np.asarray(iterative.sample(jax.random.key(2), sample_shape=(50,)))
    z = (draws - mean) / np.sqrt(variance)
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1
    left_out, (error, known) = iterative.leave_one_out(), dense.left_out()
    seen = dense.seen.reshape(GRID)
    assert (left_out.variance[seen] > 0).all()
    z = (left_out.mean[seen] - (dense.y - error)) / np.sqrt(known)
    assert np.median(np.abs(z)) < 0.3
    # Of the variances, the mean of squares stands in where the difference is the less certain.
    found = iterative.variance_estimate()
    assert (found.value > 0).all()
    assert np.mean(np.abs(found.value - variance) <= found.error) >= 0.9


HOPELESS = kx.Iteration(max_steps=1, box_size=1)


def test_what_did_not_converge_has_no_gradient():
    gp = make_gp("iterative", UNEVEN, HOPELESS)

    def value(scale):
        return kx.replace(gp, {"variance": scale}).log_marginal_likelihood(jnp.nan_to_num(Y))

    assert np.isnan(jax.jit(jax.value_and_grad(value))(1.5)).all()
    with pytest.raises(kx.ConvergenceError, match="max_steps"):
        kx.fit(gp, Y, freeze=("kernels", "noise"), optimizer=optax.adam(0.1))


def test_nan_beyond_a_mask_that_was_given_is_refused():
    mask = np.ones(GRID, bool)
    mask[0, 0] = False
    with pytest.raises(ValueError, match="at all cells that `observed` marks"):
        make_gp("exact", UNEVEN, observed=mask).log_marginal_likelihood(Y)


def test_pictures_have_no_band_where_there_is_no_observation():
    mpl.use("agg")
    post = make_gp("exact", UNEVEN).condition(Y)
    assert kx.plot_series(post, "day", at={"place": PLACE[3]}) is not None


def test_coefficients_of_a_batch_are_integrated_out_in_one_solve():
    gp = make_gp("iterative", UNEVEN, mean=kx.MarginalMean(kx.LinearMean("day")))
    dense = Dense(UNEVEN)
    matrix, prior = dense.matrix, signal((DAY, PLACE), (DAY, PLACE))
    cross = prior[:, dense.seen]
    centred = DAY - DAY.mean()
    whole = np.stack([np.ones(Y.size), np.repeat(centred, GRID[1])], axis=1)
    design, both = whole[dense.seen], np.stack([Y, 2 * Y])
    precision = design.T @ np.linalg.solve(matrix, design)
    y = both.reshape(2, -1)[:, dense.seen]
    coefficients = np.linalg.solve(precision, design.T @ np.linalg.solve(matrix, y.T)).T
    residual = y - coefficients @ design.T
    likelihood = scipy.stats.multivariate_normal(cov=matrix).logpdf(residual)
    # The slope is a coefficient of the days within their half width.
    unit = 2 * np.log(centred[-1])
    likelihood += np.log(2 * np.pi) - (np.linalg.slogdet(precision)[1] - unit) / 2
    estimate = gp.log_marginal_likelihood_estimate(both)
    assert np.all(np.abs(estimate.value - likelihood) <= estimate.error + 1e-6)
    post = gp.condition(both)
    np.testing.assert_allclose(post.regression.coefficients, coefficients, rtol=1e-5)
    mean = coefficients @ whole.T + residual @ np.linalg.solve(matrix, cross.T)
    np.testing.assert_allclose(post.mean(), mean.reshape(both.shape), atol=1e-5)
    left = whole - cross @ np.linalg.solve(matrix, design)
    variance = np.diag(prior - cross @ np.linalg.solve(matrix, cross.T))
    variance = variance + np.sum(left * np.linalg.solve(precision, left.T).T, axis=1)
    found = post.variance_estimate()
    assert np.mean(np.abs(found.value.ravel() - variance) <= found.error.ravel() + 1e-9) >= 0.95


def test_appended_slices_bring_their_variances():
    days, post = np.array([14.0, 15.0]), make_gp("exact", UNEVEN).condition(Y)
    dense = Dense(UNEVEN)
    ahead, _ = dense.posterior(days)
    with pytest.raises(ValueError, match="variance of its own at every cell"):
        post.append(ahead + 0.1, axes={"day": days})
    found = post.append(ahead + 0.1, axes={"day": days}, noise=0.2)
    axes = (np.arange(16.0), PLACE)
    seen = np.concatenate([dense.seen, np.ones(ahead.size, bool)])
    levels, y = np.append(dense.levels, np.full(ahead.size, 0.2)), np.append(dense.y, ahead + 0.1)
    prior = signal(axes, axes)
    known = prior[:, seen] @ np.linalg.solve(prior[np.ix_(seen, seen)] + np.diag(levels), y)
    np.testing.assert_allclose(found.mean().ravel(), known, atol=1e-10)


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


NOT_SETTLED = {
    "likelihood": lambda gp: gp.log_marginal_likelihood(Y),
    "estimate": lambda gp: gp.log_marginal_likelihood_estimate(Y),
    "condition": lambda gp: gp.condition(Y),
    "variance": lambda gp: stopped(gp).variance(),
    "draws": lambda gp: stopped(gp).sample(jax.random.key(0)),
}


def flagged():
    return make_gp("iterative", UNEVEN, dataclasses.replace(HOPELESS, on_failure="flag"))


def stopped(gp):
    """A posterior whose own solves will not converge."""
    operator = gp.observing(Y).data_covariance()
    return dataclasses.replace(flagged().condition(Y), gp=gp, operator=operator)


@pytest.mark.parametrize("name", everyday(NOT_SETTLED, ["estimate"]))
def test_what_does_not_converge_raises(name):
    with pytest.raises(kx.ConvergenceError, match="max_steps"):
        NOT_SETTLED[name](make_gp("iterative", UNEVEN, HOPELESS))


def test_what_does_not_converge_may_be_flagged():
    assert not flagged().log_marginal_likelihood_estimate(Y).converged
    post = flagged().condition(Y)
    assert not post.estimate.converged
    assert not post.variance_estimate().converged


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
    everyday(
        [(of_one_product, (60, 80)), (of_three_terms, (60, 80)), (of_a_filter, (600, 20))],
        [(of_a_filter, (600, 20))],
    ),
)
def test_xla_plans_what_iterations_are_said_to_hold(make, shape):
    gp, held = described(make, shape, kx.Iteration(num_probes=8))
    value = jax.value_and_grad(lambda gp, y: gp.log_marginal_likelihood(y))
    plan = jax.jit(value).lower(gp, jnp.zeros(shape)).compile().memory_analysis()
    assert 0.67 < held / plan.temp_size_in_bytes < 1.5
