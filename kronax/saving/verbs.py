"""`kx.save` and `kx.load`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kronax.saving.archive import read, write
from kronax.saving.trees import Reader, Writer


def save(path: str | os.PathLike[str], obj: Any) -> None:
    """Keep a model, the result of a fit, a posterior with its data, or any Equinox module.

    Dictionaries, lists and tuples of such are kept as well. The file is a zip archive of one text
    and NumPy arrays; nothing is pickled. It is written whole or not at all. Kernels, means and
    likelihoods of your own are named by their modules, and must be importable where they are
    loaded; functions are named only, and must be given to `kx.load`.

    Args:
        path: of the file, which is replaced if it is there.
        obj: with concrete values.

    Raises:
        TypeError: if it holds something that a file cannot hold; it says where.
        FileNotFoundError: if the folder does not exist.

    Examples:
        >>> import tempfile, kronax as kx
        >>> path = tempfile.mkdtemp() + "/model.kx"
        >>> kx.save(path, kx.GridGP((kx.RBF(0.3),), ([0.0, 0.5, 1.0],), noise=0.1))
        >>> round(kx.load(path).kernels[0].lengthscale.item(), 6)
        0.3
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(
            f"The path must be that of a file in a folder that exists; got {str(path)!r}."
        )
    writer = Writer()
    write(path, writer.tree(obj, type(obj).__name__), writer.arrays)


def load(path: str | os.PathLike[str], given: Mapping[str, Any] | None = None) -> Any:
    """What `kx.save` has kept: the same numbers, in the same precision.

    A posterior is conditioned again on the data in the file, with the cost of `gp.condition`. A
    file of an older version of kronax is read, or refused by the name of what has changed. Whoever
    wrote a file can have modules imported that are installed here, and objects made of subclasses
    of `equinox.Module` in them, without calling their constructors; nothing else runs.

    Args:
        path: of the file.
        given: functions, and classes that are elsewhere now, by the names in the file, which errors
            tell. The loss of a fit may be left out: then only what needs it raises.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of `kx.save`, or cannot be read by this version or precision.
        ImportError: if it names a class that cannot be imported.
        TypeError: if it names a class that is no Equinox module.

    Examples:
        >>> import tempfile, jax.numpy as jnp, kronax as kx
        >>> path = tempfile.mkdtemp() + "/posterior.kx"
        >>> x = jnp.linspace(0, 1, 4)
        >>> post = kx.GridGP((kx.RBF(0.3),), (x,), noise=0.1).condition(jnp.sin(6 * x))
        >>> kx.save(path, {"post": post, "note": "of a sine"})
        >>> bool((kx.load(path)["post"].mean() == post.mean()).all())
        True
    """
    tree, arrays, written = read(Path(path))
    return Reader(arrays, written, dict(given or {})).value(tree)
