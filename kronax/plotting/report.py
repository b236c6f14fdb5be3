"""A posterior on one page, which `post.plot()` returns."""

from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from kronax.gp.datasets import grid_dims, values_of
from kronax.gp.model.process import AbstractPosterior
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.gp.summaries import PICTURES
from kronax.plotting.cuts import Cut, cut, number_of
from kronax.plotting.figures import (
    axis_label,
    data_name,
    drawable,
    is_labels,
    legend_above,
    name_categories,
    pyplot,
    shorten_dates,
)
from kronax.plotting.predictions import draw_map, map_axes, plot_maps, plot_series

# Errors that are drawn in full colour, in standard deviations.
MOST = 3.0
# Quantiles that are drawn of many errors.
MOST_MARKS = 400
# Of independent numbers, so much lies inside of the grey bands.
CHANCE = 0.95


def draw_report(post: Any, x: Any = None, y: Any = None, at: Any = None) -> Any:
    """The figure of `post.plot()`."""
    is_map = _has_map(post)
    found = cut(post, map_axes(post, x, y) if is_map else _line_axis(post, x), at, {})
    z = _standardised(post)
    top = ["data", "mean", "deviation"] if is_map else ["series"] * 3
    below = ["residuals", "quantiles", "calibration"]
    figure = pyplot().figure(figsize=(13.0, 7.6), layout="constrained")
    axes = figure.subplot_mosaic([top, below])
    if is_map:
        # With a likelihood its function is on another scale than the data.
        options: Any = {"show_data": True, "include_noise": isinstance(post, LikelihoodPosterior)}
        plot_maps(post, x, y, at, ax=[axes[name] for name in top], **options)
        _map_of_errors(post, axes["residuals"], found, z)
    else:
        plot_series(post, found.drawn[0], at, ax=axes["series"])
        _line_of_errors(post, axes["residuals"], found, z)
    seen = np.sort(z[np.isfinite(z)])
    _draw_quantiles(axes["quantiles"], seen)
    _draw_calibration(axes["calibration"], seen)
    heading = ", ".join(word for word in (data_name(post, True), found.title) if word)
    figure.suptitle(heading)
    return figure


PICTURES["report"] = draw_report


def _has_map(post: AbstractPosterior) -> bool:
    kinds = [axis.num_dimensions for axis in post.gp.axes]
    return 2 in kinds or kinds.count(None) > 1


def _line_axis(post: AbstractPosterior, x: Any) -> tuple[int]:
    lines = [i for i, axis in enumerate(post.gp.axes) if axis.num_dimensions is None]
    if not lines:
        raise ValueError(
            "A report needs an axis with coordinates (n,), or one of places in two dimensions; got "
            f"{', '.join(map(repr, grid_dims(post.gp)))}."
        )
    return (lines[0] if x is None else number_of(post, x),)


def _standardised(post: AbstractPosterior) -> np.ndarray:
    """Errors of every observation given all others, standard normal under the model."""
    left_out: Any = post
    found = left_out.leave_one_out()
    if not isinstance(post, LikelihoodPosterior):
        return np.asarray(found.standardised, float)
    placed = np.asarray(found.probability_integral_transform(jax.random.key(0)), float)
    inside = np.clip(placed, 1e-12, 1 - 1e-12)
    return np.array([_normal_quantile(p) for p in inside.ravel()]).reshape(placed.shape)


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p) if np.isfinite(p) else np.nan


def _on(found: Cut, values: np.ndarray) -> np.ndarray:
    """Values of the grid on the cells that are drawn; none where it goes between them."""
    if not found.on_grid:
        shape = [len(place) for i, place in enumerate(found.places) if i in found.drawn]
        return np.full(shape, np.nan)
    return values[
        tuple(slice(None) if i in found.drawn else k for i, k in enumerate(found.indices))
    ]


def _map_of_errors(post: AbstractPosterior, ax: Any, found: Cut, z: np.ndarray) -> None:
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -MOST, "vmax": MOST}
    if len(found.drawn) == 1:  # places whose errors are small would be white on white
        style |= {"edgecolors": "0.6", "linewidths": 0.5}
    draw_map(post, ax, found, _on(found, z), style, "standard deviations")
    ax.set_title("leave-one-out errors")


def _line_of_errors(post: AbstractPosterior, ax: Any, found: Cut, z: np.ndarray) -> None:
    (i,) = found.drawn
    axis = post.gp.axes[i]
    places = values_of(axis)
    assert places is not None
    side = drawable(places)
    if is_labels(axis):
        name_categories(ax, "x", side)
        side = np.arange(len(side))
    else:
        ax.set_xlabel(axis_label(post.gp, i))
        shorten_dates(ax, "x", side, axis)
    ax.axhspan(-2, 2, color="0.9", lw=0)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.plot(side, _on(found, z), "o", ms=3.5, color="tab:blue")
    ax.set(title="leave-one-out errors", ylabel="standard deviations")


def _draw_quantiles(ax: Any, seen: np.ndarray) -> None:
    """Sorted errors against those of a normal distribution; the band is of independent ones."""
    count = len(seen)
    levels = (np.arange(count) + 0.5) / count
    if count > MOST_MARKS:  # the tails, mark by mark, and what lies between them
        ends = np.r_[:50, count - 50 : count]
        chosen = np.union1d(ends, np.linspace(0, count - 1, MOST_MARKS).astype(int))
        seen, levels = seen[chosen], levels[chosen]
    expected = np.array([NormalDist().inv_cdf(p) for p in levels])
    density = np.exp(-(expected**2) / 2) / np.sqrt(2 * np.pi)
    half = _half_width(levels, count) / density
    ax.fill_between(expected, expected - half, expected + half, color="0.88", lw=0, label="chance")
    ax.plot(expected, expected, color="0.5", lw=0.8)
    ax.plot(expected, seen, "o", ms=3, color="tab:blue", label="errors")
    ax.set(xlabel="standard normal", ylabel="leave-one-out errors", title="distribution")
    legend_above(ax)


def _draw_calibration(ax: Any, seen: np.ndarray) -> None:
    """How many errors are inside of their central intervals, against how many should be."""
    levels = np.linspace(0, 1, 201)[1:-1]
    inside = [np.mean(np.abs(seen) <= NormalDist().inv_cdf((1 + p) / 2)) for p in levels]
    half = _half_width(levels, len(seen))
    ax.fill_between(levels, levels - half, levels + half, color="0.88", lw=0, label="chance")
    ax.plot(levels, levels, color="0.5", lw=0.8)
    ax.plot(levels, inside, color="tab:blue", lw=1.8, label="observations")
    ax.set(xlabel="central interval", ylabel="share inside", title="calibration")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect=1)
    legend_above(ax)


def _half_width(levels: np.ndarray, count: int) -> np.ndarray:
    """Of the interval in which a share of independent numbers lies with the probability CHANCE."""
    return NormalDist().inv_cdf((1 + CHANCE) / 2) * np.sqrt(levels * (1 - levels) / count)
