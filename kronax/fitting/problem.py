"""What a fit minimises, as a function of unconstrained values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.sharding import NamedSharding
from jaxtyping import Array
from numpyro.distributions import constraints

from kronax.domains import parameters, unconstrain
from kronax.linalg.arrays.host import bounds, is_spread
from kronax.parameter_table import Parameter, ParameterTable, describe_domain
from kronax.paths import frozen_paths, is_meant, numbered, shared_paths
from kronax.priors import prepare

Raw = dict[str, Array]


class Domain:
    """A NumPyro constraint that hashes: those with bounds do not."""

    def __init__(self, constraint: Any):
        self.constraint = constraint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Domain) and bool(self.constraint == other.constraint)

    def __hash__(self) -> int:
        return hash(str(self.constraint))

    def __repr__(self) -> str:
        return str(self.constraint)


class Problem(eqx.Module):
    """A loss with its model: a pytree, so that fits of one form share one compiled loop.

    Exactly one of `y` and `loss` is there. Independent problems differ in their entry of `y`.
    """

    model: Any
    y: Array | None
    priors: dict[str, dist.Distribution]
    loss: Callable[[Any], Array] | None = eqx.field(static=True)
    freeze: tuple[str, ...] = eqx.field(static=True)
    domains: tuple[tuple[str, Domain], ...] = eqx.field(static=True)
    share: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    independent: bool = eqx.field(static=True)
    # Which cells have data, for a model that can tell.
    observed: Any = eqx.field(static=True, default=None)
    # How such a model is solved, where it measured that.
    measured: Any = eqx.field(static=True, default=None)
    # Whether the noise stays above what the precision carries.
    has_floor: bool = eqx.field(static=True, default=False)
    # The mesh of devices, and those of its axes, over which independent data are shared out.
    fits_per_device: Any = eqx.field(static=True, default=None)

    @property
    def settings(self) -> dict[str, Any]:
        """What says which parameters train, for `parameters` and `unconstrain`."""
        domains = {path: domain.constraint for path, domain in self.domains}
        return {"freeze": self.freeze, "domains": domains, "share": self.share}

    @property
    def num_members(self) -> int:
        """How many independent problems there are."""
        return self.y.shape[0] if self.independent and self.y is not None else 1

    @property
    def num_cells(self) -> int:
        """What the gradient is judged by, the cells of a GridGP's data, 1 for another loss."""
        if self.y is None:
            return 1
        cells = self.y.size // self.num_members
        if self.observed is None:
            return cells
        return cells * int(self.observed.array.sum()) // self.observed.array.size

    def seen(self, model: Any) -> Any:
        """A model that knows which cells have data."""
        seen = model if self.observed is None else model.observing(self.observed)
        return seen if self.measured is None else seen.solved_by(self.measured)

    def measured_at(self, raw: Mapping[str, Array], member: int = 0) -> "Problem":
        """The problem solved as its model measures at a point: another loss, or the same object."""
        if self.y is None or not self.is_estimated:
            return self
        y = self.y[member] if self.independent else self.y
        bare = self.solved_by(None)
        model = bare.seen(self.unconstrained()[1](raw)).measuring(y)
        return self if model.measured == self.measured else self.solved_by(model.measured)

    def solved_by(self, measured: Any) -> "Problem":
        """The problem whose model is solved in a way that was measured."""
        return dataclasses.replace(self, measured=measured)

    @property
    def is_estimated(self) -> bool:
        """Whether the loss comes from iterations and random probes."""
        return self.y is not None and getattr(self.seen(self.model), "is_iterative", False)

    def table(self, model: Any = None) -> ParameterTable:
        """The parameters of the model, or of one with other values."""
        return parameters(self.model if model is None else model, **self.settings)

    def unconstrained(self) -> tuple[Raw, Callable[[Mapping[str, Array]], Any]]:
        """Unconstrained values, and the way back to a model."""
        return self.raw_of(self.model), self.build

    def build(self, raw: Mapping[str, Any]) -> Any:
        """The model at unconstrained values."""
        model = unconstrain(self.model, **self.settings)[1](raw)
        return model.raised_noise(self.noise_level(model).step) if self.has_floor else model

    def raw_of(self, model: Any) -> Raw:
        """The unconstrained values of a model of the same form."""
        lowered = model.lowered_noise(self.noise_level(model).step) if self.has_floor else model
        return unconstrain(lowered, **self.settings)[0]

    def without_floor(self, model: Any, hold: bool = True) -> tuple["Problem", Raw]:
        """The same problem at a model, whose noise is held if it is at the floor."""
        if not self.has_floor:
            return self, self.raw_of(model)
        is_held = hold and is_at_floor(self.noise_level(model))
        held = (model.noise_parameter,) if is_held else ()
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept |= {"model": model, "freeze": (*self.freeze, *held), "has_floor": False}
        plain = Problem(**kept)
        return plain, plain.raw_of(model)

    def noise_level(self, model: Any) -> Any:
        """Noise, floor and eigenvalues of a model that can tell them."""
        if self.y is None or getattr(model, "noise_parameter", None) is None:
            return None
        # A line search may step in another precision than the model's, whose floor is meant.
        return _noise_level(model, self.observed, self.model.dtype)

    def conditioning(self, model: Any) -> Any:
        """What tells how ill-conditioned the loss is; a covariance is decomposed if it must be."""
        noise = self.noise_level(model)
        if noise is not None or self.y is None or not hasattr(model, "conditioning"):
            return None if noise is None else noise.ends
        return self.seen(model).conditioning()

    @property
    def first_hints(self) -> Any:
        """What the loss of a model that searches on the way may start from; `None` for others."""
        if self.y is None or not hasattr(self.model, "first_hints"):
            return None
        y = self.y[0] if self.independent else self.y
        return in_double(self.seen(self.model)).first_hints(y.shape)

    def value(self, raw: Mapping[str, Array], member: Array | int = 0) -> Array:
        """The loss, less the log density of the priors."""
        return self.value_from(raw, member, self.first_hints)[0]

    def value_from(
        self, raw: Mapping[str, Array], member: Array | int, hints: Any
    ) -> tuple[Array, Any]:
        """The same from what was found at another point, and what is found at this one."""
        model = self.build(raw)
        if self.loss is not None:
            total = jnp.asarray(self.loss(model)).astype(precision(raw))
        else:
            y = self.y[member] if self.independent and self.y is not None else self.y
            assert y is not None
            wide = in_double(self.seen(model))
            y = y.astype(getattr(wide, "dtype", y.dtype))
            if hints is None:
                log_likelihood = wide.checked_log_likelihood(y)
            else:
                log_likelihood, hints = wide.log_likelihood_from(y, hints)
            total = -jnp.sum(log_likelihood).astype(precision(raw))
        values = {p.path: p.value for p in parameters(model)}
        for path, prior in self.priors.items():
            total = total - jnp.sum(prior.log_prob(values[path])).astype(total.dtype)
        return total, hints

    def member(self, index: int) -> "Problem":
        """One of the independent problems, by itself."""
        assert self.y is not None
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        alone = {"y": self.y[index], "independent": False, "fits_per_device": None}
        return Problem(**{**kept, **alone})


def sees_double(process: Any) -> bool:
    """Whether a fit computes the loss of a process in float64: where JAX admits it.

    Ranks and iterations are settings for the precision of the model, which they keep.
    """
    has_ranks = any(s.rank is not None for s in getattr(process, "structures", ()))
    is_exact = not has_ranks and not getattr(process, "is_iterative", True)
    return is_exact and bool(jax.config.read("jax_enable_x64"))


def in_double(process: Any) -> Any:
    """A process as a fit sees it, so that rounding does not bend its loss."""
    if not sees_double(process):
        return process
    return jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, process)


# Noise within this factor of the floor is at it.
AT_FLOOR = 1.1


def is_at_floor(noise: Any) -> bool:
    """Whether the noise of a process is the least that the precision carries."""
    return bool(np.asarray(noise.level) <= AT_FLOOR * np.asarray(noise.least))


@eqx.filter_jit
def _noise_level(model: Any, observed: Any, dtype: Any) -> Any:
    return model.noise_level(observed, dtype)


def precision(raw: Mapping[str, Any]) -> Any:
    """The dtype of the loss."""
    return jnp.result_type(*(v.dtype for v in raw.values()))


def default_tolerance(dtype: Any) -> float:
    """The gradient per cell below which a fit has converged, if the user does not say."""
    return 1e-6 if jnp.finfo(dtype).bits == 64 else 1e-5


def make_problem(
    model: Any,
    y: Any,
    loss: Any,
    priors: Mapping[str, Any] | None,
    independent: bool,
    settings: Mapping[str, Any],
) -> Problem:
    """The problem, with everything checked that can be without running it."""
    if (y is None) == (loss is None):
        raise TypeError(
            "kx.fit needs either data `y` (for a GridGP) or a `loss` of the model; got "
            f"{'neither' if y is None else 'both'}."
        )
    frozen = frozen_paths(model, settings["freeze"])
    shared = shared_paths(model, settings["share"])
    domains = dict(settings["domains"] or {})
    grid = None
    if loss is not None:
        _check_loss(model, loss, independent)
    else:
        grid = _data(model, y, independent)
    rows = {p.path: p for p in parameters(model, freeze=frozen, domains=domains, share=shared)}
    given = prepare(rows, {numbered(model, path): p for path, p in (priors or {}).items()})
    for path, prior in given.items():
        if path not in domains:
            domains |= _narrower(path, prior, rows[path])
    prepared = {path: _as_arrays(prior, rows[path]) for path, prior in given.items()}
    kept = tuple((path, Domain(domain)) for path, domain in domains.items())
    observed = None
    if grid is not None and hasattr(model, "observing"):
        observed = model.observing(grid).observed
    has_floor = grid is not None and _may_floor(model, frozen, domains, shared)
    problem = Problem(
        model,
        grid,
        {},
        loss,
        frozen,
        kept,
        shared,
        independent,
        observed=observed,
        has_floor=has_floor,
        fits_per_device=_by_member(grid) if independent else None,
    )
    for path in prepared:
        if not rows[path].trainable:
            raise ValueError(
                f"A prior must be on a parameter that trains; {path} is frozen, shared or of "
                "unknown domain. Leave its prior out, or let it train."
            )
    _check_trainable(problem)
    if loss is not None:
        _check_precision(loss, model, precision(problem.unconstrained()[0]))
    return eqx.tree_at(lambda p: p.priors, problem, prepared)


def _by_member(grid: Any) -> tuple[Any, Any] | None:
    """The mesh, and those of its axes, over which the first axis of data is shared out."""
    sharding = grid.sharding if is_spread(grid) else None
    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return None
    return sharding.mesh, sharding.spec[0]


def _may_floor(model: Any, frozen: Any, domains: Any, shared: Any) -> bool:
    """Whether the noise trains and its user has not said where it may be."""
    path = getattr(model, "noise_parameter", None)
    if path is None or path in frozen or any(path in group for group in shared):
        return False
    return not any(is_meant(numbered(model, name), path) for name in domains or {})


def _as_arrays(prior: dist.Distribution, parameter: Parameter) -> dist.Distribution:
    """Numbers of a prior as arrays, so that other ones need no new compilation."""
    return jax.tree.map(lambda x: jnp.asarray(x, parameter.value.dtype), prior)


def _narrower(path: str, prior: dist.Distribution, parameter: Parameter) -> dict[str, Any]:
    """The support of a prior as domain, where it is a smaller one than the parameter's."""
    support = prior.support
    if prior.support.is_discrete:
        raise TypeError(
            f"The prior of {path} must be continuous; got {type(prior).__name__}, whose support "
            f"is {support}."
        )
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if parameter.domain is None or support == parameter.domain:
        return {}
    if not bool(jnp.all(support(parameter.value))):
        raise ValueError(
            f"{path} must start in the support of its prior, {describe_domain(support)}; got "
            f"{parameter.value}. Start at another value: kx.replace(model, {{{path!r}: value}})."
        )
    return {path: support}


def _data(model: Any, y: Any, independent: bool) -> Array:
    if not hasattr(model, "log_marginal_likelihood") or isinstance(model, type):
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"kx.fit(model, y) needs a GridGP; got {name}{' itself' * isinstance(model, type)}. "
            "For another module pass `loss=`, a function of the model."
        )
    grid = model.check_data(y)
    if independent and grid.ndim != len(model.grid_shape) + 1:
        raise ValueError(
            f"independent=True needs data with one leading axis, (num_fits, *{model.grid_shape}); "
            f"got shape {jnp.shape(y)}."
        )
    if not grid.size:
        raise ValueError(f"y must hold one data set or more; got shape {jnp.shape(grid)}.")
    # Equal counts of unequal exposures vary.
    likelihood = getattr(model, "likelihood", None)
    varying = grid if likelihood is None else likelihood.start(grid)
    least, largest = bounds(varying, 1 if independent else 0)
    constant = np.flatnonzero(largest - least == 0)
    if constant.size and grid.size > largest.size:
        which = f" (data set {constant[0]})" if independent else ""
        value = np.ravel(bounds(grid, 1 if independent else 0)[1])[constant[0]]
        raise ValueError(
            f"Data must vary, so that there is something to fit; got {value} in every cell{which}."
        )
    return grid


def _check_trainable(problem: Problem) -> None:
    table = problem.table()
    if not any(p.trainable and p.value.size for p in table):
        raise ValueError(
            "Nothing is trainable: every parameter is frozen, has no known domain, or is a plain "
            "number rather than an array. Unfreeze one, give `domains=`, or declare fields with "
            f"kx.parameter.\n{table!r}"
        )


def _check_loss(model: Any, loss: Any, independent: bool) -> None:
    if not callable(loss):
        raise TypeError(f"The loss must be a function of the model; got {loss!r}.")
    if independent:
        raise TypeError(
            "independent=True needs data `y`, one entry for each fit; got a loss. Sum the losses "
            "of a batched model instead, or map your own loop over kx.unconstrain."
        )
    value = eqx.filter_eval_shape(loss, model)
    shape = getattr(value, "shape", () if isinstance(value, int | float) else None)
    if shape is None:
        raise TypeError(
            f"The loss must return one number; got {type(value).__name__}. Leave auxiliary results "
            "out."
        )
    if shape != ():
        raise ValueError(
            f"The loss must be a scalar; got shape {shape}. Reduce it, for example by jnp.sum."
        )


def _check_precision(loss: Any, model: Any, dtype: Any) -> None:
    """Refuse a loss whose digits the optimiser could not hold."""
    given = jnp.result_type(eqx.filter_eval_shape(loss, model))
    if not jnp.issubdtype(given, jnp.floating) or jnp.promote_types(given, dtype) != dtype:
        raise TypeError(
            f"The loss must be a real number of at most the precision of the parameters, {dtype}; "
            f"got {given}. Cast the model or the data that the loss uses."
        )


@eqx.filter_jit
def losses_at(problem: Problem, raws: Raw) -> Array:
    """The loss at many points, `(num_points, …)` each, one after another."""
    return jax.lax.map(problem.value, raws)
