"""Concrete numbers on the host, where nothing is compiled for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    reshard,
)
from jaxtyping import Array


def on_device(values: Any) -> Array:
    """NumPy's numbers as a JAX array, without the program that `jnp.asarray` compiles for it.

    One that is shared out over devices by its type is by its values instead.
    """
    if not isinstance(values, np.ndarray | np.generic):
        return _by_value(jnp.asarray(values))
    # In memory of its own: JAX may keep what it is given, which its owner may change.
    values = np.array(values, jax.dtypes.canonicalize_dtype(values.dtype))
    return jnp.asarray(values, values.dtype)


def _by_value(x: Array) -> Array:
    """`x` over axes of a mesh that are `Auto`: XLA finds how to share out what is made of it.

    With `Explicit` ones, which `jax.make_mesh` makes, every operation would have to be told.
    """
    sharding: Any = jax.typeof(x).sharding if is_traced(x) else x.sharding
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return x
    if isinstance(mesh, Mesh):
        return jax.device_put(x, NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec))
    plain = AbstractMesh(mesh.axis_sizes, mesh.axis_names)
    x = reshard(x, NamedSharding(plain, PartitionSpec()))
    return jax.lax.with_sharding_constraint(x, NamedSharding(plain, sharding.spec))


def on_host(function: Callable[..., Any], *arrays: Any) -> Array:
    """`function` of arrays in NumPy where all have values, so that nothing is compiled for it.

    Precisions combine as they do in JAX.
    """
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return function(*arrays)
    dtype = jnp.result_type(*arrays)
    return on_device(function(*(np.asarray(x, dtype) for x in arrays)))


def numpy_of(x: Any) -> Any:
    """The NumPy that an array is of: NumPy itself, or JAX's."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def is_spread(x: Any) -> bool:
    """Whether a concrete array is on several devices, so that it is looked at where it is."""
    return isinstance(x, jax.Array) and not is_traced(x) and not x.is_fully_replicated


def numbers(x: Any) -> np.ndarray:
    """A concrete array in NumPy, also where parts of it are on devices of other processes."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        with jax.ensure_compile_time_eval():
            x = jax.jit(_itself, out_shardings=everywhere(x))(x)
    return np.asarray(x)


def is_shared(x: Any) -> bool:
    """Whether parts of an array are on devices of other processes, which work on it as well."""
    return isinstance(x, jax.Array) and not is_traced(x) and not x.is_fully_addressable


def of_all_processes(values: Any) -> np.ndarray:
    """A NumPy array of every process, stacked; all of them have to ask."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


def of_first_process(content: bytes) -> bytes:
    """What the first process has; all of them have to ask."""
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content), np.int32)))
    given = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(given)).astype(np.uint8))


def is_traced(x: Any) -> bool:
    """Whether an array has no value now."""
    return isinstance(x, jax.core.Tracer)


def count(test: Callable[[Any], Any], x: Any, among: Any = True) -> int:
    """In how many places of a concrete array a NumPy function is true, of those in a mask.

    Args:
        test: `numpy.isnan`, for one.
        x: an array.
        among: a NumPy mask that broadcasts to it.
    """
    if not is_spread(x):
        return int((test(np.asarray(x)) & among).sum())
    like_in_jax: Any = getattr(jnp, test.__name__)
    with jax.ensure_compile_time_eval():
        return int(jax.jit(lambda x, among: jnp.sum(like_in_jax(x) & among))(x, among))


def bounds(x: Any, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number, NaN aside, per entry of the first `keep` axes."""
    if not is_spread(x):
        return _bounds(np.asarray(x), keep, np)
    with jax.ensure_compile_time_eval():
        least, largest = jax.jit(lambda x: _bounds(x, keep, jnp))(x)
    return numbers(least), numbers(largest)


def is_finite(tree: Any) -> bool:
    """Whether no leaf is known to have NaN or infinities; traced ones pass."""
    return all(
        isinstance(leaf, jax.core.Tracer) or count(np.isfinite, leaf) == np.size(leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _itself(x: Array) -> Array:
    return x


def everywhere(x: Array) -> NamedSharding:
    """The sharding by which every device of an array has all of it."""
    mesh = getattr(x.sharding, "mesh", None)
    if mesh is None:
        raise TypeError(
            "An array on devices of several processes must have a jax.sharding.NamedSharding; got "
            f"{x.sharding}. Make it by jax.make_array_from_process_local_data."
        )
    return NamedSharding(mesh, PartitionSpec())


def _bounds(x: Any, keep: int, xp: Any) -> tuple[Any, Any]:
    rest = tuple(range(keep, x.ndim))
    return xp.nanmin(x, axis=rest), xp.nanmax(x, axis=rest)
