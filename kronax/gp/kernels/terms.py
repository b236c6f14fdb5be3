"""A sum of kernels with names: what terms of an additive model are where they differ."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.kernels.base import Kernel, as_points
from kronax.gp.kernels.points import Points
from kronax.linalg.state_spaces import algebra
from kronax.linalg.state_spaces.state_space import StateSpace


class TermSum(Kernel):
    """`Σ v_t k_t`, one variance and one kernel for each named term.

    Args:
        terms: the kernels by name, without scales of their own.
        variances: `v_t > 0` by name; `None` where the model has them, and here they are one.
    """

    # Of their own order: JAX sorts dictionaries, and sums depend on the order in the last place.
    names: tuple[str, ...] = eqx.field(static=True)
    terms: dict[str, Kernel]
    variances: dict[str, Array] | None = parameter(constraints.positive, default=None)

    def __init__(self, terms: Mapping[str, Kernel], variances: Mapping[str, Array] | None = None):
        self.names = tuple(terms)
        self.terms = dict(terms)
        self.variances = None if variances is None else dict(variances)

    @property
    def stationary(self) -> bool:
        """If all are."""
        return all(kernel.stationary for kernel in self.terms.values())

    @property
    def isotropic(self) -> bool:
        """If all are."""
        return all(kernel.isotropic for kernel in self.terms.values())

    @property
    def uncorrelated(self) -> bool:
        """If all are."""
        return all(kernel.uncorrelated for kernel in self.terms.values())

    @property
    def has_slope(self) -> bool:
        """If all do."""
        return all(kernel.has_slope for kernel in self.terms.values())

    @property
    def takes_labels(self) -> bool:
        """If all do."""
        return all(kernel.takes_labels for kernel in self.terms.values())

    def all_terms(self) -> Iterator[Kernel]:
        """Those of all."""
        for name in self.names:
            yield from self.terms[name].all_terms()

    def state_space(self, gaps: Any) -> StateSpace:
        """All processes, side by side."""
        spaces = [self.terms[name].state_space(gaps) for name in self.names]
        if self.variances is not None:
            pairs = zip(spaces, self.names, strict=True)
            spaces = [space.scaled(self.variances[name]) for space, name in pairs]
        return algebra.added(*spaces)

    def evaluate(self, x: Array, z: Array) -> Array:
        """All formulas."""
        return self._total(lambda kernel: kernel.evaluate(x, z))

    def __call__(self, x1: Any, x2: Any) -> Array:
        """All matrices."""
        x1, x2 = (as_points(x, self) for x in (x1, x2))
        return self._total(lambda kernel: kernel(x1, x2))

    def diagonal(self, x: Any) -> Array:
        """All diagonals."""
        x = as_points(x, self)
        return self._total(lambda kernel: kernel.diagonal(x))

    def matrix_at(self, x1: Points, x2: Points) -> Array:
        """All matrices; each kernel sees the points in its own form."""
        return self._total(lambda kernel: kernel.matrix_at(x1, x2))

    def variances_at(self, x: Points) -> Array:
        """All diagonals."""
        return self._total(lambda kernel: kernel.variances_at(x))

    def _total(self, function: Callable[[Kernel], Array]) -> Array:
        first, *rest = (self._scaled(name, function(self.terms[name])) for name in self.names)
        return sum(rest, first)

    def _scaled(self, name: str, values: Array) -> Array:
        return values if self.variances is None else self.variances[name] * values
