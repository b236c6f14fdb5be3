"""What the distributions over a grid share: location, form of the matrix, layout of events."""

import copy
import warnings
from contextlib import nullcontext
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.distributions.forms import (
    AbstractForm,
    CholeskyForm,
    CovarianceForm,
    PrecisionForm,
    add_noise,
    form_of,
)
from kronax.linalg.arrays import checks
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.precision import where
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.operators.diagnose import NOT_FINITE
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise

MATRICES = constraints.dependent(is_discrete=False, event_dim=2)
NUMBERS = constraints.dependent(is_discrete=False, event_dim=0)

MISSING_CELLS = (
    "Missing cells inside an event need kx.MaskedKroneckerNormal(..., observed=mask), the density "
    "of the cells where the mask is true."
)


class GridDistribution(dist.Distribution):
    """A location and a matrix over a grid. Abstract: the densities are in the final classes."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "factors": MATRICES,
        "noise": NUMBERS,
        "scale_trils": MATRICES,
        "precision_factors": MATRICES,
    }
    reparametrized_params: ClassVar[list[str]] = list(arg_constraints)
    pytree_data_fields: ClassVar[tuple[str, ...]] = ("loc", "form")
    pytree_aux_fields: ClassVar[tuple[str, ...]] = ("flatten", "_ndims", "_own_batch")

    def _set_up(
        self,
        loc: Any,
        factors: Any,
        noise: Any,
        scale_trils: Any,
        precision_factors: Any,
        *,
        flatten: bool,
        validate_args: bool | None,
        what: str = "loc",
        extra_batch: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        """Make location and form, check them, and hand the shapes to NumPyro.

        Args:
            loc: and the next four: as the constructors take them.
            factors: see there.
            noise: see there.
            scale_trils: see there.
            precision_factors: see there.
            flatten: see there.
            validate_args: whether concrete values are checked; NumPyro's default.
            what: the parameters beside the factors, for errors.
            extra_batch: the shapes of those other than loc.
        """
        checked = self._validate_args if validate_args is None else validate_args
        name = type(self).__name__
        matrices = (factors, noise, scale_trils, precision_factors)
        with eagerly(matrices):
            form = form_of(name, factors, scale_trils, precision_factors, checked=checked)
            grid = form.grid_shape
            if noise is not None:
                is_batched = any(extra_batch) or np.ndim(loc) > len(grid)
                form = add_noise(form, noise, is_batched=is_batched)
            if checked:
                form.check_values()
        with eagerly(loc):
            loc = _located(loc, form, finite=checked)
            batch_shape = checks.check_broadcast(
                [loc.shape[: loc.ndim - len(grid)], form.batch_shape, *extra_batch],
                f"{what} and factors",
            )
            self.loc = jnp.broadcast_to(loc, (*batch_shape, *grid))
        self.form, self.flatten = form, flatten
        self._ndims, self._own_batch = _ndims_of(self), batch_shape
        event_shape = (prod(grid),) if flatten else grid
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def factors(self) -> tuple[AbstractFactor, ...] | None:
        """The covariance factors; `None` if another form was given."""
        return self.form.operator.factors if isinstance(self.form, CovarianceForm) else None

    @property
    def noise(self) -> Array | Kronecker | None:
        """Variances of the noise, a Kronecker product, or `None`."""
        operator = self.form.operator
        return operator.noise if isinstance(operator, KroneckerPlusNoise) else None

    @property
    def scale_trils(self) -> tuple[AbstractFactor, ...] | None:
        """The Cholesky factors, if these were given (without noise)."""
        return self.form.operator.factors if isinstance(self.form, CholeskyForm) else None

    @property
    def precision_factors(self) -> tuple[AbstractFactor, ...] | None:
        """The precision factors, if these were given (without noise)."""
        return self.form.operator.factors if isinstance(self.form, PrecisionForm) else None

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """`(n_1, …, n_d)`."""
        return self.form.grid_shape

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Real arrays of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @classmethod
    def infer_shapes(
        cls,
        loc: Any = (),
        factors: Any = None,
        noise: Any = None,
        scale_trils: Any = None,
        precision_factors: Any = None,
        flatten: bool = False,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape from the shapes of the arguments.

        Args:
            loc: shape of the location.
            factors: one shape `(*batch, n_i, n_i)` per axis.
            noise: shape of the variance, or one shape per axis for a Kronecker product.
            scale_trils: as `factors`.
            precision_factors: as `factors`.
            flatten: whether events are flat.

        Raises:
            NotImplementedError: without a shape for every axis.
        """
        shapes = next(s for s in (factors, scale_trils, precision_factors, ()) if s is not None)
        if not shapes or not all(isinstance(s, tuple | list) and len(s) >= 2 for s in shapes):
            raise NotImplementedError(
                f"{cls.__name__}.infer_shapes needs one shape (*batch, n, n) per axis; got "
                f"{shapes}. Pass a tuple of shapes."
            )
        grid = tuple(int(s[-1]) for s in shapes)
        batches = [tuple(s[:-2]) for s in shapes]
        if noise:
            per_axis = isinstance(noise[0], tuple | list)
            batches += [tuple(s[:-2]) for s in noise] if per_axis else [tuple(noise)]
        batches.append(_batch_of_loc(tuple(loc), grid))
        return jnp.broadcast_shapes(*batches), (prod(grid),) if flatten else grid

    def expand(self, batch_shape: Any) -> Any:
        """The same distribution with its location broadcast to a larger batch.

        Raises:
            ValueError: if the batch does not broadcast to that shape.
        """
        batch_shape = tuple(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        try:
            fits = jnp.broadcast_shapes(self.batch_shape, batch_shape) == batch_shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"Cannot broadcast distribution of shape {self.batch_shape} to shape "
                f"{batch_shape}: every axis must keep its size or have size one before."
            )
        return self._with_batch(batch_shape)

    def mask(self, mask: Any) -> Any:
        """NumPyro's mask over batch entries; one over the cells of an event raises.

        Raises:
            ValueError: if the mask has the shape of the event: NumPyro would then count the whole
                density once per cell.
        """
        shape = np.shape(mask)
        over_cells = any(shape[-len(e) :] == e for e in (self.event_shape, self.grid_shape))
        if over_cells and not _broadcasts(shape, self.batch_shape):
            raise ValueError(
                f"A mask has the shape of the batch {self.batch_shape}; got {shape}, which ends as "
                f"the event {self.event_shape} does. {MISSING_CELLS}"
            )
        return super().mask(mask)

    def _with_batch(self, batch_shape: tuple[int, ...]) -> Any:
        new = copy.copy(self)
        new.loc = jnp.broadcast_to(self.loc, (*batch_shape, *self.grid_shape))
        new._batch_shape = batch_shape
        new._ndims = _ndims_of(new)
        return new

    def _lead(self, sample_shape: tuple[int, ...] | int = ()) -> tuple[int, ...]:
        """The batch, with the axes that a `vmap` over the constructor has put in front."""
        lead = self.loc.shape[: self.loc.ndim - len(self.grid_shape)]
        batch_shape = jnp.broadcast_shapes(self.batch_shape, lead, self.form.batch_shape)
        return (*checks.shape_of(sample_shape), *batch_shape)

    def residual(self, value: Any) -> Array:
        """A checked value on the grid, less the location."""
        dtype, event = self.form.dtype, self.event_shape
        checks.check_precision(value, "The value", dtype)
        array = checks.array_of_reals(value, "The value", finite=False).astype(dtype)
        if array.shape[max(array.ndim - len(event), 0) :] != event:
            raise ValueError(self._layout_message(array.shape))
        grid = (*array.shape[: array.ndim - len(event)], *self.grid_shape)
        return jnp.subtract(*same_rank(array.reshape(grid), self.loc))

    def _explained(self, log_density: Array, residual: Array) -> Array:
        """The log density; raises if it is not finite for another reason than the value's own."""
        kept = where(jnp.isfinite(residual).all(), log_density, 0.0)
        self.form.explain(kept)
        return raising_if(lambda: ~jnp.isfinite(kept), log_density, NOT_FINITE)

    def _layout_message(self, shape: tuple[int, ...]) -> str:
        event = self.event_shape
        start = (
            f"The value must have shape (*batch, {', '.join(map(str, event))}); got shape {shape}."
        )
        if len(event) > 1 and sorted(shape[-len(event) :]) == sorted(event):
            return f"{start} The axes are in another order than the factors: transpose the value."
        return (
            f"{start} With flatten={not self.flatten} events are "
            f"{'grids' if self.flatten else 'flat'}."
        )

    def _validate_sample(self, value: Any) -> Any:
        """NumPyro's check, an error for events with gaps, and a warning where one is repeated.

        Events that are NaN throughout pass on: `handlers.mask` may leave them out.
        """
        value = checks.plain(value, "The value")
        self._warn_of_repetition(np.shape(value))
        if checks.is_concrete(value):
            missing = np.isnan(np.asarray(value)).reshape(-1, prod(self.event_shape))
            self._refuse_missing(missing)
        return super()._validate_sample(value)

    def _refuse_missing(self, missing: np.ndarray) -> None:
        """Raise if some, and not all, cells of an event are missing; one row for each event."""
        count, total = counted_gaps(missing)
        if count:
            raise ValueError(
                f"The value must have no missing cells; got NaN in {count} of {total} cells. "
                f"{MISSING_CELLS}"
            )

    def _warn_of_repetition(self, shape: tuple[int, ...]) -> None:
        """Warn where one event counts many times: it lacks an axis that `expand` has added.

        A plate expands what is sampled in it, and NumPyro broadcasts an observed value that has no
        axis for the plate: the data would count once per entry, in silence.
        """
        batch = self.batch_shape
        if not batch:
            return
        lead = shape[: len(shape) - len(self.event_shape)]
        own, given = (((1,) * len(batch) + s)[-len(batch) :] for s in (self._own_batch, lead))
        copies = prod(n for n, a, b in zip(batch, own, given, strict=True) if a == b == 1)
        if copies > 1:
            warnings.warn(
                f"The value of shape {shape} counts {copies} times: it has no axis for the batch "
                f"{batch} that a numpyro.plate or `expand` made. A grid is one event: leave out a "
                "plate over its axes; or give one event per entry of the plate, in shape "
                f"{batch + self.event_shape}.",
                stacklevel=4,  # where log_prob is called
            )

    def _shaped(self, grid: Array) -> Array:
        if not self.flatten:
            return grid
        num_axes = len(self.grid_shape)
        return grid.reshape(*grid.shape[: grid.ndim - num_axes], *self.event_shape)


def _ndims_of(d: GridDistribution) -> tuple[int, ...]:
    """The number of axes of every array: what a `vmap` adds is known by the difference."""
    return tuple(
        jnp.ndim(leaf) for leaf in jax.tree.leaves((d.loc, d.form.without_decomposition()))
    )


def counted_gaps(missing: np.ndarray) -> tuple[int, int]:
    """The missing cells of events that are missing in part, and all cells of these events."""
    partial = missing.any(-1) & ~missing.all(-1)
    return int(missing[partial].sum()), int(partial.sum()) * missing.shape[-1]


def eagerly(values: Any) -> Any:
    """Under jit, constants are looked at now: `jnp` would trace them and hide what is wrong."""
    return jax.ensure_compile_time_eval() if checks.is_concrete(values) else nullcontext()


def _located(loc: Any, form: AbstractForm, *, finite: bool) -> Array:
    """`loc` with at least the axes of the grid."""
    grid = form.grid_shape
    checks.check_precision(loc, "loc", form.dtype)
    if np.ndim(loc) == 0:
        if finite and checks.is_concrete(loc):
            checks.check_finite(loc, "loc")
        return jnp.broadcast_to(jnp.asarray(loc).astype(form.dtype), grid)
    array = checks.array_of_reals(loc, "loc", finite=finite).astype(form.dtype)
    trailing = array.shape[-len(grid) :]
    if array.ndim >= len(grid) and all(m in (1, n) for m, n in zip(trailing, grid, strict=True)):
        return jnp.broadcast_to(array, (*array.shape[: array.ndim - len(grid)], *grid))
    return checks.grid_of(array, grid, "loc", form.dtype, finite=finite)[0]


def _batch_of_loc(shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    """The batch axes of a location of that shape, read as `_located` does."""
    axes = len(grid)
    trailing = shape[-axes:]
    if len(shape) >= axes and all(m in (1, n) for m, n in zip(trailing, grid, strict=True)):
        return shape[:-axes]
    return shape[:-1]


def _broadcasts(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, batch) == batch
    except ValueError:
        return False
