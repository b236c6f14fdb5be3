"""Input has one reading, whatever container it comes in, or is refused by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import xarray as xr
from numpyro.distributions import constraints

import kronax as kx
from tests.tolerances import assert_close

TIME, SITE = np.array([0.0, 1.0, 2.5, 4.0]), np.array([10.0, 20.0, 35.0])
Y = np.random.default_rng(1).normal(size=(4, 3))
FRAME = pd.DataFrame(Y, index=TIME, columns=SITE)
HOLES = Y > 0.8
WITH_GAPS = np.where(HOLES, np.nan, Y)
MASKED = np.ma.masked_array(np.where(HOLES, 1e6, Y), HOLES)


def kernels():
    return {"time": kx.RBF(1.0), "site": kx.Matern32(9.0)}


NAMED = kx.GridGP(kernels(), {"time": TIME, "site": SITE}, noise=0.1)
PLAIN = kx.GridGP(tuple(kernels().values()), (TIME, SITE), noise=0.1)


def truth(y):
    """The log likelihood of the observed cells, by matrices."""
    far = np.abs(SITE[:, None] - SITE) * np.sqrt(3) / 9.0
    near = np.exp(-((TIME[:, None] - TIME) ** 2) / 2)
    seen = ~np.isnan(y.ravel())
    covariance = (np.kron(near, (1 + far) * np.exp(-far)) + 0.1 * np.eye(12))[seen][:, seen]
    values = y.ravel()[seen]
    quadratic = values @ np.linalg.solve(covariance, values)
    constant = seen.sum() * np.log(2 * np.pi)
    return -(quadratic + np.linalg.slogdet(covariance)[1] + constant) / 2


FRAMES = {
    "as it is": FRAME,
    "transposed": FRAME.T,
    "rows turned round": FRAME.iloc[::-1],
    "both shuffled": FRAME.iloc[[2, 0, 3, 1], [1, 2, 0]],
    "by name": FRAME.rename_axis(index="time", columns="site").T,
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("gp", [NAMED, PLAIN], ids=["named", "plain"])
def test_pandas_data_go_by_their_labels(gp, frame):
    assert_close(gp.check_data(FRAMES[frame]), Y)


def test_a_frame_has_the_likelihood_of_its_cells():
    assert_close(NAMED.log_marginal_likelihood(FRAMES["both shuffled"]), truth(Y))
    post = NAMED.condition(FRAME.T)
    assert_close(post.log_prob(FRAME.iloc[::-1]), np.asarray(post.log_prob(Y)))
    assert (NAMED.observing(FRAME.where(~HOLES).T).observed.array == ~HOLES).all()
    days = pd.date_range("2020-01-01", periods=4)
    gp = kx.GridGP(
        {"day": kx.RBF(2.0), "tree": kx.Categorical.with_rank(3)},
        {"day": days, "tree": ["ash", "elm", "oak"]},
        noise=0.1,
    )
    trees = pd.DataFrame(Y, index=days, columns=["ash", "elm", "oak"])
    assert_close(gp.check_data(trees.iloc[::-1, [2, 0, 1]].T), Y)


LONG = FRAME.stack()
SERIES = {
    "as it is": (LONG, Y),
    "shuffled": (LONG.sample(frac=1.0, random_state=0), Y),
    "the other order": (LONG.swaplevel(), Y),
    "by name": (LONG.rename_axis(["time", "site"]).swaplevel(), Y),
    "of a table": (
        FRAME.reset_index(names="time")
        .melt("time", var_name="site")
        .set_index(["site", "time"])["value"],
        Y,
    ),
    "without the gaps": (FRAME.mask(HOLES).stack().dropna(), WITH_GAPS),
    "of integers": (
        LONG.round().astype(int)[1:],
        np.where(np.arange(12) < 1, np.nan, Y.ravel().round()),
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_long_series_go_by_their_labels(name):
    series, expected = SERIES[name]
    for gp in (NAMED, PLAIN):
        np.testing.assert_array_equal(gp.check_data(series), expected.reshape(4, 3))
    rounded = pd.Series(
        Y.ravel(), index=pd.MultiIndex.from_product([TIME.astype("f4") + 1e-7, SITE])
    )
    assert_close(NAMED.check_data(rounded), Y)


def test_long_series_of_dates_and_labels():
    when, trees = pd.date_range("2020-01-01", periods=4), ["oak", "ash", "elm"]
    kernels = {"day": kx.RBF(2.0), "tree": kx.Categorical.with_rank(3)}
    gp = kx.GridGP(kernels, {"day": when, "tree": trees}, noise=0.1)
    series = pd.DataFrame(Y, index=when, columns=trees).T.stack().sort_index()
    np.testing.assert_array_equal(gp.check_data(series), Y)
    np.testing.assert_array_equal(gp.observing(series[1:]).observed.array.sum(), 11)


def test_series_go_along_one_axis():
    line = kx.GridGP({"time": kx.RBF(1.0)}, {"time": TIME}, noise=0.1)
    assert_close(line.check_data(FRAME[10.0].iloc[::-1]), Y[:, 0])
    levels = pd.Series([1.0, 2.0, 3.0], index=SITE)
    gp = kx.GridGP(kernels(), {"time": TIME, "site": SITE}, noise={"site": levels.iloc[::-1]})
    assert_close(gp.noise.variances[1], [1.0, 2.0, 3.0])
    cells = kx.GridGP(kernels(), NAMED_AXES, noise=FRAME.abs().T, mean=FRAME.iloc[::-1])
    assert_close(cells.noise.variances, np.abs(Y))
    assert_close(cells.mean_on((None, None)), Y)


NAMED_AXES = {"time": TIME, "site": SITE}


def test_a_mask_means_gaps():
    expected = truth(WITH_GAPS)
    assert_close(NAMED.log_marginal_likelihood(MASKED), expected)
    assert_close(NAMED.observing(MASKED).log_marginal_likelihood(Y), expected)
    assert_close(NAMED.observing((~HOLES).tolist()).log_marginal_likelihood(Y), expected)
    seen = np.ma.masked_array(np.ones((4, 3), bool), HOLES)
    assert (NAMED.observing(seen).observed.array == ~HOLES).all()
    once = {"num_steps": 1, "optimizer": optax.adam(0.1), "freeze": ("kernels", "variance")}
    fits = [kx.fit(NAMED, y, **once).loss for y in (MASKED, WITH_GAPS)]
    assert fits[0] == fits[1]
    d = NAMED.observing(MASKED).numpyro_dist()
    assert_close(jax.jit(lambda: d.log_prob(MASKED))(), expected)
    with pytest.raises(ValueError, match="NaN in 1 of these"):
        d.log_prob(np.ma.masked_array(Y, HOLES | (np.arange(12).reshape(4, 3) == 0)))
    rows = [kx.compare({"a": NAMED}, y)[0].loo for y in (MASKED, WITH_GAPS)]
    assert rows[0] == rows[1]


def test_lists_of_masked_rows_mean_gaps():
    expected = truth(WITH_GAPS)
    rows = list(MASKED)
    numbers = [
        [np.ma.masked if hole else v for v, hole in zip(*r, strict=True)]
        for r in zip(Y, HOLES, strict=True)
    ]
    for y in (rows, tuple(rows), numbers):
        assert_close(NAMED.log_marginal_likelihood(y), expected)
        assert (NAMED.observing(y).observed.array == ~HOLES).all()
    seen = [np.ma.masked_array(np.ones(3, bool), row) for row in HOLES]
    assert (NAMED.observing(seen).observed.array == ~HOLES).all()
    batch = NAMED.log_marginal_likelihood([rows, rows])
    assert_close(batch, np.full(2, expected))


def labelled(labels, trees=("ash", "elm", "oak")):
    gp = kx.GridGP({"tree": kx.Categorical.with_rank(3)}, {"tree": list(trees)}, noise=0.1)
    gp.check_data(pd.Series(np.arange(len(labels), dtype=float), index=labels))


def days(first, count):
    return pd.date_range(first, periods=count)


LABELS = {
    "missing": (lambda: NAMED.condition(FRAME.iloc[1:]), "along time.*missing: 0.0"),
    "extra": (lambda: labelled(["ash", "elm", "oak", "fir"]), "tree.*not of the model: fir"),
    "another": (lambda: labelled(["ash", "fir", "oak"]), "missing: elm; not of the model: fir"),
    "twice": (lambda: labelled(["ash", "elm", "elm"]), "missing: oak; twice: elm"),
    "dates": (
        lambda: kx.GridGP(
            {"day": kx.RBF(1.0)}, {"day": days("2020-01-01", 3)}, noise=0.1
        ).condition(pd.Series(np.arange(3.0), index=days("2020-01-02", 3))),
        "missing: 2020-01-01; not of the model: 2020-01-04",
    ),
    "of the noise": (
        lambda: process(noise={"site": pd.Series([1.0, 2.0, 3.0], index=[10.0, 20.0, 36.0])}),
        r"the noise along site.*missing: 35.0; not of the model: 36.0.*pass its `\.to_numpy\(\)`",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_wrong_are_named(name):
    call, match = LABELS[name]
    with pytest.raises(ValueError, match=match):
        call()


class Ragged(kx.Mean):
    values: jax.Array = kx.parameter(constraints.real)

    def __call__(self, *axes):
        return self.values


class Vector(kx.Kernel):
    width: jax.Array = kx.parameter(constraints.positive)

    def evaluate(self, x, z):
        return jnp.exp(-jnp.abs(x - z) / self.width)


class Constant(kx.Kernel):
    def evaluate(self, x, z):
        return jnp.exp(-jnp.abs(x - z))

    def diagonal(self, x):
        return jnp.ones(())


class Number(kx.Kernel):
    ell: float

    def evaluate(self, x, z):
        return jnp.exp(-jnp.abs(x - z) / self.ell)


class Slope(kx.Mean):
    slope: float = 2.0

    def __call__(self, *axes):
        return self.slope * axes[0]


class Fixed(kx.Kernel):
    ell: float = eqx.field(static=True)

    def evaluate(self, x, z):
        return jnp.exp(-jnp.abs(x - z) / self.ell)


class Short(kx.AbstractFactor):
    size: int = eqx.field(static=True)

    def mv(self, x):
        return x[..., :1]

    def to_dense(self):
        return jnp.eye(2)


def process(**changes):
    given = {"kernels": kernels(), "axes": NAMED_AXES, "noise": 0.1} | changes
    return kx.GridGP(**given)


def with_mean_of_the_grid():
    return process(mean=Ragged(np.ones((4, 3)))).condition(Y)


SQUARE = np.eye(12)
OP = kx.Kronecker(np.eye(4), np.eye(3)) + 0.1
LINE = kx.GridGP((kx.RBF(1.0),), (TIME,), noise=0.1)
REFUSED = {
    "labels that are not the axis'": (
        lambda: NAMED.condition(pd.DataFrame(Y)),
        r"labels of y along time must be the coordinates.*got numbers, 4, 0 … 3.*y\.to_numpy",
    ),
    "names of the other axis": (
        lambda: NAMED.condition(FRAME.rename_axis(index="site")),
        "labels of y along time",
    ),
    "a frame of three axes": (
        lambda: NAMED.condition(FRAME[10.0]),
        r"labels along 1 axis; the model has 2\..*one level of its index per axis",
    ),
    "a cell twice": (
        lambda: NAMED.condition(pd.concat([FRAME.stack(), FRAME.stack()[:1]])),
        r"one value per cell; got several at 0.0, 10.0\.",
    ),
    "a row of another place": (
        lambda: NAMED.condition(FRAME.rename(columns={35.0: 36.0}).stack()),
        "labels of y along .*missing: 35.0; not of the model: 36.0",
    ),
    "noise of other labels": (
        lambda: process(noise={"site": pd.Series(np.ones(3))}),
        "labels of the noise along site",
    ),
    "a frame in an operator": (lambda: kx.solve(OP, FRAME), r"got a DataFrame.*\.to_numpy\(\)"),
    "masked rows in an operator": (
        lambda: kx.solve(OP, list(np.ma.masked_array(Y, HOLES))),
        "got a masked one",
    ),
    "rows with labels": (lambda: NAMED.condition([FRAME[10.0], FRAME[20.0]]), "got a Series"),
    "a frame to compare": (lambda: kx.compare({"a": NAMED}, FRAME), "got a DataFrame"),
    "a masked parameter": (lambda: kx.RBF(np.ma.masked_array([1.0], [True])), "got a masked one"),
    "a masked place": (
        lambda: process(axes={"time": [0.0, np.ma.masked, 2.5, 4.0], "site": SITE}),
        "coordinates of time must be finite; got nan",
    ),
    "a masked mean": (lambda: process(mean=MASKED), "mean must be a plain array"),
    "masked where nothing may be missing": (
        lambda: NAMED.condition(Y).log_prob(MASKED),
        "y_new must be finite",
    ),
    "solve": (lambda: kx.solve(OP, SQUARE), r"rows or in columns.*kx\.inverse\(op\) @ X"),
    "inv_quad": (lambda: kx.inv_quad(OP, SQUARE), "rows or in columns"),
    "normal_logpdf": (lambda: kx.normal_logpdf(SQUARE, 0.0, OP), "y of shape .* rows or in"),
    "its mean": (lambda: kx.normal_logpdf(Y, SQUARE, OP), "mean of shape .* rows or in columns"),
    "mv": (lambda: OP.mv(SQUARE), "x of shape .* rows or in columns"),
    "data": (lambda: NAMED.condition(SQUARE), "y of shape .* rows or in columns"),
    "data on one axis": (lambda: LINE.condition(np.eye(4)), "rows or in columns"),
    "infinite noise": (lambda: process(noise=np.inf), "noise must be positive; got inf.*finite"),
    "infinite noise along an axis": (
        lambda: process(noise={"site": [1.0, np.inf, 1.0]}),
        "finite",
    ),
    "an infinite lengthscale": (lambda: kx.RBF(np.inf), "lengthscale must be positive; got inf"),
    "an infinite scale": (lambda: np.inf * kx.RBF(1.0), "variance must be positive; got inf"),
    "an infinite period": (lambda: kx.Periodic(np.inf, 1.0), "must be positive; got inf"),
    "a replaced one": (lambda: kx.replace(NAMED, {"noise": np.inf}), "noise must be positive"),
    "a NaN jitter": (lambda: NAMED.latent_condition(Y, jitter=np.nan), "and finite; got nan"),
    "a NaN centre": (lambda: kx.LinearMean(0, centre=np.nan), "centre of a mean.*got nan"),
    "a scale of zero": (lambda: kx.LinearMean(0, scale=0.0), "scale of a mean must be positive"),
    "a mean of one grid": (
        lambda: with_mean_of_the_grid().mean(axes={"time": TIME[:1]}),
        r"broadcasts to the grid.*\(1, 3\); got shape \(4, 3\) from Ragged",
    ),
    "a mean of one grid at places": (
        lambda: with_mean_of_the_grid().mean(points=(TIME[:2], SITE[:2])),
        r"got shape \(4, 3\) from Ragged",
    ),
    "a mean of another grid": (lambda: process(mean=Ragged(np.ones((3, 3)))), r"\(4, 3\); got"),
    "a kernel of vectors": (
        lambda: process(kernels=kernels() | {"time": Vector(np.ones(2))}),
        r"`evaluate` of Vector must return one number.*got shape \(2,\)",
    ),
    "a diagonal of one number": (
        lambda: (
            process(kernels=kernels() | {"time": Constant()})
            .condition(Y)
            .variance([TIME + 1, None])
        ),
        r"`diagonal` of Constant must return an array of shape \(4,\)",
    ),
    "a short product": (lambda: kx.Kronecker(Short(3)).mv(np.ones(3)), "`mv` of Short must"),
    "a small matrix": (lambda: kx.logdet(kx.Kronecker(Short(3)) + 0.1), "`to_dense` of Short must"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_misshapen_is_refused(name):
    call, match = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=match):
        call()


def test_batches_of_as_many_vectors_as_cells_have_another_shape():
    assert_close(kx.solve(OP, SQUARE[:, None])[:, 0], SQUARE / 1.1)
    assert_close(kx.solve(OP, SQUARE.reshape(12, 4, 3)).reshape(12, 12), SQUARE / 1.1)
    assert kx.solve(OP, np.ones((12, 4, 3))).shape == (12, 4, 3)
    square = kx.Kronecker(np.eye(3), np.eye(3)) + 0.1
    assert kx.solve(square, np.ones((3, 3))).shape == (3, 3)


@pytest.mark.parametrize("make", [lambda: Number(1.0), lambda: Number(1), Slope])
def test_python_numbers_in_fields_are_declared_or_refused(make):
    with pytest.raises(TypeError, match=r"no parameter.*kx\.parameter\(.*eqx\.field\(static=True"):
        make()
    assert not kx.parameters(Fixed(1.0))


def test_infinite_variances_of_single_cells_are_gaps():
    gp = process(noise=np.where(HOLES, np.inf, 0.1))
    assert_close(gp.log_marginal_likelihood(Y), truth(WITH_GAPS))


TRACED = {
    "vmap": lambda: jax.vmap(lambda y: kx.fit(PLAIN, y, progress=False).loss)(np.stack([Y, Y])),
    "jit": lambda: jax.jit(lambda: kx.fit(PLAIN, Y, progress=False).loss)(),
    "grad": lambda: jax.grad(lambda s: kx.fit(PLAIN, s * Y, progress=False).loss)(1.0),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_fit_says_what_to_do(name):
    with pytest.raises(TypeError, match=r"concrete.*kx\.fit\(model, y, independent=True\)"):
        TRACED[name]()


@pytest.mark.parametrize("dates", [False, True], ids=["numbers", "dates"])
def test_slopes_are_per_unit_of_the_axis(dates):
    days = np.arange(31)
    axis = np.datetime64("2020-01-01") + days if dates else 2.0 + days
    y = 5.0 + 2.0 * days + 0.01 * np.sin(3.0 * days)
    gp = kx.GridGP(
        {"day": kx.Matern32(1.0)},
        {"day": axis},
        noise=0.1,
        mean=kx.MarginalMean(kx.LinearMean("day")),
    )
    found = gp.condition(y).regression
    far = np.abs(days[:, None] - days) * np.sqrt(3)
    covariance = (1 + far) * np.exp(-far) + 0.1 * np.eye(31)
    design = np.stack([np.ones(31), days - 15.0], axis=1)
    spread = np.linalg.inv(design.T @ np.linalg.solve(covariance, design))
    expected = spread @ design.T @ np.linalg.solve(covariance, y)
    assert_close(found.coefficients, expected)
    assert_close(found.covariance, spread)
    assert_close(found.standard_errors, np.sqrt(np.diagonal(spread)))
    assert found.coefficients[1] == pytest.approx(2.0, abs=1e-2)
    where = "15 days after 2020-01-01, slope per day of day" if dates else "17, slope per unit of"
    assert f"day: level at {where}" in repr(found)
    trained = kx.GridGP(
        {"day": kx.Matern32(1.0)},
        {"day": axis},
        noise=0.1,
        mean=kx.LinearMean("day", coefficients=[35.0, 30.0]),
    )
    assert "level 35, slope 2" in trained.describe()


def test_extra_dimensions_lead_as_batches():
    gp = kx.GridGP({"time": kx.RBF(1.0)}, {"time": TIME}, noise=0.1)
    data = xr.DataArray(Y, {"time": TIME}, ("time", "run"))
    assert gp.log_marginal_likelihood(data).shape == (3,)
