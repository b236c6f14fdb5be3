"""Methods of a posterior that refuse one whose model or data were replaced."""

import functools
from collections.abc import Callable
from typing import Any

from kronax.gp.model.process import AbstractPosterior
from kronax.linalg.arrays.fingerprints import held, made_of_tree

STALE = (
    "This posterior was made of another model or other data: its leaves have been replaced since "
    "(kx.replace, eqx.tree_at, jax.tree.map, a cast to another precision). Change or cast the "
    "model, and condition it again."
)


def of_its_model(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that refuses a posterior whose model or data were replaced; NaN if traced."""

    @functools.wraps(method)
    def call(post: AbstractPosterior, *args: Any, **options: Any) -> Any:
        own = made_of_tree(post, (post.gp, post.y), post.made_of, STALE)
        held(own.operator, getattr(own.operator, "decomposition", None))
        return method(own, *args, **options)

    return call
