"""The least noise that the precision carries, and the way that a fit stays above it."""

from collections.abc import Callable
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.domains import replace
from kronax.gp.axes.structure import factor
from kronax.gp.model.components import are_exact, joined_noise
from kronax.gp.model.observations import with_observed
from kronax.gp.model.process import AbstractProcess
from kronax.gp.model.solver_choice import choice, filtered_axis
from kronax.linalg.arrays.host import numpy_of, on_host
from kronax.linalg.arrays.precision import Conditioning, Ends, least_noise
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.spectral.conditioning import largest_eigenvalue, row_sum


class NoiseLevel(NamedTuple):
    """The smallest noise variance of a process, and the least that its precision carries.

    `step` raises it by the least of a precision when it is added to the parameter of the noise.
    """

    level: Array
    least: Array
    step: Array
    ends: Ends


class LeastNoise(AbstractProcess):
    """What a fit asks of a process so that its noise stays above rounding.

    The signal's largest eigenvalue `λmax` is bounded by the row sums of every axis. In a fit the
    noise is `σ² = floor + exp(raw)` with `floor = ε λmax / c`: smooth in every parameter.
    """

    @property
    def noise_parameter(self) -> str | None:
        """The path of what sets the level of the noise; `None` for a fixed covariance or none."""
        found = self.noise_model.level_parameter
        return None if found is None else f"noise{found[0]}"

    def noise_level(self, observed: Mask | None, dtype: Any) -> NoiseLevel:
        """Noise, floor and eigenvalues of a process that is observed at some cells.

        `dtype` is the precision whose floor a fit stays above.
        """
        noise, largest = self.noise_model, _largest(self, observed)
        level = noise.level(self.dtype)
        step = reduce(jnp.divide, noise.shares(), least_noise(largest, dtype))
        ends = Ends(largest + level, level)
        return NoiseLevel(level, least_noise(largest, self.dtype), step, ends)

    def conditioning(self) -> Conditioning | None:
        """What tells how ill-conditioned the covariance of the data is: it is decomposed.

        `None` with a likelihood: what its sites make is known with data only.
        """
        return _conditioning(self) if self.likelihood is None else None

    def raised_noise(self, step: Array) -> Any:
        """The process with the floor added to its noise."""
        return self._with_noise_moved(add, step)

    def lowered_noise(self, step: Array) -> Any:
        """The process of which `raised_noise` makes this one, or one half above the floor.

        Noise at the floor could not move: its slope there is zero.
        """
        return self._with_noise_moved(_less, step)

    def _with_noise_moved(self, move: Callable[[Any, Any], Any], step: Array) -> Any:
        assert self.noise_model.level_parameter is not None
        path, value = self.noise_model.level_parameter
        return replace(self, {f"noise{path}": on_host(move, value, step)})


@eqx.filter_jit
def _conditioning(gp: AbstractProcess) -> Conditioning | None:
    return decomposition_of(gp.data_covariance()).ends()


def _less(value: Any, step: Any) -> Any:
    return numpy_of(value).where(value > 1.5 * step, value - step, step / 2)


def _largest(gp: AbstractProcess, observed: Mask | None) -> Array:
    """A bound on the largest eigenvalue of the function's covariance at the observed cells."""
    if are_exact(gp) and any(structure.rank for structure in gp.structures):
        return _of_low_rank(gp)
    signal = gp.covariance(include_noise=False)
    axis = _filtered_axis(gp, observed)
    if axis is None:
        largest = largest_eigenvalue(signal)
    else:  # what is decomposed are the other axes: a filter along this one loses no digits
        axes = enumerate(signal.factors)
        largest = reduce(mul, [jnp.max(f.diagonal()) if i == axis else row_sum(f) for i, f in axes])
    if observed is None:
        return largest
    trace = jnp.sum(jnp.where(jnp.asarray(observed.array), signal.diagonal(), 0))
    return jnp.minimum(largest, trace)


def _filtered_axis(gp: AbstractProcess, observed: Mask | None) -> int | None:
    """The axis along which the data are filtered, if they are."""
    seen = with_observed(gp, observed)
    axis = filtered_axis(seen)
    if axis is None:
        return None
    way = choice(seen).way
    return axis if way in ("structured", "markov") else None


def _of_low_rank(gp: AbstractProcess) -> Array:
    """With traces of the axes of low rank: their columns cost too much to be found twice."""
    bounds = [
        jnp.sum(kernel.variances_at(axis.points(gp.dtype)))
        if structure.rank
        else row_sum(factor(kernel, axis, structure, gp.dtype))
        for kernel, axis, structure in zip(gp.kernels, gp.axes, gp.structures, strict=True)
    ]
    variance = jnp.ones((), gp.dtype) if gp.variance is None else gp.variance
    largest = reduce(mul, bounds, variance.astype(gp.dtype))
    return largest if gp.joined is None else largest + largest_eigenvalue(joined_noise(gp, False))
