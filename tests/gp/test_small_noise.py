"""Variances where the noise is small beside the signal: never negative, and right relatively.

The truth is a dense Cholesky factorisation in extended precision. What rounding may do is stated
as a share `C · eps · λ_max / σ²` of the variance, for the largest eigenvalue of the signal.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigvalsh

import kronax as kx
from kronax.linalg.dense_covariance import DenseCovariance
from tests.everyday import everyday
from tests.linalg.contracted import QUICK

# Ratios beyond what a precision carries are the point here.
pytestmark = pytest.mark.filterwarnings("ignore::kronax.PrecisionWarning")
LONG = np.longdouble
# Rounding may move a variance by so many `eps λ_max / σ²` of itself: on a grid without gaps, and
# elsewhere.
ON_GRID, ELSEWHERE = 0.5, 5.0
LEVELS = {
    "float32": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8),
    "float64": (1e-2, 1e-6, 1e-9, 1e-12, 1e-15, 1e-40),
}
AXES = (np.linspace(0, 1, 12), np.linspace(0, 1, 10))
NEW = (np.array([0.03, 0.4, 0.77, 1.1]), np.array([0.01, 0.5, 1.05]))
ALONG = np.linspace(0.5, 2.0, 10)
SLICE, GAPS, MANY = (np.ones((12, 10), bool) for _ in range(3))
SLICE[3], SLICE[7, 2] = False, False
GAPS[2, 3] = GAPS[7, 1] = GAPS[5, 5] = False
MANY[np.random.default_rng(0).random((12, 10)) < 0.7] = False


def rbf(x, z):
    return np.exp(-(((np.asarray(x, LONG)[:, None] - np.asarray(z, LONG)) / LONG(0.3)) ** 2) / 2)


def matern12(x, z):
    return np.exp(-np.abs(np.asarray(x, LONG)[:, None] - np.asarray(z, LONG)))


def white(x, z):
    return (np.asarray(x)[:, None] == np.asarray(z)).astype(LONG)


def cholesky(matrix):
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        root[j, j] = np.sqrt(matrix[j, j] - root[j, :j] @ root[j, :j])
        root[j + 1 :, j] = (matrix[j + 1 :, j] - root[j + 1 :, :j] @ root[j, :j]) / root[j, j]
    return root


def whitened(root, columns):
    found = columns.copy()
    for j in range(len(root)):
        found[j] = (columns[j] - root[j, :j] @ found[:j]) / root[j, j]
    return found


def number(value, dtype):
    return jnp.asarray(value, dtype)


def smooth(dtype):
    return kx.RBF(number(0.3, dtype)), kx.RBF(number(0.3, dtype))


@dataclass(frozen=True)
class Case:
    """A process with noise of some level, and its covariances: `terms` are kernels per axis."""

    make: Callable[[Any, Any], Any]
    terms: dict[str, tuple[Callable, ...]]
    noise: np.ndarray
    mask: np.ndarray | None = None
    mean: float | None = None

    def covariance(self, rows, columns, name=None):
        chosen = self.terms.values() if name is None else (self.terms[name],)
        return sum(
            functools.reduce(
                np.kron, [k(x, z) for k, x, z in zip(kernels, rows, columns, strict=True)]
            )
            for kernels in chosen
        )

    def truth(self, level, rows, name=None, axes=AXES):
        kept = slice(None) if self.mask is None else np.flatnonzero(self.mask)
        matrix = self.covariance(axes, axes) + LONG(level) * self.noise
        cross = self.covariance(rows, axes, name)[:, kept]
        root = cholesky(matrix[kept][:, kept])
        prior = np.diag(self.covariance(rows, rows, name))
        left = prior - np.sum(whitened(root, cross.T) ** 2, axis=0)
        if self.mean is None:
            return left
        ones = np.ones((len(matrix), 1), LONG)[kept]
        design = whitened(root, ones)
        share = 1 - np.sum(whitened(root, cross.T) * design, axis=0)
        return left + share**2 / np.sum(design**2)

    def left_out(self, level):
        """The variances of observations given the others, at those that there are."""
        kept = slice(None) if self.mask is None else np.flatnonzero(self.mask)
        matrix = (self.covariance(AXES, AXES) + LONG(level) * self.noise)[kept][:, kept]
        inverse = whitened(cholesky(matrix), np.eye(len(matrix), dtype=LONG))
        return 1 / np.sum(inverse**2, axis=0)


def plain(level, dtype, **options):
    axes = [x.astype(dtype) for x in AXES]
    return kx.GridGP(smooth(dtype), axes, noise=number(level, dtype), **options)


def along_axis(level, dtype):
    axes = [x.astype(dtype) for x in AXES]
    return kx.GridGP(smooth(dtype), axes, noise={1: number(level * ALONG, dtype)})


def full_noise(level, dtype):
    factors = [number(np.asarray(matern12(x, x), float), dtype) for x in AXES]
    axes = [x.astype(dtype) for x in AXES]
    noise = kx.Kronecker(number(level, dtype) * factors[0], factors[1])
    return kx.GridGP(smooth(dtype), axes, noise=noise)


def joined(level, dtype):
    """A smooth term, and one that joins the noise along the second axis."""
    time, space = smooth(dtype)
    terms = {
        "field": (time, space),
        "drift": (kx.White(number(1.0, dtype)), kx.Matern12(number(1.0, dtype))),
    }
    return kx.GridGP(terms=terms, axes=[x.astype(dtype) for x in AXES], noise=number(level, dtype))


def on_one_axis(level, dtype):
    time, space = smooth(dtype)
    terms = {"slow": (time, space), "fast": (kx.Matern12(number(1.0, dtype)), space)}
    return kx.GridGP(terms=terms, axes=[x.astype(dtype) for x in AXES], noise=number(level, dtype))


IID, FIELD = np.eye(120, dtype=LONG), {"field": (rbf, rbf)}
CASES = {
    "one variance": Case(plain, FIELD, IID),
    "noise along an axis": Case(along_axis, FIELD, np.diag(np.tile(np.asarray(ALONG, LONG), 12))),
    "full noise": Case(full_noise, FIELD, np.kron(*[matern12(x, x) for x in AXES])),
    "a missing slice": Case(
        lambda level, dtype: plain(level, dtype).observing(SLICE), FIELD, IID, SLICE
    ),
    "a few gaps": Case(lambda level, dtype: plain(level, dtype).observing(GAPS), FIELD, IID, GAPS),
    "many gaps": Case(lambda level, dtype: plain(level, dtype).observing(MANY), FIELD, IID, MANY),
    "a term beside the noise": Case(joined, {**FIELD, "drift": (white, matern12)}, IID),
    "terms on one axis": Case(on_one_axis, {"slow": (rbf, rbf), "fast": (matern12, rbf)}, IID),
    "a level that is integrated out": Case(
        lambda level, dtype: plain(
            level, dtype, mean=kx.MarginalMean(kx.ConstantMean(number(0.0, dtype)))
        ),
        FIELD,
        IID,
        mean=0.0,
    ),
}
POINTS = np.stack(np.meshgrid(*NEW, indexing="ij"), axis=-1).reshape(-1, 2)
# Coordinates of the grid, one of each axis beside a new one.
SOME = (3, 7, 2), (2, 9)
OLD = tuple(x[list(k)] for x, k in zip(AXES, SOME, strict=True))
OLD_POINTS = np.stack(np.meshgrid(*OLD, indexing="ij"), axis=-1).reshape(-1, 2)


@functools.partial(jax.jit, static_argnames="every")
def predicted(gp, y, every):
    """The kinds of variance of one process, as one program."""
    post = gp.condition(y)
    new = [x.astype(gp.dtype) for x in NEW]
    found = {
        "grid": post.variance(),
        "new": post.variance(new),
        "left out": post.leave_one_out().variance,
    }
    old = [np.append(x, n[1]).astype(gp.dtype) for x, n in zip(OLD, NEW, strict=True)]
    again = {"old": post.variance(old)[:3, :2]}
    if every:
        found["first"] = post.variance([new[0], None])
        found["second"] = post.variance([None, new[1]])
        found["points"] = post.variance(points=POINTS.astype(gp.dtype))
        again["old points"] = post.variance(points=OLD_POINTS.astype(gp.dtype)).reshape(3, 2)
    for name, part in post.terms.items():
        found[f"{name}: grid"], found[f"{name}: new"] = part.variance(), part.variance(new)
        again[f"{name}: old"] = part.variance(old)[:3, :2]
    return found, again


def covariance_of(gp):
    """The form that it takes, without a number of it."""
    return jax.eval_shape(lambda gp: gp.data_covariance(), gp)


def rows_of(route):
    return {
        "grid": AXES,
        "new": NEW,
        "points": NEW,
        "first": (NEW[0], AXES[1]),
        "second": (AXES[0], NEW[1]),
    }[route.rpartition(": ")[2]]


EVERYDAY = [
    ("one variance", "float32"),
    ("a few gaps", "float32"),
    ("noise along an axis", "float64"),
    ("many gaps", "float64"),
]


@pytest.mark.parametrize(("name", "dtype"), everyday(product(CASES, LEVELS), EVERYDAY))
def test_variances_are_not_negative_and_right_relatively(name, dtype, request):
    """Every day all kinds of variance of the plain process, and the chief ones of others."""
    every = name == "one variance" or request.node.get_closest_marker("full") is not None
    case, eps = CASES[name], np.finfo(dtype).eps
    signal = np.asarray(case.covariance(AXES, AXES), float)
    top = eigvalsh(signal)[-1] / eigvalsh(np.asarray(case.noise, float))[0]
    for level in LEVELS[dtype]:
        gp = case.make(level, dtype)
        is_dense = isinstance(covariance_of(gp), DenseCovariance)
        found, again = predicted(gp, np.ones((12, 10), dtype), every)
        for route, value in again.items():  # the places of the grid, given as new ones
            on_grid = found["grid" if route == "old points" else route.replace("old", "grid")]
            np.testing.assert_allclose(value, on_grid[np.ix_(*SOME)], rtol=1000 * eps)
        for route, value in found.items():
            value = np.asarray(value, float)
            if route == "left out":
                value = value.ravel() if case.mask is None else value[case.mask]
            lost = eps * top / level
            if lost > 1 and is_dense and np.isnan(value).all():
                # Rounding is larger than the noise, and the matrix may have no Cholesky factor.
                # A form that always has one would only hide that no digit is right: on a whole
                # grid the kernels of the axes tell which eigenvalues are zero, here nothing does.
                # NaN says so under jit, an error elsewhere.
                continue
            assert (value >= 0).all(), (route, level)
            if lost > 0.1:
                assert (value <= signal.max() * 1.01 + level * 2).all(), (route, level)
                continue
            term = route.rpartition(": ")[0] or None
            if route == "left out" and case.mean is not None:
                continue
            truth = (
                case.left_out(level)
                if route == "left out"
                else case.truth(level, rows_of(route), term)
            )
            error = np.abs(value.ravel() - truth) / truth
            is_whole = route == "grid" and case.mask is None
            bound = (ON_GRID if is_whole else ELSEWHERE) * lost + 30 * eps
            assert error.max() <= bound, (route, level, float(error.max()), bound)


@pytest.mark.parametrize("enabled", [True, False])
def test_without_a_cholesky_factor_the_advice_is_float64(enabled):
    """And how to come by it, which differs where JAX is set to it and the model is not."""
    advice = "float64 arrays" if enabled else r'"jax_enable_x64", True'
    with jax.enable_x64(enabled):
        gp = CASES["many gaps"].make(1e-8, "float32")
        assert isinstance(covariance_of(gp), DenseCovariance)
        with pytest.raises(np.linalg.LinAlgError, match=f"not above zero in float32.*{advice}"):
            gp.condition(np.ones((12, 10), "float32"))


def test_gradients_are_those_of_the_definition():
    """Where small eigenvalues are raised for the value, the derivative does not know it."""
    new = [NEW[0][:2], NEW[1][:2]]
    weights = np.random.default_rng(0).normal(size=(2, 2))

    def gp(theta):
        return kx.GridGP((kx.RBF(theta[0]), kx.RBF(theta[1])), AXES, noise={1: theta[2] * ALONG})

    def ours(theta):
        post = gp(theta).condition(np.ones((12, 10)))
        return jnp.sum(weights * post.variance(new)) + jnp.sum(post.variance()[:2, :2] * weights)

    def dense(theta):
        def covariance(rows, columns):
            kernels = [
                jnp.exp(-(((x[:, None] - z) / scale) ** 2) / 2)
                for x, z, scale in zip(rows, columns, theta, strict=False)
            ]
            return jnp.kron(*kernels)

        noise = jnp.diag(jnp.tile(theta[2] * ALONG, 12))
        root = jnp.linalg.cholesky(covariance(AXES, AXES) + noise)
        total = 0.0
        for rows, shape in ((new, (2, 2)), (AXES, (12, 10))):
            white = jax.scipy.linalg.solve_triangular(root, covariance(AXES, rows), lower=True)
            left = (1 - jnp.sum(white**2, axis=0)).reshape(shape)
            total = total + jnp.sum(weights * left[:2, :2])
        return total

    both = [jax.jit(jax.jacfwd(f), compiler_options=QUICK) for f in (ours, dense)]
    for level in (1e-1, 1e-3):
        found, truth = (f(jnp.array([0.3, 0.4, level])) for f in both)
        np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-9 / level)


def test_an_emulator_without_noise_has_variances_everywhere():
    """A 20 × 20 grid with the noise that a fit of noise-free data ends at."""
    axes = [np.linspace(0, 1, 20)] * 2
    new = [np.linspace(0.02, 0.97, 7)] * 2
    y = np.sin(3 * axes[0])[:, None] * np.cos(2 * axes[1])
    case = Case(plain, FIELD, np.eye(400, dtype=LONG))
    for level in (1e-10, 1e-13, 1e-15):
        post = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), axes, noise=level).condition(y)
        variance = np.asarray(post.variance(new))
        assert (variance > 0).all()
        assert np.isfinite(post.to_dataset(new).standard_deviation).all()
        assert (np.asarray(post.covariance(new).diagonal()) == variance).all()
        if level == 1e-10:
            truth = case.truth(level, new, axes=axes)
            np.testing.assert_allclose(variance.ravel(), np.asarray(truth, float), rtol=2e-2)


def test_places_in_the_plane_without_noise():
    """Matérn-3/2 with the noise of 6e-143 that a fit was driven to: places among the data too."""
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(60, 2))
    new = np.concatenate([places[:20], places[:20] + 1e-9, rng.uniform(size=(40, 2))])
    y = np.sin(4 * places[:, 0]) + places[:, 1]
    post = kx.GridGP((kx.Matern32(0.8),), (places,), noise=6e-143).condition(y)
    for noisy in (False, True):
        assert (np.asarray(post.variance([new], include_noise=noisy)) >= 0).all()
        found = post.to_dataset([new], include_noise=noisy).standard_deviation
        assert np.isfinite(found).all()
    assert np.isfinite(post.sample(jax.random.key(0), [new])).all()


def test_means_at_the_data_are_the_data_less_their_noise():
    """Weights that are large where the noise is small, times `K`, lose what cancels."""
    axes = [x.astype("float32") for x in AXES]
    rng = np.random.default_rng(0)
    signal = np.asarray(Case(plain, FIELD, IID).covariance(AXES, AXES), float)
    level = 1e-6
    root = np.linalg.cholesky(signal + 1e-12 * np.eye(120))
    y = (root @ rng.normal(size=120) + level**0.5 * rng.normal(size=120)).astype("float32")
    truth = signal @ np.linalg.solve(signal + level * np.eye(120), y.astype(float))
    post = plain(level, "float32").condition(y.reshape(12, 10))
    deviation = np.sqrt(np.asarray(Case(plain, FIELD, IID).truth(level, axes), float))
    truth, deviation = truth.reshape(12, 10), deviation.reshape(12, 10)
    # Among new coordinates those of the data are known again, and so they are at scattered points.
    rows, columns = [7, 2, 5], np.arange(10)[::-1]
    mixed = [np.insert(axes[0][rows], 1, np.float32(0.03)), axes[1][columns]]
    found = [
        (post.mean(), np.s_[:]),
        (post.mean(mixed)[np.array([0, 2, 3])], np.ix_(rows, columns)),
        (post.mean([None, axes[1][:4]]), np.s_[:, :4]),
        (post.mean(points=(axes[0][:10], axes[1])), (np.arange(10), np.arange(10))),
    ]
    for mean, where in found:
        error = (np.asarray(mean, float) - truth[where]) / deviation[where]
        assert np.sqrt(np.mean(error**2)) < 0.15


def test_means_at_the_data_have_derivatives_of_what_is_known_there():
    """In the parameters: `K` times the weights loses digits of these as well."""
    y = np.sin(3 * AXES[0])[:, None] * np.cos(2 * AXES[1])
    weights, level = np.random.default_rng(0).normal(size=(3, 2)), 1e-6

    @jax.jit
    @jax.jacfwd
    def slopes(noise):
        post = plain(noise, "float32").condition(y.astype("float32"))
        old = [x.astype("float32") for x in OLD]
        at_points = post.mean(points=OLD_POINTS.astype("float32")).reshape(3, 2)
        means = (post.mean()[np.ix_(*SOME)], post.mean(old), at_points)
        return jnp.stack([jnp.sum(weights.astype("float32") * m) for m in means])

    signal = np.asarray(Case(plain, FIELD, IID).covariance(AXES, AXES), float)
    solved = np.linalg.solve(signal + level * np.eye(120), y.ravel())
    slope = -(signal @ np.linalg.solve(signal + level * np.eye(120), solved)).reshape(12, 10)
    truth = np.sum(weights * slope[np.ix_(*SOME)])
    np.testing.assert_allclose(slopes(np.float32(level)), truth, rtol=0.2)  # 0.9 by `K`


def test_a_mean_at_the_data_has_the_derivatives_of_the_function():
    """Along a coordinate that is traced and happens to be one of the data, and at a gap."""
    y = np.sin(3 * AXES[0])[:, None] * np.cos(2 * AXES[1])
    post = plain(1e-3, "float64").observing(GAPS).condition(np.where(GAPS, y, np.nan))
    x = jnp.asarray(AXES[0][2:4])

    def of_grid(x):
        return post.mean([x, None])[:, 3]

    def of_points(x):
        return post.mean(points=(x, jnp.full(2, AXES[1][3])))

    for mean in (of_grid, of_points):
        value, slope = jax.jvp(mean, (x,), (jnp.ones(2),))
        np.testing.assert_allclose(value, post.mean()[2:4, 3], rtol=1e-9)
        np.testing.assert_allclose(slope, post.mean_derivative(0)[2:4, 3], rtol=1e-6)


def test_coordinates_apart_from_those_of_the_data_are_not_looked_up():
    """Nothing is compiled of what is known before; what rounding makes the same is found."""
    y = np.outer(np.sin(3 * AXES[0]), np.cos(2 * AXES[1])).astype("float32")
    post = plain(1e-6, "float32").condition(y)
    halfway = AXES[0][:-1] + np.diff(AXES[0]) / 2
    program = str(jax.make_jaxpr(lambda post: post.mean([halfway, AXES[1]]))(post))
    assert "sort" not in program
    assert "gather" not in program
    nearly = AXES[0].astype("float32").astype(float) + 1e-12
    np.testing.assert_array_equal(post.mean([nearly, AXES[1]]), post.mean())
