"""The normal distribution over a grid of which some cells are missing."""

from math import log, pi, prod
from typing import Any, ClassVar, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.util import validate_sample

from kronax.distributions.grids import counted_gaps
from kronax.distributions.normal import GridNormal
from kronax.linalg.arrays import checks
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.linalg.functions.logdet import logdet, watched_logpdf
from kronax.linalg.gaps.masked import Masked
from kronax.linalg.operators.gap_geometry import Mask


class MaskedKroneckerNormal(GridNormal):
    """`KroneckerNormal` of which only some cells of an event are observed, as a NumPyro likelihood.

    `log_prob` is the exact log density of the observed cells. What its value holds at the gaps is
    ignored, NaN and infinity included, and has gradient zero. Draws, `mean`, `variance` and
    `covariance` are those of the whole grid: a draw holds at the gaps what belongs to its other
    cells, so that `Predictive` gives full fields.

    The cost is that of `kx.Masked(covariance, observed)`, whose `plan` tells it; with Cholesky or
    precision factors it takes one more product or inverse per axis. NaN at a cell that the mask
    calls observed raises where the value is concrete, and gives NaN where it is traced.

    Args:
        loc: as in `KroneckerNormal`.
        factors: covariance factors, arrays or operators.
        noise: as in `KroneckerNormal`.
        observed: a boolean array of the grid's shape (with `flatten`, or of the event's), true
            where a cell is observed. It is static, and one for a whole batch.
        scale_trils: Cholesky factors instead of `factors`.
        precision_factors: factors of the inverse instead of `factors`.
        flatten: events are `(N,)` instead of grid-shaped.

    Raises:
        ValueError: if the mask has another shape or no observed cell, and as `KroneckerNormal`.
        TypeError: if the mask is traced or not boolean, and as `KroneckerNormal`.

    Examples:
        >>> import jax, jax.numpy as jnp, numpy as np, kronax as kx
        >>> y = np.array([[0.3, np.nan], [0.1, 0.2], [np.nan, -0.4]])
        >>> factors = jnp.eye(3), jnp.eye(2)
        >>> d = kx.MaskedKroneckerNormal(0.0, factors, 1.0, observed=~np.isnan(y))
        >>> round(d.log_prob(jnp.asarray(y)).item(), 4)  # of four cells
        -5.137
        >>> d.sample(jax.random.key(0), (5,)).shape
        (5, 3, 2)
    """

    pytree_aux_fields: ClassVar[tuple[str, ...]] = ("_mask",)

    def __init__(
        self,
        loc: Any = 0.0,
        factors: Any = None,
        noise: Any = None,
        *,
        observed: Bool[Any, "..."] | Mask,
        scale_trils: Any = None,
        precision_factors: Any = None,
        flatten: bool = False,
        validate_args: bool | None = None,
    ):
        self._set_up(
            loc,
            factors,
            noise,
            scale_trils,
            precision_factors,
            flatten=flatten,
            validate_args=validate_args,
        )
        if flatten and checks.is_concrete(observed) and np.shape(observed) == self.event_shape:
            given: Any = observed
            observed = np.ma.filled(given, False).reshape(self.grid_shape)
        self._mask = Mask.of(observed, self.grid_shape)

    @property
    def observed(self) -> np.ndarray:
        """The mask on the grid, true where a cell is observed."""
        return self._mask.array

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Arrays of the event's shape that are real at the observed cells."""
        base = _RealWhereObserved(Mask(self.event_shape, self._mask.bits))
        return constraints.independent(base, len(self.event_shape))

    @classmethod
    def infer_shapes(
        cls, *args: Any, observed: Any = None, **kwargs: Any
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As `KroneckerNormal.infer_shapes`; the shape of the mask adds nothing."""
        return super().infer_shapes(*args, **kwargs)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density of the observed cells, in nats."""
        residual = self.residual(value)
        return self._explained(watched_logpdf(residual, self.part()), residual)

    def entropy(self) -> Array:
        """Differential entropy of the observed cells in nats: one log-determinant."""
        size = int(self.observed.sum())
        value = 0.5 * logdet(self.part()) + size * (1 + log(2 * pi)) / 2
        return jnp.broadcast_to(value, self._lead())

    def part(self) -> Masked:
        """The covariance of the observed cells."""
        return Masked(self.covariance, self._mask)

    def residual(self, value: Any) -> Array:
        """Zero at the gaps, by a choice: a product with zero would keep their NaN."""
        if isinstance(value, np.ma.MaskedArray):
            value = without_mask(value)
            self._refuse_missing(np.isnan(value).reshape(-1, prod(self.event_shape)))
        residual = super().residual(value)
        cells = jnp.broadcast_to(self.observed, residual.shape)
        return jnp.where(cells, residual, jnp.zeros((), residual.dtype))

    def _refuse_missing(self, missing: np.ndarray) -> None:
        count, total = counted_gaps(missing[:, self.observed.ravel()])
        if count:
            raise ValueError(
                f"The value must be a number wherever `observed` is true; got NaN in {count} of "
                f"these {total} cells. Make the mask from the same data: `observed=~np.isnan(y)`."
            )


class _RealWhereObserved(constraints.Constraint):
    """Real numbers at the observed cells, and anything, NaN included, at the gaps."""

    def __init__(self, mask: Mask):
        self.mask = mask

    def __call__(self, x: Any) -> Any:
        """Cell by cell."""
        x = without_mask(x)
        return constraints.real(x) | jnp.broadcast_to(~self.mask.array, jnp.shape(x))

    def feasible_like(self, prototype: Any) -> Any:
        """Zeros."""
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        """No leaves: the mask is static."""
        return (), ((), {"mask": self.mask})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether the other has the same mask."""
        return isinstance(other, _RealWhereObserved) and self.mask == other.mask


@biject_to.register(_RealWhereObserved)
def refuse_latent_gaps(constraint: _RealWhereObserved) -> NoReturn:
    """A latent site has no density at the gaps: a sampler would drift there without bound.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "A MaskedKroneckerNormal must be observed (`obs=`), since it has no density at its "
        f"{int((~constraint.mask.array).sum())} gaps; got a latent site. Use kx.KroneckerNormal "
        "there: a latent field has no missing cells."
    )
