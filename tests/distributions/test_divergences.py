"""KL divergences beside the dense closed form, and their gradients beside differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import Normal, kl_divergence

import kronax as kx
from tests.cases import covariance, thin
from tests.distributions.cases import CASES, LOC, LOCS, A, B, direction
from tests.everyday import everyday
from tests.tolerances import assert_close

C, D = covariance(3, 12), covariance(4, 13)
VARIANCES = kx.Diagonal(np.linspace(0.2, 1, 4))
THIN = kx.LowRank(thin(4, 2))
# One of each way to take a trace.
FIELDS = {
    "noise-free": CASES["noise-free"].make(),
    "variance": kx.KroneckerNormal(0.2, (C, D), 0.3),
    "full noise": kx.KroneckerNormal(LOC, (C, D), kx.Kronecker(A, B)),
    "Cholesky factors": CASES["Cholesky factors"].make(loc=0.3),
    "precision factors": kx.KroneckerNormal(0.1, precision_factors=(C, D)),
    "structured": CASES["structured"].make(),
    "low rank": kx.KroneckerNormal(0.1, (A, THIN), 0.2),
    "low rank, full noise beside": kx.KroneckerNormal(0.1, (A, THIN), kx.Kronecker(C, VARIANCES)),
    "batched": kx.KroneckerNormal(LOCS, (A, B), np.array([0.1, 0.2])),
}
# Every one is p once and q once, beside one of another kind.
PAIRS = list(itertools.pairwise((*FIELDS, "noise-free")))


@jax.jit
def divergence(p, q):
    return kl_divergence(p, q)


@jax.jit
def moments(d):
    return d.mean, d.covariance_matrix


def dense_divergence(p, q):
    batch = np.broadcast_shapes(p.batch_shape, q.batch_shape)
    (m_p, s_p), (m_q, s_q) = (map(np.asarray, moments(d)) for d in (p, q))
    shift = m_q - m_p
    shift = np.broadcast_to(shift, (*batch, 3, 4)).reshape(*batch, 12)
    solved = np.linalg.solve(s_q, shift[..., None])[..., 0]
    trace = np.trace(np.linalg.solve(s_q, s_p), axis1=-2, axis2=-1)
    logdets = np.linalg.slogdet(s_q)[1] - np.linalg.slogdet(s_p)[1]
    return 0.5 * (trace + np.sum(shift * solved, -1) - 12 + logdets)


EVERYDAY = [pair for pair in PAIRS if pair[0] in {"precision factors", "low rank"}]


@pytest.mark.parametrize(("p", "q"), everyday(PAIRS, EVERYDAY))
def test_value_and_gradient(p, q):
    p, q = FIELDS[p], FIELDS[q]

    def total(pair):
        each = kl_divergence(*pair)
        return jnp.sum(each), each

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    step, t = 1e-5, direction((p, q))
    (_, found), slopes = both((p, q))
    assert_close(found, dense_divergence(p, q))
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(t), strict=True)
    exact = sum(np.sum(np.asarray(g) * s) for g, s in pairs)
    ends = [both(jax.tree.map(lambda x, s, h=h: x + h * s, (p, q), t))[0][0] for h in (step, -step)]
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", everyday(FIELDS, ["precision factors", "low rank, full noise beside", "batched"])
)
def test_it_is_zero_from_itself(name):
    assert np.abs(divergence(FIELDS[name], FIELDS[name])).max() < 1e-11


def test_the_slope_in_jitter_is_right_at_a_singular_signal():
    """A rule through roots of `p` would lose the directions in which `p` is singular."""
    ones = np.ones((4, 4))
    q = kx.KroneckerNormal(0.0, (C, D), 0.3)

    def total(jitter):
        factors = (A, ones + jitter * np.eye(4))
        return kl_divergence(kx.KroneckerNormal(0.0, factors, 0.1), q)

    both = jax.jit(jax.value_and_grad(total))
    (above, _), (_, slope), (below, _) = (both(h) for h in (2e-5, 1.5e-5, 1e-5))
    np.testing.assert_allclose(slope, (above - below) / 1e-5, rtol=1e-6)
    np.testing.assert_allclose(both(0.0)[1], both(1e-7)[1], rtol=1e-4)


def test_it_broadcasts_expands_and_sums_independents():
    p, q = FIELDS["variance"], FIELDS["batched"]
    value = np.broadcast_to(divergence(p, q), (5, 2))
    assert_close(kl_divergence(p.expand((5, 1)), q), value)
    many = kl_divergence(p.expand((5, 2)).to_event(1), q.expand((5, 2)).to_event(1))
    assert_close(many, value.sum(-1))


def test_a_second_order_through_noise_raises():
    def total(noise):
        return kl_divergence(FIELDS["noise-free"], kx.KroneckerNormal(0.0, (C, D), noise))

    with pytest.raises(kx.DerivativeOrderError, match="trace of a solve"):
        jax.eval_shape(jax.hessian(total), 0.3)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (kx.KroneckerNormal(0.0, (A, B)), kx.KroneckerNormal(0.0, (B, A))),
        (kx.KroneckerNormal(0.0, (A, B)), kx.KroneckerNormal(0.0, (A, B), flatten=True)),
    ],
)
def test_other_grids_raise(p, q):
    with pytest.raises(ValueError, match=r"over one grid.*Give both the same axes"):
        kl_divergence(p, q)


def test_other_distributions_are_not_taken():
    with pytest.raises(NotImplementedError):
        kl_divergence(FIELDS["variance"], Normal(np.zeros((3, 4)), 1.0).to_event(2))
