"""Covariances between categories: coregionalisation."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.kernels.base import Kernel, as_points
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.precision import where


class Categorical(Kernel):
    """`w_i · w_j + n κ_i δ_ij`; low rank plus diagonal: what categories share, and their own.

    On one axis, with any kernels on the others, it is the intrinsic model of coregionalisation for
    several outputs: tasks, sensors, firms. In matrices `W Wᵀ + n diag(κ)`. The `κ` are positive
    and sum to one: the mean of what categories have of their own is then one, and a number in
    front sets the scale. Points are labels, or codes 0, 1, …, n − 1. (`W` is identified up to a
    rotation of its columns.)

    A given `W Wᵀ + diag(d)` is `d.mean() * Categorical(W / sqrt(d.mean()), d / d.sum())`, and
    `W Wᵀ` alone is `Categorical(W)`.

    Args:
        weights: `W`, `(n, r)`: one row per category, of `r ≤ n` shared processes.
        shares: `κ`, `(n,)`, positive, of sum one: how they divide what is not shared. Without
            them, or with zeros alone, categories have nothing of their own, and `W Wᵀ` is singular
            unless `r = n`.
        rank: for a start of a fit, with the number of categories in place of the weights:
            `Categorical(3, rank=1)` is `Categorical.with_rank(3, 1)`.

    Raises:
        ValueError: if the shapes do not match, or the shares are neither of sum one nor all zero.
        TypeError: if a rank comes with shares.

    Examples:
        >>> import kronax as kx
        >>> kernel = kx.Categorical(weights=[[1.0], [0.5]], shares=[0.25, 0.75])
        >>> kernel([0, 1], [0, 1]).tolist()
        [[1.5, 0.5], [0.5, 1.75]]
        >>> gp = kx.GridGP(
        ...     kernels={"task": kx.Categorical.with_rank(3, rank=2), "time": kx.RBF(1.0)},
        ...     axes={"task": ["ash", "elm", "oak"], "time": [0.0, 1.0, 2.0, 3.0]},
        ...     noise=0.1,
        ... )
        >>> gp.kernels[0].covariance.shape
        (3, 3)
    """

    not_markov: ClassVar[str] = "categories have no order"
    weights: Float[Array, "n r"] = parameter(constraints.real)
    shares: Float[Array, " n"] | None = parameter(constraints.simplex, default=None)

    def __init__(self, weights: Any, shares: Any = None, *, rank: int | None = None):
        if rank is not None:
            if shares is not None:
                raise TypeError("A rank makes a start of a fit, which has shares of its own.")
            weights, shares = start(weights, rank)
        nothing = shares is not None and is_concrete(shares) and not np.any(shares)
        self.weights, self.shares = weights, None if nothing else shares

    def __check_init__(self) -> None:
        """Refuse shapes that do not match."""
        shape = jnp.shape(self.weights)
        own = shape[:1] if self.shares is None else jnp.shape(self.shares)
        if len(shape) != 2 or not 1 <= shape[1] <= shape[0] or own != shape[:1]:
            raise ValueError(
                "A categorical kernel must have weights (n, r) with 1 ≤ r ≤ n, and shares (n,); "
                f"got shapes {shape} and {own}."
            )

    @classmethod
    def with_rank(cls, num_categories: int, rank: int = 1) -> "Categorical":
        """A start for a fit: categories that share half of their variance, in `rank` ways.

        Columns of cosines: one that all share, then contrasts. (Weights of zero would be a saddle
        of the likelihood, equal columns as well.)
        """
        return cls(*start(num_categories, rank))

    @property
    def num_categories(self) -> int:
        """Number of categories."""
        return self.weights.shape[-2]

    @property
    def covariance(self) -> Float[Array, "n n"]:
        """`W Wᵀ + n diag(κ)`, or `W Wᵀ`."""
        shared = jnp.sum(self.weights[:, None] * self.weights[None], axis=-1)
        if self.shares is None:
            return shared
        return shared + jnp.diag(self.num_categories * self.shares)

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse what is no code of a category."""
        wrong = ~np.isin(x, np.arange(self.num_categories))
        if x.ndim != 1 or wrong.any():
            got = f"shape {x.shape}" if x.ndim != 1 else f"{x[wrong][0]}"
            raise ValueError(
                f"The coordinates of {name} must be labels, or codes 0 to "
                f"{self.num_categories - 1}, for a kernel of {self.num_categories} categories; got "
                f"{got}."
            )

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula; NaN where there is no such category."""
        return self._rows(self._rows(self.covariance, x), z)

    def __call__(self, x1: Any, x2: Any) -> Array:
        """Rows and columns of the covariance."""
        x1, x2 = (as_points(x, self) for x in (x1, x2))
        return self._rows(self._rows(self.covariance, x1).T, x2).T

    def _rows(self, values: Array, x: Array) -> Array:
        """`values[x]`, NaN where `x` is no code: JAX would take the nearest."""
        code = jnp.round(x)
        known = (x == code) & (code >= 0) & (code < self.num_categories)
        rows = values[jnp.where(known, code, 0).astype(int)]
        return where(jnp.reshape(known, known.shape + (1,) * (values.ndim - 1)), rows, jnp.nan)


def start(num_categories: Any, rank: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and shares of `Categorical.with_rank`."""
    for name, number in (("num_categories", num_categories), ("rank", rank)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name} must be a whole number, at least 1; got {number!r}.")
    place = (np.arange(num_categories)[:, None] + 0.5) / num_categories
    waves = np.cos(np.pi * np.arange(rank) * place)
    weights = waves / np.sqrt(np.square(waves).sum(axis=1, keepdims=True))
    return weights, np.full(num_categories, 1 / num_categories)
