"""Covariates of a mean, and means of several axes, beside dense generalised least squares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import SPACE, TIME, matern52, squared_exponential
from tests.tolerances import assert_close

NEW_TIME, NEW_SPACE = np.array([0.2, 1.9]), np.array([-0.4, 0.5, 1.2])
rng = np.random.default_rng(5)
WARMTH, NEW_WARMTH = rng.normal(size=(5, 4)), rng.normal(size=(2, 4))
HEIGHT = np.array([300.0, 10.0, 1200.0, 40.0])
Y = rng.normal(size=(5, 4)) + 2 * WARMTH + HEIGHT / 500
POINTS = np.array([[0.2, 0.5], [1.9, -0.4], [0.9, 0.1]])


def make(mean, dtype=float, **options):
    return kx.GridGP(
        kernels={
            "time": kx.Matern52(np.asarray(0.6, dtype)),
            "space": 2.5 * kx.RBF(np.asarray(0.4, dtype)),
        },
        axes={"time": TIME, "space": SPACE},
        noise=0.1,
        mean=mean,
        **options,
    )


def wave(t, x):
    """One function, so that equal models share their programs."""
    return jnp.sin(3 * t)[:, None] * x[None]


def drift(temperature=WARMTH, height=HEIGHT):
    given = {"temperature": temperature, "height": height, "wave": wave}
    return kx.ConstantMean(0.0) + kx.CovariateMean(**given)


def functions(warmth, height, time, space):
    """A level and three covariates, one column each."""
    shape = (len(time), len(space))
    columns = [np.ones(shape), warmth, np.broadcast_to(height, shape)]
    columns.append(np.sin(3 * time)[:, None] * space)
    return np.stack([np.broadcast_to(c, shape).ravel() for c in columns], axis=1)


def signal(rows, columns):
    first = matern52(rows[0], columns[0], 0.6)
    return 2.5 * np.kron(first, squared_exponential(rows[1], columns[1], 0.4))


@dataclasses.dataclass
class Dense:
    """Coefficients, mean and covariance by matrices, from the cells that have data."""

    design: np.ndarray
    new: tuple
    new_design: np.ndarray
    y: np.ndarray = dataclasses.field(default_factory=lambda: Y)
    time: np.ndarray = dataclasses.field(default_factory=lambda: TIME)

    def __post_init__(self):
        seen, axes = np.isfinite(self.y.ravel()), (self.time, SPACE)
        covariance = (signal(axes, axes) + 0.1 * np.eye(self.y.size))[np.ix_(seen, seen)]
        design, y = self.design[seen], self.y.ravel()[seen]
        solved = np.linalg.solve(covariance, design)
        precision = design.T @ solved
        self.errors = np.linalg.inv(precision)
        self.coefficients = self.errors @ solved.T @ y
        cross = signal(self.new, axes)[:, seen]
        left = self.new_design - cross @ solved
        weights = np.linalg.solve(covariance, y - design @ self.coefficients)
        self.mean = self.new_design @ self.coefficients + cross @ weights
        explained = cross @ np.linalg.solve(covariance, cross.T)
        self.spread = signal(self.new, self.new) - explained + left @ self.errors @ left.T
        self.sd = np.sqrt(np.diagonal(self.spread))
        contrasts = np.linalg.qr(design, mode="complete")[0][:, design.shape[1] :]
        inside = scipy.stats.multivariate_normal(cov=contrasts.T @ covariance @ contrasts)
        self.restricted = (
            inside.logpdf(contrasts.T @ y) - np.linalg.slogdet(design.T @ design)[1] / 2
        )


OLD = functions(WARMTH, HEIGHT, TIME, SPACE)
AHEAD = {"axes": {"time": NEW_TIME}, "covariates": {"temperature": NEW_WARMTH}}
AHEAD_DESIGN = functions(NEW_WARMTH, HEIGHT, NEW_TIME, SPACE)
GAPPY = np.where(np.arange(20).reshape(5, 4) % 7 == 3, np.nan, Y)


DATA = {"complete": Y, "gaps": GAPPY}


@pytest.mark.parametrize("name", everyday(DATA, ["gaps"]))
def test_covariates_integrated_out_are_those_of_least_squares(name):
    y = DATA[name]
    gp = make(kx.MarginalMean(drift()))
    post, dense = gp.condition(y), Dense(OLD, (NEW_TIME, SPACE), AHEAD_DESIGN, y)
    assert post.regression.names == ("constant", "temperature", "height", "wave")
    assert_close(post.regression.coefficients, dense.coefficients)
    assert_close(post.regression.standard_errors, np.sqrt(np.diagonal(dense.errors)))
    assert_close(post.mean(**AHEAD), dense.mean.reshape(2, 4))
    assert_close(post.variance(**AHEAD), np.square(dense.sd).reshape(2, 4))
    if name == "gaps":  # densities are those of places there, and below
        assert_close(post.covariance(**AHEAD).to_dense(), dense.spread)
        return
    assert_close(gp.log_marginal_likelihood(y), dense.restricted)
    data = np.random.default_rng(6).normal(size=(2, 4))
    normal = scipy.stats.multivariate_normal(dense.mean, dense.spread + 0.1 * np.eye(8))
    assert_close(post.log_prob(data, **AHEAD), normal.logpdf(data.ravel()))
    draws = np.asarray(post.sample(jax.random.key(0), sample_shape=4000, **AHEAD))
    off = (draws.mean(axis=0).ravel() - dense.mean) / (dense.sd / np.sqrt(4000))
    assert np.abs(off).max() < 5


def test_scattered_points_take_one_value_each():
    post, warmth = make(kx.MarginalMean(drift())).condition(Y), np.array([0.3, -1.0, 2.0])
    heights = np.array([5.0, 700.0, 20.0])
    axes = tuple(POINTS.T)
    diagonal = np.arange(3) * 4  # of the grid of all coordinates
    columns = [np.ones(3), warmth, heights, np.sin(3 * axes[0]) * axes[1]]
    design = np.zeros((9, 4))
    design[diagonal] = np.stack(columns, axis=1)
    dense = Dense(OLD, axes, design)
    known = {"covariates": {"temperature": warmth, "height": heights}, "points": POINTS}
    assert_close(post.mean(**known), dense.mean[diagonal])
    spread = dense.spread[np.ix_(diagonal, diagonal)]
    assert_close(post.variance(**known), np.diagonal(spread))
    normal = scipy.stats.multivariate_normal(dense.mean[diagonal], spread + 0.1 * np.eye(3))
    assert_close(post.log_prob(np.ones(3), **known), normal.logpdf(np.ones(3)))
    draws = jax.eval_shape(lambda: post.sample(jax.random.key(0), sample_shape=2, **known))
    assert draws.shape == (2, 3)


def test_other_covariates_at_the_cells_of_the_data_are_another_scenario():
    """The function stays what it is, and its mean is another one: with little noise too."""
    post, warmer = make(kx.MarginalMean(drift())).condition(Y), WARMTH + 1
    dense = Dense(OLD, (TIME, SPACE), functions(warmer, HEIGHT, TIME, SPACE))
    known = {"temperature": warmer}
    for axes in (None, {"time": TIME}):
        assert_close(post.mean(axes, covariates=known), dense.mean.reshape(5, 4))
        assert_close(post.variance(axes, covariates=known), np.square(dense.sd).reshape(5, 4))
    cells = {
        "points": np.array([[TIME[1], SPACE[2]]]),
        "covariates": {"temperature": [WARMTH[1, 2] + 1]},
    }
    assert_close(post.mean(**cells), dense.mean.reshape(5, 4)[1, 2:3])
    assert_close(post.variance(**cells), np.square(dense.sd).reshape(5, 4)[1, 2:3])


def test_what_the_grid_knows_need_not_be_given():
    post = make(kx.MarginalMean(drift())).condition(Y)
    mean = np.asarray(post.mean())
    assert_close(post.mean(axes={"time": TIME[[3, 1]]}), mean[[3, 1]])
    assert_close(post.mean(points=[[TIME[3], SPACE[1]]]), mean[3, 1:2])
    heights = make(kx.MarginalMean(kx.CovariateMean(height=HEIGHT)))
    ahead = jax.eval_shape(lambda: heights.condition(Y).mean(axes={"time": NEW_TIME}))
    assert ahead.shape == (2, 4)


def test_coefficients_are_parameters_by_name_and_start_at_least_squares():
    gp = make(drift())
    paths = [f"mean.second.coefficients[{name!r}]" for name in ("temperature", "height", "wave")]
    paths = ["mean.first.value", *paths]
    started = {p.path: p.value.item() for p in kx.parameters(gp.initialise(Y)) if p.path in paths}
    truth = np.linalg.lstsq(OLD, Y.ravel(), rcond=None)[0]
    np.testing.assert_allclose([started[path] for path in paths], truth, rtol=1e-8)
    held = gp.initialise(Y, freeze=(paths[2],))  # others are then those of what it leaves
    left = np.linalg.lstsq(OLD[:, [0, 1, 3]], Y.ravel(), rcond=None)[0]
    kept = {p.path: p.value.item() for p in kx.parameters(held)}
    np.testing.assert_allclose([kept[path] for path in paths], np.insert(left, 2, 0), rtol=1e-8)
    raw, build = kx.unconstrain(gp, freeze=("kernels", "variance", "noise"))
    dense = Dense(OLD, (TIME, SPACE), OLD)
    best = build({path: jnp.asarray(b) for path, b in zip(paths, dense.coefficients, strict=True)})
    slopes = jax.grad(lambda raw: build(raw).log_marginal_likelihood(Y))(
        kx.unconstrain(best, freeze=("kernels", "variance", "noise"))[0]
    )
    assert set(raw) == set(paths)
    scale = [np.sum(np.abs(column)) for column in OLD.T]
    assert (np.abs([slopes[path] for path in paths]) < 1e-10 * np.array(scale)).all()


def test_starts_of_a_marginal_mean_are_of_what_it_leaves():
    """The level and the trend of the data are no variance."""
    gp = make(kx.MarginalMean(drift())).initialise(1e3 + Y)
    left = Y.ravel() - OLD @ np.linalg.lstsq(OLD, Y.ravel(), rcond=None)[0]
    np.testing.assert_allclose(gp.variance + gp.noise, np.mean(left**2), rtol=1e-6)


@pytest.mark.parametrize("is_double", [full(True, id="float64"), pytest.param(False, id="float32")])
def test_offsets_and_units_cost_no_digits(is_double):
    """A year of the calendar and pascals: their Gram matrix is lost in float32."""
    dtype = np.float64 if is_double else np.float32
    year, pressure = 2000.0 + TIME[:, None], 101325 + 300 * WARMTH
    columns = [np.ones((5, 4)), np.broadcast_to(year, (5, 4)), pressure]
    design = np.stack([c.ravel() for c in columns], axis=1)
    with jax.enable_x64(is_double):
        mean = kx.ConstantMean(0.0) + kx.CovariateMean(year=year, pressure=pressure)
        gp = make(kx.MarginalMean(mean), dtype)
        post = gp.condition(Y.astype(dtype))
        dense = Dense(design, (TIME, SPACE), design)
        assert post.mean().dtype == dtype
        rtol = 1e-6 if is_double else 2e-3
        found = post.regression
        np.testing.assert_allclose(found.coefficients[1:], dense.coefficients[1:], rtol=rtol)
        errors = np.sqrt(np.diagonal(dense.errors))
        np.testing.assert_allclose(found.standard_errors, errors, rtol=rtol)
        np.testing.assert_allclose(post.mean(), dense.mean.reshape(5, 4), rtol=rtol, atol=rtol)


def test_labels_say_which_cell_is_which():
    data = xr.DataArray(Y, dims=("time", "space"), coords={"time": TIME, "space": SPACE})
    warm = data.copy(data=WARMTH).transpose("space", "time")
    high = pd.Series(HEIGHT[::-1], pd.Index(SPACE[::-1], name="space"))
    post = make(kx.MarginalMean(drift(warm, high))).condition(data)
    other = make(kx.MarginalMean(drift())).condition(Y)
    assert_close(post.regression.coefficients, other.regression.coefficients)
    ahead = xr.DataArray(
        NEW_WARMTH.T, dims=("space", "time"), coords={"time": NEW_TIME, "space": SPACE}
    )
    axes = {"time": NEW_TIME}
    found = post.to_dataset(
        axes, num_samples=2, key=jax.random.key(0), covariates={"temperature": ahead}
    )
    assert_close(found["mean"].values, other.mean(**AHEAD))
    assert_close(found["standard_deviation"].values, np.sqrt(other.variance(**AHEAD)))
    assert_close(found["draws"].values, other.sample(jax.random.key(0), sample_shape=(2,), **AHEAD))
    dist = post.numpyro_dist(axes, covariates={"temperature": ahead})
    assert_close(dist.mean, other.mean(**AHEAD))
    assert_close(dist.variance, other.variance(**AHEAD))
    assert jax.eval_shape(dist.sample, jax.random.key(0)).shape == (2, 4)


@pytest.mark.parametrize("in_front", [full(False), True])
def test_slices_are_appended_with_their_covariates(in_front):
    new = np.array([-0.7, -0.4]) if in_front else np.array([1.9, 2.3])
    more = np.random.default_rng(6).normal(size=(2, 4))
    order = slice(None, None, -1 if in_front else 1)
    time, y, warmth = (
        np.concatenate(pair[order]) for pair in ([TIME, new], [Y, more], [WARMTH, NEW_WARMTH])
    )
    mean = kx.MarginalMean(drift())
    known = {"axes": {"time": new}, "covariates": {"temperature": NEW_WARMTH}}
    post = make(mean).condition(Y).append(more, **known)
    whole = kx.MarginalMean(drift(warmth))
    kernels = {"time": kx.Matern52(0.6), "space": 2.5 * kx.RBF(0.4)}
    scratch = kx.GridGP(kernels, {"time": time, "space": SPACE}, 0.1, whole).condition(y)
    assert_close(post.regression.coefficients, scratch.regression.coefficients)
    assert_close(post.mean(), scratch.mean())


def test_covariates_trace():
    """Under jit and vmap, in the model and in its predictions, beside their values."""

    def predict(warmth, ahead):
        gp = make(kx.MarginalMean(kx.ConstantMean(0.0) + kx.CovariateMean(temperature=warmth)))
        post = gp.condition(jnp.asarray(Y))
        new = {"temperature": ahead}
        return post.regression.coefficients, post.mean({"time": NEW_TIME}, covariates=new)

    both = np.stack([WARMTH, WARMTH**2]), np.stack([NEW_WARMTH, NEW_WARMTH**2])
    found = [np.asarray(x) for x in jax.jit(jax.vmap(predict))(*both)]
    for k, (warmth, ahead) in enumerate(zip(*both, strict=True)):
        columns = [np.stack([np.ones(x.size), x.ravel()], axis=1) for x in (warmth, ahead)]
        dense = Dense(columns[0], (NEW_TIME, SPACE), columns[1])
        assert_close(found[0][k], dense.coefficients)
        assert_close(found[1][k], dense.mean.reshape(2, 4))


def test_a_missing_covariate_is_nan_in_gaps_alone():
    missing = np.isnan(GAPPY)
    known, zero = (np.where(missing, x, WARMTH) for x in (np.nan, 0.0))
    gp = make(kx.MarginalMean(kx.CovariateMean(temperature=known)))
    dense = Dense(zero.reshape(20, 1), (TIME, SPACE), zero.reshape(20, 1), GAPPY)

    @jax.jit
    @jax.value_and_grad
    def density(noise):
        return kx.replace(gp, {"noise": noise}).log_marginal_likelihood(GAPPY)

    value, slope = density(jnp.asarray(0.1))
    assert_close(value, dense.restricted)
    assert np.isfinite(slope)
    post = gp.condition(GAPPY)
    for found, expected in ((post.mean(), dense.mean), (post.variance(), np.square(dense.sd))):
        assert (np.isnan(found) == missing).all()
        assert_close(found[~missing], expected.reshape(5, 4)[~missing])
    told = post.mean(covariates={"temperature": zero})
    assert_close(told, dense.mean.reshape(5, 4))
    with pytest.raises(ValueError, match=r"'temperature' must be known wherever.*3 of these cells"):
        gp.condition(Y)


def test_a_latent_field_has_a_mean_of_covariates():
    gp = make(kx.CovariateMean(temperature=WARMTH, coefficients={"temperature": 2.0}))
    plain = make(0.0)
    post = gp.latent_condition(Y)
    expected = plain.latent_condition(Y - 2 * WARMTH).mean({"time": NEW_TIME}) + 2 * NEW_WARMTH
    assert_close(post.mean(**AHEAD), expected)
    assert_close(gp.numpyro_dist().mean, 2 * WARMTH)
    key = jax.random.key(1)
    assert_close(gp.sample(key), plain.sample(key) + 2 * WARMTH)
    drawn = plain.latent_condition(Y - 2 * WARMTH).sample(key, {"time": NEW_TIME})
    assert_close(post.sample(key, **AHEAD), drawn + 2 * NEW_WARMTH)


def test_derivatives_are_those_of_functions_and_of_constants():
    post = make(kx.MarginalMean(drift())).condition(Y)
    with pytest.raises(ValueError, match=r"'temperature' varies along 'time'.*no derivative"):
        post.mean_derivative("time", **AHEAD)
    post = make(kx.MarginalMean(kx.CovariateMean(height=HEIGHT, wave=wave))).condition(Y)
    ahead, behind = (post.mean({"time": NEW_TIME + h}) for h in (1e-6, -1e-6))
    found = post.mean_derivative("time", {"time": NEW_TIME})
    np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)
    points = {"points": (NEW_TIME, SPACE[:2])}
    at, found = post.mean_derivative("time", **points), np.asarray(found)
    np.testing.assert_allclose(at, np.diagonal(found[:, :2]), rtol=1e-6, atol=1e-8)


PLACES = np.array([[0.0, 0.1], [1.0, 0.9], [0.4, 2.0], [2.0, 1.1], [1.3, 0.2]])


def test_trends_along_dimensions_of_places_and_their_products():
    """A plane in x and y that tilts with time, against explicit columns."""
    y = np.random.default_rng(8).normal(size=(4, 5)) + PLACES[:, 0]
    plane = kx.LinearMean("place", dim=0) + kx.LinearMean("place", dim=1)
    mean = plane + kx.LinearMean("place", dim=0) * kx.LinearMean("time")
    gp = kx.GridGP(
        {"time": kx.Matern52(0.6), "place": kx.RBF(0.8)},
        {"time": SPACE, "place": PLACES},
        noise=0.1,
        mean=kx.MarginalMean(mean),
    )
    post = gp.condition(y)
    east, north, tilt = "place[0]: slope", "place[1]: slope", "place[0]: slope × time: slope"
    assert post.regression.names == ("place[0]: level", east, north, "time: slope", tilt)
    x = [v - (v.min() + v.max()) / 2 for v in (*PLACES.T, SPACE)]
    ones = np.ones((4, 5))
    columns = [ones, ones * x[0], ones * x[1], x[2][:, None] * ones, np.outer(x[2], x[0])]
    design = np.stack([c.ravel() for c in columns], axis=1)
    first, second = matern52(SPACE, SPACE, 0.6), squared_exponential(PLACES, PLACES, 0.8)
    covariance = np.kron(first, second) + 0.1 * np.eye(20)
    errors = np.linalg.inv(design.T @ np.linalg.solve(covariance, design))
    truth = errors @ design.T @ np.linalg.solve(covariance, y.ravel())
    assert_close(post.regression.coefficients, truth)
    assert_close(post.regression.covariance, errors)
    assert "place[0]: level at" in repr(post.regression)
    left = y.ravel() - design @ truth
    assert_close(post.mean().ravel(), y.ravel() - 0.1 * np.linalg.solve(covariance, left))


def test_a_product_is_the_product_of_means():
    line = kx.LinearMean("time", [1.0, 2.0], centre=0.0, scale=1.0)
    warm = kx.CovariateMean(temperature=WARMTH, coefficients={"temperature": 3.0})
    gp = make(line * warm)
    assert_close(gp.mean_on((None, None)), (1 + 2 * TIME)[:, None] * 3 * WARMTH)
    assert "temperature" in gp.describe()
    (row,) = [p for p in kx.parameters(gp) if p.path.startswith("mean")]
    assert (row.path, row.value.shape) == ("mean.coefficients", (2,))


@pytest.mark.parametrize("verb", ["mean", "variance", "covariance", "mean_derivative"])
def test_a_covariate_that_is_not_known_is_asked_for(verb):
    post = make(kx.MarginalMean(drift())).condition(Y)
    more = ("time",) if verb == "mean_derivative" else ()
    match = r"covariate 'temperature'.*varies along time.*'temperature': values.*\(2, 4\)"
    with pytest.raises(ValueError, match=match):
        getattr(post, verb)(*more, axes={"time": NEW_TIME})


def predicting(**options):
    return lambda: make(kx.MarginalMean(drift())).condition(Y).mean(**options)


def of_mean(**covariates):
    return lambda: make(kx.CovariateMean(**covariates))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (predicting(points=POINTS), ValueError, r"'temperature', 'height'.*one per point, \(3,\)"),
        (predicting(covariates={"temprature": 1.0}), KeyError, "'temprature'.*'temperature'"),
        (predicting(covariates={"wave": 1.0}), KeyError, "no covariate 'wave' that takes values"),
        (predicting(covariates=WARMTH), TypeError, "must be a dictionary by name"),
        (
            predicting(axes={"time": NEW_TIME}, covariates={"temperature": WARMTH}),
            ValueError,
            r"'temperature' must broadcast to the grid, \(2, 4\); got shape \(5, 4\)",
        ),
        (
            of_mean(heat=WARMTH.T),
            ValueError,
            r"'heat' must broadcast.*\(5, 4\); got shape \(4, 5\)",
        ),
        (of_mean(heat="warm"), TypeError, "'heat' must be an array.*got 'warm'"),
        (of_mean(heat=np.full((5, 4), np.inf)), ValueError, "'heat' must be finite"),
        (of_mean(heat=WARMTH, coefficients={"het": 1.0}), KeyError, "'het'.*Did you mean 'heat'"),
        (of_mean(heat=WARMTH, coefficients={"heat": [1.0]}), ValueError, "must be one number"),
        (lambda: kx.CovariateMean(), TypeError, "needs a covariate by name"),
        (
            lambda: make(kx.CovariateMean(a=WARMTH) + kx.CovariateMean(a=Y)).condition(Y),
            ValueError,
            "'a' is given twice",
        ),
        (
            lambda: make(kx.MarginalMean(kx.CovariateMean(a=WARMTH, b=2 * WARMTH))).condition(Y),
            ValueError,
            r"not independent where there are data.*\(a, b\)",
        ),
        (lambda: make(kx.LinearMean("time", dim=0)), ValueError, "`dim` of a LinearMean must be"),
        (
            lambda: make(WARMTH).condition(Y).mean(axes={"time": TIME + 9.0}),
            ValueError,
            "known at the coordinates of the data only",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_filter_asks_for_covariates_as_a_posterior_does():
    post = make(kx.MarginalMean(drift())).condition(GAPPY)
    service, times = post.filter("time"), np.array([1.9, 2.3])
    found = service.predict(times, covariates={"temperature": NEW_WARMTH})
    design = functions(NEW_WARMTH, HEIGHT, times, SPACE)
    dense = Dense(OLD, (times, SPACE), design, GAPPY)
    assert_close(found.mean, dense.mean.reshape(2, 4))
    assert_close(found.variance, np.square(dense.sd).reshape(2, 4) + 0.1)
    y = np.array([0.3, np.nan, -0.2, 1.0])
    service, _ = service.update(y, times[0], covariates={"temperature": NEW_WARMTH[0]})
    found = service.predict(times[1], covariates={"temperature": NEW_WARMTH[1]})
    dense = Dense(
        np.concatenate([OLD, design[:4]]),
        (times[1:], SPACE),
        design[4:],
        np.concatenate([GAPPY, y[None]]),
        np.append(TIME, times[0]),
    )
    assert_close(found.mean, dense.mean)
    with pytest.raises(ValueError, match=r"covariate 'temperature'.*varies along time"):
        service.predict(2.5)


def test_pictures_take_covariates_where_they_predict():
    post = make(kx.MarginalMean(drift())).condition(Y)
    assert kx.plot_series(post, "time").lines  # at cells of the grid they are known
    known = {"coordinates": NEW_TIME, "covariates": {"temperature": NEW_WARMTH[:, 2:3]}}
    ax = kx.plot_series(post, "time", **known)
    (line,) = [line for line in ax.lines if line.get_label() == "mean"]
    np.testing.assert_allclose(line.get_ydata(), post.mean(**AHEAD)[:, 2])
