"""Data sets of a batch one by one, each on the devices that hold it, and their results in one.

Nothing is sent: a data set is made of the parts that its devices have, and so is a batch of
results. What only devices of other processes hold is `None` here.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from kronax.linalg.arrays.host import is_shared, is_spread, is_traced, numbers


def of_batch(sharding: NamedSharding, num_axes: int) -> NamedSharding:
    """How the first axes of an array are shared out."""
    spec = tuple(sharding.spec)[:num_axes]
    padded = (*spec, *(None,) * (num_axes - len(spec)))
    return NamedSharding(sharding.mesh, PartitionSpec(*padded))


def one_of(x: Array, index: tuple[int, ...]) -> Array | None:
    """`x[index]` of an array with a `NamedSharding`, whose other axes stay shared out."""
    sharding: Any = x.sharding
    mesh = holders(sharding, x.shape, index).mesh
    own = {shard.device: shard for shard in x.addressable_shards}
    parts = [_entry(own[device], index) for device in mesh.devices.flat if device in own]
    if not parts:
        return None
    place = NamedSharding(mesh, PartitionSpec(*sharding.spec[len(index) :]))
    return jax.make_array_from_single_device_arrays(x.shape[len(index) :], place, parts)


def holders(
    sharding: NamedSharding, shape: tuple[int, ...], index: tuple[int, ...]
) -> NamedSharding:
    """All of an array on every device that holds something of `x[index]`, `x` of a shape."""
    places = sharding.devices_indices_map(shape)
    devices = sharding.mesh.devices
    is_holder = np.array([_has(places[device], index) for device in devices.flat])
    is_holder = is_holder.reshape(devices.shape)
    sizes = [len(np.unique(entries)) for entries in np.nonzero(is_holder)]
    mesh = Mesh(devices[is_holder].reshape(sizes), sharding.mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec())


def moved_to(tree: Any, place: NamedSharding) -> Any:
    """A pytree with its arrays on other devices, those of several processes included."""

    def moved(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        return jax.device_put(numbers(x) if is_shared(x) else x, place)

    return jax.tree.map(moved, tree)


def split(x: Array, batch_shape: tuple[int, ...]) -> list[Array | None]:
    """The entries of an array `(*batch, …)`, of a shared one each on the devices that hold it."""
    if is_spread(x) and isinstance(x.sharding, NamedSharding):
        return [one_of(x, index) for index in np.ndindex(batch_shape)]
    return list(x.reshape(-1, *x.shape[len(batch_shape) :]))


def in_one(
    found: Mapping[int, Any], sharding: NamedSharding, batch_shape: tuple[int, ...], lead: int
) -> Array:
    """Results `(*lead, …)` of data sets as one, `(*lead, *batch, …)`.

    Args:
        found: by their number in the flattened batch, those of devices of this process.
        sharding: of the batch.
        batch_shape: how many data sets.
        lead: how many axes come before the batch.
    """
    first = next(iter(found.values()))
    shape, spec = jnp.shape(first), _spec(first)
    own, indices = PartitionSpec(*spec), list(np.ndindex(batch_shape))
    count = np.arange(prod(batch_shape)).reshape(batch_shape)
    held: dict[int, dict[Any, Array]] = {}
    for k, x in found.items():
        place = holders(sharding, batch_shape, indices[k])
        x = jax.device_put(x, NamedSharding(place.mesh, own))
        held[k] = {shard.device: shard.data for shard in x.addressable_shards}
    parts = []
    for device, index in sharding.addressable_devices_indices_map(batch_shape).items():
        there = count[index]
        part = jnp.stack([held[int(k)][device] for k in there.ravel()], lead)
        parts.append(part.reshape(*part.shape[:lead], *there.shape, *part.shape[lead + 1 :]))
    all_axes = PartitionSpec(*spec[:lead], *sharding.spec, *spec[lead:])
    return jax.make_array_from_single_device_arrays(
        (*shape[:lead], *batch_shape, *shape[lead:]), NamedSharding(sharding.mesh, all_axes), parts
    )


def beside(arrays: Sequence[Any]) -> list[Any]:
    """Arrays on the devices of the first of them."""
    first = arrays[0]
    if any(is_traced(x) or not isinstance(x, jax.Array) for x in arrays):
        return list(arrays)
    is_apart = any(x.sharding.device_set != first.sharding.device_set for x in arrays)
    return [jax.device_put(x, first.sharding) for x in arrays] if is_apart else list(arrays)


def _has(place: tuple[slice, ...], index: tuple[int, ...]) -> bool:
    return all(
        (part.start or 0) <= i and (part.stop is None or i < part.stop)
        for i, part in zip(index, place, strict=False)
    )


def _entry(shard: Any, index: tuple[int, ...]) -> Array:
    starts = [part.start or 0 for part in shard.index]
    return shard.data[tuple(i - start for i, start in zip(index, starts, strict=False))]


def _spec(x: Any) -> tuple[Any, ...]:
    """Over what the axes of a result are shared out, one entry each."""
    ndim, sharding = jnp.ndim(x), getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return (None,) * ndim
    return tuple(of_batch(sharding, ndim).spec)
