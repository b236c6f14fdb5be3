"""Does a model fit its data: scores, coverage and outliers in one table."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kronax.display import aligned
from kronax.gp.criticism.held_out import covered
from kronax.gp.criticism.leave_one_out import LeaveOneOut, leave_one_out
from kronax.gp.means.gls import fitted
from kronax.gp.model.checks import refuse_gaps
from kronax.gp.model.process import AbstractPosterior
from kronax.linalg.arrays.checks import is_concrete
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.spectral.whiten import decorrelate

LEVELS = (0.5, 0.8, 0.95, 0.99)
# How many outliers are printed, and beyond how many standard deviations they are.
MOST_ROWS = 8
THRESHOLD = 3.0


class Diagnostics(eqx.Module):
    """What `post.diagnostics()` returns; prints as a table.

    Attributes:
        leave_one_out: every observation as predicted from all the others.
        decorrelated: `S^{-1/2} (y − mean)`, grid-shaped; batches of the data lead. Under the model
            they are independent and standard normal, and each is nearest to its own cell. With
            coefficients that are integrated out the mean is the estimated one, which takes up as
            many of their degrees of freedom.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> found = post.diagnostics()
        >>> found.decorrelated.shape, found.coverage([0.5, 0.95]).shape
        ((4, 4), (2,))
    """

    leave_one_out: LeaveOneOut
    decorrelated: Float[Array, "..."]

    def coverage(self, level: Any) -> Float[Array, "..."]:
        """The share of decorrelated residuals inside a central interval of a standard normal.

        Under the model every one of `N` is inside with probability `level`, independently: the
        share has the standard deviation `√(level (1 − level) / N)`.

        Args:
            level: between 0 and 1, or several; these are the last axis of the result.

        Raises:
            ValueError: if a level is not between 0 and 1.
        """
        return covered(self.decorrelated, level, len(self.leave_one_out.axes))

    def __repr__(self) -> str:
        found = self.leave_one_out
        title = f"Diagnostics of {' × '.join(map(str, found.y.shape))} observations"
        if not is_concrete(self.decorrelated, found.y, found.mean):
            return title
        # Several data sets are shown together.
        count = found.y.size
        z, white = (np.asarray(x, float) for x in (found.standardised, self.decorrelated))
        rows = [("", "leave one out", "decorrelated", "expected")]
        spread = 1 / math.sqrt(count)
        rows.append(("mean", f"{z.mean():.3f}", f"{white.mean():.3f}", f"0 ± {spread:.2g}"))
        deviation = f"1 ± {spread / math.sqrt(2):.2g}"
        rows.append(
            ("root mean square", f"{_size(z):.3f}", f"{_size(white):.3f}", deviation),
        )
        shares = [np.asarray(covered(x, LEVELS, x.ndim)) for x in map(jnp.asarray, (z, white))]
        for level, single, both in zip(LEVELS, *shares, strict=True):
            error = math.sqrt(level * (1 - level) / count)
            row = f"{single:.1%}", f"{both:.1%}", f"{level:.0%} ± {error:.1%}"
            rows.append((f"inside {level:.0%}", *row))
        score = float(np.sum(np.asarray(found.log_score, float)))
        rmse = math.sqrt(float(np.mean(np.square(np.asarray(found.error, float)))))
        lines = [
            f"{title}: leave-one-out log score {score:.2f} nats, root mean square error {rmse:.4g}",
            aligned(rows),
            *self._outlying(count),
        ]
        return "\n".join(lines)

    def _outlying(self, count: int) -> list[str]:
        found = self.leave_one_out.outliers(THRESHOLD)
        expected = count * math.erfc(THRESHOLD / math.sqrt(2))
        head = (
            f"{len(found)} of {count} more than {THRESHOLD:g} standard deviations away, "
            f"{expected:.2g} expected"
        )
        if not found:
            return [head]
        lines = [f"{head}:", repr(type(found)(found[:MOST_ROWS]))]
        rest = len(found) - MOST_ROWS
        return [*lines, f"and {rest} more"] if rest > 0 else lines


def _size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def diagnostics(post: AbstractPosterior) -> Diagnostics:
    """Those of a posterior."""
    refuse_gaps(post.gp, "Decorrelated residuals are")
    return Diagnostics(leave_one_out(post), _decorrelated(post))


@eqx.filter_jit
def _decorrelated(post: AbstractPosterior) -> Array:
    gp, stay = post.gp, (None,) * len(post.gp.axes)
    residual = jnp.subtract(*same_rank(post.y, gp.mean_on(stay)))
    if post.regression is not None:
        residual = residual - fitted(post.regression.estimates, gp.design_on(stay))
    return decorrelate(post.on_grid, residual)
