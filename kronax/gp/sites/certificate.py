"""How far to trust the normal approximation: by draws from it, weighted by what it left out.

A draw `f` of the approximate posterior has the weight `w = Π_c p(y_c|f_c) / N(z_c; f_c, 1/W_c)`,
and `log Z = ELBO + log E w / exp(E log w)`. To second order that is `ELBO + ½ var log w`. On a big
grid no weights of the whole field serve: their spread grows with the number of cells. So the cells
are taken block by block, each given the sites of all others.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.gp.likelihoods.base import AbstractLikelihood
from kronax.gp.sites.sites import Sites

# Cells of a block, about.
BLOCK = 25
# Beyond this shape of the tail of its weights an average over draws cannot be corrected.
WORST_TAIL = 0.7
# Weights that leave this share of the draws are nearly alike, and their tail means nothing.
ALIKE = 0.9
# The largest of many shifts lies so many standard errors from zero by chance.
CHANCE = 4.0
# A mean that is off by more than this share of a deviation can be seen.
SEEN = 0.1


class ApproximationCheck(eqx.Module):
    """How far a normal approximation of a posterior may be trusted.

    Attributes:
        evidence: log evidence to second order, in nats: by the mean of the log weights, plus half
            their variance.
        evidence_error: its standard error by the draws.
        correction: what the second order adds; where it is large the approximate evidence is off.
        variance_per_cell: of the log weights, per observed cell: 0 for a normal likelihood.
        shares: of the draws that the weights of every block of cells leave, given all others: 1
            where the approximation is exact.
        tails: Pareto's shape of those weights: below 0.5 the approximation is close, from 0.7 on
            it is not; minus infinity where the weights are nearly alike, and it means nothing.
        shifts: by how many standard deviations the mean of a cell moves, at most in every block,
            if that block is weighted right.
        shift_errors: their standard errors by the draws.
        num_draws: how many draws it comes from.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> check = post.check_approximation(jax.random.key(0))
        >>> check.is_close, bool(check.evidence_error < 0.1)
        (True, True)
    """

    evidence: Array
    evidence_error: Array
    correction: Array
    variance_per_cell: Array
    shares: np.ndarray
    tails: np.ndarray
    shifts: np.ndarray
    shift_errors: np.ndarray
    num_draws: int = eqx.field(static=True)

    @property
    def is_close(self) -> bool:
        """Whether no block has a heavy tail, or means that are visibly off."""
        return bool(self.tails.max() < WORST_TAIL and self.worst_shift < SEEN)

    @property
    def worst_shift(self) -> float:
        """The largest shift beyond what so many draws leave by chance."""
        return float(max(0.0, (self.shifts - CHANCE * self.shift_errors).max()))

    def __repr__(self) -> str:
        heavy = int((self.tails >= WORST_TAIL).sum())
        verdict = "The approximation is close."
        if not self.is_close:
            verdict = (
                "The approximation is not good here: sample the field instead, by gp.latent and "
                "NUTS."
            )
        return (
            f"log evidence {float(self.evidence):.3f} ± {float(self.evidence_error):.3f} nats, of "
            f"which the second order is {float(self.correction):.3f}\n"
            f"variance of the log weights per cell {float(self.variance_per_cell):.2g}\n"
            f"weights of {len(self.shares)} blocks of cells: {self.shares.min():.0%} of the draws "
            f"count in the worst one, {heavy} have a tail of {WORST_TAIL:g} and more\n"
            f"means off by {self.worst_shift:.2g} standard deviations at most, beyond the chance "
            f"of {self.num_draws} draws\n"
            f"{verdict}"
        )


@eqx.filter_jit
def log_weights(like: AbstractLikelihood, y: Array, sites: Sites, draws: Array) -> Array:
    """What the sites left out of the log density of every cell, for draws `(s, *grid)`."""
    is_site = sites.precision > 0
    constant = jnp.log(jnp.where(is_site, sites.precision, 1) / (2 * jnp.pi))

    def one(f: Array) -> Array:
        log_site = (constant - sites.precision * jnp.square(sites.target - f)) / 2
        return jnp.where(is_site, like.log_density(y, f) - log_site, 0)

    return jax.vmap(one)(draws)


def check(
    evidence: Array, bound: Array, weights: Array, draws: Array, sites: Sites
) -> ApproximationCheck:
    """From log weights and draws `(s, *grid)` of one field.

    Args:
        evidence: the approximate one.
        bound: the same by the mean of the log weights, which Laplace's is not.
        weights: their logarithms, cell by cell.
        draws: of the approximate posterior.
        sites: that led to it.
    """
    logs, field = np.asarray(weights, float), np.asarray(draws, float)
    count, grid = len(logs), logs.shape[1:]
    seen = np.asarray(sites.precision) > 0
    total = logs.reshape(count, -1).sum(axis=1)
    spread = total.var(ddof=1)
    z = (field - np.asarray(sites.mean, float)) / np.sqrt(np.asarray(sites.variance, float))
    shares, tails, shifts, errors = [], [], [], []
    for block in _blocks(grid):
        inside = np.zeros(grid, bool)
        inside[block] = True
        inside &= seen
        if inside.any():
            one = logs[:, inside].sum(axis=1)
            weight = np.exp(one - one.max())
            weight /= weight.mean()
            shares.append(1 / np.mean(weight**2))
            tails.append(-np.inf if shares[-1] > ALIKE else pareto_shape(one))
            # Less the plain average, whose expectation is zero: a control variate.
            excess = (weight - 1)[:, None] * z[:, inside]
            shifts.append(np.abs(excess.mean(axis=0)).max())
            errors.append(excess.std(axis=0).max() / np.sqrt(count))
    return ApproximationCheck(
        evidence=jnp.asarray(bound + spread / 2),
        evidence_error=jnp.asarray(spread / np.sqrt(2.0 * (count - 1))),
        correction=jnp.asarray(bound + spread / 2 - evidence),
        variance_per_cell=jnp.asarray(spread / seen.sum()),
        shares=np.array(shares),
        tails=np.array(tails),
        shifts=np.array(shifts),
        shift_errors=np.array(errors),
        num_draws=count,
    )


def _blocks(grid: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Boxes of about as many places along every axis."""
    side = max(1, round(BLOCK ** (1 / max(1, sum(n > 1 for n in grid)))))
    starts = [range(0, n, side) for n in grid]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(grid))
    return [tuple(slice(int(k), int(k) + side) for k in corner) for corner in corners]


def pareto_shape(log_weights: np.ndarray) -> float:
    """The shape `k` of the tail of importance weights, by the method of Zhang and Stephens (2009).

    Args:
        log_weights: `(s,)`; the largest `min(s / 5, 3 √s)` of them are the tail, as Vehtari et al.
            (2024) take it. Weights that are all alike have no tail: minus infinity.
    """
    count = len(log_weights)
    size = int(np.ceil(min(0.2 * count, 3 * np.sqrt(count))))
    ordered = np.sort(np.exp(log_weights - log_weights.max()))
    excess = ordered[-size:] - ordered[-size - 1]
    if not excess[-1] > 1e-12 * ordered[-1] or size < 5:
        return -np.inf
    excess = np.maximum(excess, 1e-300)
    grid = np.arange(1, 30 + int(np.sqrt(size)) + 1)
    quarter = excess[int(size / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - np.sqrt(len(grid) / (grid - 0.5))) / (3 * quarter)
    shapes = np.log1p(-b[:, None] * excess).mean(axis=1)
    profile = size * (np.log(-b / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    best = float(b @ weights / weights.sum())
    shape = float(np.log1p(-best * excess).mean())
    # A weakly informative prior keeps the estimate of few draws from running away.
    return (size * shape + 10 * 0.5) / (size + 10)
