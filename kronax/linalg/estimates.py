"""Results of iterations and of random probes, and how far to trust them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.checks import is_concrete
from kronax.linalg.modes import same_rank


class ConvergenceError(ArithmeticError):
    """An iteration stopped before it reached its tolerance."""


@dataclass(frozen=True)
class Iteration:
    """How an iterative result is computed.

    Args:
        tolerance: of the residual, relative to the root of the quadratic form it leaves; `None` is
            1e-5 in float64 and 1e-4 in float32.
        max_steps: conjugate-gradient iterations at most.
        num_probes: random vectors for the log-determinant and its gradient, the same ones at every
            call; the standard error falls with the root of their number.
        num_draws: of the posterior, for variances that are not exact; likewise.
        box_size: eigenvectors of the signal on which the preconditioner is exact, at most; long
            gaps need more of them. Takes `O(box_size³)` operations once per call.
        seed: of the probes.
        on_failure: `"raise"` if an iteration does not converge (NaN under jit), or `"flag"`: the
            result says `converged=False`.

    Raises:
        ValueError: if a number is out of its range.

    Examples:
        >>> import kronax as kx
        >>> kx.Iteration(num_probes=64).num_probes
        64
    """

    tolerance: float | None = None
    max_steps: int = 1000
    num_probes: int = 16
    num_draws: int = 64
    box_size: int = 900
    seed: int = 0
    on_failure: Literal["raise", "flag"] = "raise"

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` must lie between 0 and 1; got {self.tolerance}.")
        for name, least in (
            ("max_steps", 1),
            ("num_probes", 4),
            ("num_draws", 4),
            ("box_size", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(
                    f"`{name}` must be a whole number, at least {least}; got {value!r}."
                )
        if self.on_failure not in ("raise", "flag"):
            raise ValueError(f"`on_failure` must be 'raise' or 'flag'; got {self.on_failure!r}.")

    def tolerance_of(self, dtype: Any) -> float:
        """The tolerance in this dtype."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-5 if jnp.finfo(dtype).bits > 32 else 1e-4


DEFAULT = Iteration()


class Estimate(eqx.Module):
    """A result with its certificate.

    Args:
        value: the result. What it is differentiated by, the certificate is not.
        error: half the width of a 99 % interval around a scalar `value`: `standard_error` times
            the quantile of Student's t, plus bounds of what the iterations left. For a solution,
            its error in the norm of the operator, relative to the solution. For the weights of a
            posterior, by how many posterior standard deviations the mean is off, at most.
        standard_error: of the random probes.
        residual: the largest relative residual of the iterations, computed from the solutions.
        num_steps: the largest number of iterations.
        converged: whether the residual is near or below the tolerance.
    """

    value: Array
    error: Array
    standard_error: Array
    residual: Array
    num_steps: Array
    converged: Array

    def __repr__(self) -> str:
        if not is_concrete(*jax.tree.leaves(self)) or jnp.ndim(self.converged):
            return f"Estimate of shape {self.value.shape}"
        if self.value.ndim:
            largest = float(jnp.max(self.error))
            head = f"Estimate of shape {self.value.shape}, errors up to {largest:.2g}"
        else:
            head = f"{float(self.value):.8g} ± {float(self.error):.2g}"
        state = "" if bool(self.converged) else ", NOT CONVERGED"
        return (
            f"{head} (99 %; standard error {float(jnp.max(self.standard_error)):.2g}, residual "
            f"{float(self.residual):.2g}, {int(self.num_steps)} iterations{state})"
        )

    def scaled(self, factor: Any) -> "Estimate":
        """Times a number."""
        size = abs(factor)
        return Estimate(
            factor * self.value,
            size * self.error,
            size * self.standard_error,
            self.residual,
            self.num_steps,
            self.converged,
        )

    def shifted(self, known: Array) -> "Estimate":
        """With something exact added to the value."""
        return eqx.tree_at(lambda e: e.value, self, jnp.add(*same_rank(self.value, known)))


def exact_estimate(value: Array) -> Estimate:
    """A value that is exact but for rounding."""
    zero = jnp.zeros((), value.dtype)
    steps, converged = jnp.zeros((), jnp.int32), jnp.all(jnp.isfinite(value))
    return Estimate(value, zero, zero, zero, steps, converged)


class Certificate(NamedTuple):
    """The fields of an estimate behind its value."""

    error: Array
    standard_error: Array
    residual: Array
    num_steps: Array
    converged: Array


class Solved(NamedTuple):
    """Solves of columns `b`.

    Args:
        solution: `(k, *grid)`, zero at the gaps.
        weights: the same number by number but for what the iterations leave: made for products with
            covariances of the signal, which are right to a share of a posterior standard deviation.
        quadratics: `bᵀ op⁻¹ b`, from above.
        errors: by how much at most.
        certificate: of the worst column; its error is that of the solution in the norm of the
            operator, relative to the solution.
    """

    solution: Array
    weights: Array
    quadratics: Array
    errors: Array
    certificate: Certificate


def settled(estimate: Estimate, iteration: Iteration, what: str) -> Estimate:
    """The estimate, unless it did not converge and that was to raise."""
    if iteration.on_failure == "flag":
        return estimate
    if not is_concrete(estimate.converged):
        # A factor, so that derivatives are NaN as well.
        doubt = jnp.where(estimate.converged, 1, jnp.nan)
        return eqx.tree_at(
            lambda e: e.value, estimate, doubt.astype(estimate.value.dtype) * estimate.value
        )
    if not bool(np.all(np.asarray(estimate.converged))):
        raise ConvergenceError(
            f"The iterations of {what} must reach their tolerance; after "
            f"{int(np.max(np.asarray(estimate.num_steps)))} steps the relative residual is "
            f"{float(np.max(np.asarray(estimate.residual))):.2g}. Raise `max_steps` or `box_size` "
            "of kx.Iteration, loosen its `tolerance`, or take the result as it is with "
            "`on_failure='flag'`. A signal that is indefinite, or not finite, gives NaN here."
        )
    return estimate


def quantile(num_probes: int) -> float:
    """The 99.5 % quantile of Student's t, by its expansion in the degrees of freedom."""
    z, n = 2.5758293035489, num_probes - 1
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
