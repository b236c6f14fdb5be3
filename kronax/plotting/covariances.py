"""Pictures of what a model supposes: the shapes of its kernels, the spectra of their matrices."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from kronax.gp.axes.axis import Axis
from kronax.gp.axes.declarations import EARTH_RADIUS
from kronax.gp.coordinates.spacing import Coordinates
from kronax.gp.datasets import grid_dims, values_of
from kronax.gp.grid import GridGP
from kronax.gp.kernels.base import Kernel, Sum
from kronax.linalg.arrays.checks import check_finite
from kronax.plotting.figures import (
    axis_label,
    distance_label,
    drawable,
    is_labels,
    legend_above,
    name_categories,
    panels,
)

# As many places of an axis as a picture can show as a matrix, or as pairs.
MOST_ROWS, MOST_PLACES = 400, 150


def plot_spectra(gp: GridGP, ax: Any = None) -> Any:
    """The eigenvalues of the covariance along every axis, each relative to its largest.

    Where a curve has fallen is what the axis has as independent patterns. What lies under the
    dotted line is weaker than independent noise, whatever the other axes do. One `eigh` per axis.

    Args:
        gp: the process.
        ax: matplotlib Axes; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the rank of a low-rank axis is too small for its parameters.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.Matern12(0.3)}, {"a": x, "b": x}, noise=0.1)
        >>> ax = kx.plot_spectra(gp)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['a', 'b', 'noise']
    """
    (ax,) = panels(ax, 1, 5.6, 3.8)
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    largest = 1.0
    for name, factor in zip(names, gp.covariance(include_noise=False).factors, strict=True):
        values = _eigenvalues(factor, name)
        largest *= values[0]
        # Below rounding they are no numbers of the model.
        relative = values / values[0]
        rounding = len(values) * float(jnp.finfo(gp.dtype).eps)
        order = np.arange(1, len(values) + 1)
        shown = relative > rounding
        ax.plot(order[shown], relative[shown], "-o", ms=3, lw=1.4, label=name)
    noise = gp.noise_model.one_variance
    if noise is not None:
        share = float(noise) / largest
        ax.axhline(share, color="0.4", lw=1, ls=":", label="noise")
    ax.set(xscale="log", yscale="log", xlabel="number", ylabel="eigenvalue / largest")
    legend_above(ax)
    return ax


def _eigenvalues(factor: Any, name: str) -> np.ndarray:
    """In descending order; those of a low-rank factor that are not zero."""
    root = factor.thin_root()
    if root is not None:
        check_finite(root, f"The low-rank factor of {name} (raise the rank of `structure`)")
        return np.square(np.linalg.svd(np.asarray(root, np.float64), compute_uv=False))
    blocks = factor.blocks()
    parts = []
    for array, ndim, size in zip(blocks.arrays, blocks.ndims, blocks.sizes, strict=True):
        values = np.asarray(array, np.float64)
        parts.append(np.linalg.eigvalsh(values) if ndim == 2 else np.broadcast_to(values, size))
    return np.sort(np.concatenate(parts))[::-1]


def plot_kernels(gp: GridGP, ax: Any = None) -> Any:
    """The correlation along every axis, one panel each, in the units of the axis.

    A stationary kernel is drawn over distance, as far as the axis reaches, with the terms of a sum
    beneath it and the distance between neighbours marked; places in several dimensions are drawn
    as pairs. Other kernels, and categories, are drawn as a matrix.

    Args:
        gp: the process.
        ax: matplotlib Axes, one per axis; by default those of a new figure.

    Returns:
        An array of Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if another number of Axes is given.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.Linear()}, {"a": x, "b": x}, noise=0.1)
        >>> [ax.get_title() for ax in kx.plot_kernels(gp)]
        ['a', 'b']
    """
    axes = panels(ax, len(gp.axes))
    names = gp.axis_names or tuple(f"axis {i}" for i in range(len(gp.axes)))
    for i, (one, kernel, axis) in enumerate(zip(axes, gp.kernels, gp.axes, strict=True)):
        one.set_title(names[i])
        if is_labels(axis) or not kernel.stationary:
            _draw_matrix(one, gp, i)
        elif axis.num_dimensions is None:
            _draw_line(one, gp, i)
        else:
            _draw_pairs(one, gp, i)
    return axes


def _draw_line(ax: Any, gp: GridGP, i: int) -> None:
    kernel, axis = gp.kernels[i], gp.axes[i]
    x = np.asarray(axis.points(gp.dtype).centred, np.float64)
    reach = np.ptp(x) if axis.period is None else axis.period / 2
    distance = np.linspace(0, reach if reach > 0 else 1.0, 401)
    terms = list(_terms(kernel)) if isinstance(kernel, Sum) else []
    whole = _covariance(kernel, axis, distance, gp.dtype)
    for k, term in enumerate(terms, start=1):
        part = _covariance(term, axis, distance, gp.dtype) / whole[0]
        name = type(term.split_scale()[0]).__name__
        ax.plot(distance, part, "--", color=f"C{k}", lw=1.3, zorder=3, label=name)
    ax.plot(distance, whole / whole[0], color="C0", lw=2.2, label="sum" if terms else None)
    steps = np.diff(np.unique(x))
    if steps.size:
        ax.axvline(np.median(steps), color="0.6", lw=1, ls=":", label="neighbours")
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set(xlabel=distance_label(gp, i), ylabel="correlation", xlim=(0, distance[-1]))
    legend_above(ax, fontsize="small")


def _terms(kernel: Kernel) -> Any:
    """The terms of a sum of sums."""
    if isinstance(kernel, Sum):
        yield from _terms(kernel.first)
        yield from _terms(kernel.second)
    else:
        yield kernel


def _covariance(kernel: Kernel, axis: Axis, distance: np.ndarray, dtype: Any) -> np.ndarray:
    """With the first place of the axis, at these distances from it."""
    static = Coordinates(distance, is_exact=True)
    moved = dataclasses.replace(
        axis,
        static=static,
        origin=static.origin,
        traced=None,
        coding=None,
        given=None,
        index=None,
    )
    points = moved.points(dtype)
    return np.asarray(kernel.matrix_at(points[:1], points), np.float64)[0]


def _draw_pairs(ax: Any, gp: GridGP, i: int) -> None:
    """The correlation of pairs of places over their distance."""
    axis = gp.axes[i]
    points = axis.points(gp.dtype)[_some(axis.size, MOST_PLACES)]
    matrix = np.asarray(gp.kernels[i].matrix_at(points, points), np.float64)
    places = points.centred if points.places is None else points.places
    x = np.asarray(places, np.float64)
    distance = np.sqrt(np.sum((x[:, None] - x) ** 2, axis=-1))
    what = distance_label(gp, i)
    if axis.radius is not None:
        distance = 2 * axis.radius * np.arcsin(np.clip(distance / (2 * axis.radius), 0, 1))
        what = "great-circle distance" + " (km)" * (axis.radius == EARTH_RADIUS)
    ax.plot(distance.ravel(), (matrix / matrix[0, 0]).ravel(), ".", ms=3, color="tab:blue")
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set(xlabel=what, ylabel="correlation", xlim=(0, None))


def _draw_matrix(ax: Any, gp: GridGP, i: int) -> None:
    """The correlations of all pairs; covariances where a variance is zero."""
    axis, known = gp.axes[i], values_of(gp.axes[i])
    some = _some(axis.size, MOST_ROWS)
    points = axis.points(gp.dtype)[some]
    matrix = np.asarray(gp.kernels[i].matrix_at(points, points), np.float64)
    sd = np.sqrt(np.diagonal(matrix))
    what = "correlation" if (sd > 0).all() else "covariance"
    if what == "correlation":
        matrix = matrix / (sd[:, None] * sd)
    limit = np.abs(matrix).max()
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    if known is None or axis.num_dimensions is not None or is_labels(axis):
        picture = ax.imshow(matrix, **colours)
        if known is not None and is_labels(axis):
            name_categories(ax, "x", known[some])
            name_categories(ax, "y", known[some])
        else:
            ax.set(xlabel=f"{grid_dims(gp)[i]}, cell", ylabel="cell")
    else:
        x = drawable(known[some])
        order = np.argsort(x)
        mesh = (x[order], x[order], matrix[np.ix_(order, order)])
        picture = ax.pcolormesh(*mesh, shading="nearest", rasterized=True, **colours)
        ax.set(xlabel=axis_label(gp, i), ylabel=axis_label(gp, i))
        ax.invert_yaxis()
    ax.figure.colorbar(picture, cax=ax.inset_axes((1.03, 0, 0.05, 1)), label=what)


def _some(size: int, most: int) -> np.ndarray:
    """All places, or as many of them as a picture can show, evenly."""
    return np.arange(size) if size <= most else np.linspace(0, size - 1, most).astype(int)
