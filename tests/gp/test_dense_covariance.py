"""Small problems as one dense matrix of the observed cells: everything beside NumPy."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kronax as kx
from kronax.gp.model import solver_choice
from kronax.linalg.dense_covariance import DenseCovariance
from tests.everyday import everyday
from tests.gp.orders import three_orders

RNG = np.random.default_rng(0)
TIME, SPACE = np.linspace(0, 1, 15), np.linspace(0, 1, 8)
LONG, TASKS = np.linspace(0, 4, 40), np.arange(4)
WEIGHTS = RNG.normal(size=(3, 4, 1))
SHARES = np.array([0.1, 0.2, 0.3, 0.4])


def rbf(x, z, scale):
    return np.exp(-(((x[:, None] - z) / scale) ** 2) / 2)


def matern32(x, z, scale):
    r = np.sqrt(3) * np.abs(x[:, None] - z) / scale
    return (1 + r) * np.exp(-r)


def tasks(j):
    return (WEIGHTS[j] @ WEIGHTS[j].T + 4 * np.diag(SHARES))[TASKS][:, TASKS]


class Case(NamedTuple):
    """A process, the dense covariances of its terms between two grids, noise, and new places."""

    gp: Callable[[], kx.GridGP]
    parts: Callable[[Any, Any], dict[str, np.ndarray]]
    axes: tuple[np.ndarray, ...]
    new: tuple[np.ndarray, ...]
    noise: np.ndarray  # variances, or a matrix
    share_missing: float = 0.0


def coregionalisation():
    """A linear model of coregionalisation: three products on 4 × 40 cells."""
    scales = (0.2, 0.8, 3.0)
    terms = {
        f"u{j}": (kx.Categorical(WEIGHTS[j], SHARES), kx.Matern32(scale))
        for j, scale in enumerate(scales)
    }
    return Case(
        lambda: kx.GridGP(terms=terms, axes=(TASKS, LONG), noise=0.05),
        lambda a, b: {
            f"u{j}": np.kron(tasks(j), matern32(a[1], b[1], scale))
            for j, scale in enumerate(scales)
        },
        (TASKS, LONG),
        (TASKS, np.array([1.03, 4.2])),
        np.full(160, 0.05),
    )


def main_effects():
    """`f(t) + g(z)`: each constant along the other axis."""
    terms = {
        "f": (1.5 * kx.RBF(0.3), kx.Constant(1.0)),
        "g": (kx.Constant(1.0), kx.Matern32(0.4)),
    }
    return Case(
        lambda: kx.GridGP(terms=terms, axes=(TIME, SPACE), noise=0.1),
        lambda a, b: {
            "f": np.kron(1.5 * rbf(a[0], b[0], 0.3), np.ones((len(a[1]), len(b[1])))),
            "g": np.kron(np.ones((len(a[0]), len(b[0]))), matern32(a[1], b[1], 0.4)),
        },
        (TIME, SPACE),
        (np.array([0.51, 1.3]), SPACE),
        np.full(120, 0.1),
    )


def two_terms():
    """Two terms on 22 × 16 cells, uneven noise, gaps."""
    t, z = np.linspace(0, 3, 22), np.linspace(0, 2, 16)
    noise = 0.1 * np.exp(np.random.default_rng(3).normal(size=(22, 16)))
    terms = {"slow": (kx.RBF(1.0), kx.RBF(0.8)), "fast": (0.3 * kx.Matern32(0.2), kx.RBF(0.2))}
    return Case(
        lambda: kx.GridGP(terms=terms, axes=(t, z), noise=noise),
        lambda a, b: {
            "slow": np.kron(rbf(a[0], b[0], 1.0), rbf(a[1], b[1], 0.8)),
            "fast": np.kron(0.3 * matern32(a[0], b[0], 0.2), rbf(a[1], b[1], 0.2)),
        },
        (t, z),
        (np.array([0.2, 3.4]), np.array([0.1, 1.0, 2.5])),
        noise.ravel(),
        0.3,
    )


def joined():
    """A term that joins the noise, with gaps."""
    terms = {"main": (1.3 * kx.Matern32(0.4), kx.RBF(0.3)), "own": (0.5 * kx.RBF(0.2), kx.White())}
    return Case(
        lambda: kx.GridGP(terms=terms, axes=(TIME, SPACE), noise=0.1),
        lambda a, b: {
            "main": np.kron(1.3 * matern32(a[0], b[0], 0.4), rbf(a[1], b[1], 0.3)),
            "own": np.kron(0.5 * rbf(a[0], b[0], 0.2), 1.0 * (a[1][:, None] == b[1])),
        },
        (TIME, SPACE),
        (np.array([0.33, 1.2]), SPACE),
        np.full(120, 0.1),
        0.4,
    )


def correlated():
    """Noise that is correlated between cells, many gaps, an axis of low rank."""
    across = 0.1 * matern32(SPACE, SPACE, 0.2) + 0.05 * np.eye(8)
    return Case(
        lambda: kx.GridGP(
            (1.4 * kx.RBF(1.5), kx.Matern32(0.5)),
            (TIME, SPACE),
            noise=kx.Kronecker(np.eye(15), across),
            structure=(9, None),
        ),
        lambda a, b: {"": np.kron(1.4 * rbf(a[0], b[0], 1.5), matern32(a[1], b[1], 0.5))},
        (TIME, SPACE),
        (TIME, np.array([0.33, 1.2])),
        np.kron(np.eye(15), across),
        0.6,
    )


CASES = {
    "coregionalisation": coregionalisation,
    "main effects": main_effects,
    "two terms": two_terms,
    "joined": joined,
    "correlated": correlated,
}


class Reference:
    """The same as matrices, given data."""

    def __init__(self, case: Case, y: np.ndarray):
        self.case, self.cells = case, np.flatnonzero(~np.isnan(y.ravel()))
        whole = sum(case.parts(case.axes, case.axes).values())
        noise = case.noise if case.noise.ndim == 2 else np.diag(case.noise)
        self.matrix = (whole + noise)[np.ix_(self.cells, self.cells)]
        self.inverse = np.linalg.inv(self.matrix)
        self.y = y.ravel()[self.cells]

    def posterior(self, new, names):
        cross, prior = self.case.parts(new, self.case.axes), self.case.parts(new, new)
        k = sum(cross[n] for n in names)[:, self.cells]
        explained = np.einsum("ab,bc,ac->a", k, self.inverse, k)
        return k @ self.inverse @ self.y, sum(np.diagonal(prior[n]) for n in names) - explained

    @property
    def log_likelihood(self):
        logdet = np.linalg.slogdet(self.matrix)[1]
        return -(self.y @ self.inverse @ self.y + logdet + self.y.size * np.log(2 * np.pi)) / 2


@cache
def conditioned(name):
    case, rng = CASES[name](), np.random.default_rng(1)
    whole = Reference(case, np.zeros([len(x) for x in case.axes])).matrix
    y = np.linalg.cholesky(whole) @ rng.normal(size=len(whole))
    y = y.reshape([len(x) for x in case.axes])
    y[rng.random(y.shape) < case.share_missing] = np.nan
    post = case.gp().condition(y)
    return case, y, post, Reference(case, y)


@pytest.mark.parametrize("name", everyday(CASES, ["correlated"]))
def test_the_posterior_is_that_of_the_dense_matrix(name):
    case, y, post, reference = conditioned(name)
    assert isinstance(post.operator, DenseCovariance)
    assert "dense matrix" in post.gp.describe()
    close = 1e-9 if name != "correlated" else 1e-5  # low rank is right to its trace error
    np.testing.assert_allclose(
        post.gp.log_marginal_likelihood(y), reference.log_likelihood, rtol=close
    )
    names = tuple(case.parts(case.axes, case.axes))
    for new in (case.axes, case.new):
        axes = (
            None
            if new is case.axes
            else [a if a is not b else None for a, b in zip(new, case.axes, strict=True)]
        )
        mean, variance = reference.posterior(new, names)
        np.testing.assert_allclose(post.mean(axes).ravel(), mean, atol=100 * close)
        np.testing.assert_allclose(post.variance(axes).ravel(), variance, rtol=100 * close)
        if len(names) > 1 and new is case.new:
            mean, variance = reference.posterior(new, names[:1])
            one = post.terms[names[0]]
            np.testing.assert_allclose(one.mean(axes).ravel(), mean, atol=100 * close)
            np.testing.assert_allclose(one.variance(axes).ravel(), variance, rtol=100 * close)
    left_out = post.leave_one_out()
    found = np.asarray(left_out.variance).ravel()[reference.cells]
    np.testing.assert_allclose(found, 1 / np.diagonal(reference.inverse), rtol=100 * close)
    assert left_out.variance_error is None


def test_scattered_places_and_draws():
    case, _, post, reference = conditioned("two terms")
    places = np.array([[0.3, 0.4], [3.3, 0.9], [1.5, 0.2]])
    names = tuple(case.parts(case.axes, case.axes))
    expected = [reference.posterior((p[:1], p[1:]), names)[1][0] for p in places]
    np.testing.assert_allclose(post.variance(points=places), expected, rtol=1e-9)
    means = np.array([reference.posterior((p[:1], p[1:]), names)[0][0] for p in places])
    joint = post.sample(jax.random.key(0), points=places, sample_shape=(2000,))
    np.testing.assert_allclose(joint.var(0), expected, rtol=0.2)
    assert np.abs((joint.mean(0) - means) / np.sqrt(np.divide(expected, 2000))).max() < 4.5


def test_derivatives_of_every_order():
    """Of likelihood, variances and leave-one-out, beside a dense definition in JAX."""
    t, z = TIME[:6], SPACE[:5]
    noise = 0.1 * np.exp(np.random.default_rng(3).normal(size=(6, 5)))
    y = np.random.default_rng(4).normal(size=(6, 5))
    y[2, 3] = y[1, 1] = np.nan
    seen, data = ~np.isnan(y.ravel()), np.nan_to_num(y)
    gp = kx.GridGP((kx.RBF(0.4), 1.2 * kx.RBF(0.3)), (t, z), noise=noise).observing(y)

    def ours(theta):
        paths = ("kernels[0].lengthscale", "variance", "noise.scale")
        model = kx.replace(gp, dict(zip(paths, theta, strict=True)))
        post = model.condition(jnp.asarray(data))
        left_out = jnp.nansum(post.leave_one_out().variance)
        value = model.log_marginal_likelihood(data)
        return jnp.stack([value, jnp.sum(post.variance()), left_out])

    def theirs(theta):
        smooth = jnp.exp(-(((t[:, None] - t) / theta[0]) ** 2) / 2)
        prior = theta[1] * jnp.kron(smooth, rbf(z, z, 0.3))
        matrix = (prior + jnp.diag(theta[2] * noise.ravel()))[np.ix_(seen, seen)]
        inverse, r = jnp.linalg.inv(matrix), data.ravel()[seen]
        logdet = jnp.linalg.slogdet(matrix)[1]
        value = -(r @ inverse @ r + logdet + r.size * np.log(2 * np.pi)) / 2
        variance = jnp.sum(theta[1] - jnp.sum(prior[:, seen] @ inverse * prior[:, seen], 1))
        return jnp.stack([value, variance, jnp.sum(1 / jnp.diagonal(inverse))])

    theta, along = jnp.array([0.4, 1.2, 1.0]), jnp.array([1.0, -0.5, 2.0])

    def orders(function):
        """Values, the gradient of a weighted sum of them, and its derivative along a direction."""

        def weighted(x):
            values = function(x)
            return jnp.sum(values * jnp.array([1.0, 0.3, -2.0])), values

        slope = jax.grad(weighted, has_aux=True)
        found, bend, values = jax.jit(lambda x: jax.jvp(slope, (x,), (along,), has_aux=True))(theta)
        return values, found, bend

    for order, (found, expected) in enumerate(zip(orders(ours), orders(theirs), strict=True)):
        np.testing.assert_allclose(found, expected, rtol=1e-8 if order else 1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_given_the_others(axis):
    _, y, post, reference = conditioned("main effects")
    found = post.leave_slice_out(axis)
    cells = np.arange(y.size).reshape(y.shape)
    for k in (0, 3):
        inside = cells.take(k, axis).ravel()
        rest = np.setdiff1d(cells, inside)
        weights = np.linalg.solve(
            reference.matrix[np.ix_(rest, rest)], reference.matrix[np.ix_(rest, inside)]
        ).T
        covariance = (
            reference.matrix[np.ix_(inside, inside)] - weights @ reference.matrix[rest][:, inside]
        )
        mean = weights @ y.ravel()[rest]
        error = y.ravel()[inside] - mean
        score = (
            -(
                error @ np.linalg.solve(covariance, error)
                + np.linalg.slogdet(2 * np.pi * covariance)[1]
            )
            / 2
        )
        np.testing.assert_allclose(np.take(np.asarray(found.mean), k, axis), mean, atol=1e-9)
        np.testing.assert_allclose(
            np.take(np.asarray(found.variance), k, axis), np.diagonal(covariance), rtol=1e-9
        )
        np.testing.assert_allclose(found.log_scores[k], score, rtol=1e-9)


def test_an_operator_with_a_variance_per_cell_and_gaps():
    rng = np.random.default_rng(6)
    variances, mask = np.exp(rng.normal(size=(15, 8))), rng.random((15, 8)) < 0.7
    first = kx.Kronecker(rbf(TIME, TIME, 0.3), matern32(SPACE, SPACE, 0.4))
    signal = (first, kx.Kronecker(np.eye(15), np.ones((8, 8))))
    cells = np.flatnonzero(mask)
    dense = sum(np.asarray(term.to_dense()) for term in signal)[np.ix_(cells, cells)]
    noise, y = np.diag(variances.ravel()[cells]), rng.normal(size=(15, 8))

    def log_det(scale):
        op = kx.KroneckerPlusDiagonal(signal, scale * variances)
        return kx.logdet(kx.decompose(kx.Masked(op, mask)))

    op = kx.Masked(kx.KroneckerPlusDiagonal(signal, variances), mask)
    solution = np.linalg.solve(dense + noise, y.ravel()[cells])
    solved, square = jax.jit(lambda op, y: (kx.solve(op, y), kx.inv_quad(op, y)))(op, y)
    np.testing.assert_allclose(np.asarray(solved).ravel()[cells], solution, rtol=1e-9)
    np.testing.assert_allclose(square, y.ravel()[cells] @ solution, rtol=1e-9)
    value, slope, bend = three_orders(log_det, 1.0)
    relative = np.linalg.solve(dense + noise, noise)
    np.testing.assert_allclose(value, np.linalg.slogdet(dense + noise)[1], rtol=1e-12)
    np.testing.assert_allclose(slope, np.trace(relative), rtol=1e-9)
    np.testing.assert_allclose(bend, -np.trace(relative @ relative), rtol=1e-9)


def longdouble_root(matrix):
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        root[j, j] = np.sqrt(matrix[j, j] - root[j, :j] @ root[j, :j])
        root[j + 1 :, j] = (matrix[j + 1 :, j] - root[j + 1 :, :j] @ root[j, :j]) / root[j, j]
    return root


@pytest.mark.filterwarnings("ignore::kronax.PrecisionWarning")  # little noise is the point
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variances_at_little_noise(dtype):
    """Positive, and right to some rounding units of the prior over the noise."""
    t, z, scale = TIME[:12].astype(dtype), SPACE.astype(dtype), dtype(0.3)
    new = ((t[1:] + t[:-1]) / 2).astype(dtype)
    eps = np.finfo(dtype).eps
    y = np.ones((12, 8), dtype)
    y[3, 4] = y[7] = np.nan
    seen = ~np.isnan(y.ravel())

    def smooth(x, other):
        return rbf(x.astype(np.longdouble), other.astype(np.longdouble), np.longdouble(scale))

    for ratio in (1e-3, 1e-2, 0.1):
        noise = (eps / ratio * np.exp(0.3 * np.random.default_rng(0).normal(size=(12, 8)))).astype(
            dtype
        )
        gp = kx.GridGP(
            (kx.RBF(jnp.asarray(scale)), kx.RBF(jnp.asarray(scale))), (t, z), noise=noise
        )
        post = gp.condition(y)
        prior = np.kron(smooth(t, t), smooth(z, z)) + np.diag(noise.ravel().astype(np.longdouble))
        root = longdouble_root(prior[np.ix_(seen, seen)])
        for axes, x in ((None, t), ([new, None], new)):
            k = np.kron(smooth(x, t), smooth(z, z))[:, seen].T
            white = np.linalg.solve(root.astype(float), k.astype(float)).astype(np.longdouble)
            white += np.linalg.solve(root.astype(float), (k - root @ white).astype(float))
            expected = (1 - np.sum(white**2, 0)).reshape(len(x), 8)
            found = np.asarray(post.variance(axes))
            assert (found > 0).all()
            np.testing.assert_allclose(found, expected.astype(float), rtol=20 * ratio)


def test_traced_variances_are_gaps_too():
    noise = 0.1 * np.exp(np.random.default_rng(3).normal(size=(15, 8)))
    noise[2, 3] = np.inf
    y = np.random.default_rng(4).normal(size=(15, 8))

    def make(noise):
        return kx.GridGP((kx.RBF(0.4), kx.RBF(0.3)), (TIME, SPACE), noise=noise)

    known = make(noise)
    values = jax.jit(
        lambda v: (make(v).log_marginal_likelihood(y), make(v).condition(y).variance())
    )
    value, variance = values(noise)
    np.testing.assert_allclose(value, known.log_marginal_likelihood(y), rtol=1e-10)
    np.testing.assert_allclose(variance, known.condition(y).variance(), rtol=1e-9)


def test_one_product_may_be_solved_exactly_beyond_the_usual_size():
    gp = kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), (np.arange(60.0), np.arange(60.0)), noise=0.1)
    uneven = np.full((60, 60), 0.1)
    big = kx.GridGP((kx.RBF(1.0),) * 2, (np.arange(60.0),) * 2, noise=uneven)
    assert not gp.is_iterative
    assert big.is_iterative
    assert "the first use measures" in big.describe()
    asked = kx.GridGP((kx.RBF(1.0),) * 2, (np.arange(60.0),) * 2, noise=uneven, gaps="exact")
    assert "a dense matrix of 3600 observed cells" in asked.describe()
    assert "3.7e+11 operations" in asked.describe()


@pytest.fixture
def open_plan(monkeypatch):
    """Dense matrices count as dear, so that the noise decides."""
    monkeypatch.setattr(solver_choice, "MOST_DENSE", 0.0)


def drawn(kernels, levels):
    prior = np.kron(*(matern32(x, x, s) for x, s in zip((TIME, SPACE), kernels, strict=True)))
    root = np.linalg.cholesky(prior + np.diag(levels.ravel()))
    return (root @ np.random.default_rng(2).normal(size=levels.size)).reshape(levels.shape)


def make_open(noise, kernels=(0.3, 0.3)):
    rows = [kx.Matern32(scale) for scale in kernels]
    rng = np.random.default_rng(5)
    levels = noise * np.exp(rng.normal(size=(15, 8)))
    settings = kx.Iteration(box_size=4, num_probes=8)
    gp = kx.GridGP(rows, (TIME, SPACE), noise=levels, iteration=settings)
    y = drawn(kernels, levels)
    y[rng.random(y.shape) < 0.3] = np.nan
    return gp, y


def log_likelihood(prior, noise, y):
    seen = ~np.isnan(y.ravel())
    matrix = (prior + np.diag(np.ravel(noise)))[np.ix_(seen, seen)]
    r = y.ravel()[seen]
    square = r @ np.linalg.solve(matrix, r)
    return -(square + np.linalg.slogdet(matrix)[1] + r.size * np.log(2 * np.pi)) / 2


def test_the_noise_decides(open_plan):
    gp, y = make_open(10.0)
    assert gp.is_iterative
    assert "measured: " in gp.condition(y).gp.describe()
    assert gp.condition(y).gp.is_iterative
    low = kx.replace(gp, {"noise.scale": 1e-7})
    assert low.is_iterative  # nothing is measured by asking
    post = low.condition(y)
    assert not post.gp.is_iterative
    assert "measured: iterations" in post.gp.describe()
    prior = np.kron(matern32(TIME, TIME, 0.3), matern32(SPACE, SPACE, 0.3))
    expected = log_likelihood(prior, low.noise_term(), y)
    assert low.log_marginal_likelihood(y) == pytest.approx(expected, rel=1e-9)
    # Under jit there is nothing to be measured.
    traced = jax.jit(lambda g: g.log_marginal_likelihood(jnp.nan_to_num(y)))
    assert "iter" in str(jax.make_jaxpr(traced)(low.observing(y)))


def test_a_fit_changes_its_mind(open_plan):
    """Data almost without noise, a start where iterations serve: the fit ends exactly."""
    gp, holed = make_open(1.0)
    levels = np.asarray(kx.replace(gp, {"noise.scale": 1e-7}).noise_term())
    y = np.where(np.isnan(holed), np.nan, drawn((0.3, 0.3), levels))
    start = kx.replace(gp, {"noise.scale": 1.0})
    result = kx.fit(start, y, num_steps=40, optimizer=optax.adam(0.5), progress=False)
    text = result.summary(standard_errors=False)
    assert "solved exactly: a dense matrix of" in text
    assert "measured: iterations" in text
    model = result.model
    scales = [float(kernel.lengthscale) for kernel in model.kernels]
    prior = np.kron(matern32(TIME, TIME, scales[0]), matern32(SPACE, SPACE, scales[1]))
    expected = log_likelihood(float(model.variance) * prior, model.noise_term(), y)
    assert -result.loss == pytest.approx(expected, rel=1e-9)
    assert result.loss < result.losses[0] - 50


def test_uncertain_variances_warn():
    gp = kx.GridGP(
        (kx.RBF(0.1), kx.Matern32(0.2)),
        (TIME, SPACE),
        noise=0.1 * np.exp(np.random.default_rng(3).normal(size=(15, 8))),
        gaps="iterative",
        iteration=kx.Iteration(num_draws=4, box_size=4),
    )
    post = gp.condition(np.random.default_rng(4).normal(size=(15, 8)))
    with pytest.warns(UserWarning, match=r"a tenth of the cells: .*num_draws=16\)"):
        post.variance([np.array([1.1, 1.2]), None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda p: p.variance([np.array([1.1, 1.2]), None]), post)
        post.variance_estimate([np.array([1.1, 1.2]), None])
