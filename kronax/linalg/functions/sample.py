"""Draws from a Gaussian with Kronecker covariance."""

from jaxtyping import Array, Float, PRNGKeyArray

from kronax.linalg.arrays.checks import check_key, shape_of
from kronax.linalg.decompositions.restricted import AbstractRestricted
from kronax.linalg.factors.abstract_operator import AbstractOperator
from kronax.linalg.operators.diagnose import explained
from kronax.linalg.operators.draws import draw_normal
from kronax.linalg.operators.kronecker import as_kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise, with_noise


def sample_normal(
    key: PRNGKeyArray, op: AbstractOperator, sample_shape: tuple[int, ...] | int = ()
) -> Float[Array, "..."]:
    """Draws from `N(0, op)`, grid-shaped, reparametrised and right to first order.

    Per-axis roots only: one `eigh` per dense factor and `2 N Σ n_i` operations per draw. The
    symmetric root is used, which exists where Cholesky gives NaN; factors known to be positive
    definite use Cholesky. Along what raises the rank of a singular covariance there is no
    derivative: it is NaN in forward mode, and left out in reverse mode.

    Args:
        key: a JAX random key.
        op: the covariance.
        sample_shape: leading axes of the draws.

    Raises:
        ValueError: if `op` is no covariance (concrete values; traced ones give NaN).
        DerivativeOrderError: if a draw is differentiated twice in a dense factor.

    Examples:
        >>> import jax, jax.numpy as jnp, kronax as kx
        >>> op = kx.Kronecker(jnp.eye(3), jnp.eye(2)) + 1.0
        >>> kx.sample_normal(jax.random.key(0), op, (5,)).shape
        (5, 3, 2)
    """
    check_key(key)
    shape = shape_of(sample_shape)
    if isinstance(op, AbstractRestricted):
        return op.draw(key, (*shape, *op.batch_shape))
    op = with_noise(op)
    if not isinstance(op, KroneckerPlusNoise):
        op = as_kronecker(op)
        op.check_covariance("sampling")
    draw = draw_normal(key, op, (*shape, *op.batch_shape))
    return explained(draw, op, covariance=True)
