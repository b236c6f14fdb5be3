"""The Cholesky transform and the reparametrisation of latent fields."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density

import kronax as kx
from tests.cases import covariance, rbf
from tests.distributions.cases import AB, BATCH_A, CASES, LA, LB, LOC, LOCS, A, B
from tests.oracle import kron
from tests.tolerances import assert_close

Z = np.random.default_rng(3).normal(size=(3, 4))
L = np.kron(LA, LB)
Y = np.random.default_rng(0).normal(size=(3, 4))


@jax.jit
def answers(transform, z):
    """All that a transformation answers, in one program."""
    y = transform(z)
    return y, transform._inverse(y), transform.log_abs_det_jacobian(z, y)


@pytest.mark.parametrize(
    "transform",
    [
        kx.KroneckerCholeskyTransform((A, B), LOC),
        kx.KroneckerCholeskyTransform(kx.Kronecker(A, B), LOC.ravel()),
        kx.KroneckerCholeskyTransform(scale_trils=(LA, LB), loc=LOC),
    ],
    ids=["factors", "an operator, flat loc", "Cholesky factors"],
)
def test_it_maps_as_the_dense_matrix_does(transform):
    y, back, value = answers(transform, Z)
    assert_close(y, LOC + (L @ Z.ravel()).reshape(3, 4))
    assert_close(back, Z)
    assert_close(transform.inv(y), Z)
    slope = jax.jit(jax.jacobian(lambda z: transform(z.reshape(3, 4)).ravel()))(Z.ravel())
    assert_close(value, np.linalg.slogdet(slope)[1])
    assert transform.domain.event_dim == transform.codomain.event_dim == 2
    assert transform.forward_shape((5, 3, 4)) == transform.inverse_shape((5, 3, 4)) == (5, 3, 4)
    with pytest.raises(ValueError, match=r"\(\*batch, 3, 4\); got shape \(12,\)"):
        transform.forward_shape((12,))


def test_batches_broadcast():
    transform = kx.KroneckerCholeskyTransform((BATCH_A, B), LOCS)
    z = np.random.default_rng(0).normal(size=(5, 1, 3, 4))
    roots = kron(np.linalg.cholesky(BATCH_A), LB)
    expected = LOCS + np.einsum(
        "bij,nbj->nbi", roots, np.repeat(z.reshape(5, 1, 12), 2, 1)
    ).reshape(5, 2, 3, 4)
    y, back, value = answers(transform, z)
    assert_close(y, expected)
    assert transform.forward_shape(z.shape) == y.shape
    assert_close(back, np.broadcast_to(z, y.shape))
    assert_close(value, np.broadcast_to(np.linalg.slogdet(roots)[1], (5, 2)))


def test_it_is_a_pytree_and_compares():
    transform = kx.KroneckerCholeskyTransform((A, B), LOC)
    assert_close(jax.jit(lambda t, z: t(z))(transform, Z), transform(Z))
    assert transform == kx.KroneckerCholeskyTransform(scale_trils=(LA, LB), loc=LOC)
    assert transform != kx.KroneckerCholeskyTransform((2 * A, B), LOC)
    assert transform != kx.KroneckerCholeskyTransform((B, A))
    assert transform != dist.transforms.ExpTransform()
    assert jax.jit(lambda a, b: a.eq(b))(transform, transform)


def test_a_transformed_white_field_is_the_distribution():
    white = dist.Normal(np.zeros((3, 4)), 1.0).to_event(2)
    d = dist.TransformedDistribution(white, kx.KroneckerCholeskyTransform((A, B), LOC))
    assert (d.batch_shape, d.event_shape) == ((), (3, 4))
    assert_close(d.log_prob(Y), CASES["noise-free"].make().log_prob(Y))


def test_jitter_is_an_argument():
    smooth = rbf(40)
    with pytest.raises(np.linalg.LinAlgError, match=r"factor 0 .*singular in float64.*jitter=0\.0"):
        kx.KroneckerCholeskyTransform((smooth,))
    transform = kx.KroneckerCholeskyTransform((smooth, A), jitter=1e-6)
    root = transform.root.to_dense()
    expected = np.kron(smooth + 1e-6 * np.eye(40), A + 1e-6 * np.eye(3))
    assert_close(root @ root.T, expected)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.KroneckerCholeskyTransform(), TypeError, "exactly one.*got neither"),
        (
            lambda: kx.KroneckerCholeskyTransform((A,), scale_trils=(LA,)),
            TypeError,
            "exactly one.*got both",
        ),
        (
            lambda: kx.KroneckerCholeskyTransform(kx.Kronecker(A, B) + 0.1),
            TypeError,
            "factors must be a Kronecker product; got KroneckerPlusNoise",
        ),
        (
            lambda: kx.KroneckerCholeskyTransform((A, -B)),
            np.linalg.LinAlgError,
            "factor 1 of the covariance must be positive semidefinite",
        ),
        (lambda: kx.KroneckerCholeskyTransform((A, B), LOC.T), ValueError, "transpose loc"),
    ],
)
@pytest.mark.parametrize("under_jit", [False, True], ids=["outside jit", "under jit"])
def test_bad_input_raises(call, error, match, under_jit):
    with pytest.raises(error, match=match):
        (jax.jit(call) if under_jit else call)()


def whitened(fn, jitter=0.0):
    return handlers.reparam(fn, config={"f": kx.KroneckerReparam(jitter)})


def trace_of(model):
    return handlers.trace(handlers.seed(model, 0)).get_trace()


FIELDS = {
    "covariance": (lambda: kx.KroneckerNormal(LOC, (A, B)), AB),
    "Cholesky factors": (lambda: kx.KroneckerNormal(LOC, scale_trils=(LA, LB)), AB),
    "precision factors": (
        lambda: kx.KroneckerNormal(LOC, precision_factors=(A, B)),
        np.linalg.inv(AB),
    ),
    "flat": (lambda: kx.KroneckerNormal(LOC, (A, B), flatten=True), AB),
    "variance": (lambda: kx.KroneckerNormal(LOC, (A, B), 0.3), AB + 0.3 * np.eye(12)),
    "full noise": (
        lambda: kx.KroneckerNormal(LOC, (A, B), kx.Kronecker(2 * A, covariance(4, 8))),
        AB + np.kron(2 * A, covariance(4, 8)),
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_whitened_field_has_the_same_distribution(name):
    """The map from the white sites is affine: its slope gives the covariance exactly."""
    make, dense = FIELDS[name]
    model = whitened(lambda: numpyro.sample("f", make()))
    trace = trace_of(model)
    assert trace["f"]["type"] == "deterministic"
    assert trace["f"]["value"].shape == make().event_shape
    sites = [site for site in trace if trace[site]["type"] == "sample"]
    assert sites == ["f_base", "f_noise_base"][: len(sites)]
    assert len(sites) == 1 + (make().noise is not None)
    assert all(trace[site]["fn"].event_shape == (3, 4) for site in sites)

    def field(white):
        given = dict(zip(sites, white, strict=True))
        return handlers.seed(handlers.substitute(model, given), 0)().ravel()

    zeros = [jnp.zeros((3, 4))] * len(sites)
    slopes = [s.reshape(12, 12) for s in jax.jacobian(field)(zeros)]
    assert_close(sum(s @ s.T for s in slopes), dense)
    assert_close(field(zeros), LOC.ravel())


@pytest.mark.parametrize("flatten", [False, True])
def test_whitened_in_plates_and_independents(flatten):
    def model():
        with numpyro.plate("replicates", 5):
            numpyro.sample("f", kx.KroneckerNormal(LOC, (A, B), flatten=flatten))

    trace = trace_of(whitened(model))
    base = trace["f_base"]["fn"]
    assert (base.batch_shape, base.event_shape) == ((5,), (3, 4))
    assert trace["f"]["value"].shape == ((5, 12) if flatten else (5, 3, 4))

    def joint():
        d = kx.KroneckerNormal(LOCS, (BATCH_A, B), flatten=flatten)
        numpyro.sample("f", d.to_event(1))

    trace = trace_of(whitened(joint))
    base = trace["f_base"]["fn"]
    assert (base.batch_shape, base.event_shape) == ((), (2, 3, 4))
    assert trace["f"]["value"].shape == ((2, 12) if flatten else (2, 3, 4))


def counts(y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    f = numpyro.sample("f", kx.KroneckerNormal(0.0, (scale * A, B)))
    numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(2), obs=y)


def test_the_joint_density_changes_by_the_jacobian():
    y = np.arange(12).reshape(3, 4) % 3
    transform = kx.KroneckerCholeskyTransform((0.7 * A, B))
    field = transform(Z)

    @jax.jit
    def densities(scale):
        white, _ = log_density(whitened(counts), (y,), {}, {"scale": scale, "f_base": Z})
        return white, log_density(counts, (y,), {}, {"scale": scale, "f": field})[0]

    with jax.numpy_dtype_promotion("standard"):
        white, centred = densities(0.7)
    assert_close(white, centred + transform.log_abs_det_jacobian(Z, field))


def test_a_whitened_field_runs_under_nuts():
    y = np.arange(12).reshape(3, 4) % 3

    @jax.jit
    def run(key):
        mcmc = MCMC(NUTS(whitened(counts)), num_warmup=100, num_samples=100, progress_bar=False)
        mcmc.run(key, y=y, extra_fields=("num_steps",))
        return mcmc.get_samples(), mcmc.get_extra_fields()["num_steps"]

    with jax.numpy_dtype_promotion("standard"):
        samples, num_steps = run(jax.random.key(0))
    assert samples["f"].shape == samples["f_base"].shape == (100, 3, 4)
    assert num_steps.mean() < 16


def test_numpyros_own_reparametrisation_takes_the_transform():
    white = dist.Normal(np.zeros((3, 4)), 1.0).to_event(2)
    transform = kx.KroneckerCholeskyTransform((A, B), LOC)

    def model():
        numpyro.sample("f", dist.TransformedDistribution(white, transform))

    trace = trace_of(handlers.reparam(model, config={"f": TransformReparam()}))
    assert_close(trace["f"]["value"], transform(trace["f_base"]["value"]))


def test_smooth_kernels_need_jitter():
    model = lambda: numpyro.sample("f", kx.KroneckerNormal(0.0, (rbf(40),)))  # noqa: E731
    with pytest.raises(np.linalg.LinAlgError, match="larger jitter"):
        trace_of(whitened(model))
    assert np.isfinite(trace_of(whitened(model, 1e-6))["f"]["value"]).all()


def test_other_sites_raise():
    def observed():
        numpyro.sample("f", kx.KroneckerNormal(LOC, (A, B)), obs=Y)

    with pytest.raises(ValueError, match="latent sites; got the observed site 'f'"):
        trace_of(whitened(observed))
    with pytest.raises(TypeError, match="needs a KroneckerNormal at site 'f'; got Normal"):
        trace_of(whitened(lambda: numpyro.sample("f", dist.Normal(0.0, 1.0))))
