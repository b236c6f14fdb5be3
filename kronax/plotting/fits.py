"""Pictures of fits and profile likelihoods; they need matplotlib, `pip install "kronax[plot]"`."""

from typing import Any

import numpy as np
from numpyro.distributions import constraints

from kronax.fitting.profile import ProfileLikelihood
from kronax.fitting.result import FitResult
from kronax.plotting.figures import legend_above, pyplot

# Half the 95 % quantile of χ² with one degree of freedom.
CHI2_95 = 1.9207294103470623
# What is drawn of a profile: more than a 99 % interval needs.
HIGHEST = 5.0


def plot_losses(result: FitResult, ax: Any = None) -> Any:
    """The loss above its best, and the gradient norm, at every step.

    Both on logarithmic scales; differences below rounding are drawn there. Other starts are marked
    where they ended. Of independent fits every one is drawn, above its own best.

    Args:
        result: what `kx.fit` returned.
        ax: matplotlib Axes: one for the loss alone, or two; by default those of a new figure.

    Returns:
        The Axes: an array of two, or the one that was given.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if more than two Axes are given.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.1)
        >>> result = kx.fit(gp, jnp.sin(6 * x)[:, None] * x, num_steps=3, progress=False)
        >>> loss_axes, gradient_axes = kx.plot_losses(result)
        >>> loss_axes.get_yscale()
        'log'
    """
    if ax is None:
        _, axes = pyplot().subplots(2, sharex=True, figsize=(6, 5), layout="constrained")
    else:
        axes = np.atleast_1d(ax)
    if axes.shape not in ((1,), (2,)):
        raise ValueError(f"ax must be one or two Axes; got an array of shape {axes.shape}.")
    losses, norms = np.atleast_2d(result.losses), np.atleast_2d(result.gradient_norms)
    best = np.nanmin(losses, axis=1, keepdims=True)
    rounding = np.spacing(np.abs(best).astype(losses.dtype))
    many = losses.shape[0] > 1
    style = {
        "color": "tab:blue",
        "alpha": max(0.1, losses.shape[0] ** -0.4),
        "lw": 1 if many else 1.8,
    }
    axes[0].plot(np.maximum(losses - best, rounding).T, **style)
    if not many and len(result.restarts) > 1:
        _mark_starts(axes[0], result, best.item(), rounding.item())
    axes[0].set(yscale="log", ylabel="loss above its best")
    axes[-1].set_xlabel("step")
    if axes.size == 2:
        axes[1].plot(norms.T, **style)
        per_cell = " per cell" if result.problem.num_cells != 1 else ""
        axes[1].set(yscale="log", ylabel=f"largest gradient{per_cell}")
    return axes if ax is None or np.ndim(ax) else ax


def _mark_starts(ax: Any, result: FitResult, best: float, rounding: float) -> None:
    """Where the fits from all starts ended: full marks converged."""
    for converged in (True, False):
        ends = [r for r in result.restarts if r.converged is converged and np.isfinite(r.loss)]
        if ends:
            ax.plot(
                [r.num_steps for r in ends],
                [max(r.loss - best, rounding) for r in ends],
                "o",
                color="tab:orange",
                mfc="tab:orange" if converged else "none",
                label=f"end of a start, {'converged' if converged else 'not converged'}",
            )
    legend_above(ax)


def plot_profile(profile: ProfileLikelihood, ax: Any = None) -> Any:
    """The rise of the loss along a profile, the 95 % interval, and the Laplace parabola.

    The parabola is that of the unconstrained parameter; where it leaves the profile, standard
    errors are not to be trusted.

    Args:
        profile: what `kx.profile_likelihood` returned.
        ax: matplotlib Axes; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.3)), (x, x), noise=0.01)
        >>> y = jnp.sin(6 * x)[:, None] * x + 0.1 * jnp.cos(40 * x * x[:, None])
        >>> result = kx.fit(gp, y, freeze=("variance", "kernels"), progress=False)
        >>> profile = kx.profile_likelihood(result, "noise", progress=False)
        >>> kx.plot_profile(profile).get_xlabel()
        'noise'
    """
    if ax is None:
        _, ax = pyplot().subplots(figsize=(6, 4), layout="constrained")
    rise = profile.losses - profile.losses.min()
    spaced = np.geomspace if profile.domain is constraints.positive else np.linspace
    low, high = float(profile.values[0]), float(profile.values[-1])
    x = spaced(low, high, 400)[1:-1]
    ax.plot(x, profile.rise(x), color="tab:blue", lw=1.8, label="profile")
    ax.plot(profile.values, rise, "o", color="tab:blue", ms=4)
    if profile.standard_error is not None:
        fitted = profile.unconstrained(profile.values[profile.fitted])
        normal = (profile.unconstrained(x) - fitted) ** 2 / (2 * profile.standard_error**2)
        ax.plot(x, normal, "--", color="tab:orange", label="Laplace approximation")
    ax.axhline(CHI2_95, color="0.4", lw=1, ls=":", label="95 %, χ² with one degree of freedom")
    ax.fill_between(
        x, 0, CHI2_95, where=profile.rise(x) <= CHI2_95, color="tab:blue", alpha=0.12, lw=0
    )
    ax.set(
        xlabel=profile.name,
        ylabel="rise of the loss",
        ylim=(0, min(HIGHEST, 1.05 * max(float(rise.max()), 1.1 * CHI2_95))),
    )
    if profile.domain is constraints.positive:
        _logarithmic(ax, profile.values)
    legend_above(ax)
    return ax


def _logarithmic(ax: Any, values: np.ndarray) -> None:
    """A logarithmic axis whose labels are plain numbers where a decade or two are shown."""
    from matplotlib import ticker

    ax.set_xscale("log")
    decades = np.log10(values[-1] / values[0])
    if decades < 2:
        few = ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
        ax.xaxis.set_major_locator(few if decades < 1 else ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
