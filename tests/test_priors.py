"""Priors on parameters inside NumPyro models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import random_eqx_module
from numpyro.distributions import constraints
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.util import log_density

import kronax as kx

X, Z = np.linspace(0, 1, 4), np.linspace(0, 1, 3)
GP = kx.GridGP((1.5 * kx.Matern32(0.3), kx.RBF(0.5)), (X, Z), noise=0.1)
PRIORS = {"kernels[0].lengthscale": dist.LogNormal(-1.0, 1.0), "noise": dist.HalfNormal(1.0)}


def traced(function):
    return trace(seed(function, jax.random.key(0))).get_trace()


def test_sites_are_named_by_path_and_reach_the_model():
    found = {}

    def model():
        found["gp"] = kx.sample_parameters("gp", GP, PRIORS)

    sites = traced(model)
    assert set(sites) == {"gp.kernels[0].lengthscale", "gp.noise"}
    gp = found["gp"]
    assert gp.noise == sites["gp.noise"]["value"]
    assert gp.kernels[0].lengthscale == sites["gp.kernels[0].lengthscale"]["value"]
    assert gp.kernels[1].lengthscale == 0.5
    assert gp.variance == 1.5


class Weights(eqx.Module):
    scales: jax.Array = kx.parameter(constraints.positive)


@pytest.mark.parametrize(
    "prior", [dist.HalfNormal(1.0), dist.HalfNormal(jnp.ones(3)), dist.Dirichlet(jnp.ones(3))]
)
def test_arrays_of_parameters(prior):
    sites = traced(lambda: kx.sample_parameters("w", Weights(np.ones(3)), {"scales": prior}))
    site = sites["w.scales"]
    assert site["value"].shape == (3,)
    assert site["fn"].batch_shape == ()
    assert len(np.unique(site["value"])) == 3


def test_the_gradient_of_the_density_flows_to_the_sites():
    y = np.random.default_rng(0).normal(size=(4, 3))

    def density(noise):
        values = {"gp.noise": noise, "gp.kernels[0].lengthscale": jnp.asarray(0.3)}
        with substitute(data=values):
            gp = kx.sample_parameters("gp", GP, PRIORS)
        return gp.log_marginal_likelihood(y)

    expected = jax.grad(lambda n: kx.replace(GP, {"noise": n}).log_marginal_likelihood(y))(0.2)
    np.testing.assert_allclose(jax.jit(jax.grad(density))(0.2), expected, rtol=1e-10)


def test_random_eqx_module_leaves_coordinates_alone():
    def model():
        module = random_eqx_module("gp", GP, lambda name, shape: dist.HalfNormal(1.0))
        return numpyro.deterministic("x", module.axes[0].coordinates(jnp.float64))

    sites = traced(model)
    sampled = {name for name, site in sites.items() if site["type"] == "sample"}
    assert sampled == {f"gp/{p.path}" for p in kx.parameters(GP)}
    np.testing.assert_allclose(np.diff(sites["x"]["value"]), np.diff(X))


def test_random_eqx_module_ignores_a_misspelt_path():
    """The caveat of docs/numpyro.md: no site, and all of the module is a site for optimisers."""
    noise = []

    def model():
        module = random_eqx_module("gp", GP, {"noize": dist.HalfNormal(1.0)})
        noise.append(module.noise)

    sites = traced(model)
    assert {name: site["type"] for name, site in sites.items()} == {"gp$params": "param"}
    assert isinstance(sites["gp$params"]["value"], kx.GridGP)
    assert noise == [GP.noise]
    with pytest.raises(KeyError, match=r"'noize'\. Did you mean 'noise'"):
        traced(lambda: kx.sample_parameters("gp", GP, {"noize": dist.HalfNormal(1.0)}))


def test_plain_sites_into_constructors():
    y = np.random.default_rng(0).normal(size=(4, 3))

    def model(y):
        first = kx.Matern32(numpyro.sample("lengthscale", dist.LogNormal(0.0, 1.0)))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        gp = kx.GridGP((1.5 * first, kx.RBF(0.5)), (X, Z), noise)
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    values = {"lengthscale": 0.4, "noise": 0.2}
    joint = jax.jit(lambda values: log_density(model, (y,), {}, values)[0])(values)
    priors = dist.LogNormal(0.0, 1.0).log_prob(0.4) + dist.HalfNormal(1.0).log_prob(0.2)
    gp = kx.replace(GP, {"kernels[0].lengthscale": 0.4, "noise": 0.2})
    np.testing.assert_allclose(joint, gp.log_marginal_likelihood(y) + priors, rtol=1e-10)


@pytest.mark.parametrize(
    ("priors", "error", "match"),
    [
        (
            {"kernel[0].lengthscale": dist.HalfNormal()},
            KeyError,
            r"no parameter 'kernel\[0\].lengthscale'. Did you mean 'kernels\[0\].lengthscale'",
        ),
        ({"noise": 0.1}, TypeError, "must be a NumPyro distribution; got float"),
        ({"noise": dist.Normal()}, ValueError, "lie in its domain, positive; got Normal"),
        ({"noise": dist.HalfNormal(jnp.ones(2))}, ValueError, r"shape \(\).*batch shape \(2,\)"),
        ({"noise": dist.Uniform(-1.0, 1.0)}, ValueError, "lie in its domain"),
    ],
)
def test_errors(priors, error, match):
    with pytest.raises(error, match=match):
        traced(lambda: kx.sample_parameters("gp", GP, priors))


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ((GP, "gp", PRIORS), "GridGP, str, dict"),
        (("gp", GP, [dist.HalfNormal()]), "str, GridGP, list"),
    ],
)
def test_arguments_in_another_order_raise(arguments, got):
    with pytest.raises(TypeError, match=f"a name, a model and a dictionary .*; got {got}"):
        kx.sample_parameters(*arguments)


@pytest.mark.parametrize(
    ("call", "site"),
    [
        (lambda: kx.sample_parameters("gp", GP, PRIORS), r"gp\.kernels\[0\]\.lengthscale"),
        (lambda: GP.latent("f"), "f_white"),
    ],
)
def test_outside_a_model_it_says_what_to_do(call, site):
    for place in (call, substitute(call, data={})):
        with pytest.raises(RuntimeError, match=f"{site}.* inside a NumPyro model.*handlers.seed"):
            jax.eval_shape(lambda place=place: [place()][:0])


def test_a_plate_around_it_says_what_to_do():
    def model():
        with numpyro.plate("groups", 5):
            kx.sample_parameters("gp", GP, PRIORS)

    with pytest.raises(ValueError, match=r"must have shape \(\); got \(5,\).*draw outside"):
        traced(model)
