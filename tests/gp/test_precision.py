"""What a precision carries: warnings where it is not enough, and fits that stay above rounding."""

import re
import warnings
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import kronax as kx
from kronax.linalg.arrays.precision import FLOOR, LOST
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.spectral.conditioning import largest_eigenvalue
from tests.everyday import everyday, full
from tests.gp import dense

X, Z = np.linspace(0, 1, 12), np.linspace(0, 1, 10)
FINE = ((X[1:] + X[:-1]) / 2, (Z[1:] + Z[:-1]) / 2)


PLACE = np.array([[0.1, 0.2]], np.float32)


to_dense = jax.jit(lambda op: op.to_dense())


def simulator(x, z):
    """A smooth function without noise."""
    return np.sin(6 * x)[:, None] * np.cos(5 * z) + 0.3 * np.square(x)[:, None]


def process(noise, dtype=np.float64, kernel=kx.RBF, **options):
    kernels = (kernel(dtype(0.3)), dtype(1.0) * kernel(dtype(0.4)))
    noise = dtype(noise) if np.ndim(noise) == 0 else noise
    return kx.GridGP(kernels, (X.astype(dtype), Z.astype(dtype)), noise=noise, **options)


def covariance(kernel=dense.squared_exponential, noise=0.0):
    """The dense one of `process`."""
    signal = np.kron(kernel(X, X, 0.3), kernel(Z, Z, 0.4))
    return signal + noise * np.eye(len(signal))


def carbon_dioxide(dtype, noise):
    """Rasmussen and Williams (2006), equation 5.15 to 5.19, on months of some years."""
    a = dtype
    months = np.arange(0, 8, 1 / 12).astype(dtype)
    kernel = (
        a(66.0**2) * kx.RBF(a(67.0))
        + a(2.4**2) * kx.RBF(a(90.0)) * kx.Periodic(a(1.0), a(1.3))
        + a(0.66**2) * kx.RationalQuadratic(a(1.2), a(0.78))
        + a(0.18**2) * kx.RBF(a(0.134))
    )
    y = 2 * months + 3 * np.sin(2 * np.pi * months) + 0.1 * np.cos(40 * months)
    return kx.GridGP((kernel,), (months,), noise=a(noise)), y.astype(dtype)


@pytest.mark.parametrize("noise", [0.19**2, 1e-4])
def test_the_textbook_kernel_warns_in_single_precision_alone(noise):
    gp, y = carbon_dioxide(np.float32, noise)
    with pytest.warns(kx.PrecisionWarning, match=r"float32: rounding.*jax_enable_x64"):
        gp.log_marginal_likelihood(y)
    with pytest.warns(kx.PrecisionWarning, match="Means, variances and draws"):
        gp.condition(y)
    gp, y = carbon_dioxide(np.float64, noise)
    gp.log_marginal_likelihood(y)
    gp.condition(y)


@jax.jit
def conditioned(gp, y):
    """Without a warning of its own."""
    return gp.condition(y)


def calls(noise, dtype=np.float32):
    """Every eager way to a log density."""
    gp, y = process(noise, dtype), simulator(X, Z).astype(dtype)
    observed = np.ones(y.shape, bool)
    observed[3, 4] = observed[5, 5] = False
    gaps = np.where(observed, y, np.nan).astype(dtype)
    uneven = process(np.full(y.shape, noise, dtype), dtype, gaps="exact")
    return {
        "likelihood": lambda: gp.log_marginal_likelihood(y),
        "likelihood with gaps": lambda: gp.log_marginal_likelihood(gaps),
        "condition": lambda: gp.condition(y),
        "condition with gaps": lambda: gp.condition(gaps),
        "uneven": lambda: uneven.condition(y),
        "normal_logpdf": lambda: kx.normal_logpdf(y, 0.0, gp.covariance()),
        "of a decomposed one": lambda: kx.normal_logpdf(y, 0.0, kx.decompose(gp.covariance())),
        "masked": lambda: kx.normal_logpdf(y, 0.0, kx.Masked(gp.covariance(), observed)),
        "distribution": lambda: gp.numpyro_dist().log_prob(y),
        "with gaps": lambda: gp.observing(gaps).numpyro_dist().log_prob(gaps),
        "solve": lambda: kx.solve(gp.covariance(), y),
        "columns": lambda: kx.inverse(gp.covariance()) @ y.reshape(-1, 1),
        "logdet": lambda: kx.logdet(kx.decompose(gp.covariance())),
        "inv_quad": lambda: kx.inv_quad(gp.covariance(), y),
        "masked solve": lambda: kx.solve(kx.Masked(gp.covariance(), observed), y),
        "masked logdet": lambda: kx.logdet(kx.Masked(gp.covariance(), observed)),
        "log_prob": lambda: conditioned(gp, y).log_prob(y),
        "log_prob ahead": lambda: conditioned(gp, y).log_prob(y[:1], axes=[X[:1], None]),
        "log_prob at points": lambda: conditioned(gp, y).log_prob(y[0, :1], points=PLACE),
    }


EVERYDAY = {
    *("likelihood", "likelihood with gaps", "condition", "uneven", "of a decomposed one"),
    *("masked", "solve", "inv_quad", "logdet", "log_prob"),
}


@pytest.mark.parametrize("name", everyday(calls(0.1), EVERYDAY))
def test_ill_conditioned_models_warn_and_others_do_not(name):
    calls(1e-2)[name]()
    with pytest.warns(kx.PrecisionWarning) as caught:
        # What is one dense matrix refuses a noise of 1e-7: it has no Cholesky factor.
        calls(1e-6 if name == "uneven" else 1e-7)[name]()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_line_warns_once_and_traced_values_never():
    gp, y = process(1e-7, np.float32), simulator(X, Z).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            gp.log_marginal_likelihood(y)
    assert len(caught) == 1
    jax.jit(lambda y: gp.log_marginal_likelihood(y))(y)
    jax.jit(lambda: gp.log_marginal_likelihood(y))()
    jax.grad(lambda s: kx.replace(gp, {"noise": s}).log_marginal_likelihood(y))(np.float32(1e-7))
    jax.vmap(gp.log_marginal_likelihood)(np.stack([y, 2 * y]))


@pytest.mark.parametrize(
    "op",
    [
        lambda a, b: kx.Kronecker(a, b) + 0.1,
        lambda a, b: kx.KroneckerPlusNoise(kx.KroneckerSum(a, b), 0.1),
        lambda a, b: kx.Kronecker(kx.Toeplitz(a[0]), kx.Diagonal(b[0])) + 0.1,
    ],
)
def test_eigenvalues_of_a_decomposition_are_exact(op):
    op = op(jnp.asarray(dense.matern32(X, X, 0.3)), jnp.asarray(dense.matern12(Z, Z, 0.4)))
    values = np.linalg.eigvalsh(to_dense(op))
    found = decomposition_of(op).ends()
    np.testing.assert_allclose([found.smallest, found.largest], values[[0, -1]], rtol=1e-10)
    assert values[-1] <= largest_eigenvalue(op) <= 2 * values[-1]
    assert decomposition_of(kx.decompose(op)).ends() == found


def test_gaps_and_iterations_bound_the_eigenvalues():
    op = process(0.1, kernel=kx.Matern32).covariance()
    observed = np.random.default_rng(0).random((12, 10)) > 0.2
    cells = np.flatnonzero(observed)
    values = np.linalg.eigvalsh(covariance(dense.matern32, 0.1)[np.ix_(cells, cells)])
    uneven = kx.KroneckerPlusDiagonal(op.kronecker, 0.1, observed=observed)
    masked = [kx.Masked(op, observed, method=m) for m in ("gaps", "merged")]
    for one in (*masked, kx.decompose(masked[0]), kx.Iterative(uneven)):
        found = decomposition_of(one).ends()
        assert found.smallest <= values[0] + 1e-9
        assert values[-1] - 1e-9 <= found.largest <= 3 * values[-1]


@pytest.mark.parametrize("noise", ["one number", "none", "correlated", "one precise cell"])
def test_a_dense_matrix_knows_its_own_eigenvalues(noise):
    """Its warning is neither missed where the noise tells nothing, nor made by a single cell."""
    neighbours = np.array([1.0, 0.4, *np.zeros(10)])
    given = {
        "one number": 1e-6,
        "none": 0.0,
        "correlated": kx.Kronecker(kx.Toeplitz(1e-6 * neighbours), kx.ScaledIdentity(1.0, 10)),
        "one precise cell": np.where(np.arange(120).reshape(12, 10) == 33, 1e-16, 0.1),
    }[noise]
    y = np.where(np.random.default_rng(1).random((12, 10)) < 0.3, simulator(X, Z), np.nan)
    kernel = kx.Matern12 if noise == "none" else kx.RBF
    gp = kx.GridGP((kernel(0.3), kernel(0.4)), (X, Z), noise=given)
    operator = gp.observing(y).data_covariance()
    found = decomposition_of(operator).ends()
    cells = np.flatnonzero(~np.isnan(y))
    values = np.linalg.eigvalsh(np.asarray(to_dense(operator))[np.ix_(cells, cells)])
    assert values[0] * (1 - 1e-6) <= found.smallest <= 2 * values[0]
    assert values[-1] / 1.3 <= found.largest <= values[-1] * (1 + 1e-6)


def test_few_cells_of_a_large_grid_do_not_warn():
    x = np.arange(60, dtype=np.float32) / 16
    y = np.full((60, 60), np.nan, np.float32)
    y[::17, ::13] = 0.3
    kernel = kx.RBF(np.float32(2.0))
    gp = kx.GridGP((kernel, kernel), (x, x), noise=np.float32(1e-4))
    assert np.isfinite(gp.log_marginal_likelihood(y))


def test_densities_of_student_and_inverses_warn_as_normal_ones_do():
    x = X.astype(np.float32)
    smooth = np.exp(-np.square(x[:, None] - x)).astype(np.float32)
    op = kx.Kronecker(smooth, smooth) + np.float32(1e-6)
    y = np.zeros((12, 12), np.float32)
    for eager in (
        lambda: kx.KroneckerStudentT(np.float32(4), np.float32(0), op).log_prob(y),
        lambda: kx.inverse_diagonal(op),
    ):
        with pytest.warns(kx.PrecisionWarning, match="in float32") as caught:
            eager()
        assert caught[0].filename == __file__


def test_a_fit_of_a_simulator_ends_at_what_double_precision_carries():
    y = simulator(X, Z)
    result = kx.fit(process(0.1), y, progress=False)
    assert result.converged
    assert "the noise is at its floor" in result.reason
    assert "the noise is at its floor" in result.summary(standard_errors=False)
    scales = [float(k.lengthscale) for k in result.model.kernels]
    factors = [dense.squared_exponential(a, a, s) for a, s in zip((X, Z), scales, strict=True)]
    top = float(result.model.variance) * np.linalg.eigvalsh(reduce(np.kron, factors))[-1]
    ratio = np.finfo(float).eps * top / float(result.model.noise)
    assert FLOOR[64] / 2 < ratio <= LOST
    post = result.model.condition(y)  # and no warning
    assert np.abs(post.mean(FINE) - simulator(*FINE)).max() < 1e-4
    # What standard errors there are hold the noise where it is.
    names = result.laplace().names
    assert set(names) == {"kernels[0].lengthscale", "kernels[1].lengthscale", "variance"}


@pytest.mark.parametrize("frozen", [False, full(True)])
def test_what_the_user_says_of_the_noise_goes_before_the_floor(frozen):
    y, narrow = simulator(X, Z), constraints.interval(1e-3, 1.0)
    if frozen:
        result = kx.fit(process(1e-9), y, freeze=("noise",), num_steps=2, progress=False)
        assert result.model.noise == 1e-9
        return
    result = kx.fit(process(0.1), y, domains={"noise": narrow}, num_steps=30, progress=False)
    assert 1e-3 <= result.model.noise < 2e-3
    assert "floor" not in result.reason


def test_a_single_precision_fit_finds_the_optimum_of_double_precision():
    # Raw data, whose mean is fitted by a variance of thousands: rounding of 1e-2 nats and more.
    rng = np.random.default_rng(1)
    y = 50 + simulator(X, Z) + 0.1 * rng.normal(size=(12, 10))
    ends = {}
    for dtype in (np.float64, np.float32):
        gp = process(0.1, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kx.PrecisionWarning)
            ends[dtype] = kx.fit(gp, y.astype(dtype), progress=False)
    single, double = ends[np.float32], ends[np.float64]
    assert single.converged
    model = jax.tree.map(lambda x: np.asarray(x, np.float64), single.model.kernels)
    at_single = kx.GridGP(
        (model[0], np.float64(single.model.variance) * model[1]),
        (X, Z),
        noise=np.float64(single.model.noise),
    ).log_marginal_likelihood(y)
    assert double.loss <= -at_single < double.loss + 0.1


def test_a_start_that_single_precision_does_not_carry_warns():
    gp, y = process(1e-5, np.float32), simulator(X, Z).astype(np.float32)
    with pytest.warns(kx.PrecisionWarning, match="At its start the fit"):
        kx.fit(gp, y, num_steps=1, progress=False)


def test_interpolation_without_noise_works_where_the_precision_carries_it():
    gp, y = process(0, kernel=kx.Matern12), simulator(X, Z)
    whole, flat = covariance(dense.matern12), y.ravel()
    expected = -(
        flat @ np.linalg.solve(whole, flat)
        + np.linalg.slogdet(whole)[1]
        + flat.size * np.log(2 * np.pi)
    )
    np.testing.assert_allclose(gp.log_marginal_likelihood(y), expected / 2, rtol=1e-10)
    np.testing.assert_allclose(gp.condition(y).mean(), y, atol=1e-10)
    assert "noise" not in {p.path for p in kx.parameters(gp) if p.trainable}
    with pytest.raises(np.linalg.LinAlgError, match="dd noise") as refusal:
        process(0.0, np.float32).condition(y.astype(np.float32))
    assert "logarithm" not in str(refusal.value)


def test_describe_tells_where_rounding_is_near():
    assert "rounding times condition number: at most" in process(1e-5, np.float32).describe()
    assert "rounding" not in process(0.1).describe()


HOURS, SOME = np.arange(3000.0), np.sort(np.random.default_rng(0).uniform(0, 9, 40))
PLACES = np.random.default_rng(1).uniform(size=(30, 2))
DESCRIBED = {
    "regular": (
        (2.0 * kx.Matern32(4.0),),
        (HOURS[:300],),
        lambda r: dense.matern32(r, r, 4.0),
        2.0,
    ),
    "irregular": (
        (kx.RBF(0.5) + kx.White(0.5),),
        (SOME,),
        lambda x: dense.squared_exponential(x, x, 0.5) + 0.5 * np.eye(len(x)),
        1.0,
    ),
    "places": (
        (kx.Matern52(np.array([0.2, 0.9])),),
        (PLACES,),
        lambda x: dense.matern52(x, x, np.array([0.2, 0.9])),
        1.0,
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_bounds_the_condition_closely(name):
    kernels, axes, matrix, variance = DESCRIBED[name]
    text = kx.GridGP(kernels, axes, noise=1e-13).describe()
    shown = float(re.search(r"condition number: at most (\S+) in float64", text)[1])
    top = variance * np.linalg.eigvalsh(matrix(axes[0]))[-1]
    assert 0.9 < shown / (np.finfo(float).eps * top / 1e-13) < 2.2


def test_a_description_does_not_alarm_where_nothing_is_lost():
    """3000 hours with a memory of some: the trace is a thousand times the largest eigenvalue."""
    gp = kx.GridGP((kx.Matern12(2.0),), (HOURS,), noise=2e-14)
    lags = np.exp(-HOURS / 2.0)
    top = 2 * lags.sum() - 1  # no eigenvalue of a Toeplitz matrix of positive entries is larger
    assert np.finfo(float).eps * top / 2e-14 < 0.1 < np.finfo(float).eps * 3000 / 2e-14
    assert "at most 0.05 in float64" in gp.describe()
