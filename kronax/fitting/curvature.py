"""The Hessian of a loss at the end of a fit: exact, or by differences of the gradient."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from kronax.fitting.problem import Problem, Raw, precision
from kronax.fitting.steps import Layout, Loop, gradients_by
from kronax.linalg.arrays.primitives import DerivativeOrderError

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


class Curvature(NamedTuple):
    """The Hessian, and the loss there; `by_differences` where it has no second derivatives."""

    hessian: np.ndarray
    loss: float
    by_differences: bool


def exact_curvature(problem: Problem, raw: Raw) -> Curvature:
    """The exact Hessian, or differences of the gradient if there is none."""
    try:
        loss, hessian = _exact(problem, raw)
    except DerivativeOrderError:
        found = _differences(_gradients(problem, raw), raw, np.eye(_size(raw)), _steps(raw))
        return Curvature(found.hessian, found.loss, True)
    return Curvature(np.asarray(hessian, np.float64), float(loss), False)


def quick_curvature(
    problem: Problem, raw: Raw, fitted: tuple[Problem, Raw], loop: Loop | None
) -> Curvature:
    """Differences of the gradient where they serve, and else the exact Hessian.

    Their gradient is that of the loop which fitted the problem, so that nothing is compiled; its
    noise above the floor is transferred to the noise itself.
    """
    if _size(raw) > FEW_NUMBERS:
        return exact_curvature(problem, raw)
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
            return Curvature(found.hessian, found.loss, problem.is_estimated)
        if not found.is_bent.any():
            break
        steps = np.where(found.is_bent, SHORTER * steps, steps)
    return exact_curvature(problem, raw)


class _Differences(NamedTuple):
    """Loss and Hessian, and by how much its entries are off.

    A second-order error, which extrapolation takes out, leaves some square of its share: `bent`.
    `noise` is what the noise of the gradient makes of an entry.
    """

    loss: float
    hessian: np.ndarray
    bent: np.ndarray
    noise: np.ndarray

    @property
    def is_bent(self) -> np.ndarray:
        """Along which numbers shorter steps may serve; of a single one nothing tells."""
        return (np.diag(self.bent) > np.diag(self.noise)) | (len(self.hessian) == 1)

    def share(self) -> float:
        """The largest share by which a standard error is off."""
        if not np.isfinite(self.hessian).all() or np.linalg.eigvalsh(self.hessian)[0] <= 0:
            return np.inf
        covariance = np.abs(np.linalg.inv(self.hessian))
        by_bends = np.diag(covariance @ self.bent @ covariance)
        square = np.square(covariance)  # noise is not that of all entries at once
        by_noise = np.sqrt(np.diag(square @ np.square(self.noise) @ square))
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
    taken_out = np.abs(far - near) / 3
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = np.square(taken_out) / np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
    # Of one number all may be noise, of which this difference keeps a quarter.
    noise = _noise(matrix, steps) if size > 1 else NOISE * 4 * taken_out
    return _Differences(float(losses[0]), (matrix + matrix.T) / 2, bent, noise)


def _noise(matrix: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """What the noise of the gradient makes of every entry, by how much they lack in symmetry.

    It is taken to be the same for all slopes, not for all shares of their change: along a flat
    direction it hides most. Few pairs tell less.
    """
    rate = np.hypot(1 / steps[:, None], 1 / steps)
    pairs = np.triu_indices(len(steps), 1)
    deviation = math.sqrt(np.mean(np.square(((matrix - matrix.T) / rate)[pairs])))
    return NOISE * (1 + 2 / len(pairs[0])) * deviation * rate / math.sqrt(2)


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
