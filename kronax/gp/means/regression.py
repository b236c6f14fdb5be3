"""Regression whose coefficients are integrated out, and what a mean says of its coefficients."""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.axes.axis import Axis
from kronax.gp.kernels.points import Points
from kronax.gp.means.coefficients import RegressionMean, Term
from kronax.gp.means.means import ConstantMean, Mean, SumMean, ZeroMean
from kronax.linalg.arrays.checks import is_concrete


class MarginalMean(Mean):
    """Regression whose coefficients are integrated out exactly: generalised least squares.

    With flat priors the log likelihood is the restricted one (REML), for `p` functions `H`
    `−½ ((n−p) log 2π + log|S| + log|Hᵀ S⁻¹ H| + rᵀ S⁻¹ r)`: it compares models of the same mean.
    The posterior carries the estimates and their standard errors, and its variances contain their
    uncertainty. Costs one structured solve per coefficient.

    Args:
        mean: a mean with coefficients, such as `kx.LinearMean` or `kx.CovariateMean`, a product of
            such, `kx.ConstantMean`, or a sum; other means may be added and stay as they are. A
            function of several counts once: two `kx.LinearMean` are a plane.
        variance: of independent normal priors on the coefficients of the functions as each mean
            defines them (the `β_1` of a `kx.LinearMean` belongs to `u`); flat by default.

    Raises:
        TypeError: if no part of the mean has coefficients.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 6)
        >>> gp = kx.GridGP((kx.RBF(0.3),), (x,), noise=0.1, mean=kx.MarginalMean(kx.LinearMean(0)))
        >>> post = gp.condition(2.0 * x)
        >>> post.regression.names
        ('axis 0: level', 'axis 0: slope')
    """

    parts: tuple[Any, ...]
    fixed: Mean
    axis_names: tuple[str, ...] | None = eqx.field(static=True)
    variance: Array | None = parameter(constraints.positive, default=None)

    def __init__(self, mean: Any, variance: Any = None):
        summands = mean.summands() if isinstance(mean, Mean) else ()
        self.parts = tuple(m for m in summands if isinstance(m, RegressionMean | ConstantMean))
        if not self.parts:
            raise TypeError(
                "kx.MarginalMean needs a mean with coefficients, such as kx.LinearMean or "
                f"kx.ConstantMean, or a sum with one; got {mean!r}."
            )
        others = [m for m in summands if not isinstance(m, RegressionMean | ConstantMean)]
        self.fixed = functools.reduce(SumMean, others) if others else ZeroMean()
        self.axis_names = None
        self.variance = variance

    @property
    def names(self) -> tuple[str, ...]:
        """One per coefficient."""
        return tuple(term.name for term in self._terms())

    def _terms(self) -> list[Term]:
        """One per coefficient: a function that several parts have counts once."""
        return [terms[k] for terms, kept in self._kept() for k in kept]

    def _kept(self) -> list[tuple[tuple[Term, ...], list[int]]]:
        """The functions of every part, and which of them no part before it has."""
        found, seen = [], set()
        for part in self.parts:
            level = (Term("constant", ()),)
            is_level = isinstance(part, ConstantMean)
            terms = level if is_level else part.functions_of(self.axis_names)
            new = []
            for k, term in enumerate(terms):
                if term.key not in seen:
                    seen.add(term.key)
                    new.append(k)
            found.append((terms, new))
        return found

    def labels(self, axes: Sequence[Axis]) -> dict[str, tuple]:
        """What a table of the coefficients says: their names, units and notes."""
        terms = self._terms()
        return {
            "names": tuple(term.name for term in terms),
            "units": tuple(term.unit for term in terms),
            "notes": notes_of(self.parts, axes, self.axis_names),
        }

    def design_at(self, *axes: Points) -> Float[Array, "p ..."]:
        """All functions at points of the axes, `(p, n_1, …, n_d)`."""
        grid = tuple(x.size for x in axes)
        pieces = []
        for part, (terms, kept) in zip(self.parts, self._kept(), strict=True):
            if isinstance(part, ConstantMean):
                values = jnp.ones((1, *grid), axes[0].raw.dtype)
            else:
                values = jnp.broadcast_to(part.design_at(*axes), (len(terms), *grid))
            pieces.append(values[np.asarray(kept, int)])
        return jnp.concatenate(pieces)

    def __call__(self, *axes: Array) -> Array:
        """The parts without coefficients: those that have them are zero beforehand."""
        return self.fixed(*axes)

    def at(self, *axes: Points) -> Array:
        """The same."""
        return self.fixed.at(*axes)

    def bound(self, axes: Sequence[Axis], names: tuple[str, ...] | None, dtype: Any) -> Mean:
        """Every part bound; the coefficients are no parameters any more."""
        parts = tuple(
            part if isinstance(part, ConstantMean) else part.bound(axes, names, dtype).bare()
            for part in self.parts
        )
        new = eqx.tree_at(
            lambda m: (m.parts, m.fixed), self, (parts, self.fixed.bound(axes, names, dtype))
        )
        object.__setattr__(new, "axis_names", names)
        return new


def notes_of(
    parts: Sequence[Any], axes: Sequence[Axis], names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """What has to be known to read the coefficients of bound means."""
    parts = [part for part in parts if isinstance(part, RegressionMean)]
    return tuple(dict.fromkeys(note for part in parts for note in part.notes(axes, names)))


def described(mean: Mean, axes: Sequence[Axis], names: tuple[str, ...] | None) -> list[str]:
    """The coefficients of a bound mean that a fit trains, in the units of data and axes."""
    lines: list[str] = []
    for part in mean.summands():
        if not isinstance(part, RegressionMean):
            continue
        notes = notes_of([part], axes, names)
        lines += notes
        if notes and is_concrete(part):
            terms, values = part.functions_of(names), np.asarray(part.weights(), np.float64)
            shown = zip(terms, values, strict=True)
            lines.append("  " + ", ".join(f"{_short(t.name)} {v * t.unit:.4g}" for t, v in shown))
    return lines


def _short(name: str) -> str:
    """The name of a function of one axis without that axis."""
    return name if "×" in name else name.rpartition(": ")[2]
