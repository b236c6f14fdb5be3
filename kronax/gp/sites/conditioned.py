"""The posterior of one data set, and of many, each with sites of its own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.datasets import check_draws_have_a_key, to_dataset
from kronax.gp.labelled.templates import Template, of_function, without_batches
from kronax.gp.model.marginal_likelihood import conditioned
from kronax.gp.model.process import AbstractProcess
from kronax.gp.sites.datasets import response_dataset
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.gp.sites.response import Response
from kronax.gp.sites.search import (
    MUST_CONVERGE,
    OTHER_START,
    check_converged,
    filled,
    find,
    no_hint,
)
from kronax.gp.sites.sites import Sites, gaussian
from kronax.gp.summaries import quantiles_of, tails
from kronax.linalg.arrays.checks import check_key, is_concrete
from kronax.linalg.arrays.early_errors import raising_if
from kronax.linalg.arrays.fingerprints import fingerprint_of_tree
from kronax.linalg.arrays.host import is_spread, shared_like_data
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import ConvergenceError
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.sharing.data_sets import of_each


class LikelihoodPosteriors(eqx.Module):
    """What `gp.condition(y)` returns for a batch of data sets where `gp` has a likelihood.

    Each has sites, and so variances, of its own: `posts[k]` is the posterior of one, with all its
    verbs, and `for post in posts` goes through them. The verbs here ask all of them: batches lead
    the grid, in variances too. Inside `jax.jit` map over data sets instead.

    Attributes:
        members: one posterior for each, in the order of the flattened batch.
        batch_shape: of the data.
        template: what the data came as.
        sharding: of the data, where devices have some data sets each.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> posts = gp.condition(jnp.array([[[0, 1, 2, 1]] * 4] * 2))
        >>> len(posts), posts.mean().shape, posts[0].mean().shape
        (2, (2, 4, 4), (4, 4))
    """

    members: tuple[LikelihoodPosterior, ...]
    batch_shape: tuple[int, ...] = eqx.field(static=True)
    template: Template | None = eqx.field(static=True)
    sharding: NamedSharding | None = eqx.field(static=True, default=None)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.batch_shape))
        return f"Posteriors of the function given {shape} data sets:\n{self.model!r}"

    def __len__(self) -> int:
        return self.batch_shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: int | tuple[int, ...]) -> Any:
        """The posterior of one data set, or those of several that share leading indices."""
        numbers = np.arange(len(self.members)).reshape(self.batch_shape)[index]
        if np.ndim(numbers) == 0:
            return self.members[int(numbers)]
        members = tuple(self.members[k] for k in numbers.ravel())
        return LikelihoodPosteriors(members, numbers.shape, None)

    @property
    def model(self) -> AbstractProcess:
        """The process with its likelihood."""
        return self.members[0].model

    @property
    def gp(self) -> AbstractProcess:
        """That of the first data set, for its axes."""
        return self.members[0].gp

    @property
    def y(self) -> Array:
        """What stands for the data in the sites."""
        return self._each(lambda post: post.y, None)

    def mean(self, axes: Any = None, points: Any = None, covariates: Any = None) -> Array:
        """Posterior means of the function, `(*batch, …)`; as of one data set."""
        at = (axes, points, covariates)
        return self._each(lambda post: post.mean(*at), points)

    def variance(self, axes: Any = None, points: Any = None, **options: Any) -> Array:
        """Posterior variances of the function, `(*batch, …)`; as of one data set."""
        at = {"axes": axes, "points": points, **options}
        return self._each(lambda post: post.variance(**at), points)

    def std(self, axes: Any = None, points: Any = None, **options: Any) -> Array:
        """Posterior standard deviations of the function; as of one data set."""
        return safe_sqrt(self.variance(axes, points, **options))

    def quantile(self, q: Any, axes: Any = None, points: Any = None, **options: Any) -> Array:
        """Posterior quantiles of the function; several probabilities lead the batch."""
        mean = self.mean(axes, points, options.get("covariates"))
        return quantiles_of(q, mean, self.variance(axes, points, **options))

    def interval(
        self, level: float = 0.95, axes: Any = None, points: Any = None, **options: Any
    ) -> tuple[Array, Array]:
        """The central interval of the function: its lower and its upper end; as of one data set."""
        ends = self.quantile(tails(level), axes, points, **options)
        return ends[0], ends[1]

    def response(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        points: Any = None,
        covariates: Any = None,
        **given: Any,
    ) -> Response:
        """Rates or probabilities, and new observations; batches lead the grid, quantiles them."""
        at = (axes, quantiles, points, covariates)
        return self._each(lambda post: post.response(*at, **given), points)

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        points: Any = None,
        **options: Any,
    ) -> Float[Array, "..."]:
        """Posterior draws, `(*sample_shape, *batch, …)`; as of one data set."""
        keys = iter(self._keys(key))
        at = {"axes": axes, "sample_shape": sample_shape, "points": points, **options}
        return self._each(lambda post: post.sample(next(keys), **at), points)

    def log_prob(
        self,
        y_new: Float[Array, "..."],
        axes: Any = None,
        points: Any = None,
        *,
        pointwise: bool = False,
        key: PRNGKeyArray | None = None,
        **options: Any,
    ) -> Array:
        """Log densities of new observations, `(*batch, …)` as they are; as of one data set."""
        y_new = self.members[0].read(y_new, axes, points)
        flat = iter(y_new.reshape(len(self.members), *y_new.shape[len(self.batch_shape) :]))
        keys = iter(self._keys(key))
        at = {"axes": axes, "points": points, "pointwise": pointwise, **options}
        found = [post.log_prob(next(flat), key=next(keys), **at) for post in self.members]
        return self._stacked(found, self._num_dims(points) if pointwise else 0)

    def leave_one_out(self) -> LikelihoodLeaveOneOut:
        """Every observation as predicted from all others of its data set; batches lead."""
        return self._each(lambda post: post.leave_one_out(), None)

    def to_dataset(
        self,
        axes: Any = None,
        quantiles: Sequence[float] = (0.025, 0.975),
        num_samples: int = 0,
        key: PRNGKeyArray | None = None,
        response: bool = False,
        covariates: Any = None,
        **given: Any,
    ) -> Any:
        """All as an xarray Dataset, with the dimensions of the batch; as of one data set."""
        verbs: Any = self  # answers as one posterior does, though it is none
        if not response:
            drawn = (num_samples, key)
            return to_dataset(verbs, axes, quantiles, drawn, False, None, covariates)
        check_draws_have_a_key(num_samples, key)
        at = {"covariates": covariates, **given}
        found, draws = self.response(axes, quantiles, **at), None
        if key is not None and num_samples:
            draws = self.sample(key, axes, (num_samples,), response=True, **at)
        return response_dataset(verbs, found, axes, draws)

    def _keys(self, key: PRNGKeyArray | None) -> list[Any]:
        if key is None:
            return [None] * len(self.members)
        check_key(key)
        return list(jax.random.split(key, len(self.members)))

    def _num_dims(self, points: Any) -> int:
        return len(self.gp.axes) if points is None else 1

    def _each(self, ask: Callable[[LikelihoodPosterior], Any], points: Any) -> Any:
        return self._stacked([ask(post) for post in self.members], self._num_dims(points))

    def _stacked(self, found: list[Any], num_dims: int) -> Any:
        """Results of all members in one, the batch before the places of each array.

        What has no such places, such as parameters of a likelihood, is that of the model.
        """
        shared = set(map(id, jax.tree.leaves(self.model)))

        def stack(*arrays: Any) -> Any:
            if id(arrays[0]) in shared:
                return arrays[0]
            lead = jnp.ndim(arrays[0]) - num_dims
            both = jnp.stack(arrays, axis=lead)
            both = both.reshape(*both.shape[:lead], *self.batch_shape, *both.shape[lead + 1 :])
            return shared_like_data(both, self.sharding, lead, len(self.batch_shape))

        return jax.tree.map(stack, *found)


def posteriors(
    gp: AbstractProcess, y: Array, template: Template | None
) -> LikelihoodPosterior | LikelihoodPosteriors:
    """The approximate posterior of checked data, or of each data set of a batch.

    Raises:
        ConvergenceError: if a search for the sites does not converge.
    """
    shape = y.shape[: y.ndim - len(gp.axes)]
    if not shape:
        return approximated(gp, y, template)
    one, members = without_batches(template), []
    flat = y.reshape(-1, *gp.grid_shape)
    found = _find_each(gp, flat) if is_spread(y) else None
    for k, each in enumerate(flat):
        sites = None if found is None else jax.tree.map(lambda x, k=k: x[k], found)
        try:
            members.append(approximated(gp, each, one, sites))
        except ConvergenceError as error:
            where = ", ".join(map(str, np.unravel_index(k, shape)))
            raise ConvergenceError(f"Data set {where}: {error}") from error
    sharding: Any = y.sharding if is_spread(y) else None
    named = sharding if isinstance(sharding, NamedSharding) else None
    template = of_function(template) if template else None
    return LikelihoodPosteriors(tuple(members), shape, template, named)


def approximated(
    gp: AbstractProcess, y: Array, template: Template | None, sites: Sites | None = None
) -> LikelihoodPosterior:
    """The approximate posterior of one checked data set, whose sites may be known.

    Raises:
        ConvergenceError: if the search for the sites does not converge.
    """
    y = filled(gp, y)
    if sites is None:
        sites, _ = _find(gp, y, no_hint(y.shape, y.dtype))
    failed = ~sites.converged
    if is_concrete(sites):
        check_converged(sites)
    sites = raising_if(lambda: failed, sites, f"{MUST_CONVERGE}, and did not. {OTHER_START}")
    return posterior_of_sites(gp, y, of_function(template), sites)


def posterior_of_sites(
    gp: AbstractProcess, y: Array, template: Template | None, sites: Sites
) -> LikelihoodPosterior:
    """The approximate posterior that sites lead to."""
    target = where(sites.converged, sites.target, jnp.nan)
    process = gaussian(gp, sites.precision)
    operator, found = conditioned(process, target)
    made_of = fingerprint_of_tree((process, target), is_void=~sites.converged)
    parts = (found.value, found.regression, template, found.estimate, made_of)
    return LikelihoodPosterior(process, target, operator, *parts, model=gp, data=y, sites=sites)


_find = eqx.filter_jit(find)


@eqx.filter_jit
def _find_each(gp: AbstractProcess, y: Array) -> Sites:
    """The sites of every data set, searched for where that is."""
    return of_each(_sites_of_one, gp, y)[1]


def _sites_of_one(gp: AbstractProcess, y: Array) -> tuple[Array, Sites]:
    sites, _ = find(gp, filled(gp, y), no_hint(y.shape, y.dtype))
    return sites.change, sites
