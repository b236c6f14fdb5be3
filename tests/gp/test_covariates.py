"""Covariates of a mean, and means of several axes, beside dense generalised least squares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kronax as kx
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


def drift():
    return kx.ConstantMean(0.0) + kx.CovariateMean(
        temperature=WARMTH, height=HEIGHT, wave=lambda t, x: jnp.sin(3 * t)[:, None] * x[None]
    )


def functions(warmth, height, time, space):
    """A level and three covariates, one column each."""
    shape = (len(time), len(space))
    wave = np.sin(3 * time)[:, None] * space
    columns = [np.ones(shape), warmth, np.broadcast_to(height, shape), wave]
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
    variance: float | None = None

    def __post_init__(self):
        seen, axes = np.isfinite(self.y.ravel()), (TIME, SPACE)
        covariance = (signal(axes, axes) + 0.1 * np.eye(20))[np.ix_(seen, seen)]
        design, y = self.design[seen], self.y.ravel()[seen]
        solved = np.linalg.solve(covariance, design)
        precision = design.T @ solved
        if self.variance is not None:
            precision = precision + np.eye(len(precision)) / self.variance
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


@pytest.mark.parametrize("y", [Y, GAPPY], ids=["complete", "gaps"])
def test_covariates_integrated_out_are_those_of_least_squares(y):
    gp = make(kx.MarginalMean(drift()))
    post, dense = gp.condition(y), Dense(OLD, (NEW_TIME, SPACE), AHEAD_DESIGN, y)
    assert post.regression.names == ("constant", "temperature", "height", "wave")
    assert_close(post.regression.coefficients, dense.coefficients)
    assert_close(post.regression.standard_errors, np.sqrt(np.diagonal(dense.errors)))
    assert_close(gp.log_marginal_likelihood(y), dense.restricted)
    assert_close(post.mean(**AHEAD), dense.mean.reshape(2, 4))
    assert_close(post.variance(**AHEAD), np.square(dense.sd).reshape(2, 4))
    assert_close(post.covariance(**AHEAD).to_dense(), dense.spread)
    data = rng.normal(size=(2, 4))
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
    assert post.sample(jax.random.key(0), sample_shape=2, **known).shape == (2, 3)


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
    assert_close(post.mean(axes={"time": TIME[[3, 1]]}), post.mean()[jnp.array([3, 1])])
    assert_close(post.mean(points=[[TIME[3], SPACE[1]]]), post.mean()[3, 1:2])
    heights = make(kx.MarginalMean(kx.CovariateMean(height=HEIGHT))).condition(Y)
    assert heights.mean(axes={"time": NEW_TIME}).shape == (2, 4)


def test_coefficients_are_parameters_by_name_and_start_at_least_squares():
    gp = make(drift()).initialise(Y)
    rows = {p.path: p for p in kx.parameters(gp) if p.path.startswith("mean")}
    assert set(rows) == {
        "mean.first.value",
        *(f"mean.second.coefficients[{name!r}]" for name in ("temperature", "height", "wave")),
    }
    found = [float(rows[path].value) for path in sorted(rows)]
    truth = np.linalg.lstsq(OLD, Y.ravel(), rcond=None)[0]
    np.testing.assert_allclose(found, truth[[0, 2, 1, 3]], rtol=1e-8)
    result = kx.fit(gp, Y, freeze=("kernels", "variance", "noise"), progress=False)
    fitted = {p.path: float(p.value) for p in kx.parameters(result.model)}
    start = kx.replace(gp, {path: fitted[path] for path in rows})
    dense = Dense(OLD, (TIME, SPACE), OLD)
    exact = make(drift())
    other = kx.fit(exact, Y, freeze=("kernels", "variance", "noise"), progress=False)
    names = sorted(rows)
    values = {p.path: float(p.value) for p in kx.parameters(other.model)}
    np.testing.assert_allclose(
        [values[n] for n in names], dense.coefficients[[0, 2, 1, 3]], rtol=1e-4, atol=1e-5
    )
    assert start.mean is not None
