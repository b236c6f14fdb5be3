"""The posterior of one data set, and of many, each with sites of its own."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from kronax.gp.datasets import check_draws_have_a_key, to_dataset
from kronax.gp.labelled.templates import Template, of_function, without_batches
from kronax.gp.model.marginal_likelihood import conditioned
from kronax.gp.model.process import AbstractProcess
from kronax.gp.sites.datasets import response_dataset
from kronax.gp.sites.leave_one_out import LikelihoodLeaveOneOut
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.gp.sites.response import Response, likelihood_at
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
from kronax.linalg.arrays.host import is_spread, numbers
from kronax.linalg.arrays.precision import where
from kronax.linalg.estimates.certificates import ConvergenceError
from kronax.linalg.factors.square_roots import safe_sqrt
from kronax.linalg.sharing.data_sets import of_each
from kronax.linalg.sharing.members import (
    beside,
    holders,
    in_one,
    moved_to,
    of_batch,
    one_of,
    split,
)


class LikelihoodPosteriors(eqx.Module):
    """What `gp.condition(y)` returns for a batch of data sets where `gp` has a likelihood.

    Each has sites, and so variances, of its own: `posts[k]` is the posterior of one, with all its
    verbs, and `for post in posts` goes through them. The verbs here ask all of them: batches lead
    the grid, in variances too. Inside `jax.jit` map over data sets instead.

    Where devices have some data sets each, `posts[k]` is on those that have its data, and what all
    of them answer is shared out as the data are.

    Attributes:
        members: one posterior for each, in the order of the flattened batch; `None` for those whose
            data only devices of other processes have.
        batch_shape: of the data.
        template: what the data came as.
        sharding: of the data, where devices have some data sets each.
        whole: the process there, of which each member has its parameters on its own devices.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> x = jnp.linspace(0, 1, 4)
        >>> gp = kx.GridGP((kx.Matern32(0.3), kx.RBF(0.3)), (x, x), likelihood=kx.Poisson())
        >>> posts = gp.condition(jnp.array([[[0, 1, 2, 1]] * 4] * 2))
        >>> len(posts), posts.mean().shape, posts[0].mean().shape
        (2, (2, 4, 4), (4, 4))
    """

    members: tuple[LikelihoodPosterior | None, ...]
    batch_shape: tuple[int, ...] = eqx.field(static=True)
    template: Template | None = eqx.field(static=True)
    sharding: NamedSharding | None = eqx.field(static=True, default=None)
    whole: AbstractProcess | None = None

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.batch_shape))
        return f"Posteriors of the function given {shape} data sets:\n{self.model!r}"

    def __len__(self) -> int:
        return self.batch_shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: int | tuple[int, ...]) -> Any:
        """The posterior of one data set, or those of several that share leading indices.

        Raises:
            IndexError: if there is no such data set.
            ValueError: if only devices of other processes have it.
        """
        chosen = np.arange(len(self.members)).reshape(self.batch_shape)[index]
        members = tuple(self.members[k] for k in np.ravel(chosen))
        if any(post is None for post in members):
            here = [k for k, post in enumerate(self.members) if post is not None]
            raise ValueError(
                f"The posterior of a data set is on the devices that have its data; got {index}, "
                f"which is on those of another process. Here are {here} of the flattened batch."
            )
        if np.ndim(chosen) == 0:
            return members[0]
        return LikelihoodPosteriors(members, chosen.shape, None)

    @property
    def model(self) -> AbstractProcess:
        """The process with its likelihood."""
        return self._first.model if self.whole is None else self.whole

    @property
    def gp(self) -> AbstractProcess:
        """That of one of the data sets, for its axes."""
        return self._first.gp

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
        found = self._asked(lambda post: post.response(*at, **given))
        shape = next(iter(found.values())).mean.shape
        # One likelihood for all data sets, where the parameters of the model are.
        alone = {k: dataclasses.replace(each, likelihood=None) for k, each in found.items()}
        likelihood = likelihood_at(self.model, given, axes, points, shape)
        stacked = self._stacked(alone, self._num_dims(points))
        return dataclasses.replace(stacked, likelihood=likelihood)

    def sample(
        self,
        key: PRNGKeyArray,
        axes: Any = None,
        sample_shape: tuple[int, ...] | int = (),
        points: Any = None,
        **options: Any,
    ) -> Float[Array, "..."]:
        """Posterior draws, `(*sample_shape, *batch, …)`; as of one data set."""
        at = {"axes": axes, "sample_shape": sample_shape, "points": points, **options}
        found = self._asked(lambda post, key: post.sample(key, **at), self._keys(key))
        return self._stacked(found, self._num_dims(points))

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
        y_new = self._first.read(y_new, axes, points)
        at = {"axes": axes, "points": points, "pointwise": pointwise, **options}
        found = self._asked(
            lambda post, y, key: post.log_prob(y, key=key, **at),
            split(y_new, self.batch_shape),
            self._keys(key),
        )
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

    @property
    def _first(self) -> LikelihoodPosterior:
        """One that is here."""
        return next(post for post in self.members if post is not None)

    def _keys(self, key: PRNGKeyArray | None) -> list[Any]:
        if key is None:
            return [None] * len(self.members)
        check_key(key)
        return list(jax.random.split(key, len(self.members)))

    def _num_dims(self, points: Any) -> int:
        return len(self.gp.axes) if points is None else 1

    def _each(self, ask: Callable[[LikelihoodPosterior], Any], points: Any) -> Any:
        return self._stacked(self._asked(ask), self._num_dims(points))

    def _asked(self, ask: Callable[..., Any], *own: Sequence[Any]) -> dict[int, Any]:
        """What the members that are here answer to something of their own."""
        found = {}
        for k, index in enumerate(np.ndindex(self.batch_shape)):
            post, given = self.members[k], [each[k] for each in own]
            if post is None:
                continue
            if self.sharding is not None:
                given = moved_to(given, holders(self.sharding, self.batch_shape, index))
            found[k] = ask(post, *given)
        return found

    def _stacked(self, found: dict[int, Any], num_dims: int) -> Any:
        """Results of members in one, the batch before the places of each array.

        What has no such places, such as parameters of a likelihood, is that of the model.
        """
        own, whole = map(jax.tree.leaves, (self._first.model, self.model))
        shared = dict(zip(map(id, own), whole, strict=True))

        def stack(*arrays: Any) -> Any:
            if id(arrays[0]) in shared:
                return shared[id(arrays[0])]
            lead = jnp.ndim(arrays[0]) - num_dims
            if self.sharding is not None and is_concrete(arrays):
                held = dict(zip(found, arrays, strict=True))
                return in_one(held, self.sharding, self.batch_shape, lead)
            both = jnp.stack(beside(arrays), axis=lead)
            return both.reshape(*both.shape[:lead], *self.batch_shape, *both.shape[lead + 1 :])

        return jax.tree.map(stack, *found.values())


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
    template = of_function(template) if template else None
    if is_spread(y) and isinstance(y.sharding, NamedSharding):
        sharding = of_batch(y.sharding, len(shape))
        every = tuple(_where_they_are(gp, y, y.sharding, one))
        return LikelihoodPosteriors(every, shape, template, sharding, gp)
    for index, each in zip(np.ndindex(shape), y.reshape(-1, *gp.grid_shape), strict=True):
        with _of_data_set(index):
            members.append(approximated(gp, each, one))
    return LikelihoodPosteriors(tuple(members), shape, template)


def _where_they_are(
    gp: AbstractProcess, y: Array, sharding: NamedSharding, template: Template | None
) -> Iterator[LikelihoodPosterior | None]:
    """The posterior of each data set, on the devices that hold it; `None` if these are not here."""
    shape = y.shape[: y.ndim - len(gp.axes)]
    sites, models = _find_each(gp, y, sharding), {}
    # All processes know of all searches, so that none goes on where another ends with an error.
    ends = jax.tree.map(lambda x: numbers(x) if x.ndim == len(shape) else None, sites)
    for failed in np.argwhere(~ends.converged):
        with _of_data_set(failed):
            check_converged(jax.tree.map(lambda x, i=tuple(failed): x[i], ends))
    for index in np.ndindex(shape):
        data = one_of(y, index)
        if data is None:
            yield None
            continue
        place = holders(sharding, y.shape, index)
        if place not in models:
            is_everywhere = place.num_devices == sharding.num_devices
            models[place] = gp if is_everywhere else moved_to(gp, place)
        own = jax.tree.map(lambda x, i=index: one_of(x, i), sites)
        yield approximated(models[place], data, template, own)


@contextmanager
def _of_data_set(index: Iterable[int]) -> Iterator[None]:
    try:
        yield
    except ConvergenceError as error:
        name = ", ".join(map(str, index))
        raise ConvergenceError(f"Data set {name}: {error}") from error


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
def _find_each(gp: AbstractProcess, y: Array, sharding: NamedSharding) -> Sites:
    """The sites of every data set `(*batch, …)`, searched for where that is, and left there."""
    lead = y.shape[: y.ndim - len(gp.axes)]
    sites = of_each(_sites_of_one, gp, y.reshape(-1, *gp.grid_shape))[1]

    def placed(x: Array) -> Array:
        x = x.reshape(*lead, *x.shape[1:])
        return lax.with_sharding_constraint(x, of_batch(sharding, x.ndim))

    return jax.tree.map(placed, sites)


def _sites_of_one(gp: AbstractProcess, y: Array) -> tuple[Array, Sites]:
    sites, _ = find(gp, filled(gp, y), no_hint(y.shape, y.dtype))
    return sites.change, sites
