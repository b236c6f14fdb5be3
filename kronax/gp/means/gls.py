"""Generalised least squares: a process with a regression whose coefficients are integrated out.

With `y = H β + f + ε`, `S = K + N`, a prior `β ~ N(0, v I)` and `A = Hᵀ S⁻¹ H + I/v`:
`β | y ~ N(A⁻¹ Hᵀ S⁻¹ y, A⁻¹)`, and `log p(y)` is that of the residual `y − H β̂` under `S`, less
`½ |β̂|²/v + ½ logdet A + ½ p log v`. A flat prior has `A = Hᵀ S⁻¹ H`, and less
`½ logdet A − ½ p log 2π` is the restricted likelihood.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.display import aligned
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import matmul, same_rank
from kronax.linalg.functions.choice import DataCovariance
from kronax.linalg.functions.logdet import normal_logpdf_grid
from kronax.linalg.functions.solve import solve_grid


class Regression(eqx.Module):
    """The coefficients of a `kx.MarginalMean` given data: `post.regression`.

    Attributes:
        names: one per coefficient.
        estimates: their posterior means, `(*batch, p)`, of the functions as the mean holds them.
        solved: `S⁻¹ H` on the grid, `(p, n_1, …, n_d)`.
        root: the lower Cholesky factor of their precision `A`, `(p, p)`.
        units: what each is multiplied by to be in units of the data, or of the data per unit of
            the axis.
        notes: where levels are, and what slopes are per.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    estimates: Float[Array, "..."]
    solved: Float[Array, "p ..."]
    root: Float[Array, "p p"]
    units: tuple[float, ...] = eqx.field(static=True, default=())
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def coefficients(self) -> Float[Array, "..."]:
        """Posterior means `(*batch, p)`; with flat priors the generalised least squares estimates.

        Slopes are per unit of the axis, whatever the scale of the mean.
        """
        units = jnp.asarray(self.units, self.estimates.dtype)
        return self.estimates * jnp.broadcast_to(units, self.estimates.shape)

    @property
    def covariance(self) -> Float[Array, "p p"]:
        """Of the coefficients, `A⁻¹`, in their units."""
        units = jnp.diag(jnp.asarray(self.units, self.root.dtype))
        inverse = jax.scipy.linalg.solve_triangular(self.root, units, lower=True)
        return matmul(inverse.T, inverse)

    @property
    def standard_errors(self) -> Float[Array, " p"]:
        """Of the coefficients."""
        return jnp.sqrt(jnp.diagonal(self.covariance))

    def draw(self, white: Float[Array, "... p"]) -> Float[Array, "... p"]:
        """Estimates from white noise."""
        flat = white.reshape(-1, white.shape[-1]).T
        shift = jax.scipy.linalg.solve_triangular(self.root.T, flat, lower=False).T
        return jnp.add(*same_rank(self.estimates, shift.reshape(white.shape)))

    def whitened(self, difference: Float[Array, "p ..."]) -> Float[Array, "p ..."]:
        """`L⁻¹ D` for `D = H_* − K_* S⁻¹ H`: its squares are what the coefficients add."""
        flat = difference.reshape(difference.shape[0], -1)
        white = jax.scipy.linalg.solve_triangular(self.root, flat, lower=True)
        return white.reshape(difference.shape)

    def __repr__(self) -> str:
        if not is_concrete(self.coefficients) or self.coefficients.ndim != 1:
            return f"Regression of {', '.join(self.names)}"
        rows = [("coefficient", "estimate", "standard error")]
        for name, value, error in zip(
            self.names, self.coefficients, self.standard_errors, strict=True
        ):
            rows.append((name, f"{float(value):.4g}", f"{float(error):.3g}"))
        return "\n".join([aligned(rows), *self.notes])


def regress(
    op: DataCovariance,
    design: Array,
    y: Array,
    variance: Array | None,
    **labels: Any,
) -> Regression:
    """The coefficients given data that have no other mean; one structured solve each.

    Args:
        op: the covariance of the data.
        design: the functions on the grid.
        y: the data.
        variance: of the prior on each coefficient; flat without one.
        labels: `names`, `units` and `notes` of the coefficients, where they are to be shown.
    """
    num, grid = design.shape[0], design.shape[1:]
    seen = op.held(design).reshape(num, -1)
    basis = _basis(seen)
    white = jax.scipy.linalg.solve_triangular(basis.T, seen, lower=True)
    solved = solve_grid(op, white.reshape(num, *grid)).reshape(num, -1)
    precision = matmul(white, solved.T)
    precision = (precision + precision.T) / 2
    if variance is not None:
        unit = jnp.eye(num, dtype=precision.dtype)
        unit = jax.scipy.linalg.solve_triangular(basis.T, unit, lower=True)
        precision = precision + matmul(unit, unit.T) / variance.astype(op.dtype)
    root = jnp.linalg.cholesky(precision)
    batch = y.shape[: y.ndim - len(grid)]
    projected = matmul(y.reshape(*batch, -1), solved.T)
    flat = jax.scipy.linalg.cho_solve((root, True), projected.reshape(-1, num).T)
    flat = jax.scipy.linalg.solve_triangular(basis, flat, lower=False)
    estimates = flat.T.reshape(projected.shape)
    solved = matmul(basis.T, solved).reshape(design.shape)
    return Regression(labels.pop("names", ()), estimates, solved, matmul(basis.T, root), **labels)


def _basis(design: Array) -> Array:
    """`R` with `R⁻ᵀ H` orthonormal, upper triangular with a positive diagonal.

    Functions of other units than each other's, or that vary little about a level far from zero,
    then lose no digits in `Hᵀ S⁻¹ H`. Nothing depends on the basis, and no derivative does.
    """
    num, size = design.shape
    if size < num:
        return jnp.eye(num, dtype=design.dtype)
    basis = jnp.linalg.qr(jax.lax.stop_gradient(design).T, mode="r")
    sign = jnp.where(jnp.diagonal(basis) < 0, -1, 1).astype(basis.dtype)
    return jnp.triu(sign[:, None] * basis)


def fitted(coefficients: Float[Array, "... p"], design: Float[Array, "p ..."]) -> Array:
    """`H β` on the grid of the design."""
    batch, grid = coefficients.shape[:-1], design.shape[1:]
    return matmul(coefficients, design.reshape(design.shape[0], -1)).reshape(*batch, *grid)


def marginal_logpdf(op: DataCovariance, design: Array, y: Array, variance: Array | None) -> Array:
    """Log density of data with the coefficients integrated out; restricted if they are flat."""
    found = regress(op, design, y, variance)
    value = normal_logpdf_grid(y - fitted(found.estimates, design), op)
    return value + integrated(found, variance)


def integrated(found: Regression, variance: Array | None) -> Array:
    """What integrating the coefficients out adds to the log density at their estimates."""
    num, dtype = found.root.shape[0], found.root.dtype
    value = -jnp.sum(jnp.log(jnp.diagonal(found.root)))
    if variance is None:
        return value + jnp.asarray(num / 2 * np.log(2 * np.pi), dtype)
    spread = variance.astype(dtype)
    square = jnp.sum(jnp.square(found.estimates), axis=-1)
    return value - square / spread / 2 - num / 2 * jnp.log(spread)
