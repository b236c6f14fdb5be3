"""Draw from a Gaussian with Kronecker covariance, from one root per axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kronax.linalg.arrays.lapack_order import in_sequence
from kronax.linalg.arrays.mode_products import map_batch, same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.factors.diagonal import ScaledIdentity
from kronax.linalg.factors.eigenbases import SymmetricBlocks
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.operators.kronecker import Kronecker, KroneckerSum
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


def _draw_normal(
    key: PRNGKeyArray, op: Kronecker | KroneckerPlusNoise, lead: tuple[int, ...]
) -> Array:
    """Independent draws for every entry of `lead`, which the batch of `op` broadcasts to."""
    if not isinstance(op, KroneckerPlusNoise):
        return _draw_factors(key, op, lead)
    signal_key, noise_key = jax.random.split(key)
    if isinstance(op.kronecker, KroneckerSum):
        signal = _draw_sum(signal_key, op.kronecker, lead)
    else:
        signal = _draw_factors(signal_key, op.kronecker, lead)
    if isinstance(op.noise, Kronecker):
        return signal + _draw_factors(noise_key, op.noise, lead)
    white = normal_numbers(noise_key, (*lead, *op.grid_shape), op.dtype)
    scale = safe_sqrt(op.noise)
    scale = scale.reshape(*scale.shape, *(1,) * len(op.grid_shape))
    return signal + jnp.multiply(*same_rank(scale, white))


draw_normal = jax.jit(_draw_normal, static_argnums=2)


def _draw_factors(key: PRNGKeyArray, op: Kronecker, lead: tuple[int, ...]) -> Array:
    """`R z`, with one root per axis; a thin root takes few numbers."""
    roots = in_sequence(lambda f: f.root(), op.factors, batched=bool(op.batch_shape))
    white = normal_numbers(key, (*lead, *(r.size for r in roots)), op.dtype)
    return apply_roots(roots, white)


def _draw_sum(key: PRNGKeyArray, op: KroneckerSum, lead: tuple[int, ...]) -> Array:
    """`Σ R_i z_i`, with a root along one axis and other numbers for each."""
    total = jnp.zeros((), op.dtype)
    one = jnp.ones((), op.dtype)
    for i, (factor, part) in enumerate(
        zip(op.factors, jax.random.split(key, len(op.factors)), strict=True)
    ):
        alone = [ScaledIdentity(one, n) for n in op.grid_shape]
        product = Kronecker(*alone[:i], factor, *alone[i + 1 :])
        total = total + _draw_factors(part, product, lead)
    return total


def apply_roots(roots: Sequence[SymmetricBlocks], white: Array) -> Array:
    """Apply one root per axis along the last axes of `white`, batches included."""

    def one(held, z):
        for i, root in enumerate(held):
            z = root.apply(z, i - len(held))
        return z

    batches = [r.batch_shape for r in roots]
    if not any(batches):
        return one(roots, white)
    batch = jnp.broadcast_shapes(*batches, white.shape[: white.ndim - len(roots)])
    ndims = [r.event_ndims for r in roots]
    return map_batch(one, batch, (list(roots), ndims), (white, len(roots)))
