"""What NumPyro asks of a distribution whose constructor was mapped by `vmap` or `scan`.

`vmap_over` says along which axis of every array the copies lie; `promote_batch_shape` turns the
axes that were added in front into batch axes.
"""

import copy
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over

from kronax.distributions.forms import AbstractForm, CovarianceForm, add_noise
from kronax.distributions.grids import GridDistribution
from kronax.linalg.factors.base import AbstractFactor
from kronax.linalg.factors.dense import Dense
from kronax.linalg.operators.kronecker import Kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


@vmap_over.register
def vmap_over_grid(
    d: GridDistribution,
    loc: Any = None,
    factors: Any = None,
    noise: Any = None,
    scale_trils: Any = None,
    precision_factors: Any = None,
) -> Any:
    """The axes of a mapped distribution; those of factors are one number, or one per axis."""
    stated = next((a for a in (factors, scale_trils, precision_factors) if a is not None), None)
    axes = copy.copy(d)
    axes.loc = loc
    axes.form = _axes_of(d.form, stated, noise)
    return axes


def _axes_of(form: AbstractForm, stated: Any, noise: Any) -> Any:
    signal, _ = _terms(form)
    per_axis = stated if isinstance(stated, tuple | list) else (stated,) * len(signal.factors)
    pairs = zip(signal.factors, per_axis, strict=True)
    factors = tuple(jax.tree.map(lambda _, a=axis: a, factor) for factor, axis in pairs)
    every = 0 if any(a is not None for a in (*per_axis, noise)) else None
    axes = jax.tree.map(lambda _: every, form)  # that of a decomposition
    axes = eqx.tree_at(lambda f: _terms(f)[0].factors, axes, factors, is_leaf=_is_none)
    if not isinstance(form.operator, KroneckerPlusNoise):
        return axes
    noises = jax.tree.map(lambda _: noise, form.operator.noise)
    return eqx.tree_at(lambda f: f.operator.noise, axes, noises, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def _terms(form: AbstractForm) -> tuple[Any, Any]:
    operator = form.operator
    if isinstance(operator, KroneckerPlusNoise):
        return operator.kronecker, operator.noise
    return operator, None


@promote_batch_shape.register
def promote_grid(d: GridDistribution) -> Any:
    """The axes that a map has put in front become batch axes; size-one axes align the rest."""
    form = d.form.without_decomposition()
    leaves, tree = jax.tree.flatten((d.loc, form))
    added = [leaf.ndim - ndim for leaf, ndim in zip(leaves, d._ndims, strict=True)]
    if max(added) == 0:
        return d
    _, marks = jax.tree.unflatten(tree, added)
    new = copy.copy(d)
    new.form = _promoted_form(form, marks, len(d.batch_shape))
    new = new._with_batch(new._lead())
    new._own_batch = new.batch_shape
    return new


def _promoted_form(form: AbstractForm, added: Any, batch_ndim: int) -> AbstractForm:
    signal, noise = _terms(form)
    added_signal, added_noise = _terms(added)
    signal = _promoted(signal, added_signal, batch_ndim)
    if noise is None:
        return type(form)(signal)
    if isinstance(noise, Kronecker):
        noise = _promoted(noise, added_noise, batch_ndim)
    else:
        noise = _aligned(noise, added_noise, 0, batch_ndim)
    return add_noise(CovarianceForm(signal), noise, is_batched=True)


def _promoted(op: Kronecker, added: Any, batch_ndim: int) -> Kronecker:
    pairs = zip(op.factors, added.factors, strict=True)
    return Kronecker(*(_promoted_factor(factor, marks, batch_ndim) for factor, marks in pairs))


def _promoted_factor(factor: AbstractFactor, added: Any, batch_ndim: int) -> AbstractFactor:
    counts = jax.tree.leaves(added)
    if max(counts) == 0:
        return factor
    if factor.leaves_have_batch and len(set(counts)) == 1:
        return jax.tree.map(
            lambda leaf, count, ndim: _aligned(leaf, count, ndim, batch_ndim),
            factor,
            added,
            factor.event_ndims(),
        )
    to_dense = lambda f: f.to_dense()  # noqa: E731
    for level in range(max(counts)):
        in_axes = jax.tree.map(lambda count, k=level: 0 if count > k else None, added)
        to_dense = jax.vmap(to_dense, in_axes=(in_axes,))
    return Dense(_aligned(to_dense(factor), max(counts), 2, batch_ndim))


def _aligned(leaf: Array, added: int, event_ndim: int, batch_ndim: int) -> Array:
    """`leaf` with size-one axes behind the added ones, up to the number of batch axes."""
    missing = batch_ndim - (leaf.ndim - added - event_ndim) if added else 0
    return leaf.reshape(*leaf.shape[:added], *(1,) * missing, *leaf.shape[added:])
