"""What NumPyro asks of a distribution: shapes, pytrees, batches, masks, inferred shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import kronax as kx
from tests.distributions.cases import CASES, FEW, each_case, some_cases, value_of
from tests.everyday import everyday
from tests.tolerances import assert_close

few = pytest.mark.parametrize("name", FEW)
PREPENDED = ((), (2,), (4, 2))


def log_prob(d, value):
    return d.log_prob(value)


density = jax.jit(log_prob)


@jax.jit
def draw(d, key):
    return d.sample(key)


@each_case
def test_the_shapes_are_those_of_numpyro(name):
    case = CASES[name]
    d = case.make()
    shape = (*case.batch, *d.event_shape)
    assert d.batch_shape == case.batch
    assert np.prod(d.event_shape) == case.size
    assert d.support.event_dim == d.event_dim
    key = jax.random.key(0)
    for lead in PREPENDED:
        drawn = jax.eval_shape(lambda k, lead=lead: d.sample(k, lead), key)
        assert drawn.shape == (*lead, *shape)
        assert jax.eval_shape(d.log_prob, drawn).shape == (*lead, *case.batch)
    assert jax.eval_shape(d.entropy).shape == case.batch
    for part in ("mean", "variance"):
        assert jax.eval_shape(lambda part=part: getattr(d, part)).shape == shape


@some_cases
def test_it_is_a_pytree_under_jit_and_map(name):
    case = CASES[name]
    d = case.make()
    back = jax.tree.unflatten(*jax.tree.flatten(d)[::-1])
    assert (back.batch_shape, back.event_shape) == (d.batch_shape, d.event_shape)
    assert jax.tree.structure(back) == jax.tree.structure(d)
    key = jax.random.key(0)
    made = jax.jit(lambda: jax.lax.map(lambda _: case.make(), jnp.zeros(2)))()
    first = jax.tree.map(lambda leaf: leaf[0], made)
    assert_close(draw(first, key), draw(d, key))


@some_cases
def test_constructors_map_and_become_batches(name):
    """`vmap` over every array of a distribution, then one density of all, by NumPyro's rules."""
    case = CASES[name]
    d = case.make()
    value = value_of(case, d)
    twice = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf]), d)
    mapped = jax.jit(jax.vmap(log_prob, in_axes=(0, None)))(twice, value)
    assert_close(mapped[0], density(d, value))
    promoted = jax.jit(dist.batch_util.promote_batch_shape)(twice)
    assert promoted.batch_shape == (2, *case.batch)
    assert_close(density(promoted, value), mapped)
    drawn = jax.eval_shape(lambda: promoted.sample(jax.random.key(0), (3,)))
    assert drawn.shape == (3, 2, *case.batch, *d.event_shape)
    assert jax.eval_shape(promoted.entropy).shape == promoted.batch_shape


@pytest.mark.parametrize("name", everyday(FEW, ["flat precision factors", "t, batched"]))
def test_expanding_repeats_the_density_and_draws_anew(name):
    case = CASES[name]
    d = case.make()
    many = d.expand((5, *case.batch))
    assert (many.batch_shape, many.event_shape) == ((5, *case.batch), d.event_shape)
    drawn = jax.jit(lambda: many.sample(jax.random.key(0), (2,)))()
    assert drawn.shape == (2, 5, *case.batch, *d.event_shape)
    assert np.abs(np.asarray(drawn)[:, 0] - np.asarray(drawn)[:, 1]).min() > 0
    value = value_of(case, d)
    expected = np.broadcast_to(density(d, value), many.batch_shape)
    assert_close(density(many, np.broadcast_to(value, many.shape())), expected)
    with pytest.warns(UserWarning, match=r"counts 5 times.*batch \(5,.*one event per entry"):
        assert_close(many.log_prob(value), expected)
    shapes = jax.eval_shape(lambda: (many.entropy(), many.variance, many.mean))
    assert [s.shape for s in shapes] == [many.batch_shape, many.shape(), many.shape()]
    assert d.expand(d.batch_shape) is d
    with pytest.raises(ValueError, match="Cannot broadcast distribution of shape"):
        many.expand((3, *case.batch))
    with pytest.raises(ValueError, match="Cannot broadcast distribution of shape"):
        many.expand(case.batch)


@few
def test_independent_sums_and_a_mask_leaves_out(name):
    case = CASES[name]
    many = case.make().expand((5, *case.batch))
    one = many.to_event(1)
    joint = (*many.batch_shape, *many.event_shape)
    assert (one.batch_shape, one.event_shape) == (
        joint[: len(case.batch)],
        joint[len(case.batch) :],
    )
    value = np.random.default_rng(0).normal(size=joint)
    each = np.asarray(density(many, value))
    assert_close(density(one, value), each.sum(-1))
    mask = np.arange(5 * int(np.prod(case.batch, dtype=int))).reshape(many.batch_shape) % 2 == 0
    assert_close(density(many.mask(mask), value), np.where(mask, each, 0))
    for shape in {many.event_shape, many.grid_shape}:
        with pytest.raises(ValueError, match=r"shape of the batch.*kx\.MaskedKroneckerNormal"):
            many.mask(np.ones(shape, bool))


@few
def test_the_parameters_are_numpyros(name):
    d = CASES[name].make(validate_args=True)
    assert d.has_rsample
    assert set(d.get_args()) == set(d.arg_constraints)
    assert not d.is_discrete
    assert d.rsample(jax.random.key(0)).shape == d.shape()
    with pytest.warns(UserWarning, match="Out-of-support"):
        d.log_prob(np.full(d.shape(), np.nan))
    mapped = jax.vmap(
        lambda loc: CASES[name].make(loc=loc, validate_args=True),
        out_axes=dist.batch_util.vmap_over(d, loc=0),
    )(jnp.stack([d.loc, d.loc]))
    assert (mapped.loc.shape, mapped.batch_shape) == ((2, *d.loc.shape), d.batch_shape)
    assert jax.tree.structure(mapped) == jax.tree.structure(d)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda f: f((), ((3, 3), (4, 4))), ((), (3, 4))),
        (lambda f: f((3, 4), ((3, 3), (4, 4)), ()), ((), (3, 4))),
        (lambda f: f((2, 12), ((3, 3), (4, 4))), ((2,), (3, 4))),
        (lambda f: f((2, 1, 4), ((5, 1, 3, 3), (4, 4))), ((5, 2), (3, 4))),
        (lambda f: f((), scale_trils=((3, 3), (2, 4, 4))), ((2,), (3, 4))),
        (lambda f: f((), precision_factors=((12, 12),)), ((), (12,))),
        (lambda f: f((), ((3, 3), (4, 4)), flatten=True), ((), (12,))),
        (lambda f: f((5, 3, 4), ((3, 3), (4, 4)), (5,)), ((5,), (3, 4))),
        (lambda f: f((), ((3, 3), (4, 4)), ((2, 3, 3), (4, 4))), ((2,), (3, 4))),
    ],
)
def test_shapes_are_inferred_from_shapes(call, expected):
    assert call(kx.KroneckerNormal.infer_shapes) == expected
    with_df = call(lambda *args, **kwargs: kx.KroneckerStudentT.infer_shapes((), *args, **kwargs))
    assert with_df == expected


def test_shapes_that_say_too_little_are_not_guessed():
    with pytest.raises(NotImplementedError, match=r"one shape \(\*batch, n, n\) per axis"):
        kx.KroneckerNormal.infer_shapes((3, 4), ())
