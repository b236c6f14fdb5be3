"""Data with missing cells: everything as of the dense process at the cells that are there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import kronax as kx
from kronax.gp.model import solver_choice
from tests.everyday import everyday, full
from tests.gp.dense import matern52, squared_exponential
from tests.gp.orders import three_orders

X, Z = np.linspace(0, 1, 7), np.linspace(0, 2, 5)
NEW = np.array([0.13, 1.4])
NOISE, SHIFT = 0.2, 0.3
LAND = np.zeros((7, 5), bool)
LAND[:, [1, 3]] = True
# Scattered gaps; a whole slab besides; and gaps that are the same along an axis.
MASKS = {
    "scattered": np.random.default_rng(0).random((7, 5)) < 0.3,
    "slab": (np.random.default_rng(1).random((7, 5)) < 0.2) | (np.arange(7) == 2)[:, None],
    "shared": LAND,
    "one left": np.arange(35).reshape(7, 5) != 11,
}


def process(**options):
    kernels = kx.Matern52(0.4), 2.0 * kx.RBF(0.7)
    return kx.GridGP(kernels, (X, Z), **{"noise": NOISE, "mean": SHIFT, **options})


SIGNAL = 2 * np.kron(matern52(X, X, 0.4), squared_exponential(Z, Z, 0.7))
ROOT = np.linalg.cholesky(SIGNAL + NOISE * np.eye(35))


def holed(mask, lead=()):
    y = SHIFT + np.random.default_rng(2).normal(size=(*lead, 35)) @ ROOT.T
    y = y.reshape(*lead, 7, 5)
    y[..., mask] = np.nan
    return y


class Dense:
    """The same from whole matrices."""

    def __init__(self, mask):
        self.seen = np.flatnonzero(~mask.ravel())
        self.signal = SIGNAL
        self.data = (self.signal + NOISE * np.eye(35))[np.ix_(self.seen, self.seen)]

    def residual(self, y):
        return y.ravel()[self.seen] - SHIFT

    def predicted(self, y, rows, prior):
        cross = rows[:, self.seen]
        mean = SHIFT + cross @ np.linalg.solve(self.data, self.residual(y))
        return mean, prior - cross @ np.linalg.solve(self.data, cross.T)


def close(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(np.ravel(actual), np.ravel(expected), rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("name", everyday(MASKS, ["shared"]))
def test_the_likelihood_is_that_of_the_observed_cells(name):
    y, dense = holed(MASKS[name]), Dense(MASKS[name])
    exact = scipy.stats.multivariate_normal(cov=dense.data).logpdf(dense.residual(y))
    close(process().log_marginal_likelihood(y), exact)
    scaled = jax.jit(lambda v: kx.replace(process(), {"noise": v}).log_marginal_likelihood(y))
    close(scaled(NOISE), exact)
    told = process(observed=~MASKS[name])
    close(jax.jit(told.log_marginal_likelihood)(np.nan_to_num(y, nan=7.0)), exact)


@pytest.mark.parametrize("name", everyday(MASKS, ["slab"]))
def test_predictions_are_dense_ones(name):
    y, dense = holed(MASKS[name]), Dense(MASKS[name])
    post = process().condition(y)
    mean, covariance = dense.predicted(y, dense.signal, dense.signal)
    close(post.mean(), mean)
    close(post.variance(), np.diag(covariance))
    close(post.variance(include_noise=True), np.diag(covariance) + NOISE)
    rows = 2 * np.kron(matern52(NEW, X, 0.4), squared_exponential(Z, Z, 0.7))
    prior = 2 * np.kron(matern52(NEW, NEW, 0.4), squared_exponential(Z, Z, 0.7))
    mean, covariance = dense.predicted(y, rows, prior)
    close(post.mean((NEW, None)), mean)
    close(post.variance((NEW, None)), np.diag(covariance))
    close(post.covariance((NEW, None)).to_dense(), covariance)


def test_a_gap_is_less_certain_than_its_observed_neighbours():
    mask = MASKS["scattered"]
    variance = np.asarray(process().condition(holed(mask)).variance())
    full = np.asarray(process().condition(holed(np.zeros((7, 5), bool))).variance())
    assert (variance[mask] > 1.2 * full[mask]).all()
    assert (variance >= full - 1e-12).all()


def test_scattered_points_and_draws():
    mask = MASKS["scattered"]
    y, dense = holed(mask), Dense(mask)
    post = process().condition(y)
    points = np.stack([X[[0, 3]], Z[[4, 1]]], axis=1)
    mean, covariance = dense.predicted(y, dense.signal, dense.signal)
    at = [4, 16]
    close(post.mean(points=points), mean[at])
    close(post.variance(points=points), np.diag(covariance)[at])
    draws = np.asarray(post.sample(jax.random.key(1), sample_shape=(3000,))).reshape(3000, 35)
    error = np.sqrt(np.diag(covariance) / 3000)
    assert (np.abs(draws.mean(0) - mean) < 5 * error + 1e-9).all()
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.1)


def test_gradients_and_hessians_are_dense_ones():
    mask = MASKS["scattered"]
    y, dense = holed(mask), Dense(mask)
    residual, cells = dense.residual(y), np.ix_(dense.seen, dense.seen)

    def exact(raw):
        """The gradient, from the derivatives of the covariance in its logarithms."""
        first, second, noise = np.exp(raw)
        r, s = np.sqrt(5) * np.abs(X[:, None] - X) / first, np.abs(Z[:, None] - Z) / second
        along, across = matern52(X, X, first), squared_exponential(Z, Z, second)
        slopes = (
            2 * np.kron(r**2 * (1 + r) * np.exp(-r) / 3, across),
            2 * np.kron(along, s**2 * across),
            noise * np.eye(35),
        )
        inverse = np.linalg.inv((2 * np.kron(along, across) + noise * np.eye(35))[cells])
        weights = inverse @ residual
        by_data = (np.outer(weights, weights) - inverse) / 2
        return np.array([np.sum(by_data * slope[cells]) for slope in slopes])

    def ours(raw):
        first, second, noise = jnp.exp(raw)
        kernels = kx.Matern52(first), 2.0 * kx.RBF(second)
        gp = kx.GridGP(kernels, (X, Z), noise, SHIFT, observed=~mask)
        return gp.log_marginal_likelihood(jnp.nan_to_num(jnp.asarray(y)))

    raw, steps = np.log(np.array([0.4, 0.7, NOISE])), 1e-4 * np.eye(3)
    _, slope, bend = three_orders(ours, raw)
    close(slope, exact(raw))
    # Differences of fourth order.
    by = [8 * (exact(raw + h) - exact(raw - h)) for h in steps]
    by = [one - exact(raw + 2 * h) + exact(raw - 2 * h) for one, h in zip(by, steps, strict=True)]
    close(bend, np.array(by) / 12e-4, rtol=1e-6)


def test_leave_one_out_is_of_the_observed_cells():
    mask = MASKS["scattered"]
    y, dense = holed(mask), Dense(mask)
    found = process().condition(y).leave_one_out()
    inverse = np.linalg.inv(dense.data)
    close(np.asarray(found.variance)[~mask], 1 / np.diag(inverse))
    error = inverse @ dense.residual(y) / np.diag(inverse)
    close(np.asarray(found.error)[~mask], error)
    assert np.isnan(np.asarray(found.mean)[mask]).all()
    assert float(found.rmse) == pytest.approx(np.sqrt(np.mean(error**2)))
    assert 0.5 < float(found.coverage(0.95)) <= 1
    assert all(not mask[one.index] for one in found.outliers(number=3))
    scores = scipy.stats.norm.logpdf(error, scale=np.sqrt(1 / np.diag(inverse)))
    table = kx.compare({"a": process()}, y)
    assert table["a"].loo == pytest.approx(scores.sum())


def test_a_marginal_mean_is_estimated_from_the_observed_cells():
    mask = MASKS["scattered"]
    y, dense = holed(mask), Dense(mask)
    gp = process(mean=kx.MarginalMean(kx.LinearMean(0)))
    design = np.stack([np.ones(35), np.repeat(2 * X - 1, 5)], axis=1)[dense.seen]
    precision = design.T @ np.linalg.solve(dense.data, design)
    data = y.ravel()[dense.seen]
    estimate = np.linalg.solve(precision, design.T @ np.linalg.solve(dense.data, data))
    post = gp.condition(y)
    close(post.regression.coefficients, estimate * np.array([1, 2]))  # the slope per unit of X
    value = scipy.stats.multivariate_normal(cov=dense.data).logpdf(data - design @ estimate)
    value += np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    close(gp.log_marginal_likelihood(y), value)


@pytest.mark.parametrize("several", [False, full(True)])
def test_fits_take_gaps_and_give_back_a_model_of_any_data(several):
    mask = MASKS["scattered"]
    y = holed(mask)
    if several:
        batch, begin = holed(mask, (2,)), process().initialise(y)
        each = kx.fit(begin, batch, independent=True, progress=False)
        alone = kx.fit(begin, batch[1], progress=False)
        assert each[1].loss == pytest.approx(alone.loss, abs=1e-6)
        return
    result = kx.fit(process().initialise(y), y, progress=False)
    assert result.converged
    assert result.model.observed is None
    start = process(observed=~mask).initialise(
        np.nan_to_num(y, nan=99.0) * np.where(mask, np.nan, 1)
    )
    told = kx.fit(start, y, progress=False)
    assert told.loss == pytest.approx(result.loss, abs=1e-5)


def test_batches_share_their_gaps():
    y = holed(MASKS["scattered"], (3,))
    values = process().log_marginal_likelihood(y)
    close(values[2], process().log_marginal_likelihood(y[2]))
    assert process().condition(y).mean().shape == (3, 7, 5)
    y[1, 0, 0] = np.nan if not np.isnan(y[1, 0, 0]) else 0.0
    with pytest.raises(ValueError, match="number 0 and number 1 differ"):
        process().condition(y)


def test_appended_slices_may_have_gaps():
    y = holed(MASKS["scattered"])
    ahead = np.where(np.arange(5) > 3, np.nan, 1.0)[None]
    longer = process().condition(y).append(ahead, {0: np.array([1.2])})
    scratch = kx.GridGP(
        (kx.Matern52(0.4), 2.0 * kx.RBF(0.7)), (np.append(X, 1.2), Z), NOISE, SHIFT
    ).condition(np.concatenate([y, ahead]))
    close(longer.mean(), scratch.mean())
    close(longer.variance(), scratch.variance())


def test_variances_have_first_derivatives():
    mask, y = MASKS["scattered"], holed(MASKS["scattered"])

    def total(scale):
        gp = eqx.tree_at(lambda gp: gp.kernels[0].lengthscale, process(observed=~mask), scale)
        return jnp.sum(gp.condition(jnp.asarray(np.nan_to_num(y))).variance())

    found, step = jax.jit(jax.value_and_grad(total)), 1e-5
    slope = (found(0.4 + step)[0] - found(0.4 - step)[0]) / (2 * step)
    assert float(found(0.4)[1]) == pytest.approx(float(slope), rel=1e-6)


def test_float32_stays_float32():
    y = holed(MASKS["scattered"]).astype("float32")
    kernels = kx.Matern52(np.float32(0.4)), np.float32(2.0) * kx.RBF(np.float32(0.7))
    gp = kx.GridGP(kernels, (X, Z), noise=np.float32(NOISE), mean=np.float32(SHIFT))
    value = gp.log_marginal_likelihood(y)
    assert value.dtype == np.float32
    close(value, process().log_marginal_likelihood(y.astype(float)), rtol=1e-4)


def test_the_numpyro_distribution_knows_the_gaps():
    mask = MASKS["scattered"]
    y = holed(mask)
    told = process(observed=~mask)
    density = jax.jit(told.numpyro_dist().log_prob)(jnp.asarray(y))
    close(density, process().log_marginal_likelihood(y))
    assert told.numpyro_dist(flatten=True).event_shape == (35,)


def test_it_says_what_is_missing_and_how_it_is_handled():
    post = process().condition(holed(LAND))
    assert "14 cells missing (40%)\n" in repr(post)
    assert "\n  whole slices missing, dropped exactly: 2 of axis 1\n" in repr(post)
    assert "\n  exact: every gap lies in a whole missing slab" in repr(post)


# Each of these compares with dense matrices, or with the process on the longer grid.
CHECKS = {
    "predictions": lambda: test_predictions_are_dense_ones("scattered"),
    "points": test_scattered_points_and_draws,
    "leave one out": test_leave_one_out_is_of_the_observed_cells,
    "append": test_appended_slices_may_have_gaps,
    "fits": lambda: [
        test_fits_take_gaps_and_give_back_a_model_of_any_data(several) for several in (False, True)
    ],
    "batches": test_batches_share_their_gaps,
}


@pytest.mark.parametrize("name", everyday(CHECKS, ["leave one out"]))
def test_a_filter_that_nobody_asked_for_answers_the_same(name, monkeypatch):
    monkeypatch.setattr(solver_choice, "TO_SWITCH", 0.0)
    post = process().condition(holed(MASKS["scattered"]))
    assert [s.kind for s in post.gp.structures] == ["markov", "dense"]
    CHECKS[name]()


@pytest.mark.parametrize("name", everyday(["scattered", "slab"], ["slab"]))
def test_a_term_that_is_white_on_an_axis_has_a_variance(name, monkeypatch):
    monkeypatch.setattr(solver_choice, "dense_cost", lambda count: (1e12, 1e6))
    mask, across = MASKS[name], kx.RBF(0.7)
    terms = {"slow": (kx.Matern52(0.4), across), "white": (0.5 * kx.White(1.0), across)}
    post = kx.GridGP(terms=terms, axes=(X, Z), noise=NOISE).condition(holed(mask))
    places, seen = squared_exponential(Z, Z, 0.7), ~mask.ravel()
    white = np.kron(0.5 * np.eye(7), places)
    whole = white + np.kron(matern52(X, X, 0.4), places) + NOISE * np.eye(35)
    explained = np.linalg.solve(whole[np.ix_(seen, seen)], white[seen])
    close(post.terms["white"].variance(), np.diag(white - white[:, seen] @ explained))


def blocks(size, shape):
    seen = np.ones(shape, bool)
    seen[size : 4 * size, size : 3 * size] = seen[-2 * size :, : 2 * size] = False
    return seen


def kinds(gp):
    return [structure.kind for structure in gp.structures]


def test_the_gaps_decide_whether_an_axis_is_filtered():
    x, blocked = np.linspace(0, 1, 96), blocks(24, (96, 96))

    def made(first=kx.Matern32(0.3), second=kx.Matern52(0.3), noise=0.1, **options):  # noqa: B008
        return kx.GridGP({"a": first, "b": second}, {"a": x, "b": x}, noise=noise, **options)

    own, gp = ["toeplitz", "toeplitz"], made().observing(blocked)
    assert kinds(made()) == own
    assert kinds(gp) == ["markov", "toeplitz"]  # the shorter state
    assert "exact: a filter of 96 places along a Markov axis of 96; structured" in gp.describe()
    assert kinds(gp.observing(np.ones((96, 96), bool))) == own
    assert kinds(made().observing(blocks(2, (96, 96)))) == own  # few gaps
    assert kinds(made(gaps="iterative").observing(blocked)) == own
    asked = made(structure={"a": "dense"}).observing(blocked)
    assert kinds(asked) == ["dense", "markov"]
    assert kinds(made(kx.RBF(0.3), kx.RBF(0.3)).observing(blocked)) == own
    assert kinds(made(kx.RBF(0.3)).observing(blocked)) == ["toeplitz", "markov"]
    # A dense matrix of all cells is what a variance per cell would take.
    assert kinds(made(noise=np.where(blocked, 0.1, np.inf))) == ["markov", "toeplitz"]
    assert made(kx.SHO(0.3, 2.0)).observing(blocked).structures[0].kind == "markov"


def test_a_filter_stands_in_for_iterations():
    x = np.linspace(0, 1, 200)
    gp = kx.GridGP((kx.Matern32(0.3), kx.Matern32(0.3)), (x, x), noise=0.1)
    gp = gp.observing(blocks(50, (200, 200)))
    planned = solver_choice.choice(gp)
    assert (planned.way, planned.exact.way) == ("iterative", "markov")
    assert kinds(gp) == ["toeplitz", "toeplitz"]
    measured = gp.solved_by(planned.exact)
    assert kinds(measured) == ["markov", "toeplitz"]
    assert kinds(measured.solved_by(None)) == ["toeplitz", "toeplitz"]


class Wrong(kx.Kernel):
    """A state space that is another kernel's."""

    lengthscale: float = eqx.field(static=True)
    stationary = True

    def evaluate(self, x, z):
        return kx.Matern32(self.lengthscale).evaluate(x, z)

    def state_space(self, gaps):
        return kx.Matern12(self.lengthscale).state_space(gaps)


def test_a_state_space_that_is_wrong_is_found_when_it_is_chosen():
    x = np.linspace(0, 1, 96)
    gp = kx.GridGP((Wrong(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
    with pytest.raises(ValueError, match="covariance of axis 0 is not markov"):
        gp.observing(blocks(24, (96, 96)))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: process().condition(np.full((7, 5), np.nan)), ValueError, "NaN in all 35"),
        (lambda: process().condition(np.full((7, 5), np.inf)), ValueError, "35 infinite values"),
        (lambda: process(observed=np.ones((5, 7), bool)), ValueError, r"\(7, 5\); got \(5, 7\)"),
        (lambda: process(observed=np.ones((7, 5))), TypeError, "boolean"),
        (
            lambda: process(observed=~LAND).condition(holed(MASKS["scattered"])),
            ValueError,
            "at all cells that `observed` marks; got NaN",
        ),
        (
            lambda: process().condition(holed(LAND)).leave_slice_out(0),
            NotImplementedError,
            "got 14 missing of 35",
        ),
        (
            lambda: process().condition(holed(LAND)).diagnostics(),
            NotImplementedError,
            "Decorrelated residuals are not available",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


KERNELS = kx.Matern52(0.4), kx.RBF(0.7)
UNKNOWN = "value at every cell .*observed=mask"
WAYS = {
    "no gaps": {},
    "gaps": {"observed": ~MASKS["scattered"]},
    "slices apart": {"observed": ~MASKS["scattered"], "kernels": (kx.Matern52(0.4), kx.White())},
    "iterations": {"observed": ~MASKS["scattered"], "gaps": "iterative"},
    "a filter": {"observed": ~MASKS["scattered"], "structure": ("markov", None)},
    "counts": {"observed": ~MASKS["scattered"], "noise": None, "likelihood": kx.Poisson()},
}


@pytest.mark.parametrize("way", everyday(WAYS, ["no gaps", "slices apart"]))
def test_a_traced_gap_that_the_model_does_not_know_is_nan_and_explained(way):
    gp = kx.GridGP(**{"kernels": KERNELS, "axes": (X, Z), "noise": NOISE, **WAYS[way]})
    y = np.round(np.abs(np.nan_to_num(holed(MASKS["scattered"]))))
    beyond = y.copy()
    beyond[tuple(np.argwhere(~MASKS["scattered"])[0])] = np.nan

    def everything(v):
        post = gp.condition(v)
        results = gp.log_marginal_likelihood(v), post.mean(), post.variance()
        return results, post

    program = jax.jit(everything)
    assert "callback" not in program.lower(y).as_text()
    (value, mean, _), post = program(y)
    assert np.isfinite(value)
    close(post.mean(), mean)
    for result in jax.tree.leaves(program(beyond)[0]):
        assert np.isnan(result).all()
    post = program(beyond)[1]
    for verb in (post.mean, post.variance, post.leave_one_out):
        with pytest.raises(ValueError, match=UNKNOWN):
            verb()


def test_gradients_and_batches_with_a_gap_that_the_model_does_not_know():
    mask = MASKS["scattered"]
    y = jnp.asarray(holed(mask))
    beyond = y.at[tuple(np.argwhere(~mask)[0])].set(jnp.nan)
    told = process(observed=~mask)

    def density(noise, y):
        return kx.replace(told, {"noise": noise}).log_marginal_likelihood(y)

    found = jax.jit(jax.vmap(jax.value_and_grad(density, (0, 1)), (None, 0)))
    value, (slope, slopes) = found(jnp.asarray(NOISE), jnp.stack([y, beyond]))
    np.testing.assert_array_equal(np.isnan(value), [False, True])
    np.testing.assert_array_equal(np.isnan(slope), [False, True])
    assert np.isfinite(slopes[0]).all()
    assert np.isnan(slopes[1][~mask]).all()
    score = jax.jit(lambda v: told.condition(v).leave_one_out().log_score)
    np.testing.assert_array_equal([np.isnan(score(y)), np.isnan(score(beyond))], [False, True])


SLOW = process(
    observed=~MASKS["scattered"],
    gaps="iterative",
    iteration=kx.Iteration(max_steps=1, box_size=1),
)


def test_a_posterior_of_a_compiled_program_says_why_it_is_not_finite():
    post = jax.jit(SLOW.condition)(np.nan_to_num(holed(MASKS["scattered"])))
    with pytest.raises(kx.ConvergenceError, match="must reach their tolerance"):
        post.mean()


def determinant(a):
    return kx.logdet(kx.Kronecker(a, a) + 0.1)


TOLD = process(observed=~MASKS["scattered"])
ALL_GAPS, INDEFINITE = np.full((7, 5), np.nan), -np.eye(3)
WRONG_INSIDE = {
    "a gap": (TOLD.log_marginal_likelihood, ALL_GAPS, UNKNOWN),
    "the gradient of a gap": (jax.grad(TOLD.log_marginal_likelihood), ALL_GAPS, UNKNOWN),
    "a batch": (jax.vmap(TOLD.log_marginal_likelihood), ALL_GAPS[None], UNKNOWN),
    "iterations": (SLOW.log_marginal_likelihood, np.zeros((7, 5)), "must reach their tolerance"),
    "a determinant": (determinant, INDEFINITE, "indefinite or singular"),
    "the gradient of a determinant": (jax.grad(determinant), INDEFINITE, "indefinite or singular"),
}


@pytest.mark.parametrize(
    "name", everyday(WRONG_INSIDE, ["a batch", "the gradient of a determinant"])
)
def test_compiled_programs_raise_early_if_asked_to(name):
    function, argument, match = WRONG_INSIDE[name]
    program = eqx.filter_jit(lambda v: function(v))
    assert np.isnan(program(argument)).any()
    with kx.debug_nans():
        with pytest.raises(RuntimeError, match=match):
            jax.block_until_ready(program(argument))
        with kx.debug_nans(False):
            assert np.isnan(program(argument)).any()


def test_densities_of_numpyro_with_data_as_an_argument():
    """As a sampler with `jit_model_args` has them: whatever the noise, off by one constant."""
    mask = MASKS["scattered"]
    y, prior = holed(mask), dist.LogNormal(-1.0, 0.5)

    def model(y):
        noise = numpyro.sample("noise", prior)
        gp = kx.replace(process(observed=~mask), {"noise": noise})
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    def density(noise, y):
        return numpyro.infer.util.log_density(model, (y,), {}, {"noise": noise})[0]

    levels = np.array([0.05, 0.2, 1.0])
    with jax.numpy_dtype_promotion("standard"):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(density), (0, None)))(levels, y)
    seen, step = Dense(mask), 1e-6
    residual = seen.residual(y)

    def exact(noise):
        covariance = seen.data + (noise - NOISE) * np.eye(len(residual))
        likelihood = scipy.stats.multivariate_normal(cov=covariance).logpdf(residual)
        return likelihood + scipy.stats.lognorm.logpdf(noise, 0.5, scale=np.exp(-1.0))

    close(value, [exact(noise) for noise in levels])
    slopes = [(exact(noise + step) - exact(noise - step)) / (2 * step) for noise in levels]
    close(slope, slopes, rtol=1e-6)
