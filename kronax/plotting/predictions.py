"""Pictures of a posterior: series with bands, maps of means and their uncertainty."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from kronax.gp.axes.indexes import is_frame, is_labelled
from kronax.gp.datasets import grid_dims, values_of
from kronax.gp.labelled.data_arrays import check_coordinates
from kronax.gp.model.process import AbstractPosterior, AbstractProcess
from kronax.gp.posterior.posterior import Posterior
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.linalg.arrays.nested_lists import without_mask
from kronax.plotting.cuts import Cut, cut, levels, number_of, observed, on_own_grid
from kronax.plotting.figures import (
    axis_label,
    colour_limits,
    data_label,
    data_name,
    data_units,
    drawable,
    is_labels,
    legend_above,
    name_categories,
    panels,
    shorten_dates,
    unit_of,
)
from kronax.plotting.observations import is_function, quantiles_on, response_on


def plot_series(
    post: Posterior,
    axis: str | int = 0,
    at: Mapping[Any, Any] | None = None,
    coordinates: Any = None,
    *,
    held_out: Any = None,
    level: float = 0.95,
    include_noise: bool = True,
    noise: Any = None,
    covariates: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    ax: Any = None,
) -> Any:
    """The posterior along one axis: its mean, a band around it, the data, and held-out ones.

    With a likelihood these are new observations, or with `include_noise=False` the latent function,
    to which the data do not belong. The data are drawn where the line goes through cells of the
    grid. Categories get error bars in place of a band.

    Args:
        post: what `gp.condition(y)` returned.
        axis: the axis along which to draw, by name or number.
        at: places on other axes by name, `{"latitude": 52.5}`; by default their middle cell.
        coordinates: where to predict along the axis; by default at its own coordinates.
        held_out: data that the posterior has not seen: an array of one number per coordinate, or a
            DataArray, of which the line is taken.
        level: probability of the band at each coordinate.
        include_noise: whether the band is that of new observations.
        noise: their variance, where the model's is not defined on new coordinates.
        covariates: of the mean, by name, where the model does not know them.
        given: what the likelihood has at every cell, `{"exposure": 1e5}`, at new coordinates.
        ax: matplotlib Axes; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        KeyError: if an axis name is unknown.
        ValueError: if the posterior is of a batch of data, or the axis one of places in several
            dimensions, or the level not between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.RBF(0.3)}, {"a": x, "b": x}, noise=0.1)
        >>> post = gp.condition(jnp.sin(6 * x)[:, None] * x)
        >>> kx.plot_series(post, "a", at={"b": 0.5}).get_title()
        'b 0.5'
    """
    if not 0 < level < 1:
        raise ValueError(f"The level of a band must lie between 0 and 1; got {level}.")
    i = number_of(post, axis)
    along = post.gp.axes[i]
    if along.num_dimensions is not None:
        raise ValueError(
            f"A series needs an axis with coordinates (n,); {grid_dims(post.gp)[i]!r} has places "
            f"in {along.num_dimensions} dimensions. Draw it with kx.plot_maps."
        )
    found = cut(post, (i,), at, {i: coordinates})
    values = drawable(found.places[i])
    of_data = not is_function(post, include_noise)
    if held_out is not None and not of_data:
        raise ValueError(
            "Held-out data are observations, and the picture is of the latent function. Pass "
            "include_noise=True, or leave held_out out."
        )
    band = _band(post, found, level, (include_noise, noise), covariates, given)
    (ax,) = panels(ax, 1, 7.0, 3.6)
    _draw_band(ax, values, band, level, is_labels(along))
    data = observed(post, found) if of_data else None
    if data is not None:
        known = values_of(along)
        assert known is not None
        shown = drawable(known)
        framed = _within(shown, values, is_labels(along))
        # A forecast shows the past; what lies inside of the data shows its own part alone.
        if framed.any():
            shown, data = shown[framed], data[framed]
        marks = {"ms": 4 if shown.size < 80 else 2.5, "color": "0.25", "zorder": 2.5}
        ax.plot(shown, data, "o", label="data", **marks)
    if held_out is not None:
        ax.plot(*_held_out(post, found, i, held_out), "o", ms=5, color="tab:red", label="held out")
    label = "" if is_labels(along) else axis_label(post.gp, i)
    ax.set(xlabel=label, ylabel=data_label(post, of_data))
    ax.set_title(found.title)
    shorten_dates(ax, "x", values, along)
    legend_above(ax)
    return ax


def _within(known: np.ndarray, shown: np.ndarray, categories: bool) -> np.ndarray:
    """Which coordinates of data are among those that are drawn, or between them."""
    if categories:
        return np.isin(known, shown)
    return (known >= shown.min()) & (known <= shown.max())


def _band(
    post: Posterior, found: Cut, level: float, of_noise: tuple[bool, Any], *fields: Any
) -> np.ndarray:
    """Mean, lower and upper end."""
    include_noise, noise = of_noise
    if isinstance(post, LikelihoodPosterior) and include_noise:
        seen = response_on(post, found, ((1 - level) / 2, (1 + level) / 2), *fields)
        parts = np.stack([np.asarray(seen.observation_mean), *quantiles_on(seen)])
        fixed = tuple(1 + i for i in range(len(found.axes)) if i not in found.drawn)
        return parts.squeeze(fixed)
    mean, sd = _moments(post, found, include_noise, levels(post, found, noise), *fields)
    half = NormalDist().inv_cdf((1 + level) / 2) * sd
    return np.stack([mean, mean - half, mean + half])


def _draw_band(ax: Any, x: np.ndarray, band: np.ndarray, level: float, categories: bool) -> None:
    mean, low, high = band
    label = f"{100 * level:.4g} % band"
    style = {"color": "tab:blue"}
    if categories:
        ax.errorbar(
            x,
            mean,
            (mean - low, high - mean),
            fmt="o",
            ms=6,
            capsize=4,
            label=f"mean, {label}",
            **style,
        )
        return
    order = np.argsort(x)
    x, mean, low, high = x[order], mean[order], low[order], high[order]
    ax.fill_between(x, low, high, alpha=0.25, lw=0, label=label, **style)
    ax.plot(x, mean, lw=1.8, label="mean", **style)


def _moments(
    post: AbstractPosterior,
    found: Cut,
    include_noise: bool,
    noise: Any,
    covariates: Any,
    given: Any,
) -> tuple[Any, Any]:
    """Mean and standard deviation on the drawn axes, in the order of the grid."""
    fixed = tuple(i for i in range(len(found.axes)) if i not in found.drawn)
    if isinstance(post, LikelihoodPosterior) and include_noise:
        seen = response_on(post, found, (), covariates, given)
        moments = (seen.observation_mean, seen.observation_std)
        mean, sd = (np.asarray(x).squeeze(fixed) for x in moments)
        return mean, sd
    mean = np.asarray(post.mean(found.axes, covariates=covariates)).squeeze(fixed)
    levels = noise if include_noise else None
    missing = np.isposinf(noise) if include_noise and isinstance(noise, np.ndarray) else False
    if np.any(missing):  # there is no observation, and no band of one
        levels = np.where(missing, 0, noise)
    options = {"noise": levels, "covariates": covariates}
    variance = np.asarray(post.variance(found.axes, include_noise, **options))
    variance = np.where(missing, np.nan, variance)
    shape = [1 if i in fixed else n.shape[0] for i, n in enumerate(found.places)]
    return mean, np.sqrt(np.broadcast_to(variance, shape).squeeze(fixed))


def _held_out(
    post: AbstractPosterior, found: Cut, i: int, held_out: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates and values of held-out data along axis `i`."""
    dims = grid_dims(post.gp)
    if is_labelled(held_out):
        line = held_out
        for k, dim in enumerate(dims):
            if k != i and dim in held_out.dims:
                line = _at(line, dim, post.gp.axes[k], found.indices[k], found.places[k][0])
        if line.dims != (dims[i],):
            raise ValueError(
                f"The held-out data must be a line along {dims[i]!r} or hold one; got dimensions "
                f"{', '.join(map(repr, held_out.dims))}."
            )
        return drawable(line.coords[dims[i]].values), line.values
    if is_frame(held_out) and held_out.ndim == 1:
        return drawable(np.asarray(held_out.index)), held_out.to_numpy()
    values = np.asarray(without_mask(held_out))
    if values.shape != found.places[i].shape:
        raise ValueError(
            f"The held-out data must have one number per coordinate, {found.places[i].shape}; got "
            f"shape {values.shape}."
        )
    return drawable(found.places[i]), values


def _at(held_out: Any, dim: str, axis: Any, index: int | None, place: Any) -> Any:
    """Held-out data at one place: that cell of the grid, or the coordinate itself."""
    if index is None:
        return held_out.sel({dim: place})
    check_coordinates(held_out, dim, axis, "held_out")
    return held_out.isel({dim: index})


def plot_maps(
    post: Posterior,
    x: str | int | None = None,
    y: str | int | None = None,
    at: Mapping[Any, Any] | None = None,
    coordinates: Mapping[Any, Any] | None = None,
    *,
    show_data: bool = False,
    include_noise: bool = False,
    noise: Any = None,
    covariates: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    ax: Any = None,
) -> Any:
    """The posterior mean over two axes, and beside it its standard deviation.

    With a likelihood these are of the latent function, with `include_noise=True` of new
    observations. An axis of places in two dimensions is a map by itself: every place is a dot.

    Args:
        post: what `gp.condition(y)` returned.
        x: the axis from left to right, by name or number; by default the last one, or one of
            places in two dimensions.
        y: the axis from bottom to top; by default the last but one.
        at: places on other axes by name, `{"time": "2000-01-16"}`; by default their middle cell.
        coordinates: new ones along the axes that are drawn, by name; by default their own.
        show_data: a third panel, on the left, with the data.
        include_noise: whether the standard deviation is that of new observations.
        noise: their variance, where the model's is not defined on new coordinates.
        covariates: of the mean, by name, where the model does not know them.
        given: what the likelihood has at every cell, `{"exposure": 1e5}`, at new coordinates.
        ax: matplotlib Axes, one per panel; by default those of a new figure.

    Returns:
        The Axes: those of the mean and of the standard deviation, behind those of the data if
        there are any.

    Raises:
        ImportError: if matplotlib is not installed.
        KeyError: if an axis name is unknown.
        ValueError: if the posterior is of a batch of data, there are not two axes to draw, or the
            data are not known there.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 8)
        >>> gp = kx.GridGP({"a": kx.RBF(0.3), "b": kx.RBF(0.3)}, {"a": x, "b": x}, noise=0.1)
        >>> axes = kx.plot_maps(gp.condition(jnp.sin(6 * x)[:, None] * x))
        >>> [ax.get_title() for ax in axes]
        ['mean', 'standard deviation']
    """
    drawn = map_axes(post, x, y)
    new = {number_of(post, key): value for key, value in (coordinates or {}).items()}
    for i in new:
        if i not in drawn:
            raise ValueError(
                f"New coordinates must be along the axes that are drawn; {grid_dims(post.gp)[i]!r} "
                "is not. Pass its place as `at`."
            )
    found = cut(post, drawn, at, new)
    noise = levels(post, found, noise)
    mean, sd = _moments(post, found, include_noise, noise, covariates, given)
    of_data = not is_function(post, include_noise)
    fields = {"mean": mean, "standard deviation": sd}
    scale = {}
    if show_data:
        data = observed(post, found)
        if data is None:
            raise ValueError(
                "The data are known on the grid only; got another place in `at`. Leave out "
                "show_data, or pass the place of a cell."
            )
        fields = {"data": data, **fields}
        scale = colour_limits(_framed(post, found, data), mean) if of_data else {}
    axes = panels(ax, len(fields), 4.6, 3.6)
    for one, (name, values) in zip(axes, fields.items(), strict=True):
        # A standard deviation is compared with none at all.
        style = {"cmap": "magma", "vmin": 0} if values is sd else {"cmap": "viridis", **scale}
        own = found if name != "data" else on_own_grid(post, found)
        units = data_units(post, of_data or name == "data")
        draw_map(post, one, own, values, style, units)
        one.set_title(name)
    if show_data and new:
        _frame_alike(axes[0], axes[1], post, found)
    heading = ", ".join(word for word in (data_name(post, of_data), found.title) if word)
    if ax is None:
        _fit_height(axes[0], 4.6 - 1.5)
        axes[0].figure.suptitle(heading)
    return axes


def _framed(post: AbstractPosterior, found: Cut, data: np.ndarray) -> np.ndarray:
    """The data, NaN outside of the coordinates that are drawn."""
    own = on_own_grid(post, found)
    if len(found.drawn) == 1:
        places, shown = (one.places[found.drawn[0]] for one in (own, found))
        inside = ((places >= shown.min(axis=0)) & (places <= shown.max(axis=0))).all(axis=1)
        return np.where(inside, data, np.nan)
    inside = [
        _within(drawable(own.places[i]), drawable(found.places[i]), is_labels(post.gp.axes[i]))
        for i in sorted(found.drawn)
    ]
    return np.where(np.logical_and.outer(*inside), data, np.nan)


def _frame_alike(data: Any, mean: Any, post: AbstractPosterior, found: Cut) -> None:
    """The same part of the plane for data on their own grid; categories stay as they are."""
    for which, i in zip("xy", found.drawn * (3 - len(found.drawn)), strict=True):
        if not is_labels(post.gp.axes[i]):
            getattr(data, f"set_{which}lim")(getattr(mean, f"get_{which}lim")())


def _fit_height(ax: Any, width: float) -> None:
    """A figure as high as maps of this width need, where their shape is fixed."""
    if ax.get_aspect() != "auto":
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        shape = ax.get_aspect() * abs((high - low) / (right - left))
        ax.figure.set_figheight(float(np.clip(width * shape, 1.2, 8.0)) + 1.4)


def map_axes(post: AbstractPosterior, x: Any, y: Any) -> tuple[int, ...]:
    """Numbers of the axes that a map draws: from left to right, then from bottom to top."""
    axes = post.gp.axes
    places = [i for i, axis in enumerate(axes) if axis.num_dimensions == 2]
    lines = [i for i, axis in enumerate(axes) if axis.num_dimensions is None]
    i, k = (None if one is None else number_of(post, one) for one in (x, y))
    if k is None and (i in places or (i is None and places)):
        return (places[-1] if i is None else i,)
    if i is None:
        i = max((one for one in lines if one != k), default=None)
    if k is None:
        k = max((one for one in lines if one != i), default=None)
    if i is None or k is None or i == k or not {i, k} <= set(lines):
        raise ValueError(
            "A map needs two different axes with coordinates (n,), or one of places in two "
            f"dimensions; got x={x!r} and y={y!r} of {', '.join(map(repr, grid_dims(post.gp)))}."
        )
    return i, k


def draw_map(
    post: AbstractPosterior, ax: Any, found: Cut, values: np.ndarray, style: dict, units: str
) -> None:
    """Values on two axes, or at places in two dimensions, with a bar of their colours."""
    gp, drawn = post.gp, found.drawn
    if len(drawn) == 1:
        places = found.places[drawn[0]]
        # Latitudes come first, and go up.
        flip = gp.axes[drawn[0]].radius is not None
        columns = places[:, ::-1] if flip else places
        picture = ax.scatter(*columns.T, c=values, s=28, **style)
        index = gp.axes[drawn[0]].index
        names = ("latitude", "longitude") if flip else ("", "")
        if index is not None and len(index.columns) == 2:
            names = index.columns[0], index.columns[1]
        ax.set(xlabel=names[flip], ylabel=names[not flip])
        if flip:
            ax.set_aspect(_of_degrees(ax))
        elif gp.kernels[drawn[0]].isotropic:  # distances in the plane have one unit
            ax.set_aspect(1)
    else:
        i, k = drawn
        sides = []
        for which, one in zip("xy", (i, k), strict=True):
            side = drawable(found.places[one])
            if is_labels(gp.axes[one]):
                name_categories(ax, which, side)
                side = np.arange(len(side))
            else:
                getattr(ax, f"set_{which}label")(axis_label(gp, one))
                shorten_dates(ax, which, side, gp.axes[one])
            sides.append(side)
        image = values if i > k else values.T
        columns, rows = (np.argsort(side) for side in sides)
        image = image[np.ix_(rows, columns)]
        mesh = (sides[0][columns], sides[1][rows], image)
        picture = ax.pcolormesh(*mesh, shading="nearest", rasterized=True, **style)
        _keep_shape(ax, gp, i, k)
    bar = ax.inset_axes((1.03, 0, 0.05, 1))  # as high as the map, whatever its shape
    ax.figure.colorbar(picture, cax=bar, label=units)


def _keep_shape(ax: Any, gp: AbstractProcess, i: int, k: int) -> None:
    """One unit as long as the other where both axes have the same; degrees at their latitude."""
    units = [unit_of(axis) for axis in (gp.axes[i], gp.axes[k])]
    if not all(units):
        return
    if units[0].startswith("degree") and units[1].startswith("degree"):
        ax.set_aspect(_of_degrees(ax))
    elif units[0] == units[1]:
        ax.set_aspect(1)


def _of_degrees(ax: Any) -> float:
    """What a degree of latitude is to one of longitude, in the middle of a map."""
    middle = np.mean(ax.get_ylim())
    return min(1 / np.cos(np.deg2rad(middle)), 3) if abs(middle) < 90 else 1
