"""Leave-one-out prediction in closed form.

With `S` the covariance of the data and `α = S⁻¹ (y − m)`, the distribution of a cell given all the
others has mean `y_c − α_c / [S⁻¹]_cc` and variance `1 / [S⁻¹]_cc`: the last row of the inverse of
`S`, with the cell moved last, holds both.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from kronax.gp.gls import Regression
from kronax.gp.indexes import is_labelled
from kronax.linalg.diagonals import inverse_diagonal
from kronax.linalg.kronecker import Kronecker
from kronax.linalg.noise import KroneckerPlusNoise


class LeaveOneOut(NamedTuple):
    """Every observation as predicted from all the others, grid-shaped.

    Attributes:
        mean: the predicted observations; batches of the data lead.
        variance: of the noisy observations; it does not depend on the data.
    """

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]

    def log_density(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log predictive density of every cell of `y`, in nats.

        Raises:
            TypeError: if `y` is a DataArray, whose dimensions may have another order.
        """
        if is_labelled(y):
            raise TypeError(
                "y must be an array in the order of the model's axes; got a DataArray. Pass "
                "gp.check_data(y), which puts it into this order."
            )
        square = jnp.square(y - self.mean) / self.variance
        return -(square + jnp.log(self.variance) + math.log(2 * math.pi)) / 2


def leave_one_out(
    operator: Kronecker | KroneckerPlusNoise,
    y: Array,
    weights: Array,
    regression: Regression | None = None,
) -> LeaveOneOut:
    """The predictions, from the covariance of the data and `weights`, `S⁻¹ (y − m)`.

    Coefficients that are integrated out are estimated without the cell as well: then it is the
    inverse `S⁻¹ − S⁻¹ H A⁻¹ Hᵀ S⁻¹` that has a diagonal.
    """
    diagonal = inverse_diagonal(operator)
    if regression is not None:
        diagonal = diagonal - jnp.sum(jnp.square(regression.whitened(regression.solved)), axis=0)
    variance = 1 / diagonal
    return LeaveOneOut(y - weights * variance, variance)
