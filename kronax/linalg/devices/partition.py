"""Functions along one axis of a grid whose cells are shared out over devices.

XLA's partitioner contracts a shared axis by partial products: on every device an array as large as
the whole grid, and their sum over all of them. Here that axis is made whole, each device taking
some of its fibres: an all-to-all, the function of whole fibres, and an all-to-all back. Whatever
else is shared out stays where it is.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

AXIS = "axis"
Names = tuple[str, ...]
Labels = tuple[Hashable, ...]


@lru_cache(maxsize=1)
def devices_wanted() -> Any:
    """What has to be among the parameters of a primitive whose lowering asks for the devices.

    JAX tells them to a program that has a partitioned call in sight; here it is out of sight, made
    at the lowering. Nothing where there is one device.
    """
    if jax.device_count() == 1:
        return None
    call = custom_partitioning(lambda x: x)
    call.def_partition(lambda mesh, given, found: None, sharding_rule="->")
    return jax.make_jaxpr(call)(np.zeros((), np.float32))


class Form(NamedTuple):
    """What is known of an operand or a result.

    Args:
        is_grid: an array on the grid; others are small, and whole on every device.
        levels: the mapped axes that it has, which are its first ones.
        ndim: the number of its axes.
    """

    is_grid: bool
    levels: tuple[int, ...]
    ndim: int

    def labels(self, place: int, axis: int | None) -> Labels:
        """One per axis: equal ones are shared out in the same way."""
        own = range(len(self.levels) - self.ndim, 0)
        levels = [f"level_{k}" for k in self.levels]
        if not self.is_grid:
            return (*levels, *(f"small_{place}_{-k}" for k in own))
        return (*levels, *(AXIS if k == axis else f"cell_{-k}" for k in own))


class Part(NamedTuple):
    """Which cells of a grid one device has.

    Args:
        names: per axis of the grid, counted from behind as `-1, -2, …`, the axes of the mesh over
            which it is shared out.
    """

    names: dict[int, Names]

    @property
    def is_whole(self) -> bool:
        """Whether it has all of them."""
        return not any(self.names.values())

    def start(self, axis: int, size: int) -> Any:
        """Where its `size` cells along `axis < 0` begin."""
        names = self.names.get(axis, ())
        return lax.axis_index(names) * size if names else 0

    def total(self, x: Array) -> Array:
        """The sum over all parts."""
        names = tuple(name for some in self.names.values() for name in some)
        return lax.psum(x, names) if names else x


WHOLE = Part({})


def partitioned(
    function: Callable[..., Sequence[Array]],
    axis: int | None,
    operands: Sequence[Form],
    results: Sequence[Form],
) -> Callable[..., Sequence[Array]]:
    """`function(axis, *arrays)`, as a call that the partitioner runs on whole fibres.

    Args:
        function: works along `axis < 0`, fibre by fibre. If that is none it is called with the
            `Part` of the grid that the arrays are, in place of an axis. Its small results are sums
            over fibres, or parts.
        axis: of all arrays on the grid.
        operands: their forms.
        results: their forms.
    """
    given = [form.labels(i, axis) for i, form in enumerate(operands)]
    found = [form.labels(i + len(given), axis) for i, form in enumerate(results)]
    # A device that has a part of a number of cells that cannot be shared out evenly has others
    # beside them, which must not be added up.
    evenly = not all(form.is_grid for form in results)

    def whole(*arrays: Array) -> Sequence[Array]:
        return tuple(function(WHOLE if axis is None else axis, *arrays))

    def shared(arrays: Any, values: Any) -> "_Sharing":
        mesh = _refined(arrays[0])
        pairs = [*zip(given, arrays, strict=True), *zip(found, values, strict=True)]
        return _Sharing(mesh, dict(_agreed(mesh, pairs, len(given), evenly)))

    def partition(_: Mesh, arrays: Any, values: Any) -> Any:
        sharing = shared(arrays, values)
        local = _local(function, axis, (arrays, operands), (values, results), sharing)
        sides = ([sharing.over(labels) for labels in side] for side in (found, given))
        return (sharing.mesh, local, *(tuple(side) for side in sides))

    def inferred(_: Mesh, arrays: Any, values: Any) -> Any:
        sharing = shared(arrays, [None] * len(values))
        return tuple(sharing.over(labels) for labels in found)

    rule = " -> ".join(", ".join(" ".join(map(str, x)) for x in side) for side in (given, found))
    every = dict.fromkeys(str(x) for labels in (*given, *found) for x in labels)
    small = tuple(label for label in every if label.startswith("small"))
    call = custom_partitioning(whole)
    call.def_partition(
        partition,
        infer_sharding_from_operands=inferred,
        decode_shardings=False,
        sharding_rule=rule,
        need_replication_factors=small,
    )
    return call


def _refined(array: Any) -> Mesh:
    """The devices that an array is on, over axes whose lengths are primes.

    The partitioner may share out two axes of an array over two parts of one axis of the mesh, where
    an array was reshaped on its way; an axis of a prime length has no parts.
    """
    devices = list(array.sharding.devices_indices_map((array.sharding.num_devices,) * array.ndim))
    lengths = list(_primes(len(devices)))
    names = [f"devices_{i}" for i in range(len(lengths))]
    return Mesh(np.array(devices).reshape(lengths), names)


def _primes(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            yield factor
            number //= factor


def _spec(mesh: Mesh, sharding: Sharding, ndim: int) -> Sequence[Names]:
    """Per axis of an array the axes of the mesh that share it out; none if they do not say it."""
    places = sharding.devices_indices_map((mesh.size,) * ndim)
    starts = np.array([[i.start or 0 for i in places[device]] for device in mesh.devices.flat])
    starts = starts.reshape(*mesh.devices.shape, ndim)
    units = np.eye(mesh.devices.ndim, dtype=int)
    steps = {name: starts[tuple(unit)] for name, unit in zip(mesh.axis_names, units, strict=True)}
    spec = [
        tuple(sorted((name for name in steps if steps[name][k]), key=lambda name: -steps[name][k]))
        for k in range(ndim)
    ]
    whole = NamedSharding(mesh, PartitionSpec(*spec))
    return spec if whole.is_equivalent_to(sharding, ndim) else [()] * ndim


def _agreed(
    mesh: Mesh, pairs: Sequence[tuple[Labels, Any]], num_given: int, evenly: bool
) -> Iterator[tuple[Hashable, Names]]:
    """Per label the axes of the mesh that share it out, each of them once.

    The operands decide. But where a result has its cells shared out as the axis of an operand is,
    that operand had better come so.
    """
    entries = [
        (i, label, size, names)
        for i, (labels, array) in enumerate(pairs)
        if array is not None
        for label, size, names in zip(
            labels, array.shape, _spec(mesh, array.sharding, len(labels)), strict=True
        )
        if names and not str(label).startswith("small")
    ]
    on_axis = {name for i, label, _, names in entries if label == AXIS for name in names}
    first = [e for e in entries if e[0] >= num_given and e[1] != AXIS and on_axis & set(e[3])]
    known: set[Hashable] = set()
    used: set[str] = set()
    for _, label, size, names in (*first, *entries):
        is_even = label == AXIS or not evenly or size % _count(mesh, names) == 0
        if label not in known and not used & set(names) and is_even:
            known.add(label)
            used |= set(names)
            yield label, names


def _count(mesh: Mesh, names: Names) -> int:
    return prod(mesh.shape[name] for name in names)


class _Sharing(NamedTuple):
    """Which axes of the mesh share out what."""

    mesh: Mesh
    names: dict[Hashable, Names]

    @property
    def along(self) -> Names:
        """Those of the axis."""
        return self.names.get(AXIS, ())

    @property
    def ways(self) -> int:
        """Among how many devices the axis is shared out."""
        return _count(self.mesh, self.along)

    @property
    def over_fibres(self) -> Names:
        """Those that have other fibres."""
        cells = (names for label, names in self.names.items() if "level" not in str(label))
        return tuple(name for names in cells for name in names)

    @property
    def part(self) -> Part:
        """The cells of one device, where no axis has to be whole."""
        cells = {k: str(k).removeprefix("cell_") for k in self.names}
        return Part({-int(n): self.names[k] for k, n in cells.items() if n.isdigit()})

    def over(self, labels: Labels) -> NamedSharding:
        """The sharding of an array."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.names.get(k) for k in labels)))

    def columns(self, x: Array, axis: int, levels: int, size: int) -> Array:
        """Some of the fibres of what is held of an array, whole: `(*levels, size, columns)`."""
        x = jnp.moveaxis(x, axis, levels)
        x = x.reshape(*x.shape[: levels + 1], -1)
        x = _padded(x, levels + 1, self.ways)
        x = lax.all_to_all(x, self.along, levels + 1, levels, tiled=True)
        return lax.slice_in_dim(x, 0, size, axis=levels)

    def cells(self, x: Array, axis: int, levels: int, shape: tuple[int, ...]) -> Array:
        """And back, to what a device holds of an array: `shape`, its length along the axis any."""
        x = _padded(x, levels, self.ways)
        x = lax.all_to_all(x, self.along, levels, levels + 1, tiled=True)
        others = list(shape)
        del others[axis]
        x = lax.slice_in_dim(x, 0, prod(others[levels:]), axis=levels + 1)
        return jnp.moveaxis(x.reshape(*x.shape[: levels + 1], *others[levels:]), levels, axis)


def _padded(x: Array, axis: int, count: int) -> Array:
    """With zeros behind, so that the axis can be cut into `count` parts."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % count)
    return jnp.pad(x, widths) if widths[axis][1] else x


def _local(
    function: Callable[..., Sequence[Array]],
    axis: int | None,
    given: tuple[Any, Sequence[Form]],
    found: tuple[Any, Sequence[Form]],
    sharing: _Sharing,
) -> Callable[..., Sequence[Array]]:
    """What one device does with what it holds."""

    def on_fibres(axis: int, *arrays: Array) -> Sequence[Array]:
        lent = [
            sharing.columns(x, axis, len(form.levels), like.shape[axis]) if form.is_grid else x
            for x, like, form in zip(arrays, *given, strict=True)
        ]
        held = next(x.shape for x, form in zip(arrays, given[1], strict=True) if form.is_grid)
        return [
            sharing.cells(v, axis, len(form.levels), _own(held, form)) if form.is_grid else v
            for v, form in zip(function(-2, *lent), found[1], strict=True)
        ]

    def local(*arrays: Array) -> Sequence[Array]:
        if axis is None or not sharing.along:
            values = function(sharing.part if axis is None else axis, *arrays)
        else:
            values = on_fibres(axis, *arrays)
        names = sharing.over_fibres
        return tuple(
            v if form.is_grid or not names else lax.psum(v, names)
            for v, form in zip(values, found[1], strict=True)
        )

    def _own(held: tuple[int, ...], form: Form) -> tuple[int, ...]:
        """The shape of a result, whose mapped axes may be more than those of an operand."""
        own = form.ndim - len(form.levels)
        return (*(0,) * len(form.levels), *held[len(held) - own :])

    return local
