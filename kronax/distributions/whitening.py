"""Latent fields from white ones: a transform, and a reparametrisation for `handlers.reparam`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform
from numpyro.infer.reparam import Reparam

from kronax.distributions.forms import (
    AbstractForm,
    CholeskyForm,
    PrecisionForm,
    cholesky,
    triangular,
)
from kronax.distributions.grids import eagerly
from kronax.distributions.normal import KroneckerNormal
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.decompositions.factorized import Factorized
from kronax.linalg.functions.solve import solve_grid
from kronax.linalg.operators.kronecker import Kronecker, as_kronecker
from kronax.linalg.operators.plus_noise import KroneckerPlusNoise


class KroneckerCholeskyTransform(Transform):
    """`z → loc + (L_1 ⊗ … ⊗ L_d) z`: a white field on the grid to one with covariance `⊗K_i`.

    One product per axis forward, one triangular solve back; the Cholesky factors are found once,
    when the transform is made. Differentiable at any spectrum.

    Args:
        factors: covariance factors `K_i`, arrays or operators, or one `kx.Kronecker`.
        loc: what is added; a number, a grid array, or a flat one.
        scale_trils: the Cholesky factors `L_i` instead of `factors`.
        jitter: added to the diagonal of every covariance factor before its Cholesky
            factorisation, in the units of the factor. Smooth kernels need some: 1e-6 in float32.

    Raises:
        ValueError: if shapes do not fit, or a concrete covariance factor plus jitter is not
            positive definite.
        TypeError: unless exactly one of `factors` and `scale_trils` is given, without noise.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> transform = kx.KroneckerCholeskyTransform((4.0 * jnp.eye(3), jnp.eye(2)))
        >>> transform(jnp.ones((3, 2))).sum().item()
        12.0
    """

    def __init__(
        self,
        factors: Any = None,
        loc: Any = 0.0,
        *,
        scale_trils: Any = None,
        jitter: float = 0.0,
    ):
        if (factors is None) == (scale_trils is None):
            raise TypeError(
                "KroneckerCholeskyTransform needs exactly one of `factors` and `scale_trils`; got "
                f"{'neither' if factors is None else 'both'}."
            )
        with eagerly((factors, scale_trils, jitter)):
            if factors is None:
                self.root = triangular(scale_trils)
            else:
                given = isinstance(factors, list | tuple)
                op = Kronecker(*factors) if given else as_kronecker(factors, "factors")
                op.check_covariance("KroneckerCholeskyTransform")
                self.root = cholesky(op, jitter)
        with eagerly(loc):
            self.loc = self.root.mean_vector(loc, "loc")

    @property
    def domain(self) -> Any:
        """Real arrays over the grid."""
        return constraints.independent(constraints.real, len(self.root.grid_shape))

    @property
    def codomain(self) -> Any:
        """Real arrays over the grid."""
        return self.domain

    def __call__(self, x: Array) -> Array:
        """`loc + (⊗L_i) x`."""
        return jnp.add(*same_rank(self.loc, self.root.mv_grid(x)))

    def _inverse(self, y: Array) -> Array:
        return solve_grid(self.root, jnp.subtract(*same_rank(y, self.loc)))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """The same at every `x`: `Σ (N / n_i) log|det L_i|`."""
        batch = self.forward_shape(jnp.shape(x))[: -len(self.root.grid_shape)]
        return jnp.broadcast_to(Factorized(self.root).logdet(), batch)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`shape` with the batch axes of the parameters.

        Raises:
            ValueError: if it does not end as the grid does.
        """
        grid = self.root.grid_shape
        if tuple(shape[-len(grid) :]) != grid:
            raise ValueError(
                f"The transform takes arrays of shape (*batch, {', '.join(map(str, grid))}); got "
                f"shape {tuple(shape)}. Reshape flat vectors to the grid, in C order."
            )
        return jnp.broadcast_shapes(shape, (*self.root.batch_shape, *grid), self.loc.shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As `forward_shape`."""
        return self.forward_shape(shape)

    def tree_flatten(self) -> Any:
        """Both parameters are leaves."""
        return (self.loc, self.root), (("loc", "root"), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether the other is the same map."""
        if not isinstance(other, KroneckerCholeskyTransform):
            return False
        if self.root.grid_shape != other.root.grid_shape:
            return False
        pairs = [
            (self.loc, other.loc),
            *(
                (a.to_dense(), b.to_dense())
                for a, b in zip(self.root.factors, other.root.factors, strict=True)
            ),
        ]
        if static:
            return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        return jnp.array([jnp.array_equal(a, b) for a, b in pairs]).all()


class KroneckerReparam(Reparam):
    """A latent `KroneckerNormal` from a white field: `handlers.reparam(config={"f": …})`.

    The site `f_base` is sampled from `Normal(0, 1)` on the grid and `f` becomes deterministic,
    `loc + (⊗L_i) f_base`. A sampler then needs no more steps on a strongly correlated field than on
    a white one. With noise `f` is the sum of two whitened fields, and a second site `f_noise_base`
    doubles the number of latent values: leave noise to the likelihood where you can.

    Args:
        jitter: added to the diagonal of every covariance factor before its Cholesky
            factorisation. Smooth kernels need some: 1e-6 in float32.

    Examples:
        >>> import jax.numpy as jnp, numpyro, kronax as kx
        >>> def model():
        ...     return numpyro.sample("f", kx.KroneckerNormal(0.0, (jnp.eye(3), jnp.eye(2))))
        >>> whitened = numpyro.handlers.reparam(model, config={"f": kx.KroneckerReparam()})
        >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(whitened, 0)).get_trace()
        >>> list(trace), trace["f"]["type"]
        (['f_base', 'f'], 'deterministic')
    """

    def __init__(self, jitter: float = 0.0):
        self.jitter = jitter

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Array]:
        """Sample the auxiliary sites.

        Raises:
            ValueError: if the site is observed.
            TypeError: if its distribution is no `KroneckerNormal`.
        """
        if obs is not None:
            raise ValueError(
                f"KroneckerReparam is for latent sites; got the observed site {name!r}. Leave it "
                "out of the config."
            )
        fn, expand_shape, event_dim = self._unwrap(fn)
        if not isinstance(fn, KroneckerNormal):
            raise TypeError(
                f"KroneckerReparam needs a KroneckerNormal at site {name!r}; got "
                f"{type(fn).__name__}."
            )
        grid, dtype = fn.grid_shape, fn.form.dtype
        base = dist.Normal(jnp.zeros(grid, dtype), jnp.ones((), dtype)).to_event(len(grid))
        base = self._wrap(base, expand_shape, event_dim - fn.event_dim + len(grid))
        value = fn.loc + _colour(fn.form, numpyro.sample(f"{name}_base", base), self.jitter)
        operator = fn.form.operator
        if isinstance(operator, KroneckerPlusNoise):
            noise = operator.noise
            white = numpyro.sample(f"{name}_noise_base", base)
            if isinstance(noise, Kronecker):
                value = value + cholesky(noise).mv_grid(white)
            else:
                scale = jnp.sqrt(noise)
                value = value + scale.reshape(*scale.shape, *(1,) * len(grid)) * white
        return None, fn._shaped(value)


def _colour(form: AbstractForm, white: Array, jitter: float) -> Array:
    """A field with the covariance of the form, without its noise."""
    if isinstance(form, CholeskyForm):
        return form.operator.mv_grid(white)
    if isinstance(form, PrecisionForm):
        return solve_grid(cholesky(form.operator, what="precision").T, white)
    operator = form.operator
    signal = operator.kronecker if isinstance(operator, KroneckerPlusNoise) else operator
    assert isinstance(signal, Kronecker)
    return cholesky(signal, jitter).mv_grid(white)
