"""What a fit returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import equinox as eqx
import numpy as np

from kronax.display import aligned, html_lines, html_table
from kronax.domains import Model
from kronax.fitting.laplace import LaplaceApproximation, laplace, quick_laplace
from kronax.fitting.problem import Problem, Raw
from kronax.fitting.steps import Loop
from kronax.names import Named, words
from kronax.parameter_table import ParameterTable

# Starts that end this near to the best loss, in nats, have reached it.
SAME_LOSS = 1e-3
# A summary takes the Hessian of at most so many numbers.
MOST_NUMBERS = 200


@dataclasses.dataclass(frozen=True)
class Restart:
    """How the fit from one start ended: its best loss, whether and why it stopped there.

    `failed` says that it met a loss or gradient that is not finite.
    """

    loss: float
    converged: bool
    reason: str
    num_steps: int
    failed: bool = False


class RestartTable(tuple[Restart, ...]):
    """The fits from every start, the given model's first; prints as a table."""

    @property
    def num_best(self) -> int:
        """How many ended within 1e-3 of the best loss."""
        losses = np.array([r.loss for r in self])
        return int(np.sum(losses <= losses.min() + SAME_LOSS))

    def _cells(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("start", "loss", "steps", "")]
        for k, r in enumerate(self):
            state = "converged" if r.converged else f"not converged: {r.reason}"
            rows.append(
                ("as given" if k == 0 else str(k), f"{r.loss:.6g}", str(r.num_steps), state)
            )
        return rows

    def __repr__(self) -> str:
        return aligned(self._cells())

    def _repr_html_(self) -> str:
        return html_table(self._cells())


class FitResult(Named, eqx.Module, Generic[Model]):
    """What `kx.fit` returns.

    With `independent=True` the arrays below have a leading axis of fits, `result[i]` is one of
    them, and `model` holds one value of every parameter per fit: use it under `eqx.filter_vmap`.

    Attributes:
        model: the model at the best parameters found.
        losses: the loss at every step, in total nats for a GP, priors included.
        gradient_norms: the largest unconstrained gradient entry per cell, at every step.
        converged: the last of these is below the tolerance.
        reason: why the fit stopped, in words.
        num_steps: number of steps taken.
        wall_time: seconds, compilation included, and those of a run that was continued.
        parameters: table of the parameters at the best point.
        restarts: how the fits from all starts ended; the best one is what all the rest is about.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> result.converged, result.parameters["noise"].path, result.model.grid_shape
        (True, 'noise', (8, 8))
    """

    _internal: ClassVar[frozenset[str]] = words("loop problem raw")
    _guesses: ClassVar[Mapping[str, str]] = {
        "gp": "result.model",
        "best_model": "result.model",
        "params": "result.parameters",
        "success": "result.converged",
        "message": "result.reason",
        "nit": "result.num_steps",
        "fun": "result.loss",
        "history": "result.losses",
        "condition": "result.model.condition(y)",
        "predict": "result.model.condition(y), then .mean(axes=…) and .std(axes=…)",
        "standard_errors": "result.laplace(), and in words result.summary()",
        "save": "kx.save(path, result)",
    }

    model: Model
    losses: np.ndarray
    gradient_norms: np.ndarray
    converged: Any
    reason: Any
    num_steps: Any
    wall_time: float
    parameters: ParameterTable
    restarts: Any
    problem: Problem
    raw: Raw
    loop: Loop | None = eqx.field(static=True, default=None)

    @property
    def loss(self) -> Any:
        """The loss of the model that is returned; an array with `independent=True`."""
        if not self.problem.independent:
            return min(end.loss for end in self.restarts)
        return np.array([min(end.loss for end in table) for table in self.restarts])

    def __len__(self) -> int:
        return self.problem.num_members

    def __getitem__(self, index: int) -> "FitResult[Model]":
        """One of the fits of `independent=True`.

        Raises:
            TypeError: if this is a single fit, or the index is no whole number.
            IndexError: if there are not as many.
        """
        if not self.problem.independent:
            raise TypeError("Only the result of independent=True has parts; this is one fit.")
        if not isinstance(index, int | np.integer):
            raise TypeError(
                f"Fits are taken one at a time, by a whole number; got {index!r}. Several are "
                "[result[i] for i in range(…)], and result.model holds all of them."
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} fits; got index {index}.")
        index = index % len(self)
        problem = self.problem.member(index)
        raw = {path: value[index] for path, value in self.raw.items()}
        model = problem.unconstrained()[1](raw)
        end = int(self.num_steps[index]) + 1
        return FitResult(
            model=model,
            losses=self.losses[index, :end],
            gradient_norms=self.gradient_norms[index, :end],
            converged=bool(self.converged[index]),
            reason=self.reason[index],
            num_steps=end - 1,
            wall_time=self.wall_time,
            parameters=problem.table(model),
            restarts=self.restarts[index],
            problem=problem,
            raw=raw,
        )

    def laplace(self) -> LaplaceApproximation:
        """A normal approximation of the posterior of the parameters, from the exact Hessian.

        One Hessian of the loss: as many products with it as there are trained numbers, about
        three gradients each. A loss without second derivatives, as by iterations or with very many
        gaps, has its Hessian from differences of its gradient, two for every number. Without priors
        it approximates the normalised likelihood.

        Raises:
            ValueError: if the point is no minimum: the loss is flat or falls in some direction,
                which is named.
        """
        self._check_single("laplace()")
        return laplace(self.problem, self.model, self.raw)

    def _certificate(self) -> list[str]:
        """How far to trust the loss, where it comes from iterations."""
        problem = self.problem
        if not problem.is_estimated:
            return []
        estimate = problem.seen(self.model).log_marginal_likelihood_estimate(problem.y)
        return [f"log likelihood {estimate!r}"]

    def summary(self, standard_errors: bool = True) -> str:
        """A readable account: how it ended, and the parameters.

        Args:
            standard_errors: with standard errors and 95 % intervals, where the fit converged and
                trained at most 200 numbers. Up to 20 cost four gradients each, by the loop of the
                fit and so without compiling it anew; more, or where that is not right to three
                digits, one Hessian, see `laplace`.
        """
        if self.problem.independent:
            return repr(self)
        head = "\n".join([self._head(), *self._certificate()])
        remarks = "".join(f"\n{line}" for line in getattr(self.model, "remarks", list)())
        if not (standard_errors and self.converged):
            return f"{head}\n{self.parameters!r}{remarks}"
        count = sum(value.size for value in self.raw.values())
        if count > MOST_NUMBERS:
            return (
                f"{head}\n{self.parameters!r}{remarks}\nNo standard errors: {count} trained "
                "numbers are many for a Hessian. Ask for it by result.laplace()."
            )
        try:
            found = quick_laplace(self.problem, self.model, self.raw, self.loop)
            table = found.table(self.parameters)
        except ValueError as reason:
            return f"{head}\n{self.parameters!r}{remarks}\nNo standard errors: {reason}"
        return f"{head}\n{table}{remarks}"

    def _head(self) -> str:
        state = "converged" if self.converged else "not converged"
        lines = [
            f"{state} after {self.num_steps} steps in {self.wall_time:.1f} s: {self.reason}",
            f"loss {self.losses[0]:.6g} → {self.loss:.6g}",
        ]
        if self.problem.measured is not None:
            way = "by iterations" if self.problem.is_estimated else "exactly"
            lines.append(f"solved {way}: {self.problem.measured.reason}")
        if len(self.restarts) > 1:
            lines.append(
                f"best of {len(self.restarts)} starts; {self.restarts.num_best} of them reached it"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lines, table = repr(self), repr(self.parameters)
        return html_lines(lines.removesuffix(table).rstrip()) + self.parameters._repr_html_()

    def __repr__(self) -> str:
        if not self.problem.independent:
            return f"{self._head()}\n{self.parameters!r}"
        converged = np.asarray(self.converged)
        lines = [
            f"{int(converged.sum())} of {len(self)} fits converged in {self.wall_time:.1f} s, "
            f"after {np.min(self.num_steps)} to {np.max(self.num_steps)} steps",
            f"losses {np.min(self.loss):.6g} to {np.max(self.loss):.6g}",
        ]
        others = [self.reason[i] for i in np.flatnonzero(~converged)]
        for reason in dict.fromkeys(others):
            lines.append(f"{others.count(reason)} not converged: {reason}")
        return "\n".join([*lines, repr(self.parameters)])

    def _check_single(self, what: str) -> None:
        if self.problem.independent:
            raise TypeError(
                f"{what} is for a single fit; got {len(self)} independent ones. Take result[i]."
            )


def model_at(problem: Problem, raw: Raw) -> Any:
    """The model; of independent problems, whose values have a leading axis, with one everywhere."""
    if not problem.independent:
        return problem.build(raw)
    return eqx.filter_vmap(problem.build, out_axes=eqx.if_array(0))(raw)
