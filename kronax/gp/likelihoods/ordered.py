"""A likelihood of ordered categories: grades, stages, answers from never to always."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints

from kronax.domains import parameter
from kronax.gp.likelihoods.base import AbstractLikelihood, Support
from kronax.linalg.arrays.checks import array_of_reals
from kronax.linalg.arrays.precision import where


class OrderedLogistic(AbstractLikelihood):
    """Categories 0, 1, …, K − 1 in an order: `P(y ≤ k) = logit⁻¹(c_k − f)` for cutpoints `c`.

    A large function makes high categories likely. Cutpoints train as the lowest one and the gaps
    between them. They move together as the mean of the process does: of `mean` and
    `likelihood.lowest` freeze one.

    Args:
        cutpoints: `(K − 1,)`, rising; as those of `numpyro.distributions.OrderedLogistic`.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: if they do not rise.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> grades = kx.OrderedLogistic([-1.0, 1.0])
        >>> [round(p, 3) for p in grades.category_probabilities(jnp.zeros(())).tolist()]
        [0.269, 0.462, 0.269]
    """

    is_log_concave: ClassVar[bool] = True
    filler: ClassVar[float] = 0.0
    response_name: ClassVar[str] = "mean category"

    lowest: Array = parameter(constraints.real)
    gaps: Array = parameter(constraints.positive)

    def __init__(self, cutpoints: Any):
        values = array_of_reals(cutpoints, "cutpoints")
        is_known = not isinstance(values, jax.core.Tracer)
        if values.ndim != 1 or not values.size or (is_known and not (np.diff(values) > 0).all()):
            raise ValueError(
                "`cutpoints` must be one rising number for every border between categories; got "
                f"{cutpoints}."
            )
        self.lowest, self.gaps = values[0], jnp.diff(values)

    @property
    def cutpoints(self) -> Array:
        """Where the function must be for as much on either side, `(K − 1,)`."""
        return self.lowest + jnp.concatenate([jnp.zeros_like(self.gaps[:1]), jnp.cumsum(self.gaps)])

    @property
    def num_categories(self) -> int:
        """`K`."""
        return self.gaps.size + 2

    @property
    def support(self) -> Support:
        """From the lowest category to the highest."""
        top = self.num_categories - 1
        return Support(0.0, float(top), True, f"categories: 0, 1, …, {top}")

    def start(self, y: Array) -> Array:
        """The middle of the category, or one beyond the last cutpoint."""
        lower, upper = self._borders(y, y)
        middle = (lower + upper) / 2
        return jnp.where(
            y <= 0, upper - 1, jnp.where(y >= self.num_categories - 1, lower + 1, middle)
        )

    def log_density(self, y: Array, f: Array) -> Array:
        """`log(logit⁻¹(c_y − f) − logit⁻¹(c_{y−1} − f))`, as a product that nothing cancels in."""
        lower, upper = self._borders(y, f)
        is_first, is_last = y <= 0, y >= self.num_categories - 1
        below = jnp.where(is_last, 0, jax.nn.log_sigmoid(upper - f))
        above = jnp.where(is_first, 0, jax.nn.log_sigmoid(f - lower))
        gap = jnp.where(is_first | is_last, 1, upper - lower)
        return below + above + jnp.where(is_first | is_last, 0, jnp.log(-jnp.expm1(-gap)))

    def category_probabilities(self, f: Array) -> Array:
        """Of every category, `(K, …)`."""
        categories = jnp.arange(self.num_categories, dtype=f.dtype)
        return jax.vmap(lambda k: jnp.exp(self.log_density(jnp.full_like(f, k), f)))(categories)

    def response(self, f: Array) -> Array:
        """The mean category."""
        return self.mean(f)

    def mean(self, f: Array) -> Array:
        """How many cutpoints lie below, on average."""
        return jnp.sum(jax.nn.sigmoid(self._above(f)), axis=0)

    def variance(self, f: Array) -> Array:
        """About the mean category."""
        mean, categories = self.mean(f), jnp.arange(self.num_categories, dtype=f.dtype)
        squares = jax.vmap(lambda k: jnp.square(k - mean))(categories)
        return jnp.sum(squares * self.category_probabilities(f), axis=0)

    def sample(self, key: PRNGKeyArray, f: Array) -> Array:
        """How many cutpoints lie below the function and logistic noise."""
        noise = jax.random.logistic(key, f.shape, f.dtype)
        return jnp.sum(self._above(f + noise) > 0, axis=0).astype(f.dtype)

    def cdf(self, y: Array, f: Array) -> Array:
        """That of the next cutpoint."""
        y = jnp.floor(y)
        _, upper = self._borders(y, f)
        value = where(y >= self.num_categories - 1, 1.0, jax.nn.sigmoid(upper - f))
        return where(y < 0, 0.0, value)

    def _borders(self, y: Array, f: Array) -> tuple[Array, Array]:
        """The cutpoints on both sides of a category; beyond the ends those at the ends."""
        cutpoints, category = self.cutpoints.astype(f.dtype), y.astype(int)
        last = self.num_categories - 2
        ends = (jnp.clip(category - 1, 0, last), jnp.clip(category, 0, last))
        lower, upper = (jnp.broadcast_to(cutpoints[end], f.shape) for end in ends)
        return lower, upper

    def _above(self, f: Array) -> Array:
        """The function less every cutpoint, `(K − 1, …)`."""
        return jax.vmap(lambda c: f - c)(self.cutpoints.astype(f.dtype))
