"""The Laplace approximation over the parameters of a fitted model."""

import math
from collections.abc import Callable
from operator import add, sub
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform
from scipy.special import ndtri

from kronax.display import aligned
from kronax.domains import natural_by
from kronax.fitting.problem import Problem, Raw, precision
from kronax.fitting.steps import Layout, Loop, gradients_by
from kronax.linalg.arrays.checks import check_key, is_concrete
from kronax.linalg.arrays.host import numpy_of, on_device, on_host
from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import LOST, to_have_float64
from kronax.linalg.arrays.primitives import DerivativeOrderError
from kronax.parameter_table import ParameterTable, describe_domain
from kronax.paths import named

# Curvature below this share of the largest (the root of the precision's rounding) is none.
FLAT = 0.5
# A standard deviation of a logarithm by which a parameter counts as undetermined: a factor of 150.
WIDE = 5.0
NORMAL_975 = 1.959963984540054
# Differences are over this power of the precision and twice as far, 6e-3 in float64 and 0.1 in
# float32: gradients keep some four digits less than their precision, and losses in logarithms of
# parameters bend over distances of about one.
STEP = 1 / 7
# Standard errors by differences count where even the plain ones, whose error the extrapolated ones
# have squared, are right to half a unit in the third digit, or as well as float32 has them.
DIGITS = 5e-4
# Where a loss bends sooner they are over this share of that, so often at most.
SHORTER, MOST_ROUNDS = 1 / 4, 3
# Standard deviations of the noise of gradients.
NOISE = 3.0
# Of more numbers the exact Hessian is no dearer, whose program then is the least of it.
FEW_NUMBERS = 20

# Losses, `(num_points,)`, and their gradients, `(num_points, p)`, at points `(num_points, p)`.
Gradients = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class LaplaceApproximation(eqx.Module):
    """What `result.laplace()` returns: parameters, normal in unconstrained space.

    The Hessian is the loss's own, in natural units, so that the choice of the unconstrained
    coordinates does not move the standard errors; draws stay inside the domains.

    Attributes:
        names: one per trained number, a path with its index.
        covariance: of the unconstrained values, `(p, p)` in the order of the names.
        by_differences: whether the Hessian comes from differences of exact gradients: where the
            loss has no second derivatives, as by iterations.
        log_evidence: Laplace's approximation of `log ∫ exp(−loss) dθ` in natural units; the log
            evidence of the model where every trained parameter has a prior.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> found = result.laplace()
        >>> low, high = found.intervals()["noise"]
        >>> found.names, bool(low < result.model.noise < high)
        (('noise',), True)
    """

    names: tuple[str, ...] = eqx.field(static=True)
    covariance: Float[Array, "p p"]
    log_evidence: Float[Array, ""]
    problem: Problem
    raw: Raw
    by_differences: bool = eqx.field(static=True, default=False)

    @property
    def correlations(self) -> Float[Array, "p p"]:
        """Correlations of the unconstrained values."""
        sd = jnp.sqrt(jnp.diagonal(self.covariance))
        return self.covariance / jnp.outer(sd, sd)

    @property
    def standard_errors(self) -> dict[str, Array]:
        """In natural units, by path, to first order, as the delta method has it."""
        sds = self._deviations()
        return {
            path: on_host(
                lambda slope, sd: abs(slope) * sd, _slope(transform, self.raw[path]), sds[path]
            )
            for path, transform in self._transforms().items()
        }

    def intervals(self, level: float = 0.95) -> dict[str, tuple[Array, Array]]:
        """Central intervals in natural units, by path, inside the domains.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"The level must be between 0 and 1; got {level}.")
        z, deviations = float(ndtri(0.5 + level / 2)), self._deviations()
        found = {}
        for path, transform in self._transforms().items():
            step = z * deviations[path]
            ends = [natural_by(transform, on_host(f, self.raw[path], step)) for f in (sub, add)]
            found[path] = (
                on_host(lambda a, b: numpy_of(a).minimum(a, b), *ends),
                on_host(lambda a, b: numpy_of(a).maximum(a, b), *ends),
            )
        return found

    def sample(self, key: PRNGKeyArray, num_samples: int) -> Any:
        """Models with drawn parameters: a leading axis on every array, for `eqx.filter_vmap`."""
        check_key(key)
        mean, unravel = ravel_pytree(self.raw)
        root = jnp.linalg.cholesky(self.covariance)
        white = jax.random.normal(key, (num_samples, mean.size), mean.dtype)
        build = self.problem.unconstrained()[1]
        return eqx.filter_vmap(
            lambda z: build(unravel(mean + matmul(root, z))), out_axes=eqx.if_array(0)
        )(white)

    def table(self, parameters: ParameterTable) -> str:
        """The parameters with standard errors and 95 % intervals, in plain text."""
        errors, intervals = self.standard_errors, self.intervals()
        rows = [("parameter", "value", "standard error", "95 % interval", "domain", "trainable")]
        for p in parameters:
            domain = "unknown" if p.domain is None else describe_domain(p.domain)
            trained = f"as {p.source}" if p.source else "yes" if p.trainable else "no"
            if p.path not in errors:
                rows.append((p.path, _short(p.value), "", "", domain, trained))
                continue
            low, high = intervals[p.path]
            interval = f"[{_short(low)}, {_short(high)}]" if np.ndim(low) == 0 else "…"
            rows.append(
                (p.path, _short(p.value), _short(errors[p.path]), interval, domain, trained)
            )
        remarks = self._undetermined()
        if self.by_differences:
            remarks.append("Standard errors by differences of the gradient.")
        return "\n".join([aligned(parameters.with_axes(rows)), *remarks])

    def _undetermined(self) -> list[str]:
        """What the data hardly determine, in a sentence."""
        deviations = np.sqrt(np.diagonal(np.asarray(self.covariance)))
        domains = {p.path: p.domain for p in self.problem.table()}
        wide = [
            named(self.problem.model, name)
            for name, sd in zip(self.names, deviations, strict=True)
            if sd > WIDE and domains.get(name) is constraints.positive
        ]
        if not wide:
            return []
        return [
            f"The data hardly determine {' and '.join(wide)}: an interval over many powers of ten "
            "is not to be believed. Look at kx.profile_likelihood, freeze, or give a prior."
        ]

    def __repr__(self) -> str:
        return self.table(self.problem.table(self.problem.unconstrained()[1](self.raw)))

    def _deviations(self) -> dict[str, Any]:
        """Standard deviations of the unconstrained values, in NumPy where they are known."""
        covariance: Any = self.covariance
        if is_concrete(covariance):
            covariance = np.asarray(covariance)
        xp = numpy_of(covariance)
        return Layout.of(self.raw).raws(xp.sqrt(xp.diagonal(covariance)))

    def _transforms(self) -> dict[str, Any]:
        return {p.path: biject_to(p.domain) for p in self.problem.table() if p.trainable}


class _Curvature(NamedTuple):
    """The Hessian, and the loss there; `by_differences` where it has no second derivatives."""

    hessian: np.ndarray
    loss: float
    by_differences: bool


def laplace(problem: Problem, model: Any, raw: Raw) -> LaplaceApproximation:
    """The approximation at the best point of a fit; noise at its floor is held there."""
    plain, at = problem.without_floor(model) if problem.has_floor else (problem, raw)
    return _approximation(plain, at, _curvature(plain, at))


def quick_laplace(
    problem: Problem, model: Any, raw: Raw, loop: Loop | None
) -> LaplaceApproximation:
    """The same to the digits that a table shows, where it can be had by the loop of the fit."""
    plain, at = problem.without_floor(model) if problem.has_floor else (problem, raw)
    return _approximation(plain, at, _quick_curvature(plain, at, (problem, raw), loop))


def _approximation(problem: Problem, raw: Raw, found: _Curvature) -> LaplaceApproximation:
    names, hessian = tuple(_names(raw)), found.hessian
    dtype = precision(raw)
    _check_minimum(hessian, names, dtype, problem)
    scale = np.sqrt(np.diag(hessian))
    covariance = np.linalg.inv(hessian / np.outer(scale, scale)) / np.outer(scale, scale)
    covariance = (covariance + covariance.T) / 2
    volume = sum(
        float(np.sum(np.log(np.abs(_slope(biject_to(p.domain), raw[p.path])))))
        for p in problem.table()
        if p.trainable
    )
    _, log_determinant = np.linalg.slogdet(hessian)
    normaliser = len(names) / 2 * math.log(2 * math.pi) - log_determinant / 2
    return LaplaceApproximation(
        names,
        on_device(covariance.astype(dtype)),
        on_device(np.asarray(volume + normaliser - found.loss, dtype)),
        problem,
        raw,
        found.by_differences,
    )


def _curvature(problem: Problem, raw: Raw) -> _Curvature:
    """The exact Hessian, or differences of the gradient if there is none."""
    try:
        loss, hessian = _exact(problem, raw)
    except DerivativeOrderError:
        found = _differences(_gradients(problem, raw), raw, np.eye(_size(raw)), _steps(raw))
        return _Curvature(found.hessian, found.loss, True)
    return _Curvature(np.asarray(hessian, np.float64), float(loss), False)


def _quick_curvature(
    problem: Problem, raw: Raw, fitted: tuple[Problem, Raw], loop: Loop | None
) -> _Curvature:
    """Differences of the gradient where they serve, and else the exact Hessian.

    Their gradient is that of the loop which fitted the problem, so that nothing is compiled; its
    noise above the floor is transferred to the noise itself.
    """
    if _size(raw) > FEW_NUMBERS:
        return _curvature(problem, raw)
    gradients, at = _gradients(problem, raw), raw
    slope: Any = np.eye(_size(raw))
    if loop is not None and raw.keys() == fitted[1].keys():
        gradients, at = gradients_by(loop, *fitted), fitted[1]
        if fitted[0].has_floor and not _is_far_above_floor(problem):
            gradients = _transferred(gradients, fitted[0], at, problem)
            slope = _transfer(fitted[0], at, problem, _vector(at))
    steps = _steps(raw)
    for _ in range(MOST_ROUNDS):
        found = _differences(gradients, at, np.asarray(slope, np.float64), steps)
        if problem.is_estimated or found.share() <= max(DIGITS, _eps(raw) ** (1 / 3)):
            return _Curvature(found.hessian, found.loss, problem.is_estimated)
        is_bent = np.diag(found.bent) > found.noise
        if not is_bent.any():
            break
        steps = np.where(is_bent, SHORTER * steps, steps)
    return _curvature(problem, raw)


class _Differences(NamedTuple):
    """Loss and Hessian, and by which shares of `√(hᵢᵢ hⱼⱼ)` its entries are off.

    A second-order error `e`, which extrapolation takes out, leaves some `e²`: `bent`. The standard
    deviation of `noise` is told by what the matrix lacks in symmetry, and of one number the whole
    of `e` is noise.
    """

    loss: float
    hessian: np.ndarray
    bent: np.ndarray
    noise: float

    def share(self) -> float:
        """The largest share by which a standard error is off."""
        if not np.isfinite(self.hessian).all() or np.linalg.eigvalsh(self.hessian)[0] <= 0:
            return np.inf
        scale = np.sqrt(np.diag(self.hessian))
        covariance = np.abs(np.linalg.inv(self.hessian / np.outer(scale, scale)))
        by_bends = np.diag(covariance @ self.bent @ covariance)
        by_noise = NOISE * self.noise * np.sum(np.square(covariance), axis=1)
        return float(np.max((by_bends + by_noise) / np.diag(covariance))) / 2


def _differences(
    gradients: Gradients, raw: Raw, slope: np.ndarray, steps: np.ndarray
) -> _Differences:
    """Of a gradient over `steps` and twice as far, extrapolated.

    `slope` is the derivative of the coordinates of the gradient by those of the points.
    """
    vector, size = _vector(raw), len(steps)
    shifts = np.concatenate([k * np.diag(steps) for k in (1, -1, 2, -2)])
    points = np.concatenate([vector[None], vector + shifts]).astype(vector.dtype)
    losses, found = gradients(points)
    by = np.split(found[1:].astype(np.float64), 4)
    at = [np.diag(p).astype(np.float64) for p in np.split(points[1:], 4)]
    near, far = (
        np.linalg.solve(slope.T, (by[k] - by[k + 1]) / (at[k] - at[k + 1])[:, None]) for k in (0, 2)
    )
    matrix = (4 * near - far) / 3
    scale = np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
    with np.errstate(divide="ignore", invalid="ignore"):
        taken_out = np.abs(far - near) / 3 / scale
        lacking = np.square(matrix - matrix.T)[np.triu_indices(size, 1)] / 2
        lacking /= np.square(scale)[np.triu_indices(size, 1)]
    noise = math.sqrt(np.mean(lacking)) if size > 1 else float(np.max(taken_out)) / NOISE
    return _Differences(float(losses[0]), (matrix + matrix.T) / 2, taken_out**2, noise)


def _steps(raw: Raw) -> np.ndarray:
    """Over which differences begin, one for each number."""
    return np.full(_size(raw), _eps(raw) ** STEP)


def _gradients(problem: Problem, raw: Raw) -> Gradients:
    """By a program of their own."""

    def gradients(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [_value_and_gradient(problem, raw, point) for point in points]
        return np.array([v for v, _ in found]), np.stack([np.asarray(g) for _, g in found])

    return gradients


def _is_far_above_floor(problem: Problem) -> bool:
    """Whether noise and what is above its floor are the same to six digits."""
    noise = problem.noise_level(problem.model)
    return bool(np.asarray(noise.least) <= 1e-6 * np.asarray(noise.level))


def _transferred(gradients: Gradients, fitted: Problem, raw: Raw, plain: Problem) -> Gradients:
    """Gradients by the noise, from those by what is above its floor."""

    def transferred(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, found = gradients(points)
        slopes = np.stack([_transfer(fitted, raw, plain, p) for p in points])
        found = np.linalg.solve(slopes.swapaxes(1, 2).astype(np.float64), found[..., None])
        return losses, found[..., 0]

    return transferred


@eqx.filter_jit
def _transfer(fitted: Problem, raw: Raw, plain: Problem, at: Any) -> Array:
    """The derivative of the coordinates of one problem by those of another."""
    unravel = ravel_pytree(raw)[1]

    def other(vector: Array) -> Array:
        return ravel_pytree(plain.raw_of(fitted.build(unravel(vector))))[0]

    return jax.jacfwd(other)(at)


@eqx.filter_jit
def _value_and_gradient(problem: Problem, raw: Raw, at: Array) -> tuple[Array, Array]:
    unravel = ravel_pytree(raw)[1]
    return jax.value_and_grad(lambda v: problem.value(unravel(v)))(at)


@eqx.filter_jit
def _exact(problem: Problem, raw: Raw) -> tuple[Array, Array]:
    """One product with a unit vector after another, so that memory does not grow with them."""
    vector, unravel = ravel_pytree(raw)
    (value, _), product = jax.linearize(
        jax.value_and_grad(lambda v: problem.value(unravel(v))), vector
    )
    matrix = jax.lax.map(lambda v: product(v)[1], jnp.eye(vector.size, dtype=vector.dtype))
    return value, (matrix + matrix.T) / 2


def _size(raw: Raw) -> int:
    return sum(value.size for value in raw.values())


def _eps(raw: Raw) -> float:
    return float(jnp.finfo(precision(raw)).eps)


def _vector(raw: Raw) -> np.ndarray:
    return Layout.of(raw).vectors({path: np.asarray(value) for path, value in raw.items()})


def _slope(transform: Any, raw: Array) -> Array:
    """The derivative of an entrywise transform, entry by entry."""
    if transform.domain.event_dim:
        raise ValueError(
            f"Standard errors need parameters with a domain entry by entry; got {transform}."
        )
    if type(transform) is ExpTransform:
        return natural_by(transform, raw)
    return jax.jvp(transform, (raw,), (jnp.ones_like(raw),))[1]


def _names(raw: Raw) -> list[str]:
    # In the order of `ravel_pytree`, which sorts the keys.
    names = []
    for path in sorted(raw):
        shape = raw[path].shape
        indices = np.ndindex(*shape) if shape else [()]
        names += [path + (f"[{', '.join(map(str, i))}]" if i else "") for i in indices]
    return names


def _check_minimum(
    hessian: np.ndarray, names: tuple[str, ...], dtype: Any, problem: Problem
) -> None:
    """Refuse a point where the loss does not rise in every direction."""
    eps = float(jnp.finfo(dtype).eps)
    if not np.isfinite(hessian).all():
        raise ValueError("The Hessian of the loss is not finite at this point.")
    curvature = np.diag(hessian)
    scale = np.sqrt(np.where(curvature > 0, curvature, 1.0))
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    flat = eps**FLAT * max(values[-1], 1.0)
    weak = [name for name, c in zip(names, curvature, strict=True) if c <= 0]
    if not weak and values[0] > flat:
        return
    if not weak:
        direction = np.abs(vectors[:, 0])
        weak = [n for n, d in zip(names, direction, strict=True) if d > 0.3 * direction.max()]
    which = " and ".join(named(problem.model, name) for name in weak)
    noise = problem.noise_level(problem.model)
    if noise is not None and float(np.max(noise.ends.ratio())) > LOST:
        raise ValueError(
            f"The loss does not rise in every direction at this point, where {np.dtype(dtype)} "
            f"has lost it: to know {which}, {to_have_float64()}."
        )
    raise ValueError(
        f"The loss does not rise in every direction at this point: the data do not determine "
        f"{which} here. Freeze or share parameters, give priors, or fit on until it "
        "converges."
    )


def _short(value: Any) -> str:
    array = np.asarray(value)
    if array.ndim == 0 and 0 < abs(array) < 1e-3:  # NumPy would print decimals that are zeros
        return f"{array:.4g}"
    if array.size <= 4:
        return np.array2string(array, precision=3, separator=", ")
    return f"{array.dtype}{list(array.shape)} in [{array.min():.3g}, {array.max():.3g}]"
