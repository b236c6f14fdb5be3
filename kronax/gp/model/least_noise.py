"""The least noise that the precision carries, and the way that a fit stays above it."""

from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kronax.gp.axes.structure import factor
from kronax.gp.model.components import are_exact, joined_noise
from kronax.gp.model.method import with_observed
from kronax.gp.model.noise import AxisNoise, CellNoise, FullNoise, NoNoise
from kronax.gp.model.process import AbstractProcess
from kronax.gp.model.solver_choice import choice, filtered_axis
from kronax.linalg.arrays.host import numpy_of, on_host
from kronax.linalg.arrays.precision import Conditioning, Ends, least_noise
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.spectral.conditioning import largest_eigenvalue, row_sum
from kronax.parameters import replace


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
    def noise_parameter(self) -> Any:
        """The path of what sets the level of the noise; `None` for a fixed covariance or none."""
        if isinstance(self.noise, FullNoise | NoNoise):
            return None
        if isinstance(self.noise, CellNoise):
            return "noise.scale"
        if isinstance(self.noise, AxisNoise):
            return f"noise.variances[{_first(self.noise)}]"
        return "noise"

    def noise_level(self, observed: Mask | None, dtype: Any) -> NoiseLevel:
        """Noise, floor and eigenvalues of a process that is observed at some cells.

        `dtype` is the precision whose floor a fit stays above.
        """
        level, largest = _level(self.noise, self.dtype), _largest(self, observed)
        step = _step(self.noise, least_noise(largest, dtype))
        ends = Ends(largest + level, level)
        return NoiseLevel(level, least_noise(largest, self.dtype), step, ends)

    def conditioning(self) -> Conditioning | None:
        """What tells how ill-conditioned the covariance of the data is: it is decomposed."""
        return _conditioning(self)

    def raised_noise(self, step: Array) -> Any:
        """The process with the floor added to its noise."""
        return replace(self, {self.noise_parameter: on_host(add, _parameter(self.noise), step)})

    def lowered_noise(self, step: Array) -> Any:
        """The process of which `raised_noise` makes this one, or one half above the floor.

        Noise at the floor could not move: its slope there is zero.
        """
        return replace(self, {self.noise_parameter: on_host(_less, _parameter(self.noise), step)})


@eqx.filter_jit
def _conditioning(gp: AbstractProcess) -> Conditioning | None:
    return decomposition_of(gp.data_covariance()).ends()


def _first(noise: AxisNoise) -> int:
    return next(i for i, v in enumerate(noise.variances) if v is not None)


def _less(value: Any, step: Any) -> Any:
    return numpy_of(value).where(value > 1.5 * step, value - step, step / 2)


def _parameter(noise: Any) -> Array:
    """The parameter that sets the level of the noise."""
    if isinstance(noise, CellNoise):
        return noise.scale
    if isinstance(noise, AxisNoise):
        own = noise.variances[_first(noise)]
        assert own is not None
        return own
    return noise


def _step(noise: Any, least: Array) -> Array:
    """What raises the smallest variance by the floor when it is added to that parameter."""
    if isinstance(noise, CellNoise):
        return least / _typical_variance(noise)
    if isinstance(noise, AxisNoise):
        others = [jnp.median(v) for v in noise.variances[_first(noise) + 1 :] if v is not None]
        return reduce(jnp.divide, others, least)
    return least


def _level(noise: Any, dtype: Any) -> Array:
    if isinstance(noise, CellNoise):
        return (noise.scale * _typical_variance(noise)).astype(dtype)
    if isinstance(noise, AxisNoise):
        return reduce(mul, [jnp.min(v) for v in noise.variances if v is not None]).astype(dtype)
    return noise.astype(dtype)


def _typical_variance(noise: CellNoise) -> Array:
    """The typical one: a few precise cells do not make the covariance singular."""
    variances = jnp.where(jnp.isposinf(noise.variances), jnp.nan, noise.variances)
    return jnp.nanmedian(variances)  # infinity marks a gap


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
