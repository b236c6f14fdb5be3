"""Paths of parameters: how they are written, and what selects some of them."""

import difflib
import re
from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
import jax
import numpy as np

# A kernel by the name of its axis, where paths have its number.
BY_NAME = re.compile(r"""kernels(\[['"]|\.)(?=[^\W\d])""")


def nearest(name: Any, known: Collection[Any]) -> str:
    """A hint that names what was probably meant."""
    names = {str(k): k for k in known}
    if BY_NAME.match(str(name)) and any(k.startswith("kernels[0]") for k in names):
        return (
            " Kernels are counted in the order of the axes, kernels[0] first, whatever the names. "
            f"Known: {', '.join(map(repr, known))}."
        )
    close = closest(str(name), list(names))
    hint = f" Did you mean {names[close]!r}?" if close is not None else ""
    return f"{hint} Known: {', '.join(map(repr, known)) or 'none'}."


def closest(name: str, known: Collection[str], cutoff: float = 0.0) -> str | None:
    """The name that is most like another, whatever the case of their letters."""
    folded = {k.casefold(): k for k in reversed(list(known))}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def path_of(key_path: tuple) -> str:
    """A JAX key path as users write it: without the leading dot."""
    return jax.tree_util.keystr(key_path).removeprefix(".")


def parameter_paths(model: Any) -> list[str]:
    """The path of every floating-point array, in the order of the model."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return [path_of(key_path) for key_path, leaf in leaves if eqx.is_inexact_array(leaf)]


def numbered(model: Any, path: str) -> str:
    """The path by which a parameter is listed: `kernels['time']` goes by the axes' names."""
    names = getattr(model, "axis_names", None) or ()
    found = re.match(r"kernels\[(['\"])(.*?)\1\]", path) if isinstance(path, str) else None
    if found is None or found[2] not in names:
        return path
    return f"kernels[{names.index(found[2])}]{path[found.end() :]}"


def named(model: Any, path: str) -> str:
    """A path as sentences have it: a kernel by the name of its axis, the reverse of `numbered`."""
    names = getattr(model, "axis_names", None) or ()
    found = re.match(r"kernels\[(\d+)\]", path)
    return f"kernels[{names[int(found[1])]!r}]{path[found.end() :]}" if found and names else path


def is_meant(name: str, path: str) -> bool:
    """Whether a name is a path, or the beginning of it."""
    return path == name or path.startswith((f"{name}.", f"{name}["))


def matching(name: str, paths: list[str]) -> list[str]:
    """The paths that a path, or the beginning of one, means."""
    found = [p for p in paths if is_meant(name, p)]
    if not found:
        raise KeyError(f"There is no parameter {name!r}.{nearest(name, paths)}")
    return found


def check_known(name: str, paths: list[str]) -> None:
    """Refuse a path that the model does not have."""
    if name not in paths:
        raise KeyError(f"There is no parameter {name!r}.{nearest(name, paths)}")


def frozen_paths(model: Any, freeze: Any) -> tuple[str, ...]:
    """The paths that `freeze` means, in the order of the model."""
    paths = parameter_paths(model)
    if isinstance(freeze, str):
        raise TypeError(
            f"freeze must be a collection of paths; got {freeze!r}. Write ({freeze!r},)."
        )
    if isinstance(freeze, type(model)) and isinstance(freeze, eqx.Module):
        chosen = _true_leaves(model, freeze)
    elif callable(freeze):
        chosen = _selected(model, freeze, "freeze")
    elif isinstance(freeze, Collection):
        chosen = []
        for entry in freeze:
            if callable(entry):
                chosen += _selected(model, entry, "freeze")
            else:
                chosen += matching(numbered(model, entry), paths)
    else:
        raise TypeError(
            "freeze must be paths, functions from the model to nodes of it, or a tree of booleans "
            f"like the model; got {freeze!r}."
        )
    return tuple(path for path in paths if path in chosen)


def shared_paths(model: Any, share: Any) -> tuple[tuple[str, ...], ...]:
    """The groups of paths that `share` means."""
    paths = parameter_paths(model)
    groups = []
    for entry in (share,) if callable(share) else tuple(share):
        if isinstance(entry, str):
            raise TypeError(
                f"share must be groups of paths; got the path {entry!r} alone. Write "
                "share=[(path, path, ...)]."
            )
        group = _selected(model, entry, "share") if callable(entry) else list(entry)
        group = [numbered(model, path) for path in group]
        for path in group:
            check_known(path, paths)
        if len(group) < 2:
            raise ValueError(f"A group in share must hold two or more parameters; got {group}.")
        groups.append(tuple(group))
    named = [path for group in groups for path in group]
    twice = sorted({path for path in named if named.count(path) > 1})
    if twice:
        raise ValueError(f"share must name each parameter once; got {twice[0]} more often.")
    return tuple(groups)


class _Leaf:
    """Stands for one leaf while a user's function selects."""

    def __init__(self, path: str):
        self.path = path


def _selected(model: Any, where: Callable[[Any], Any], what: str) -> list[str]:
    """The paths of the leaves below the nodes that `where(model)` returns."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    marked = jax.tree_util.tree_unflatten(tree, [_Leaf(path_of(key)) for key, _ in leaves])
    known = parameter_paths(model)
    found = jax.tree.leaves(where(marked))
    chosen = [leaf.path for leaf in found if isinstance(leaf, _Leaf) and leaf.path in known]
    if not chosen or not all(isinstance(leaf, _Leaf) for leaf in found):
        raise ValueError(
            f"A function in {what} must return parameters of the model, or nodes that hold some, "
            "as they are; got none, or something computed. Known: "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    return chosen


def _true_leaves(model: Any, spec: Any) -> list[str]:
    """The paths where a tree of booleans is true."""
    leaves = jax.tree_util.tree_flatten_with_path(spec)[0]
    trees: Any = jax.tree.structure(spec), jax.tree.structure(model)
    if trees[0] != trees[1] or not all(isinstance(leaf, bool | np.bool_) for _, leaf in leaves):
        raise TypeError(
            "A tree in freeze must have the structure of the model and hold a boolean in place of "
            "every leaf: start from jax.tree.map(lambda _: False, model)."
        )
    return [path_of(key) for key, leaf in leaves if leaf]
