"""The Laplace approximation over the parameters of a fitted model."""

import math
from operator import add, sub
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform
from scipy.special import ndtri

from kronax.display import aligned
from kronax.domains import natural_by
from kronax.fitting.curvature import Curvature, exact_curvature, quick_curvature
from kronax.fitting.problem import Problem, Raw, precision
from kronax.fitting.steps import Layout, Loop
from kronax.linalg.arrays.checks import check_key, is_concrete
from kronax.linalg.arrays.host import numpy_of, on_device, on_host
from kronax.linalg.arrays.mode_products import matmul
from kronax.linalg.arrays.precision import LOST, to_have_float64
from kronax.parameter_table import ParameterTable, describe_domain
from kronax.paths import named

# Curvature below this share of the largest (the root of the precision's rounding) is none.
FLAT = 0.5
# A standard deviation of a logarithm by which a parameter counts as undetermined: a factor of 150.
WIDE = 5.0
NORMAL_975 = 1.959963984540054


class LaplaceApproximation(eqx.Module):
    """What `result.laplace()` returns: parameters, normal in unconstrained space.

    The Hessian is the loss's own, in natural units, so that the choice of the unconstrained
    coordinates does not move the standard errors; draws stay inside the domains.

    Attributes:
        names: one per trained number, a path with its index.
        covariance: of the unconstrained values, `(p, p)` in the order of the names.
        by_differences: whether the Hessian comes from differences of exact gradients: where the
            loss has no second derivatives, as by iterations.
        log_evidence: Laplace's approximation of `log ∫ exp(−loss) dθ` in natural units; the log
            evidence of the model where every trained parameter has a prior.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> found = result.laplace()
        >>> low, high = found.intervals()["noise"]
        >>> found.names, bool(low < result.model.noise < high)
        (('noise',), True)
    """

    names: tuple[str, ...] = eqx.field(static=True)
    covariance: Float[Array, "p p"]
    log_evidence: Float[Array, ""]
    problem: Problem
    raw: Raw
    by_differences: bool = eqx.field(static=True, default=False)

    @property
    def correlations(self) -> Float[Array, "p p"]:
        """Correlations of the unconstrained values."""
        sd = jnp.sqrt(jnp.diagonal(self.covariance))
        return self.covariance / jnp.outer(sd, sd)

    @property
    def standard_errors(self) -> dict[str, Array]:
        """In natural units, by path, to first order, as the delta method has it."""
        sds = self._deviations()
        return {
            path: on_host(
                lambda slope, sd: abs(slope) * sd, _slope(transform, self.raw[path]), sds[path]
            )
            for path, transform in self._transforms().items()
        }

    def intervals(self, level: float = 0.95) -> dict[str, tuple[Array, Array]]:
        """Central intervals in natural units, by path, inside the domains.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"The level must be between 0 and 1; got {level}.")
        z, deviations = float(ndtri(0.5 + level / 2)), self._deviations()
        found = {}
        for path, transform in self._transforms().items():
            step = z * deviations[path]
            ends = [natural_by(transform, on_host(f, self.raw[path], step)) for f in (sub, add)]
            found[path] = (
                on_host(lambda a, b: numpy_of(a).minimum(a, b), *ends),
                on_host(lambda a, b: numpy_of(a).maximum(a, b), *ends),
            )
        return found

    def sample(self, key: PRNGKeyArray, num_samples: int) -> Any:
        """Models with drawn parameters: a leading axis on every array, for `eqx.filter_vmap`."""
        check_key(key)
        mean, unravel = ravel_pytree(self.raw)
        root = jnp.linalg.cholesky(self.covariance)
        white = jax.random.normal(key, (num_samples, mean.size), mean.dtype)
        build = self.problem.unconstrained()[1]
        return eqx.filter_vmap(
            lambda z: build(unravel(mean + matmul(root, z))), out_axes=eqx.if_array(0)
        )(white)

    def table(self, parameters: ParameterTable) -> str:
        """The parameters with standard errors and 95 % intervals, in plain text."""
        errors, intervals = self.standard_errors, self.intervals()
        rows = [("parameter", "value", "standard error", "95 % interval", "domain", "trainable")]
        for p in parameters:
            domain = "unknown" if p.domain is None else describe_domain(p.domain)
            trained = f"as {p.source}" if p.source else "yes" if p.trainable else "no"
            if p.path not in errors:
                rows.append((p.path, _short(p.value), "", "", domain, trained))
                continue
            low, high = intervals[p.path]
            interval = f"[{_short(low)}, {_short(high)}]" if np.ndim(low) == 0 else "…"
            rows.append(
                (p.path, _short(p.value), _short(errors[p.path]), interval, domain, trained)
            )
        remarks = self._undetermined()
        if self.by_differences:
            remarks.append("Standard errors by differences of the gradient.")
        return "\n".join([aligned(parameters.with_axes(rows)), *remarks])

    def _undetermined(self) -> list[str]:
        """What the data hardly determine, in a sentence."""
        deviations = np.sqrt(np.diagonal(np.asarray(self.covariance)))
        domains = {p.path: p.domain for p in self.problem.table()}
        wide = [
            named(self.problem.model, name)
            for name, sd in zip(self.names, deviations, strict=True)
            if sd > WIDE and domains.get(name) is constraints.positive
        ]
        if not wide:
            return []
        return [
            f"The data hardly determine {' and '.join(wide)}: an interval over many powers of ten "
            "is not to be believed. Look at kx.profile_likelihood, freeze, or give a prior."
        ]

    def __repr__(self) -> str:
        return self.table(self.problem.table(self.problem.unconstrained()[1](self.raw)))

    def _deviations(self) -> dict[str, Any]:
        """Standard deviations of the unconstrained values, in NumPy where they are known."""
        covariance: Any = self.covariance
        if is_concrete(covariance):
            covariance = np.asarray(covariance)
        xp = numpy_of(covariance)
        return Layout.of(self.raw).raws(xp.sqrt(xp.diagonal(covariance)))

    def _transforms(self) -> dict[str, Any]:
        return {p.path: biject_to(p.domain) for p in self.problem.table() if p.trainable}


def laplace(problem: Problem, model: Any, raw: Raw) -> LaplaceApproximation:
    """The approximation at the best point of a fit; noise at its floor is held there."""
    plain, at = problem.without_floor(model) if problem.has_floor else (problem, raw)
    return _approximation(plain, at, exact_curvature(plain, at))


def quick_laplace(
    problem: Problem, model: Any, raw: Raw, loop: Loop | None
) -> LaplaceApproximation:
    """The same to the digits that a table shows, where it can be had by the loop of the fit."""
    plain, at = problem.without_floor(model) if problem.has_floor else (problem, raw)
    return _approximation(plain, at, quick_curvature(plain, at, (problem, raw), loop))


def _approximation(problem: Problem, raw: Raw, found: Curvature) -> LaplaceApproximation:
    names, hessian = tuple(_names(raw)), found.hessian
    dtype = precision(raw)
    _check_minimum(hessian, names, dtype, problem)
    scale = np.sqrt(np.diag(hessian))
    covariance = np.linalg.inv(hessian / np.outer(scale, scale)) / np.outer(scale, scale)
    covariance = (covariance + covariance.T) / 2
    volume = sum(
        float(np.sum(np.log(np.abs(_slope(biject_to(p.domain), raw[p.path])))))
        for p in problem.table()
        if p.trainable
    )
    _, log_determinant = np.linalg.slogdet(hessian)
    normaliser = len(names) / 2 * math.log(2 * math.pi) - log_determinant / 2
    return LaplaceApproximation(
        names,
        on_device(covariance.astype(dtype)),
        on_device(np.asarray(volume + normaliser - found.loss, dtype)),
        problem,
        raw,
        found.by_differences,
    )


def _slope(transform: Any, raw: Array) -> Array:
    """The derivative of an entrywise transform, entry by entry."""
    if transform.domain.event_dim:
        raise ValueError(
            f"Standard errors need parameters with a domain entry by entry; got {transform}."
        )
    if type(transform) is ExpTransform:
        return natural_by(transform, raw)
    return jax.jvp(transform, (raw,), (jnp.ones_like(raw),))[1]


def _names(raw: Raw) -> list[str]:
    # In the order of `ravel_pytree`, which sorts the keys.
    names = []
    for path in sorted(raw):
        shape = raw[path].shape
        indices = np.ndindex(*shape) if shape else [()]
        names += [path + (f"[{', '.join(map(str, i))}]" if i else "") for i in indices]
    return names


def _check_minimum(
    hessian: np.ndarray, names: tuple[str, ...], dtype: Any, problem: Problem
) -> None:
    """Refuse a point where the loss does not rise in every direction."""
    eps = float(jnp.finfo(dtype).eps)
    if not np.isfinite(hessian).all():
        raise ValueError("The Hessian of the loss is not finite at this point.")
    curvature = np.diag(hessian)
    scale = np.sqrt(np.where(curvature > 0, curvature, 1.0))
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    flat = eps**FLAT * max(values[-1], 1.0)
    weak = [name for name, c in zip(names, curvature, strict=True) if c <= 0]
    if not weak and values[0] > flat:
        return
    if not weak:
        direction = np.abs(vectors[:, 0])
        weak = [n for n, d in zip(names, direction, strict=True) if d > 0.3 * direction.max()]
    which = " and ".join(named(problem.model, name) for name in weak)
    noise = problem.noise_level(problem.model)
    if noise is not None and float(np.max(noise.ends.ratio())) > LOST:
        raise ValueError(
            f"The loss does not rise in every direction at this point, where {np.dtype(dtype)} "
            f"has lost it: to know {which}, {to_have_float64()}."
        )
    raise ValueError(
        f"The loss does not rise in every direction at this point: the data do not determine "
        f"{which} here. Freeze or share parameters, give priors, or fit on until it "
        "converges."
    )


def _short(value: Any) -> str:
    array = np.asarray(value)
    if array.ndim == 0 and 0 < abs(array) < 1e-3:  # NumPy would print decimals that are zeros
        return f"{array:.4g}"
    if array.size <= 4:
        return np.array2string(array, precision=3, separator=", ")
    return f"{array.dtype}{list(array.shape)} in [{array.min():.3g}, {array.max():.3g}]"
