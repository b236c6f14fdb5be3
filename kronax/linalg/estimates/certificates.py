"""Results of iterations and of random probes, and how far to trust them."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import chdtri, stdtrit

from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import level_of_caller, where

# Residuals are computed again from the solutions, and may be larger than they seemed by this.
SLACK = 10
# Units in the last place that a decomposition or a product may be off by, relative to its norm.
ROUNDING = 8


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
        num_draws: of the posterior, for variances that are not exact; likewise. Where the
            preconditioner knows nothing of them, several terms at new coordinates, eight times as
            many are drawn.
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
    num_draws: int = 128
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
# A relative standard error that is usual for variances by draws, and the share of the cells that
# may be beyond it before there is a warning.
USUAL_ERROR = 0.05
BEYOND = 0.1

LONGER = (
    "Raise {} of kx.Iteration, loosen its `tolerance`, or take the result "
    "as it is with `on_failure='flag'`. A signal that is indefinite, or not finite, gives NaN here."
)


def or_a_box(name: str, has_box: bool) -> str:
    """What may be raised, in words: also the box of the preconditioner, where it has one."""
    return f"`{name}` or `box_size`" if has_box else f"`{name}`"


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
        rounding: of a log density or log-determinant, the part of the error that bounds rounding.
        probes: what each random probe says of the part that is not data: `value` has their mean,
            and their derivatives are per probe as well.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> signal = kx.Kronecker(jnp.eye(2), jnp.eye(2))
        >>> op = kx.KroneckerPlusDiagonal(signal, jnp.array([[1.0, 3.0], [1.0, jnp.inf]]))
        >>> found = kx.iterative_logpdf(jnp.ones((2, 2)), 0.0, op)
        >>> bool(found.converged), bool(found.error < 0.01)
        (True, True)
    """

    value: Array
    error: Array
    standard_error: Array
    residual: Array
    num_steps: Array
    converged: Array
    rounding: Array | None = None
    probes: Array | None = None

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
            None if self.rounding is None else size * self.rounding,
            None if self.probes is None else factor * self.probes,
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
    rounding: Array | None = None


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


def settled(
    estimate: Estimate,
    iteration: Iteration,
    what: str,
    has_box: bool = True,
    *,
    is_marked: bool = False,
) -> Estimate:
    """The estimate, unless it did not converge and that was to raise.

    A traced value is NaN then; one that `is_marked` is so already.
    """
    if iteration.on_failure == "flag":
        return estimate
    longer = LONGER.format(or_a_box("max_steps", has_box))
    if not is_concrete(estimate.converged):
        message = f"The iterations of {what} must reach their tolerance, and did not. {longer}"
        estimate = raising_if(lambda: ~estimate.converged, estimate, message)
        if is_marked:
            return estimate
        # A factor, so that derivatives are NaN as well.
        one = jnp.ones((), estimate.value.dtype)
        doubt = where(estimate.converged, one, jnp.nan)
        return eqx.tree_at(lambda e: e.value, estimate, doubt * estimate.value)
    if not bool(np.all(np.asarray(estimate.converged))):
        raise ConvergenceError(
            f"The iterations of {what} must reach their tolerance; after "
            f"{int(np.max(np.asarray(estimate.num_steps)))} steps the relative residual is "
            f"{float(np.max(np.asarray(estimate.residual))):.2g}. {longer}"
        )
    return estimate


def warn_if_uncertain(
    value: Array,
    standard_error: Array | None,
    iteration: Iteration,
    what: str,
    has_box: bool = True,
) -> None:
    """Warn of concrete variances by draws of which a tenth is off by more than is usual."""
    if standard_error is None or not is_concrete(value, standard_error):
        return
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.asarray(standard_error, float) / np.asarray(value, float)
    relative = relative[np.isfinite(relative)]
    most = float(np.quantile(relative, 1 - BEYOND)) if relative.size else 0.0
    if most <= USUAL_ERROR:
        return
    wanted = iteration.num_draws * (most / USUAL_ERROR) ** 2
    warnings.warn(
        f"{what} from {iteration.num_draws} draws have standard errors above {USUAL_ERROR:.0%} in "
        f"a tenth of the cells: {most:.0%} of the variance, and up to {relative.max():.0%}. Set "
        f"iteration=kx.Iteration(num_draws={2 ** int(np.ceil(np.log2(wanted)))})"
        f"{', or a larger `box_size`' if has_box else ''}.",
        stacklevel=level_of_caller(),
    )


def quantile(num_probes: int) -> float:
    """The 99.5 % quantile of Student's t, of `num_probes − 1` degrees of freedom."""
    return float(stdtrit(num_probes - 1, 0.995))


def skew_quantile(num_probes: int) -> float:
    """How many standard errors hold a mean of quadratic forms in 99 % of cases.

    A spread that is taken from the forms themselves falls with their mean, as both are skew. The
    99.95 % quantile of Student's t holds them down to forms of rank three, and single
    squares from 64 of them on.
    """
    return float(stdtrit(num_probes - 1, 0.9995))


def trace_quantile(num_probes: int) -> float:
    """How many standard errors hold a trace in 99 % of cases, if `trace_error` estimates them.

    With Gaussian probes the worst that can happen is a matrix of rank one that all probes nearly
    miss: the mean of `χ²₁` in place of one. Where that mean is at its quantile of 1 %, `u`, the
    standard error seems to be `√(2u/k)`. Higher ranks need less, down to the normal quantile: of
    200 000 draws at ranks from 1 to 40, even and falling, 99.0 to 100 % lie inside.
    """
    low = float(chdtri(num_probes, 0.99)) / num_probes
    return max(quantile(num_probes), (1 - low) / (2 * low / num_probes) ** 0.5)


def trace_error(forms: Array, squares: Array, size: int | Array) -> tuple[Array, Array]:
    """Half of a 99 % interval around the mean of `gᵀ F g`, and the standard error.

    With random signs, `gᵀg = n`, the variance is twice the squares off the diagonal, at most
    `2 (tr F² − (tr F)²/n)`, and `squares` have the mean `tr F²`. Where `F` is nearly diagonal at
    the cells, signs know its trace much better than that: the spread of `forms` shows it, with a
    quantile that allows for a spread that is small by luck.

    Args:
        forms: `gᵀ F g`, one per probe.
        squares: `gᵀ F² g`, likewise; not less than `forms² / size`.
        size: of `F`.
    """
    num = forms.shape[0]
    variance = 2 * jnp.mean(jnp.maximum(squares - forms**2 / jnp.maximum(size, 1), 0))
    bound, seen = jnp.sqrt(variance / num), jnp.std(forms, ddof=1) / num**0.5
    errors = trace_quantile(num) * bound, skew_quantile(num) * seen
    return jnp.minimum(*errors), jnp.where(errors[0] < errors[1], bound, seen)
