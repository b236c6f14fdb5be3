"""How many programs are compiled: a person's first minute is spent on them."""

import datetime

import jax
import numpy as np
import pytest
import xarray as xr
from numpyro import handlers

import kronax as kx
from tests.programs import programs

X, Z = np.linspace(0, 1, 20), np.sort(np.random.default_rng(0).uniform(size=7))
TWO = (kx.Matern32, kx.RBF)


def two():
    return 2.0 * kx.Matern32(0.3), 3.0 * kx.RBF(0.2) * kx.Constant(2.0)


def days():
    return [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(20)]


def dated():
    kernels = (2.0 * kx.Periodic(365.0, 1.0) * kx.Matern52(100.0) + 3.0 * kx.RBF(10.0), kx.RBF(0.2))
    return kx.GridGP(kernels, (days(), Z), noise=0.1, mean=kx.HarmonicMean(0, 365.25, 2))


def labelled():
    data = xr.DataArray(
        np.zeros((20, 3)), coords={"time": np.arange(20.0), "firm": ["a", "b", "c"]}
    )
    kernels = {"time": kx.RationalQuadratic(3.0, 1.0), "firm": 2.0 * kx.Categorical.with_rank(3, 2)}
    return kx.GridGP.from_xarray(data, kernels, noise=0.1, mean=0.5)


def places():
    points = np.random.default_rng(0).normal(size=(9, 2))
    apart = kx.ActiveDims(kx.RBF(1.0), 0) * kx.ActiveDims(kx.Linear() + kx.White(2.0), 1)
    earth = kx.sphere(10 * points)
    circle = kx.circle(np.arange(0, 360, 15.0), 360.0)
    kernels = (apart, kx.Matern12([1.0, 2.0]), kx.Matern32(900.0), kx.Matern52(30.0))
    axes = (points, points, earth, circle)
    return kx.GridGP(kernels, axes, noise=0.1, mean=kx.MarginalMean(kx.LinearMean(3), 10.0))


def gaps():
    observed = np.random.default_rng(0).uniform(size=(20, 7)) < 0.8
    wave = kx.SpectralMixture([0.7, 0.3], [1.0, 0.1], [0.01, 0.2]) * kx.Cosine(0.3)
    return kx.GridGP((wave, kx.White()), (X, Z), noise=0.1, observed=observed)


def per_axis():
    noise = {0: np.linspace(1, 2, 20), 1: 0.5}
    return kx.GridGP(two(), (X, Z), noise=noise, mean=kx.PolynomialMean(0, 2) + 1.0)


def per_cell():
    noise = np.ones((20, 7))
    noise[2, 3] = np.inf
    return kx.GridGP(two(), (X, Z), noise=noise, mean=np.ones(7))


def diagonal():
    noise = kx.Kronecker(kx.Diagonal(np.linspace(1, 2, 20)), kx.ScaledIdentity(0.1, 7))
    return kx.GridGP(two(), (X, Z), noise=noise)


def terms(*kernels, noise=0.1):
    return kx.GridGP(terms={f"k{i}": k for i, k in enumerate(kernels)}, axes=(X, Z), noise=noise)


def exact():
    space = kx.RBF(0.2)
    return terms((2.0 * kx.RBF(0.3), space), (0.5 * kx.Matern32(0.1), space))


CASES = {
    "arrays": lambda: kx.GridGP(two(), (X, Z), noise=0.1, structure=("toeplitz", "dense")),
    "single precision": lambda: kx.GridGP(
        (np.float32(2) * kx.Matern32(np.float32(0.3)), kx.RBF(np.float32(0.2))), (X, Z), 0.1
    ),
    "low rank": lambda: kx.GridGP(two(), (X, Z), noise=0.1, structure=(5, None)),
    "dates": dated,
    "labels of a DataArray": labelled,
    "places": places,
    "gaps": gaps,
    "noise per axis": per_axis,
    "noise per cell": per_cell,
    "diagonal noise": diagonal,
    "no noise": lambda: kx.GridGP(two(), (X, Z), noise=0),
    "exact terms": exact,
    "terms that join the noise": lambda: terms(two(), (kx.RBF(0.1), 2.0 * kx.White())),
    "terms of products": lambda: terms(two(), (kx.RBF(0.1), kx.RBF(0.1))),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_building_and_describing_a_model_compiles_nothing(case, precision):
    with jax.enable_x64(precision == "float64"), programs() as compiled:
        CASES[case]().describe()
    assert compiled == []


NEW = [np.array([0.05, 0.5]), None]
VERBS = {
    "log_marginal_likelihood": lambda gp, y, post, key: gp.log_marginal_likelihood(y),
    "sample of the prior": lambda gp, y, post, key: gp.sample(key, include_noise=True),
    "condition": lambda gp, y, post, key: gp.condition(y),
    "mean": lambda gp, y, post, key: post.mean(NEW),
    "variance": lambda gp, y, post, key: post.variance(NEW, include_noise=True, noise=0.3),
    "sample": lambda gp, y, post, key: post.sample(key, NEW),
    "leave_one_out": lambda gp, y, post, key: post.leave_one_out(),
}


@pytest.fixture(scope="module")
def given():
    gp = kx.GridGP(two(), (X[:5], Z[:4]), noise={1: np.ones(4)}, mean=0.5)
    y = np.random.default_rng(0).normal(size=(5, 4))
    return gp, y, gp.condition(y), jax.random.key(0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_one_program(verb, given):
    with programs() as compiled:
        jax.block_until_ready(VERBS[verb](*given))
    assert len(compiled) == 1, compiled


def test_sites_of_numpyro_are_one_program_each(given):
    """Beside random numbers and checks: a model runs step by step before it is compiled."""
    with programs() as compiled, handlers.seed(rng_seed=0):
        given[0].latent("f")
        given[0].numpyro_dist()
    assert {"jit(_field)", "jit(_moments)"} <= set(compiled)
    assert not {"jit(exp)", "jit(sqrt)", "jit(cholesky)"} & set(compiled)


def test_starting_values_need_no_program(given):
    gp, y, *_ = given
    with programs() as compiled:
        gp.initialise(y)
    assert compiled == []


def test_a_fit_is_its_loop_and_the_floor_of_its_noise():
    """And its summary uses that loop."""
    gp = kx.GridGP(two(), (X[:6], Z[:5]), noise=0.1)
    y = gp.sample(jax.random.key(0), include_noise=True)
    with programs() as compiled:
        result = kx.fit(gp.initialise(y), y, progress=False)
        assert "standard error" in result.summary()
    assert sorted(compiled) == ["jit(_noise_level)", "jit(advance)"]
