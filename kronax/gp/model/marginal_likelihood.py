"""The marginal likelihood of a grid GP and the weights of its posterior, compiled."""

import functools
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from kronax.gp.means.gls import Regression, fitted, integrated, marginal_logpdf, regress
from kronax.gp.means.regression import MarginalMean
from kronax.gp.model.checks import refuse_joined
from kronax.gp.model.observations import UNKNOWN_GAPS, has_unknown_gaps
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.gp.model.solver_choice import iterated_axis
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.early_errors import raising_unless_finite
from kronax.linalg.arrays.fingerprints import made_of_tree
from kronax.linalg.arrays.host import is_finite
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import Conditioning, warn_of_ratio
from kronax.linalg.estimates.certificates import Estimate, settled
from kronax.linalg.functions.choice import DataCovariance, decomposition_of
from kronax.linalg.functions.decompose import decompose, with_checksum, without_checksum
from kronax.linalg.functions.logdet import normal_logpdf_grid
from kronax.linalg.gaps.masked import Masked
from kronax.linalg.krylov.operator import Iterative
from kronax.linalg.operators.diagnose import NOT_FINITE, explain_not_finite
from kronax.progress import WATCH

STALE = (
    "This posterior was made of another model or other data: its leaves have been replaced since "
    "(kx.replace, eqx.tree_at, jax.tree.map, a cast to another precision). Change or cast the "
    "model, and condition it again."
)
# Of fewer cells, what is not compiling is over in no time.
MANY_CELLS = 10_000


class Weights(NamedTuple):
    """What a posterior is made of.

    Args:
        value: `S⁻¹ (y − mean)`.
        regression: the coefficients of a mean that has them integrated out.
        estimate: the weights with their certificate, if they come from iterations.
    """

    value: Array
    regression: Regression | None
    estimate: Estimate | None


def log_marginal_likelihood(gp: AbstractProcess, y: Array) -> Array:
    """Log density of checked data on the grid; warns where concrete values lose it."""
    if not is_concrete(gp, y):
        return raising_unless_finite(_log_density(gp, y), NOT_FINITE)
    value, found = _log_density_with_ends(gp, y)
    warn_of_ratio(found, "The log likelihood may be wrong")
    return value


def log_density_traced(gp: AbstractProcess, y: Array) -> Array:
    """The same inside `jit`."""
    return _log_density_of(gp, gp.data_covariance(), y)


_log_density = eqx.filter_jit(log_density_traced)


@eqx.filter_jit
def _log_density_with_ends(gp: AbstractProcess, y: Array) -> tuple[Array, Conditioning | None]:
    covariance = without_checksum(decompose(gp.data_covariance()))  # one for both
    return _log_density_of(gp, covariance, y), decomposition_of(covariance).ends()


def _log_density_of(gp: AbstractProcess, covariance: DataCovariance, y: Array) -> Array:
    stay = (None,) * len(gp.axes)
    residual = _residual(gp, covariance, y)
    if isinstance(gp.mean, MarginalMean):
        return marginal_logpdf(covariance, gp.design_on(stay), residual, gp.mean.variance)
    return normal_logpdf_grid(residual, covariance)


def estimate(gp: AbstractProcess, y: Array) -> Estimate:
    """The same with its certificate; raises as the model's iterations are to."""
    has_box = iterated_axis(gp) is None
    return settled(unsettled_estimate(gp, y), gp.iteration, "the log density", has_box)


@eqx.filter_jit
def unsettled_estimate(gp: AbstractProcess, y: Array) -> Estimate:
    """The same, whether it converged or not."""
    covariance = gp.data_covariance()
    decomposition, residual = decomposition_of(covariance), _residual(gp, covariance, y)
    if not isinstance(gp.mean, MarginalMean):
        return decomposition.density(residual)
    design = gp.design_on((None,) * len(gp.axes))
    found = regress(covariance, design, residual, gp.mean.variance)
    density = decomposition.density(residual - fitted(found.estimates, design))
    return density.shifted(integrated(found, gp.mean.variance))


def conditioned(gp: AbstractProcess, y: Array) -> tuple[DataCovariance, Weights]:
    """The decomposed covariance of checked data, and their weights, by one program."""
    operator, found, eigenvalues = _conditioned(gp, y)
    if not is_finite(getattr(operator, "decomposition", None)):
        decompose(gp.data_covariance())  # step by step, which says what is wrong
    operator = with_checksum(operator)
    return operator, _checked_weights(gp, operator, y, found, eigenvalues)


def conditioned_traced(
    gp: AbstractProcess, y: Array
) -> tuple[DataCovariance, Weights, Conditioning | None]:
    """The same inside `jit`, with the ends of the spectrum."""
    operator = without_checksum(decompose(gp.data_covariance()))
    if isinstance(operator, Masked):
        refuse_joined(gp, "A posterior given data with so many gaps is")
    return operator, *_weights_of(gp, operator, y)


_conditioned = eqx.filter_jit(conditioned_traced)


def weights(gp: AbstractProcess, operator: DataCovariance, y: Array) -> Weights:
    """Those of checked data and a decomposed covariance."""
    return _checked_weights(gp, operator, y, *_weights(gp, operator, y))


def _checked_weights(
    gp: AbstractProcess,
    operator: DataCovariance,
    y: Array,
    found: Weights,
    eigenvalues: Conditioning | None,
) -> Weights:
    """Warns where concrete values lose them, and raises where there are none."""
    warn_of_ratio(eigenvalues, "Means, variances and draws may be wrong")
    if found.estimate is not None:
        way = decomposition_of(operator)
        checked = way.settled(found.estimate, "the posterior", is_marked=True)
        return Weights(checked.value, found.regression, checked)
    explain(gp, y, found.value)
    return found


def _weights_of(
    gp: AbstractProcess, operator: DataCovariance, y: Array
) -> tuple[Weights, Conditioning | None]:
    stay = (None,) * len(gp.axes)
    residual, found = _residual(gp, operator, y), None
    if isinstance(gp.mean, MarginalMean):
        design = gp.design_on(stay)
        labels = gp.mean.labels(gp.axes)
        found = regress(operator, design, residual, gp.mean.variance, **labels)
        residual = residual - fitted(found.estimates, design)
    decomposition = decomposition_of(operator)
    solved = decomposition.weights(residual)
    estimate = None if decomposition.is_exact else solved
    return Weights(solved.value, found, estimate), decomposition.ends()


_weights = eqx.filter_jit(_weights_of)


def _residual(gp: AbstractProcess, operator: DataCovariance, y: Array) -> Array:
    """The data less their mean, and zero in gaps."""
    return operator.held(jnp.subtract(*same_rank(y, gp.mean_on((None,) * len(gp.axes)))))


def explain(gp: AbstractProcess, y: Array, value: Any) -> None:
    """Raise if a concrete likelihood is not finite, with what is to blame."""
    if is_finite(value):
        return
    gp.check_model()
    if not decomposition_of(gp.data_covariance()).is_exact:
        estimate(gp, y)
    explain_not_finite(value, gp.covariance())


def of_its_model(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that refuses a posterior whose model or data were replaced; NaN if traced.

    It also says why one is NaN that was made by a compiled program.
    """

    @functools.wraps(method)
    def call(post: AbstractPosterior, /, *args: Any, **options: Any) -> Any:
        if not is_finite((post.weights, post.made_of)) and is_concrete(post):
            explain_posterior(post)
        own = made_of_tree(post, (post.gp, post.y), post.made_of, STALE)
        way = ", by iterations" if isinstance(own.operator, Iterative) else ""
        return watched(f"post.{method.__name__}", way, own.gp, method, own, *args, **options)

    return call


def watched(
    name: str,
    way: str,
    gp: AbstractProcess,
    call: Callable[..., Any],
    /,  # the call has options of these names
    *args: Any,
    **options: Any,
) -> Any:
    """The result of a call, which says what it does if it takes long.

    That of a large grid is waited for: else the call would be over before the work is done.
    """
    with WATCH.over(lambda: f"{name} on {' × '.join(map(str, gp.grid_shape))} cells{way}"):
        found = call(*args, **options)
        is_long = prod(gp.grid_shape) >= MANY_CELLS and is_concrete(found)
        return jax.block_until_ready(found) if is_long else found


def explain_posterior(post: AbstractPosterior) -> None:
    """Raise, as conditioning outside of compiled programs does, with what has made it NaN."""
    post.explain()
    if has_unknown_gaps(post.gp, post.y):
        raise ValueError(UNKNOWN_GAPS)
    if post.estimate is None or post.gp.iteration.on_failure == "raise":
        explain(post.gp, post.y, post.weights)
