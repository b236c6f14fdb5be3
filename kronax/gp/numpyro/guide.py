"""Where samplers and guides of a latent field begin: at the field given data, as white numbers.

The field is `f = m + R w` with white `w`, as `gp.latent` makes it, `S = R Rᵀ + 1/W` the covariance
of the data and `W` their precisions, zero at gaps. Given data `z` the white numbers are

    w ~ N(Rᵀ S⁻¹ (z − m), (I + Rᵀ W R)⁻¹),   log det(I + Rᵀ W R) = log det S + Σ log W,

so that one way of solving with `S` serves mean, draws (by Matheron's rule) and density.
"""

from math import log, pi, prod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from kronax.gp.model import checks
from kronax.gp.model.marginal_likelihood import of_its_model
from kronax.gp.model.process import AbstractPosterior, AbstractProcess, with_fields
from kronax.gp.model.solver_choice import data_covariance, is_iterative
from kronax.gp.numpyro.latent import check_jitter, latent_covariance, latent_roots, white_site
from kronax.linalg.arrays.checks import check_key, is_concrete, shape_of
from kronax.linalg.arrays.mode_products import same_rank
from kronax.linalg.arrays.random_numbers import normal_numbers
from kronax.linalg.functions.decompose import decompose, without_checksum
from kronax.linalg.functions.logdet import logdet
from kronax.linalg.functions.solve import signal_weights
from kronax.linalg.krylov.operator import Iterative, check_draws
from kronax.linalg.operators.draws import apply_roots
from kronax.priors import sample_site


class WhiteNormal(dist.Distribution):
    """The white numbers of a latent field given data, `N(loc, (I + Rᵀ W R)⁻¹)`.

    No matrix of that size is made: a draw takes one solve with the covariance of the data, a
    density none.

    Args:
        loc: the mean, `(*batch, r_1, …, r_d)`.
        roots: one per axis, of which `R` is the Kronecker product.
        operator: the covariance of the data.
        precision: `W` on the grid, zero at gaps.
        log_det: of `I + Rᵀ W R`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    reparametrized_params: ClassVar[list[str]] = []
    pytree_data_fields = ("loc", "roots", "operator", "precision", "log_det")

    def __init__(
        self,
        loc: Array,
        roots: list[Any],
        operator: Any,
        precision: Array,
        log_det: Array,
        *,
        validate_args: bool | None = None,
    ):
        self.loc, self.roots, self.operator = loc, roots, operator
        self.precision, self.log_det = precision, log_det
        lead = loc.ndim - len(roots)
        super().__init__(loc.shape[:lead], loc.shape[lead:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Real arrays of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] | int = ()) -> Array:
        """Draws, reparametrised: one solve each."""
        check_key(key)
        draws = _draws(self, key, shape_of(sample_shape))
        if isinstance(self.operator, Iterative) and is_concrete(draws):
            check_draws(draws, self.operator)
        return draws

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density, in nats."""
        return _log_density(self, value)

    @property
    def mean(self) -> Array:
        """`loc`."""
        return self.loc


@eqx.filter_jit
def _draws(white: WhiteNormal, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """A prior draw, less what data with noise would say of it."""
    key, noise_key = jax.random.split(key)
    lead = (*shape, *white.batch_shape)
    prior = normal_numbers(key, (*lead, *white.event_shape), white.loc.dtype)
    is_seen = white.precision > 0
    scale = jnp.where(is_seen, 1 / jnp.sqrt(jnp.where(is_seen, white.precision, 1)), 0)
    noise = normal_numbers(noise_key, (*lead, *scale.shape), white.loc.dtype)
    data = apply_roots(white.roots, prior) + jnp.multiply(*same_rank(scale, noise))
    known = _whitened(white.roots, signal_weights(white.operator, white.operator.held(data)))
    return jnp.add(*same_rank(white.loc, prior - known))


@eqx.filter_jit
def _log_density(white: WhiteNormal, value: Array) -> Array:
    """By squares of what differs from the mean: nothing large cancels."""
    difference = jnp.subtract(*same_rank(value, white.loc))
    field = apply_roots(white.roots, difference)
    weighted = jnp.multiply(*same_rank(white.precision, jnp.square(field)))
    axes = tuple(range(-len(white.roots), 0))
    squares = jnp.sum(jnp.square(difference), axis=axes) + jnp.sum(weighted, axis=axes)
    return (white.log_det - squares - prod(white.event_shape) * log(2 * pi)) / 2


def _whitened(roots: list[Any], weights: Array) -> Array:
    """`Rᵀ` times weights on the grid."""
    lead = weights.shape[: weights.ndim - len(roots)]
    nothing = jnp.zeros((*lead, *(r.size for r in roots)), weights.dtype)
    return jax.vjp(lambda white: apply_roots(roots, white), nothing)[1](weights)[0]


class LatentGuide(eqx.Module):
    """A guide for the latent field of a NumPyro model: what `post.latent_guide(name)` returns.

    It has no parameters of its own. Called in a model it draws the field's sample site; in an
    `AutoGuideList` it stands beside guides of other sites.

    Attributes:
        name: of the field.
        distribution: of its white numbers.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> post = gp.condition(jnp.array([[0, 1, 2, 1]] * 4))
        >>> guide = post.latent_guide("f", jitter=1e-4)
        >>> guide.name, guide.distribution.event_shape
        ('f', (4, 4))
    """

    name: str = eqx.field(static=True)
    distribution: WhiteNormal

    def __call__(self, *args: Any, **options: Any) -> dict[str, Array]:
        """Draw the sample site; the arguments are those of the model, and do not count.

        Raises:
            TypeError: outside a model or guide, where there is no random key.
        """
        site = white_site(self.name)
        return {site: sample_site(site, self.distribution)}

    def sample_posterior(
        self,
        rng_key: PRNGKeyArray,
        params: Any = None,
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **options: Any,
    ) -> dict[str, Array]:
        """Draws of the sample site, as NumPyro asks automatic guides for them."""
        return {white_site(self.name): self.distribution.sample(rng_key, sample_shape)}


class LatentGiven(AbstractPosterior):
    """What a posterior says of the latent field of a NumPyro model."""

    @of_its_model
    def latent_start(
        self, name: str, jitter: float = 1e-6, gp: AbstractProcess | None = None
    ) -> dict[str, Array]:
        """Where a sampler or guide of `gp.latent(name)` may begin: at the posterior mean.

        For `numpyro.infer.init_to_value(values=post.latent_start("f"))`, beside the parameters that
        the posterior was found with. With a likelihood the mean is that of its approximation.

        Args:
            name: of the field.
            jitter: that of `gp.latent`.
            gp: the process that has the latent field, if it is another: see `latent_guide`.

        Returns:
            The white numbers of the field by their site, `name_white`.

        Raises:
            NotImplementedError: where `gp.latent` is not available, or noise is correlated between
                cells.
            ValueError: if the jitter is negative, there is no noise, or `gp` is on another grid.

        Examples:
            >>> import jax.numpy as jnp, kronax as kx
            >>> kernels, axes = (kx.RBF(0.3),), (jnp.linspace(0, 1, 5),)
            >>> gp = kx.GridGP(kernels, axes, likelihood=kx.Poisson())
            >>> post = gp.condition(jnp.array([0, 2, 3, 1, 0]))
            >>> post.latent_start("f")["f_white"].shape
            (5,)
        """
        return {white_site(name): _white_given(self, gp, jitter, "post.latent_start() is").loc}

    @of_its_model
    def latent_guide(
        self, name: str, jitter: float = 1e-6, gp: AbstractProcess | None = None
    ) -> LatentGuide:
        """A guide for the site of `gp.latent(name)`: the posterior of the white numbers itself.

        With a likelihood it is the normal approximation, so that variational inference begins where
        it would end.

        Args:
            name: of the field.
            jitter: that of `gp.latent`.
            gp: the process that has the latent field, by default that of the posterior. One with
                parameters that the guide draws has a field that follows them, given the same
                sites or data; or it has another structure.

        Raises:
            NotImplementedError: as in `latent_start`.
            ValueError: as in `latent_start`.

        Examples:
            >>> import jax, jax.numpy as jnp, kronax as kx
            >>> kernels, axes = (kx.RBF(0.3),), (jnp.linspace(0, 1, 5),)
            >>> gp = kx.GridGP(kernels, axes, likelihood=kx.Poisson())
            >>> guide = gp.condition(jnp.array([0, 2, 3, 1, 0])).latent_guide("f")
            >>> guide.distribution.sample(jax.random.key(0), (2,)).shape
            (2, 5)
        """
        return LatentGuide(name, _white_given(self, gp, jitter, "post.latent_guide() is"))


def _white_given(
    post: AbstractPosterior, gp: AbstractProcess | None, jitter: float, what: str
) -> WhiteNormal:
    """The distribution of the white numbers, by one further decomposition: of the latent field."""
    own = post.gp
    gp = own if gp is None else gp
    check_jitter(jitter)
    checks.refuse_marginal(gp, what)
    checks.refuse_sums(gp, what)
    _check_noise(own, what)
    if gp.grid_shape != own.grid_shape:
        raise ValueError(
            f"`gp` must be on the grid of the posterior, {own.grid_shape}; got {gp.grid_shape}."
        )
    # Solved as the posterior is, whatever roots the field has.
    fields = {n: getattr(gp, n) for n in ("kernels", "variance", "mean", "terms")}
    solved = with_fields(own, **fields)
    # What iterations do not reach is to raise, which a compiled program cannot.
    white = _white if is_iterative(own) else _compiled
    return white(solved, gp, post.y, jitter)


def _check_noise(gp: AbstractProcess, what: str) -> None:
    """Refuse noise without a precision of every cell."""
    if gp.noise_model.is_none:
        raise ValueError(
            "Data of a latent field must have noise: without any there is one field, and no "
            "distribution of it. Give the model a small noise."
        )
    if not gp.noise_model.is_independent:
        raise NotImplementedError(
            f"{what} not available for noise that is correlated between cells: make it a variance, "
            "or variances along axes or by the cell."
        )


def _white(solved: AbstractProcess, gp: AbstractProcess, y: Array, jitter: float) -> WhiteNormal:
    """By the covariance of the first process, and the roots of the second."""
    roots = latent_roots(gp, jitter)
    covariance = data_covariance(solved, latent_covariance(solved, jitter))
    operator = without_checksum(decompose(covariance))
    residual = jnp.subtract(*same_rank(y, gp.mean_on((None,) * len(gp.axes))))
    loc = _whitened(roots, signal_weights(operator, operator.held(residual)))
    precision = _precisions(solved)
    of_noise = jnp.sum(jnp.log(jnp.where(precision > 0, precision, 1)))
    return WhiteNormal(loc, roots, operator, precision, logdet(operator) + of_noise)


_compiled = eqx.filter_jit(_white)


def _precisions(gp: AbstractProcess) -> Array:
    """`W` on the grid, zero where there are no data."""
    precision = jnp.broadcast_to(1 / gp.noise_model.levels(gp.dtype), gp.grid_shape)
    return precision if gp.observed is None else jnp.where(gp.observed.array, precision, 0)
