"""A filter of a posterior: what it forecasts and how it takes in new slices, beside dense NumPy."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.tolerances import assert_close

RNG = np.random.default_rng(3)
X = np.array([0.0, 0.4, 1.0])
# Irregular, and two times that occur twice: the last one of the history and one of the new ones.
TIMES = np.array([0.0, 0.7, 1.0, 2.5, 2.6, 4.0, 4.5, 6.0, 6.0, 6.8, 9.0, 9.0])
OLD = 8
Y = 5.0 + RNG.normal(size=(3, len(TIMES)))
Y[0, 2] = Y[:, 4] = Y[1, 7] = Y[2, 9] = np.nan
Y[:, 8] = [np.nan, 5.1, np.nan]
BY_PLACE = np.array([0.1, 0.3, 0.2])
CELLS = RNG.uniform(0.1, 0.4, Y.shape)
AMONG = np.array([[0.3, 0.1, 0.0], [0.1, 0.4, -0.1], [0.0, -0.1, 0.2]])

SPACE = dense.squared_exponential(X, X, 0.7)
TIME = dense.matern32(TIMES, TIMES, 3.0)
MIXED = TIME + 0.3 * dense.white(TIMES, TIMES, 1.0)
KERNELS = {"x": kx.RBF(0.7), "time": 2.0 * (kx.Matern32(3.0) + 0.3 * kx.White(1.0))}
TERMS = {
    "slow": {"x": 2.0 * kx.RBF(0.7), "time": kx.Matern32(3.0)},
    "local": {"x": 0.5 * kx.White(1.0), "time": kx.Matern12(1.0)},
}
LOCAL = np.kron(0.5 * np.eye(3), np.exp(-np.abs(TIMES[:, None] - TIMES)))
LINEAR = kx.MarginalMean(kx.LinearMean("time"))
ONE, LINE = np.ones(Y.shape), np.broadcast_to(TIMES, Y.shape)


def among_places(num_times):
    return kx.Kronecker(AMONG, kx.ScaledIdentity(1.0, num_times))


# Model, covariance of the function over all cells, noise over them, functions of the mean.
CASES = {
    "constant mean": (
        lambda k: {"kernels": KERNELS, "noise": 0.1, "mean": 4.0},
        2.0 * np.kron(SPACE, MIXED),
        0.1 * np.eye(Y.size),
        [],
    ),
    "noise per place": (
        lambda k: {"kernels": KERNELS, "noise": {"x": BY_PLACE}, "mean": 4.0},
        2.0 * np.kron(SPACE, MIXED),
        np.kron(np.diag(BY_PLACE), np.eye(len(TIMES))),
        [],
    ),
    "noise per cell": (
        lambda k: {"kernels": KERNELS, "noise": CELLS[:, :k], "mean": 4.0},
        2.0 * np.kron(SPACE, MIXED),
        np.diag(CELLS.ravel()),
        [],
    ),
    "marginal mean and noise among places": (
        lambda k: {"kernels": KERNELS, "noise": among_places(k), "mean": LINEAR},
        2.0 * np.kron(SPACE, MIXED),
        np.kron(AMONG, np.eye(len(TIMES))),
        [ONE, LINE],
    ),
    "two parts": (
        lambda k: {"terms": TERMS, "noise": 0.1, "mean": 4.0},
        2.0 * np.kron(SPACE, TIME) + LOCAL,
        0.1 * np.eye(Y.size),
        [],
    ),
    "noise among places": (
        lambda k: {"kernels": KERNELS, "noise": among_places(k), "mean": 4.0},
        2.0 * np.kron(SPACE, MIXED),
        np.kron(AMONG, np.eye(len(TIMES))),
        [],
    ),
}


def model(name, size):
    return kx.GridGP(axes={"x": X, "time": TIMES[:size]}, **CASES[name][0](size))


def cells(times):
    """Numbers of the cells at some times."""
    return np.arange(Y.size).reshape(Y.shape)[:, times].ravel()


def kriged(name, size, ahead):
    """Mean and covariance of new observations at some times given the first ones, by hand."""
    _, covariance, noise, design = CASES[name]
    old = cells(np.arange(size))
    old = old[~np.isnan(Y.ravel()[old])]
    level = 0.0 if design else 4.0
    known, y = (covariance + noise)[np.ix_(old, old)], Y.ravel()[old] - level
    cross, own = covariance[np.ix_(ahead, old)], (covariance + noise)[np.ix_(ahead, ahead)]
    weights = np.linalg.solve(known, cross.T).T
    mean, left = weights @ y + level, own - weights @ cross.T
    if design:
        functions = np.stack([f.ravel() for f in design], axis=1)
        inner = functions[old].T @ np.linalg.solve(known, functions[old])
        beyond = functions[ahead] - weights @ functions[old]
        estimates = np.linalg.solve(inner, functions[old].T @ np.linalg.solve(known, y))
        mean, left = mean + beyond @ estimates, left + beyond @ np.linalg.solve(inner, beyond.T)
    return mean, left


def normal(y, mean, covariance):
    error = y - mean
    square = error @ np.linalg.solve(covariance, error)
    logdet = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -(square + logdet) / 2, square


@pytest.mark.parametrize("name", everyday(CASES, ["two parts"]))
def test_slices_one_by_one_are_those_of_the_longer_grid(name):
    service = model(name, OLD).condition(Y[:, :OLD]).filter("time")
    assert "traced" not in repr(service)
    for k in range(OLD, len(TIMES)):
        ahead = cells([k])
        given = {"noise": CELLS[:, k]} if name == "noise per cell" else {}
        mean, covariance = kriged(name, k, ahead)
        if k == OLD:
            found = service.predict(TIMES[k], **given)
            assert_close(found.mean, mean)
            assert_close(found.variance, np.diag(covariance))
        service, surprise = service.update(Y[:, k], TIMES[k], **given)
        y = Y.ravel()[ahead]
        seen = ~np.isnan(y)
        density, square = normal(y[seen], mean[seen], covariance[np.ix_(seen, seen)])
        assert_close(surprise.mean, mean)
        assert_close(surprise.variance, np.diag(covariance))
        assert_close(surprise.log_density, density)
        assert_close(surprise.distance, square)
        assert surprise.count == seen.sum()
        assert_close(surprise.standardised[seen], ((y - mean) / np.sqrt(np.diag(covariance)))[seen])
        assert np.isnan(surprise.standardised[~seen]).all()


def test_slices_together_and_predictions_of_the_function_in_any_order():
    name = "marginal mean and noise among places"
    service = model(name, OLD).condition(Y[:, :OLD]).filter("time")
    together, many = service.update(Y[:, OLD:], TIMES[OLD:])
    assert many.log_density.shape == (4,)
    assert many.mean.shape == (3, 4)
    for k in range(OLD, len(TIMES)):
        mean, covariance = kriged(name, k, cells([k]))
        y = Y[:, k]
        seen = ~np.isnan(y)
        density, _ = normal(y[seen], mean[seen], covariance[np.ix_(seen, seen)])
        assert_close(many.mean[:, k - OLD], mean)
        assert_close(many.log_density[k - OLD], density)
    later = together.predict(np.array([12.0, 10.0]), include_noise=False)
    mean, variance = function_at(np.array([12.0, 10.0]))
    assert_close(later.mean, mean)
    assert_close(later.variance, variance)


def function_at(times):
    """Mean and variance given all data, with coefficients of a line that are integrated out."""
    seen = ~np.isnan(Y.ravel())
    noise = np.kron(AMONG, np.eye(len(TIMES)))
    known = (2.0 * np.kron(SPACE, MIXED) + noise)[np.ix_(seen, seen)]
    cross = 2.0 * np.kron(SPACE, dense.matern32(times, TIMES, 3.0))[:, seen]
    design = np.stack([ONE.ravel(), LINE.ravel()], axis=1)[seen]
    ahead = np.stack([np.ones(6), np.tile(times, 3)], axis=1)
    precision = design.T @ np.linalg.solve(known, design)
    estimates = np.linalg.solve(precision, design.T @ np.linalg.solve(known, Y.ravel()[seen]))
    residual = Y.ravel()[seen] - design @ estimates
    beyond = ahead - cross @ np.linalg.solve(known, design)
    mean = ahead @ estimates + cross @ np.linalg.solve(known, residual)
    variance = 2.0 * 1.3 - np.sum(cross * np.linalg.solve(known, cross.T).T, axis=1)
    variance = variance + np.sum(beyond * np.linalg.solve(precision, beyond.T).T, axis=1)
    return mean.reshape(3, 2), variance.reshape(3, 2)


SERIES = kx.GridGP((kx.Matern52(3.0),), (TIMES[:OLD],), noise=0.1, structure=["markov"])


def test_a_series_of_a_single_place_with_a_variance_at_every_time():
    variances, times, y = np.linspace(0.1, 0.4, OLD), TIMES[:OLD], Y[0, :OLD]
    gp = kx.GridGP((kx.Matern52(3.0),), (times,), noise={0: variances})
    found = gp.condition(y).filter().predict(7.0, noise=0.2)
    seen = ~np.isnan(y)
    known = dense.matern52(times, times, 3.0) + np.diag(variances)
    cross = dense.matern52(np.array([7.0]), times[seen], 3.0)
    weights = np.linalg.solve(known[np.ix_(seen, seen)], cross[0])
    assert_close(found.mean, weights @ y[seen])
    assert_close(found.variance, 1.2 - weights @ cross[0])


def test_transformations_of_a_series_of_a_single_place():
    """Batches, `jit`, `scan` and `vmap`; constant leaves, whatever the step."""
    y = Y[:, :OLD]
    y = np.where(np.isnan(y), 0.0, y)
    service = SERIES.condition(y).filter()
    assert service.state.mean.shape == (3, 3, 1)
    news, times = np.where(np.isnan(Y), 1.0, Y)[:, 9:], TIMES[9:]

    def body(service, step):
        y, time = step
        service, surprise = service.update(y, time)
        return service, surprise.log_density

    last, densities = jax.jit(lambda s, *steps: jax.lax.scan(body, s, steps))(
        service, news.T, times
    )
    together, surprises = service.update(news, times)
    assert_close(last.state.mean, together.state.mean)
    assert_close(densities.T, surprises.log_density)

    alone = SERIES.condition(y[0]).filter()
    y_new = jnp.array([1.0, jnp.nan])

    @jax.jit
    def asked(y_new, ahead, before):
        """For one observation or none, and before the end of the data."""
        many = jax.vmap(alone.update, in_axes=(0, None))(y_new, ahead)
        late = alone.predict(before).mean, alone.update(1.0, before)[0].state.mean
        return many, late

    (many, surprise), late = asked(y_new, 7.0, 5.9)
    assert_close(surprise.log_density[0], alone.update(1.0, 7.0)[1].log_density)
    assert surprise.log_density[1] == 0
    assert many.state.covariance.shape == (2, 3, 3, 1, 1)
    assert all(np.isnan(found).all() for found in late)


def test_seconds_since_long_ago_in_float32():
    """Differences of late times are as they are, and a long run keeps its variances."""
    start = 1_600_000_000
    times = start + 60 * np.arange(3000)
    y = np.sin(np.arange(3000) / 40)[:, None] + 0.01 * RNG.normal(size=(3000, 2))

    def service(dtype, size):
        kernels = (kx.Matern32(np.asarray(3000.0, dtype)), kx.RBF(np.asarray(0.5, dtype)))
        axes = (times[:size], np.array([0.0, 1.0]))
        gp = kx.GridGP(kernels, axes, noise=np.asarray(1e-4, dtype))
        return gp.condition(y[:size].astype(dtype)).filter(0)

    with jax.numpy_dtype_promotion("standard"):
        wide, narrow = (service(dtype, 20) for dtype in (np.float64, np.float32))
    found = [s.update(y[20:].astype(s.gp.dtype), times[20:])[1] for s in (wide, narrow)]
    assert found[1].mean.dtype == np.float32
    assert_close(found[1].variance, found[0].variance, dtype="float32")
    assert np.abs(np.subtract(found[1].log_density, found[0].log_density)).max() < 0.02


def hourly(size):
    hours = pd.date_range("2024-05-01", periods=10, freq="h")
    data = xr.DataArray(
        Y[:, :10],
        dims=("x", "time"),
        coords={"x": X, "time": hours, "name": ("x", ["a", "b", "c"])},
        attrs={"units": "K"},
    )
    kernels = {"x": kx.RBF(0.7), "time": kx.Matern32(0.2)}
    gp = kx.GridGP.from_xarray(data[:, :size], kernels, structure={"time": "markov"})
    return data, gp.condition(data[:, :size])


def test_dates_data_arrays_and_files(tmp_path):
    data, post = hourly(OLD)
    service = post.filter()
    assert "2024-05-01" in repr(service)
    new = data[:, 9]
    stamp = pd.Timestamp("2024-05-01 09:00")
    plain, surprise = service.update(Y[:, 9], stamp)
    ways = [
        service.update(new),
        service.update(new, stamp),
        service.update(new.expand_dims("time"), new.time),
        service.update(new.drop_vars("time"), np.datetime64(stamp)),
        service.update(pd.Series(Y[::-1, 9], X[::-1]), stamp.to_pydatetime()),
    ]
    for other, found in ways:
        assert_close(found.log_density, surprise.log_density)
        assert_close(other.state.mean, plain.state.mean)
    _, several = service.update(data[:, 8:].T)
    assert several.mean.shape == (3, 2)
    assert service.predict(data.time[9]).mean.shape == (3,)
    with pytest.raises(ValueError, match="in the units of the data"):
        service.update(new.assign_attrs(units="degC"))
    with pytest.raises(TypeError, match="must be dates"):
        service.update(Y[:, 9], 3.0)
    with pytest.raises(TypeError, match="time of new values must be given"):
        service.update(Y[:, 9])
    with pytest.raises(ValueError, match=r"not be before .* 7 hours after 2024-05-01.*got 2024"):
        service.update(Y[:, 9], pd.Timestamp("2024-05-01 06:59"))

    plain.save(tmp_path / "service")
    fresh = kx.Filter.load(tmp_path / "service", hourly(6)[1].filter())
    assert jax.tree.all(jax.tree.map(np.array_equal, fresh, plain))
    assert jax.tree.all(jax.tree.map(np.array_equal, pickle.loads(pickle.dumps(plain)), plain))
    with pytest.raises(ValueError, match="must be of the same model as `like`"):
        kx.Filter.load(tmp_path / "service", SERIES.condition(Y[0, :OLD]).filter())
    (tmp_path / "other").write_text("nothing")
    with pytest.raises(ValueError, match="must hold a filter"):
        kx.Filter.load(tmp_path / "other", plain)


def test_nothing_is_compiled_for_other_times_or_a_longer_history():
    services = [model("two parts", k).condition(Y[:, :k]).filter("time") for k in (OLD, 9)]
    services[0].update(Y[:, 9], 9.5)
    services[0].predict(10.0)
    with jax.log_compiles(False), count_compiled() as names:
        service, _ = services[1].update(Y[:, 10], 11.25)
        service.predict(17.5)
    assert names == []


class count_compiled:
    """Names of the programs that are traced anew."""

    def __enter__(self):
        self.names = []
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self.names

    def _note(self, event, duration, **details):
        if event.endswith("backend_compile_duration"):
            self.names.append(event)

    def __exit__(self, *error):
        jax.monitoring.unregister_event_duration_listener(self._note)


REFUSED = {
    "no Markov axis": (
        lambda: kx.GridGP((kx.RBF(1.0),), (X,), noise=0.1).condition(Y[:, 0]).filter(),
        kx.NotMarkovError,
        "got none",
    ),
    "not along this one": (
        lambda: post("noise per cell").filter("x"),
        kx.NotMarkovError,
        "that along x is not: SquaredExponential",
    ),
    "several": (
        lambda: (
            kx.GridGP((kx.Matern12(1.0), kx.Matern12(1.0)), (X, TIMES[:OLD]), noise=0.1)
            .condition(np.nan_to_num(Y[:, :OLD]))
            .filter()
        ),
        ValueError,
        "Markov along several axes",
    ),
    "shape": (
        lambda: post().filter("time").update(Y[:2, 9], 7.0),
        ValueError,
        r"must have shape \(\*batch, 3\)",
    ),
    "infinite": (
        lambda: post().filter("time").update([np.inf, 0.0, 0.0], 7.0),
        ValueError,
        "finite, or NaN",
    ),
    "batch": (
        lambda: post().filter("time").update(np.zeros((2, 3)), 7.0),
        ValueError,
        "as many data sets",
    ),
    "falling": (
        lambda: post().filter("time").update(Y[:, :2], [8.0, 7.0]),
        ValueError,
        "not be before",
    ),
    "unknown noise": (
        lambda: post("noise per cell").filter("time").predict(7.0),
        ValueError,
        "Pass `noise=`",
    ),
    "useless noise": (
        lambda: post().filter("time").predict(7.0, include_noise=False, noise=1.0),
        TypeError,
        "include_noise=True only",
    ),
    "negative noise": (
        lambda: post().filter("time").predict(7.0, noise=-1.0),
        ValueError,
        "not be negative",
    ),
    "mean on the grid": (
        lambda: (
            kx.GridGP((kx.Matern12(1.0),), (TIMES[:OLD],), noise=0.1, mean=TIMES[:OLD])
            .condition(Y[2, :OLD])
            .filter()
        ),
        ValueError,
        "mean that is a function",
    ),
}


def post(name="two parts"):
    return model(name, OLD).condition(Y[:, :OLD])


@pytest.mark.parametrize("name", REFUSED)
def test_errors_say_what_must_hold(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_the_density_of_new_values_has_a_gradient():
    times, y = np.append(TIMES[:OLD], 7.0), np.append(Y[2, :OLD], 5.0)
    times, y = times[~np.isnan(y)], y[~np.isnan(y)]

    def by_hand(noise, lengthscale):
        known = dense.matern52(times, times, lengthscale) + noise * np.eye(len(times))
        zero = np.zeros(len(times))
        return normal(y, zero, known)[0] - normal(y[:-1], zero[:-1], known[:-1, :-1])[0]

    def difference(h):
        noise = by_hand(0.1 + h, 3.0) - by_hand(0.1 - h, 3.0)
        lengthscale = by_hand(0.1, 3.0 + h) - by_hand(0.1, 3.0 - h)
        return np.array([noise, lengthscale]) / (2 * h)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(gp):
        return gp.condition(Y[2, :OLD]).filter().update(5.0, 7.0)[1].log_density

    slope = gradient(SERIES)
    exact = (4 * difference(2e-4) - difference(4e-4)) / 3
    assert_close(np.array([slope.noise, slope.kernels[0].lengthscale]), exact, order=1)
