"""The kernels of a process, in the order of its axes and by their names."""

from collections.abc import Iterable
from typing import Any, SupportsIndex, overload

import jax

from kronax.gp.kernels.base import Kernel
from kronax.paths import nearest


class Kernels(tuple[Kernel, ...]):
    """One kernel per axis: `gp.kernels[0]`, or `gp.kernels["time"]` where axes have names."""

    names: tuple[str, ...] | None

    def __new__(cls, items: Iterable[Any] = (), names: tuple[str, ...] | None = None) -> "Kernels":
        """From the kernels and the names of the axes."""
        new = super().__new__(cls, items)
        new.names = names
        return new

    @property
    def items(self) -> tuple[Kernel, ...]:
        """The kernels alone."""
        return tuple(self)

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Kernel: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Kernel, ...]: ...
    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if self.names is None or key not in self.names:
            raise KeyError(
                f"There is no axis {key!r} with a kernel.{nearest(key, self.names or ())}"
            )
        return super().__getitem__(self.names.index(key))


def _children(kernels: Kernels) -> tuple[list[tuple[Any, Any]], tuple[str, ...] | None]:
    keys = map(jax.tree_util.SequenceKey, range(len(kernels)))
    return list(zip(keys, kernels, strict=True)), kernels.names


jax.tree_util.register_pytree_with_keys(
    Kernels,
    _children,
    lambda names, items: Kernels(items, names),
    lambda kernels: (kernels.items, kernels.names),
)
