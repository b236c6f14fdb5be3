"""The kernel of a damped oscillator."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.domains import parameter
from kronax.gp.kernels.base import Kernel, as_points
from kronax.gp.kernels.markov import checked_gaps, single
from kronax.gp.kernels.radial import bounded, mismatch
from kronax.linalg.state_spaces.oscillator import FURTHEST, oscillation, oscillator
from kronax.linalg.state_spaces.state_space import StateSpace


class SHO(Kernel):
    """A damped oscillator that noise drives, of variance one: ringing, or relaxing.

    With `b = 1 / (2 quality)` and `s = ω₀ |x − x'|` it is `exp(−b s) (cos(η s) + b sin(η s) / η)`,
    `η = √(1 − b²)`; at a quality of 1/2, critical damping, `exp(−s) (1 + s)`, which is
    `Matern32(√3 / ω₀)`; below, with hyperbolic functions. A small quality is a noise without
    peak (granulation), a large one an oscillation that keeps its phase for `2 quality / ω₀`.

    The term of celerite with the power `S0` is `S0 * omega0 * quality * kx.SHO(omega0, quality)`,
    whose spectral density is `√(2/π) S0 ω₀⁴ / ((ω² − ω₀²)² + ω² ω₀² / quality²)`.

    Args:
        omega0: `ω₀ > 0`, the undamped angular frequency, in radians per unit of the axis: `2π` over
            the period.
        quality: `Q > 0`.

    Examples:
        >>> import kronax as kx
        >>> round(kx.SHO(omega0=6.283, quality=50.0).evaluate(0.0, 1.0).item(), 3)
        0.939
    """

    omega0: ParameterArray = parameter(constraints.positive, start="as given")
    quality: ParameterArray = parameter(constraints.positive)

    @property
    def stationary(self) -> bool:
        """Always; not isotropic, since it is no covariance in several dimensions."""
        return True

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse places in several dimensions."""
        if x.shape[1:] not in ((), (1,)):
            raise ValueError(
                f"The kernel of {name}, an oscillator, must have coordinates (n,); got shape "
                f"{x.shape}. Put kx.ActiveDims around it to have it see one dimension."
            )

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        if jnp.shape(x) not in ((), (1,)):
            raise ValueError(mismatch("frequency of an oscillator", (), jnp.shape(x)))
        return oscillation(self._phase(jnp.sum(jnp.abs(x - z))), self.quality)

    def state_space(self, gaps: Any) -> StateSpace:
        """Its state is its value and its slope."""
        single(self.omega0, "frequency", self)
        return oscillator(self._phase(as_points(checked_gaps(gaps), self)), self.quality)

    def _phase(self, distance: Array) -> Array:
        return bounded(distance, 0 * distance, 1 / self.omega0, FURTHEST)
