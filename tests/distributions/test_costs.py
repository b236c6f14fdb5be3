"""What a sampler pays for one gradient of a model's potential energy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

import kronax as kx
from tests.programs import num_eigh

# Irregular, so that every axis is dense.
X1, X2 = np.array([0.0, 0.2, 0.5, 0.6, 1.0]), np.array([0.0, 0.1, 0.4, 1.0])
Y = np.random.default_rng(0).normal(size=(5, 4))


def parameters():
    names = ("variance", "lengthscale_1", "lengthscale_2", "noise")
    return [numpyro.sample(name, dist.LogNormal(-1.0, 0.5)) for name in names]


def from_factors():
    variance, length_1, length_2, noise = parameters()
    factors = variance * kx.RBF(length_1)(X1, X1), kx.RBF(length_2)(X2, X2)
    numpyro.sample("y", kx.KroneckerNormal(0.0, factors, noise), obs=Y)


def from_grid_gp():
    variance, length_1, length_2, noise = parameters()
    gp = kx.GridGP((variance * kx.RBF(length_1), kx.RBF(length_2)), (X1, X2), noise=noise)
    numpyro.sample("y", gp.numpyro_dist(), obs=Y)


def from_priors():
    gp = kx.GridGP((kx.RBF(0.5), kx.RBF(0.5)), (X1, X2), noise=0.1)
    prior = dist.LogNormal(-1.0, 0.5)
    paths = ("variance", "kernels[0].lengthscale", "kernels[1].lengthscale", "noise")
    gp = kx.sample_parameters("gp", gp, priors=dict.fromkeys(paths, prior))
    numpyro.sample("y", gp.numpyro_dist(), obs=Y)


@pytest.mark.parametrize("model", [from_factors, from_grid_gp, from_priors])
def test_a_gradient_of_the_potential_decomposes_each_factor_once(model):
    def latent():
        sites = trace(seed(model, 0)).get_trace().values()
        return {s["name"]: s["value"] for s in sites if not s.get("is_observed")}

    with jax.numpy_dtype_promotion("standard"):
        start = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), jax.eval_shape(latent))
        assert len(start) == 4
        potential = lambda values: -log_density(model, (), {}, values)[0]  # noqa: E731
        assert num_eigh(jax.value_and_grad(potential), start) == 2
