"""Points of an axis, in each of the forms in which a kernel may see them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from kronax.linalg.arrays.host import on_device


class Points(eqx.Module):
    """The same points three times: a kernel takes the form that suits it.

    A stationary kernel does not see where zero is. It gets coordinates less an origin, which keep
    their differences in float32 however large they are; one that does see it gets them as they
    are. In a sum of both each term takes its own.

    Args:
        raw: coordinates `(n,)` or `(n, p)` as the user means them.
        centred: the same less `origin`, taken off before rounding.
        places: where they lie on a declared circle `(n, 2)` or sphere `(n, 3)`; isotropic kernels
            see these.
        origin: what was taken off, per dimension; `None` where that is traced.
        cells: of new points, which old one each is, -1 for none; `None` if none is or nobody knows.
        is_apart: whether it is known of new points that none is an old one.
    """

    raw: Array
    centred: Array
    places: Array | None
    origin: int | float | tuple[int | float, ...] | None = eqx.field(static=True)
    cells: Int[Array, " n"] | None = None
    is_apart: bool = eqx.field(static=True, default=False)

    @property
    def size(self) -> int:
        """Number of points."""
        return self.raw.shape[0]

    def __getitem__(self, index: Any) -> "Points":
        return jax.tree.map(lambda x: _at(x, index), self)

    def columns(self, dims: int | tuple[int, ...]) -> "Points":
        """Some of the dimensions; a single number gives `(n,)` coordinates."""
        index: Any = dims if isinstance(dims, int) else np.asarray(dims)
        origin: Any = self.origin
        if isinstance(origin, tuple):
            origin = origin[dims] if isinstance(dims, int) else tuple(origin[k] for k in dims)
        return Points(self.raw[..., index], self.centred[..., index], None, origin)

    def joined(self, other: "Points") -> "Points":
        """These points and then the others; both have one origin."""
        pair = self.alone, other.alone
        return jax.tree.map(lambda x, z: jnp.concatenate([x, z]), *pair)

    @property
    def alone(self) -> "Points":
        """The points without knowledge of others."""
        return dataclasses.replace(self, cells=None, is_apart=False)

    def found_in(self, known: "Points") -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        """Which of the `n` known points each one is, and whether it is one.

        On a line by sorting; `m n` comparisons of places in several dimensions.
        """
        if self.cells is not None:
            return self.cells, self.cells >= 0
        if self.is_apart:
            return jnp.zeros(self.size, np.int32), jnp.zeros(self.size, bool)
        if self.centred.ndim == 1:
            # Behind a barrier: XLA would sort constants while it compiles, at a crawl.
            old = lax.optimization_barrier(known.centred)
            order = jnp.argsort(old, stable=True)
            place = jnp.searchsorted(old[order], self.centred)
            first = order[jnp.minimum(place, known.size - 1)]
            return first, known.centred[first] == self.centred
        x, z = (p.centred.reshape(p.size, -1) for p in (self, known))
        same = jnp.all(x[:, None] == z[None], axis=-1)
        return jnp.argmax(same, axis=1), jnp.any(same, axis=1)


def _at(x: Array, index: Any) -> Array:
    """Some points, on the host where they have values: nothing is compiled for them."""
    if any(isinstance(v, jax.core.Tracer) for v in (x, index)):
        return x[index]
    return on_device(np.asarray(x)[np.asarray(index) if isinstance(index, Array) else index])


@jax.tree_util.register_pytree_node_class
class NewPoints(tuple[Points | None, ...]):
    """New points of every axis, `None` for one that stays, and what a mean has to know of them.

    Where they make a grid, covariates broadcast to it, with one axis each; those of scattered
    points are `(m,)`.
    """

    covariates: dict[str, Array]

    def __new__(
        cls, points: Iterable[Points | None], covariates: Mapping[str, Array]
    ) -> "NewPoints":
        """Points axis by axis, and covariates by name."""
        new = super().__new__(cls, points)
        new.covariates = dict(covariates)
        return new

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """The points, then the covariates."""
        return (*self, self.covariates), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> "NewPoints":
        """The reverse."""
        new = super().__new__(cls, children[:-1])
        new.covariates = children[-1]
        return new
