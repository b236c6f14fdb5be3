"""The floor of the noise in a fit, beside dense covariances in double precision."""

from typing import NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import kronax as kx
from kronax.fitting.doubts import warn_of_end, warn_of_start
from kronax.fitting.problem import Problem, make_problem
from kronax.linalg.arrays.precision import FLOOR
from tests.gp.dense import matern52, squared_exponential

# In small units, which a summary must show as well.
X = 1e-6 * np.linspace(0, 1, 24)
Y = 1e-5 * (np.sin(6e6 * X) + 0.3e12 * np.square(X))
SETTINGS = {"freeze": (), "domains": None, "share": ()}


def process(noise, dtype=np.float64):
    noise = dtype(noise) if np.ndim(noise) == 0 else noise
    return kx.GridGP((dtype(1e-10) * kx.RBF(dtype(2e-7)),), (X.astype(dtype),), noise=noise)


def problem(gp, y=Y, priors=None):
    return make_problem(gp, y.astype(gp.dtype), None, priors, False, SETTINGS)


def signal(gp):
    return float(gp.variance) * squared_exponential(X, X, float(gp.kernels[0].lengthscale))


def loss(gp, variances, y=Y):
    matrix = signal(gp) + np.diag(np.broadcast_to(np.asarray(variances, float), X.shape))
    quadratic = y @ np.linalg.solve(matrix, y)
    return (quadratic + np.linalg.slogdet(matrix)[1] + y.size * np.log(2 * np.pi)) / 2


def floor(gp):
    """By the largest sum of a row, which bounds the eigenvalues."""
    info = np.finfo(gp.dtype)
    return float(info.eps) / FLOOR[info.bits] * signal(gp).sum(axis=1).max()


def test_a_line_search_in_double_precision_has_the_floor_of_a_single_precision_model():
    # Data without noise, so that the fit ends at the floor, and says at its end what that costs.
    # The search of optax steps in double precision where JAX admits it, and its losses are right.
    lost = "Where the fit ended its loss may be wrong in float32"
    with pytest.warns(kx.PrecisionWarning, match=lost) as found:
        result = kx.fit(
            process(1e-11, np.float32),
            Y.astype(np.float32),
            optimizer=optax.lbfgs(),
            progress=False,
        )
    assert len(found) == 1
    assert "the noise is at its floor" in result.reason
    model, posed = result.model, result.problem
    assert result.loss == pytest.approx(loss(model, model.noise), abs=0.05)
    wide = {path: value.astype(np.float64) for path, value in result.raw.items()}
    assert float(posed.value(wide)) == pytest.approx(result.loss, abs=0.05)
    for raw in (wide, result.raw):
        least = float(posed.build(raw).noise) - np.exp(float(raw["noise"]))
        assert least == pytest.approx(floor(model), rel=1e-4)
    rows = [row.split() for row in result.summary(standard_errors=False).splitlines()]
    shown = {row[0]: row[1] for row in rows if len(row) > 1}
    for parameter in result.parameters:
        assert float(shown[parameter.path]) == pytest.approx(float(parameter.value), rel=1e-3)


@pytest.mark.filterwarnings("ignore::kronax.PrecisionWarning")  # its bound counts the precise cell
def test_one_precise_cell_does_not_raise_the_noise_of_the_others():
    variances = np.full(24, 1e-13)
    variances[3] = 1e-26
    y = Y + np.sqrt(variances) * np.random.default_rng(0).normal(size=24)
    gp = process(variances)
    assert floor(gp) > variances[3]
    posed = problem(gp, y)
    assert posed.has_floor
    raw = posed.raw_of(gp)
    assert float(posed.build(raw).noise.scale) == pytest.approx(1.0, rel=1e-6)
    assert float(posed.value(raw)) == pytest.approx(loss(gp, variances, y), abs=1e-3)
    flat = raw | {"noise.scale": np.float64(-60.0)}  # where the scale has nothing but its floor
    assert float(posed.build(flat).noise.scale) == pytest.approx(floor(gp) / 1e-13, rel=1e-4)


def test_the_support_of_a_prior_may_reach_below_the_floor():
    gp, prior = process(1e-22), dist.Uniform(1e-30, 1.0)
    assert floor(gp) > 1e-30
    posed = problem(gp, priors={"noise": prior})
    raw = posed.raw_of(gp)
    assert float(posed.build(raw).noise) == pytest.approx(1e-22, rel=1e-6)
    assert float(posed.value(raw)) == pytest.approx(loss(gp, 1e-22), abs=0.1)
    far = posed.build(raw | {"noise": np.float64(-66.0)}).noise
    assert 1e-30 < far < floor(gp) / 100
    single = problem(process(1e-16, np.float32), priors={"noise": dist.Uniform(1e-20, 1.0)})
    assert single.build(single.raw_of(single.model)).noise == pytest.approx(1e-16, rel=1e-3)


def test_small_numbers_are_readable_in_tables():
    gp = kx.GridGP((1e-9 * kx.RBF(2e-7),), (X,), noise=1e-13, mean=-1e-5)
    for text in (gp.describe(), repr(kx.parameters(gp))):
        for number in ("2e-07", "1e-09", "1e-13", "-1e-05"):
            assert f" {number} " in text


STEPS = np.linspace(0, 1, 24)
# Noise nearly as smooth as the signal: some directions have little of either.
SMOOTH_NOISE = 1e-3 * (squared_exponential(STEPS, STEPS, 0.25) + 1e-5 * np.eye(24))


@pytest.mark.parametrize("correlated", [False, True])
def test_fits_without_a_level_of_noise_warn_as_others_do(correlated):
    x = STEPS.astype(np.float32)
    noise = kx.Kronecker(SMOOTH_NOISE.astype(np.float32)) if correlated else 0
    kernel = (kx.RBF if correlated else kx.Matern52)(np.float32(0.3))
    gp = kx.GridGP((np.float32(1.0) * kernel,), (x,), noise=noise)
    posed = problem(gp, np.sin(6 * x))
    with pytest.warns(kx.PrecisionWarning, match="At its start the fit sees a loss that is off"):
        ratio = warn_of_start(posed)
    # Correlated noise and the signal are taken on one scale first.
    lossy = matern52(STEPS, STEPS, 0.3)
    if correlated:
        lossy = squared_exponential(STEPS, STEPS, 0.3) + SMOOTH_NOISE / 1e-3
    assert 0.3 < ratio / (np.finfo(np.float32).eps * np.linalg.cond(lossy)) < 3
    if correlated:
        double = jax.tree.map(lambda v: v.astype(np.float64), gp)
        assert warn_of_start(problem(double, np.sin(6 * x))) == 0.0


def test_the_end_of_a_fit_warns_of_what_its_start_did_not():
    class Ended(NamedTuple):
        """What is asked of a fit, of which this had the noise frozen."""

        problem: Problem
        model: kx.GridGP

    posed = problem(process(1e-18, np.float32))
    found = Ended(posed, process(1e-18, np.float32))
    with pytest.warns(kx.PrecisionWarning, match="At its start"):
        ratio = warn_of_start(posed)
    warn_of_end(found, ratio)  # and no warning
    with pytest.warns(
        kx.PrecisionWarning, match="wrong, by far more than at its start, in float32"
    ):
        warn_of_end(found._replace(model=process(1e-20, np.float32)), ratio)
