"""What a user of the library may define in a module of theirs."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import constraints

import kronax as kx


class Triangle(kx.Kernel):
    width: Array = kx.parameter(constraints.positive)
    power: float = eqx.field(static=True, default=1.0)

    def evaluate(self, x, z):
        return jnp.maximum(1 - jnp.abs(x - z) / self.width, 0) ** self.power


class NeuralMean(kx.Mean):
    net: eqx.nn.MLP

    def __call__(self, *axes):
        return self.net(axes[0][:, None].T[0][:1])


class NotAModule:
    pass


def ramp(x):
    return 0.5 * x


def loss(model):
    return jnp.square(model.width - 2.0).sum()
