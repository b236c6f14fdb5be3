"""A running fit on disk: whole or not at all, and never another fit's."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.files import written_whole
from kronax.fitting.problem import Problem, Raw
from kronax.fitting.steps import RUNNING, State
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.arrays.host import is_shared, of_first_process

FORMAT = "kronax fit 6"


class Checkpoint:
    """Where a fit is saved, and which fit that is."""

    def __init__(
        self, path: str | os.PathLike[str], problem: Problem, states: State, optimizer: Any
    ):
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(
                f"checkpoint must be the path of a file; got the folder {str(self.path)!r}."
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"The folder of the checkpoint must exist; got {str(self.path)!r}."
            )
        self.fingerprint = _fingerprint(problem, states, optimizer)

    def save(self, states: State, seconds: float) -> None:
        """Write the whole file, or leave the old one.

        Of processes that work together the first one writes.
        """
        if is_shared(states.step) and jax.process_index():
            return
        payload = io.BytesIO()
        eqx.tree_serialise_leaves(payload, _plain(states))
        content = payload.getvalue()
        header = {
            "format": FORMAT,
            "fit": self.fingerprint,
            "num_steps": states.losses.shape[1] - 1,
            "seconds": seconds,
        }
        body = json.dumps(header).encode() + b"\n" + content
        checksum = hashlib.sha256(body).hexdigest().encode()
        written_whole(self.path, checksum + b"\n" + body)

    def load(self, like: State, problem: Problem) -> tuple[Problem, State, float] | None:
        """The problem as it was solved, the saved states and the seconds they took, if any.

        Not everything about a loss can be compared, so its value at the saved point is.
        """
        # A first byte tells a file that is empty from one that is not there.
        found = b"+" + self.path.read_bytes() if self.path.exists() else b""
        if is_shared(problem.y):
            found = of_first_process(found)
        if not found:
            return None
        header, content = _parts(self.path, found[1:])
        other = ValueError(
            f"The checkpoint {str(self.path)!r} belongs to another fit: model, data, loss, "
            "starting values, priors, settings or optimiser differ. Give another path, or remove "
            "it."
        )
        if header["fit"] != self.fingerprint:
            raise other
        num_steps = like.losses.shape[1] - 1
        saved = _resized(like, header["num_steps"])
        states = _typed(eqx.tree_deserialise_leaves(io.BytesIO(content), _plain(saved)), saved)
        if not _same_loss(problem, states):
            best = states.layout.raws(states.best[0])
            # The fit may have changed its way of solving before it was saved.
            problem = problem.measured_at(best, int(states.member[0]))
            if not _same_loss(problem, states):
                raise other
        return problem, _continued(states, num_steps), float(header["seconds"])


def _plain(states: State) -> State:
    """Random keys, which an optimiser may hold, as the numbers that a file can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, states)


def _typed(plain: State, like: State) -> State:
    def typed(x: Any, old: Any) -> Any:
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if _is_key(old) else x

    return jax.tree.map(typed, plain, like)


def _is_key(x: Any) -> bool:
    return eqx.is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _same_loss(problem: Problem, states: State) -> bool:
    """Whether the loss at the first fit's best point is the one that was saved with it."""
    saved = float(states.best_loss[0])
    if not np.isfinite(saved):
        return True
    best = states.layout.raws(states.best[0])
    value = float(_value(problem, best, states.member[0]))
    slack = float(jnp.finfo(states.best_loss.dtype).eps) ** 0.75
    return abs(value - saved) <= slack * max(1.0, abs(saved))


@eqx.filter_jit
def _value(problem: Problem, raw: Raw, member: Array) -> Array:
    return problem.value(raw, member)


def _parts(path: Path, whole_file: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and content: what follows the checksum of both, a line each."""
    checksum, _, body = whole_file.partition(b"\n")
    if b"kronax fit 1" in checksum or re.search(rb'"kronax fit [2-5]"', body.partition(b"\n")[0]):
        raise ValueError(
            f"The checkpoint {str(path)!r} is of an earlier version of kronax, whose fits cannot "
            "be continued. Give another path, or remove the file to start from the beginning."
        )
    line, _, content = body.partition(b"\n")
    try:
        header = json.loads(line)
        whole = header["format"] == FORMAT and checksum.decode() == hashlib.sha256(body).hexdigest()
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(
            f"{str(path)!r} is not a whole checkpoint of kx.fit. Give another path, or remove the "
            "file to start from the beginning."
        )
    return header, content


def _resized(states: State, num_steps: int) -> State:
    shape = (states.losses.shape[0], num_steps + 1)
    empty = jnp.full(shape, jnp.nan, states.losses.dtype)
    return states._replace(losses=empty, norms=empty)


def _continued(states: State, num_steps: int) -> State:
    """The states with room for another number of steps.

    A fit that stood at its limit has judged its last point but not moved on from it: it judges that
    point again.
    """
    old = states.losses.shape[1] - 1
    if num_steps == old:
        return states
    taken = int(jnp.max(states.step)) - 1
    if num_steps < taken:
        raise ValueError(
            f"num_steps must be at least the {taken} steps that the checkpoint holds; got "
            f"{num_steps}."
        )
    at_limit = ((states.status == RUNNING) & (states.step == old + 1)).astype(jnp.int32)
    kept = min(old, num_steps) + 1
    new = _resized(states, num_steps)
    return states._replace(
        losses=new.losses.at[:, :kept].set(states.losses[:, :kept]),
        norms=new.norms.at[:, :kept].set(states.norms[:, :kept]),
        step=states.step - at_limit,
        stalled=jnp.maximum(states.stalled - at_limit, 0),
    )


def _settings_of(function: Any, depth: int = 8) -> Iterator[Any]:
    """The numbers and names that a function of optax closes over: its learning rate, for one."""
    yield getattr(function, "__qualname__", type(function).__name__)
    for cell in getattr(function, "__closure__", None) or ():
        value = cell.cell_contents
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, bool | int | float | str):
                yield part
            elif callable(part) and depth:
                yield from _settings_of(part, depth - 1)


def _fingerprint(problem: Problem, states: State, optimizer: Any) -> str:
    """What makes a fit this fit: its numbers, their shapes, and the settings."""
    digest = hashlib.sha256()
    settings = (problem.freeze, problem.share, problem.independent)
    domains = [(path, str(domain)) for path, domain in problem.domains]
    digest.update(repr((settings, domains)).encode())
    name = getattr(problem.loss, "__qualname__", type(problem.loss).__name__)
    digest.update(str(name).encode())
    digest.update(repr(list(_settings_of(getattr(optimizer, "update", optimizer)))).encode())
    # Data may be on devices of several processes: of them a checksum.
    shape = None if problem.y is None else problem.y.shape
    data = fingerprint_of_tree(problem.y)
    digest.update(repr((shape, [np.asarray(x).tolist() for x in data])).encode())
    kept = (problem.model, problem.priors, states.raw, states.member)
    leaves, tree = jax.tree.flatten(eqx.filter(kept, eqx.is_array))
    for structure in (tree, jax.tree.structure(states.optimizer)):
        # Addresses of functions differ from process to process.
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", str(structure)).encode())
    for leaf in leaves:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
