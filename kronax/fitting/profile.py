"""The profile likelihood of one parameter: the loss at its values, the others at their best."""

import math
import re
from statistics import NormalDist
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to
from tqdm.auto import tqdm

from kronax.display import aligned
from kronax.domains import as_parameter
from kronax.fitting.driver import INTERRUPTED
from kronax.fitting.fit import fit
from kronax.fitting.laplace import quick_laplace
from kronax.fitting.problem import Problem, Raw, default_tolerance, is_at_floor
from kronax.fitting.result import SAME_LOSS, FitResult
from kronax.parameter_table import Parameter, describe_domain
from kronax.paths import named, nearest, numbered

# Without values of the user's a profile is followed outwards by half a standard error at a time,
# until the root of twice the rise, which counts standard errors if the loss is normal, is three. A
# step that raises it by more than one is too long to be interpolated, and is shortened.
STEP, ENOUGH, TOO_FAR = 0.5, 3.0, 1.0
MOST_STEPS, MOST_TRIALS = 12, 40
# The step where there is no standard error: twelve of them are a factor of a hundred.
BLIND_STEP = math.log(10) / 6


class ProfileLikelihood(eqx.Module):
    """What `kx.profile_likelihood` returns.

    Attributes:
        path: of the parameter.
        values: that it was held at, in natural units, increasing; the fitted one is among them.
        losses: the loss at each, minimised over the other parameters: nats for a GP.
        converged: whether that minimisation did.
        models: the model at each value: a leading axis on every array, for `eqx.filter_vmap`.
        fitted: the place of the fitted value.
        standard_error: of the unconstrained parameter, by the Laplace approximation; `None` where
            there is none.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> profile = kx.profile_likelihood(result, "noise", progress=False)
        >>> profile.name, profile.losses.shape == profile.values.shape
        ('noise', True)
    """

    path: str = eqx.field(static=True)
    domain: Any = eqx.field(static=True)
    values: np.ndarray
    losses: np.ndarray
    converged: np.ndarray
    models: Any
    fitted: int = eqx.field(static=True)
    standard_error: float | None = eqx.field(static=True)

    @property
    def name(self) -> str:
        """The parameter, a kernel by the name of its axis."""
        return named(self.models, self.path)

    def rise(self, values: Any) -> np.ndarray:
        """How far the loss at some values is above its lowest; not a number outside the profile.

        Interpolated between the values of the profile: the signed root of the rise, which is
        straight for a normal likelihood, in unconstrained space.
        """
        raw = self.unconstrained(self.values)
        order = np.argsort(raw)
        roots = self._roots()[order]
        return np.interp(self.unconstrained(values), raw[order], roots, np.nan, np.nan) ** 2 / 2

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The values that a likelihood-ratio test at `1 − level` does not reject.

        They end where the loss first rises, on the way out from its lowest, by half a χ² quantile
        with one degree of freedom (by 1.92 for 95 %); interpolated as in `rise`.

        Raises:
            ValueError: if the level is not between 0 and 1, or the loss does not rise as far within
                the profile.
        """
        low, high = self._end(level, -1), self._end(level, 1)
        if low is None or high is None:
            which, end = ("down", 0) if low is None else ("up", -1)
            rise = self.losses[end] - self.losses.min()
            raise ValueError(
                f"The loss must rise by {_root(level) ** 2 / 2:.3g} on both sides to bound a "
                f"{100 * level:g} % interval of {self.name}; {which} to {self.values[end]:.4g} it "
                f"rises by {rise:.3g}. Give `values` further out; if it stays there, the data do "
                "not bound the parameter on this side."
            )
        return low, high

    def unconstrained(self, values: Any) -> np.ndarray:
        """Values of the parameter as the optimiser sees them."""
        inverse = biject_to(self.domain).inv(jnp.asarray(values, self.values.dtype))
        return np.asarray(inverse, np.float64)

    def _roots(self) -> np.ndarray:
        """`±√(2 rise)`: the distance from the best value in standard errors, if it were normal."""
        best = int(np.argmin(self.losses))
        side = np.sign(np.arange(self.losses.size) - best)
        return side * np.sqrt(2 * (self.losses.astype(np.float64) - self.losses[best]))

    def _end(self, level: float, side: int) -> float | None:
        """One end of the interval; nothing if the profile does not reach it."""
        root, best = _root(level), int(np.argmin(self.losses))
        places = np.arange(best, -1, -1) if side < 0 else np.arange(best, self.values.size)
        roots, raw = side * self._roots()[places], self.unconstrained(self.values)[places]
        beyond = np.flatnonzero(roots >= root)
        if not beyond.size:
            return None
        k = beyond[0]
        share = (root - roots[k - 1]) / (roots[k] - roots[k - 1])
        end = raw[k - 1] + share * (raw[k] - raw[k - 1])
        return float(biject_to(self.domain)(jnp.asarray(end, self.values.dtype)))

    def __repr__(self) -> str:
        best = int(np.argmin(self.losses))
        low, high = (self._end(0.95, side) for side in (-1, 1))
        bounds = [
            "not bounded below" if low is None else f"from {low:.4g}",
            "not bounded above" if high is None else f"to {high:.4g}",
        ]
        lines = [
            f"Profile likelihood of {self.name} at {self.values.size} values",
            f"95 % interval: {' '.join(bounds)}, by the rise of the loss",
        ]
        gain = float(self.losses[self.fitted] - self.losses[best])
        if gain > SAME_LOSS:
            lines.append(
                f"The fit was not at its best: the loss is {gain:.3g} lower at "
                f"{self.name} = {self.values[best]:.4g}. Fit again from there."
            )
        rows = [("value", "loss", "rise", "")]
        for k, (value, loss) in enumerate(zip(self.values, self.losses, strict=True)):
            remark = "fitted" if k == self.fitted else ""
            remark = remark if self.converged[k] else "not converged"
            rows.append((f"{value:.4g}", f"{loss:.6g}", f"{loss - self.losses[best]:.3f}", remark))
        return "\n".join([*lines, aligned(rows)])


def _root(level: float) -> float:
    """The root of the χ² quantile with one degree of freedom."""
    if not 0 < level < 1:
        raise ValueError(f"The level must be between 0 and 1; got {level}.")
    return NormalDist().inv_cdf(0.5 + level / 2)


class Held(eqx.Module):
    """A problem with one unconstrained number held.

    A module, not a closure: its numbers are traced, so that all values share one compiled loop.
    """

    problem: Problem
    others: Raw
    at: Array
    path: str = eqx.field(static=True)
    index: tuple[int, ...] = eqx.field(static=True)

    def raw(self) -> Raw:
        """All unconstrained values."""
        if not self.index:
            return {**self.others, self.path: self.at}
        return {**self.others, self.path: self.others[self.path].at[self.index].set(self.at)}


def profile_likelihood(
    result: FitResult,
    path: str,
    values: Any = None,
    *,
    num_steps: int = 200,
    tolerance: float | None = None,
    progress: bool = True,
) -> ProfileLikelihood:
    """The loss at values of one parameter, minimised over all the others.

    Its rise gives intervals that need no quadratic loss, and shows whether the data determine the
    parameter at all. One fit per value, each from the end of its neighbour, in one compiled loop.

    Args:
        result: of a single fit. Priors are part of the loss.
        path: of a parameter that was trained; `path[i]` is one entry of an array.
        values: in natural units; the fitted value is added. By default they go out from there in
            steps of half a standard error or less, up to six, until the loss has risen by 4.5.
        num_steps: at most this many steps of each fit.
        tolerance: of each fit, as for `kx.fit`.
        progress: show a bar in a terminal or notebook.

    Raises:
        TypeError: if it is no result of a fit, or one of independent fits.
        KeyError: if the path is unknown; the nearest is suggested.
        ValueError: if the parameter was not trained or is no single number, or values lie outside
            its domain.
        FloatingPointError: if the loss is not finite at one of `values`.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> profile = kx.profile_likelihood(result, "noise", progress=False)
        >>> low, high = profile.interval(0.95)
        >>> bool(low < result.model.noise < high)
        True
    """
    if not isinstance(result, FitResult):
        raise TypeError(
            f"kx.profile_likelihood needs the result of kx.fit; got {type(result).__name__}. Fit "
            "it first."
        )
    if result.problem.independent:
        raise TypeError(
            f"kx.profile_likelihood is for a single fit; got {len(result)} independent ones. Take "
            "one: result[i]."
        )
    path = numbered(result.problem.model, path)
    parameter, index = _trained(result, path)
    problem, raws = result.problem, result.raw
    if problem.has_floor:
        is_noise = parameter.path == result.model.noise_parameter
        # At its floor the noise stays where it is: the loss is flat below.
        if is_noise or is_at_floor(problem.noise_level(result.model)):
            problem, raws = problem.without_floor(result.model, hold=not is_noise)
    transform = biject_to(parameter.domain)
    others = {key: raw for key, raw in raws.items() if index or key != parameter.path}
    at = raws[parameter.path][index]
    start = _Point(
        Held(problem, others, at, parameter.path, index), float(result.loss), bool(result.converged)
    )
    standard_error = _standard_error(result, parameter.path, index)
    step = BLIND_STEP if standard_error is None else STEP * standard_error
    given = None if values is None else _unconstrained(values, parameter, path)
    if tolerance is None:
        tolerance = default_tolerance(at.dtype)
    # The loss of a held problem is a user's own to `fit`, which knows no cells to divide by.
    options = {"num_steps": num_steps, "tolerance": tolerance * problem.num_cells}
    points = [start]
    title = f"profile of {named(problem.model, path)}"
    with tqdm(desc=title, disable=None if progress else True) as bar:

        def minimised(before: _Point, raw: float) -> _Point:
            bar.update()
            value = jnp.asarray(raw, at.dtype)
            return _minimised(before, value, float(transform(value)), options)

        for side in (-1, 1):
            if given is None:
                points += _outwards(start, side * step, minimised)
            else:
                points += _visited(start, side, given, minimised)
    natural = np.array([transform(point.held.at) for point in points])
    order = np.argsort(natural)
    at_values = [points[k].held.raw() for k in order]
    build = problem.unconstrained()[1]
    return ProfileLikelihood(
        path=path,
        domain=parameter.domain,
        values=natural[order],
        losses=np.array([points[k].loss for k in order]),
        converged=np.array([points[k].converged for k in order]),
        models=eqx.filter_vmap(build, out_axes=eqx.if_array(0))(
            jax.tree.map(lambda *entries: jnp.stack(entries), *at_values)
        ),
        fitted=int(np.flatnonzero(order == 0)[0]),
        standard_error=standard_error,
    )


class _Point(NamedTuple):
    """One place of a profile."""

    held: Held
    loss: float
    converged: bool


def _trained(result: FitResult, path: str) -> tuple[Parameter, tuple[int, ...]]:
    """The parameter, and the place of the one number in it."""
    rows = {p.path: p for p in result.parameters}
    match = re.fullmatch(r"(.*)\[(\d+(?:, ?\d+)*)\]", path)
    index: tuple[int, ...] = ()
    if path not in rows and match and match[1] in rows:
        path, index = match[1], tuple(map(int, match[2].split(",")))
    if path not in rows:
        raise KeyError(f"There is no parameter {path!r}.{nearest(path, rows)}")
    row = rows[path]
    if not row.trainable:
        why = "it is frozen, or of unknown domain" if row.source is None else f"it is {row.source}"
        raise ValueError(f"A profile is of a parameter that was trained; {path} was not: {why}.")
    shape = row.value.shape
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise ValueError(
            f"A profile is of one number; {path} has shape {shape}"
            + (
                f": name one of its entries, as in {path}[{', '.join('0' * len(shape))}]."
                if shape
                else "."
            )
        )
    if biject_to(row.domain).domain.event_dim:
        raise ValueError(
            f"A profile needs a parameter with a domain entry by entry; {path} is "
            f"{describe_domain(row.domain)}."
        )
    return row, index


def _standard_error(result: FitResult, path: str, index: tuple[int, ...]) -> float | None:
    name = path + (f"[{', '.join(map(str, index))}]" if index else "")
    try:
        laplace = quick_laplace(result.problem, result.model, result.raw, result.loop)
    except ValueError:
        return None
    if name not in laplace.names:  # noise at its floor
        return None
    place = laplace.names.index(name)
    return float(jnp.sqrt(laplace.covariance[place, place]))


def _unconstrained(values: Any, parameter: Parameter, path: str) -> np.ndarray:
    dtype = parameter.value.dtype
    array = as_parameter(np.asarray(values, dtype), parameter.domain, f"Each value of {path}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values must be one or more numbers; got shape {array.shape}.")
    return np.unique(np.asarray(biject_to(parameter.domain).inv(array)))


def _visited(start: _Point, side: int, given: np.ndarray, minimised: Any) -> list[_Point]:
    """The given values on one side of the fitted one, the nearest first."""
    beyond = given[side * (given - float(start.held.at)) > 0]
    points = [start]
    for raw in sorted(beyond.tolist(), key=lambda raw: side * raw):
        points.append(minimised(points[-1], raw))
    return points[1:]


def _outwards(start: _Point, longest: float, minimised: Any) -> list[_Point]:
    """Values on one side, as far as a profile is wanted, near enough to interpolate between."""
    points, step, reached, travelled = [start], longest, 0.0, 0.0
    for _ in range(MOST_TRIALS):
        try:
            point = minimised(points[-1], float(points[-1].held.at) + step)
        except FloatingPointError:  # beyond what numbers hold: the profile ends before
            break
        gain = math.sqrt(2 * max(point.loss - start.loss, 0.0)) - reached
        if gain > TOO_FAR:
            step *= max(STEP / gain, 1 / 16)
            continue
        points.append(point)
        reached, travelled = reached + gain, travelled + step
        if reached >= ENOUGH or abs(travelled) > (MOST_STEPS - 0.5) * abs(longest):
            break
        step = step if gain > STEP else _longer(step, longest)
    return points[1:]


def _longer(step: float, longest: float) -> float:
    return math.copysign(min(2 * abs(step), abs(longest)), longest)


def _loss(held: Held) -> Array:
    return held.problem.value(held.raw())


_value = eqx.filter_jit(_loss)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss is {loss} there.")
    return loss


def _minimised(before: _Point, at: Array, value: float, options: dict[str, Any]) -> _Point:
    """The next point, from the end of the one before it."""
    held = eqx.tree_at(lambda h: h.at, before.held, at)
    frozen = ("problem", "at")
    try:
        if not held.others:
            return _Point(held, _finite(float(_value(held))), True)
        result = fit(held, loss=_loss, freeze=frozen, progress=False, **options)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"The profile of {held.path} cannot be followed to the value {value:.6g}. {error}"
        ) from error
    if result.reason == INTERRUPTED:
        raise KeyboardInterrupt
    return _Point(result.model, float(result.loss), bool(result.converged))
