"""Sites of NumPyro models: they leave a traced program, and meet the handlers outside of it.

While a model is traced every message (`numpyro.sample`, `param`, `plate`, …) becomes an equation of
the program. When the program runs, the message goes to the handlers that are active then, with a
distribution whose parameters may be products that are not formed. So a rewritten model is a model:
for `NUTS`, `SVI`, `Predictive` and every handler.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
from jax.extend.core import Primitive
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.primitives import _PYRO_STACK, Messenger, apply_stack

from kronax.rewriting.interpreter import Deferred, Run, unshared
from kronax.rewriting.report import Place

SITE = Primitive("numpyro_site")
SITE.multiple_results = True
SITE.def_abstract_eval(lambda *_, site: [jax.typeof(v) for v in site.empty])


class Site:
    """What is fixed about a message, and how the rest is put in.

    Args:
        message: of NumPyro, with traced values.
        value: shapes and types of what it gives, a pytree.
    """

    def __init__(self, message: dict[str, Any], value: Any):
        rest = dict(message)
        self.has_fn = "fn" in rest
        fn = rest.pop("fn", None)
        is_distribution = isinstance(fn, Distribution)
        self.validated = _validated(fn) if is_distribution else []
        (self.fn_leaves, self.fn_tree), (self.leaves, self.tree) = (
            jax.tree.flatten(each) for each in (fn, rest)
        )
        self.traced = [
            leaf for leaf in (*self.fn_leaves, *self.leaves) if isinstance(leaf, jax.core.Tracer)
        ]
        hole = object()
        self.fn_leaves, self.leaves = (
            [hole if isinstance(leaf, jax.core.Tracer) else leaf for leaf in each]
            for each in (self.fn_leaves, self.leaves)
        )
        self.hole = hole
        self.values, self.value_tree = jax.tree.flatten(value)

    @property
    def empty(self) -> list[Any]:
        """Shapes and types of what it gives."""
        return self.values

    def bind(self) -> Any:
        """The equation, and what it gives."""
        traced, self.traced = self.traced, []
        return jax.tree.unflatten(self.value_tree, SITE.bind(*traced, site=self))

    def message(self, run: Run, place: Place, values: list[Any]) -> dict[str, Any]:
        """The message with values in place of the traced ones."""
        count = sum(leaf is self.hole for leaf in self.fn_leaves)
        own, others = values[:count], [run.formed(v, place) for v in values[count:]]
        rest = iter(others)
        message = jax.tree.unflatten(
            self.tree, [next(rest) if leaf is self.hole else leaf for leaf in self.leaves]
        )
        structured = [isinstance(v, Deferred) or getattr(v, "is_product", False) for v in own]
        own = [v if s else run.formed(v, place) for v, s in zip(own, structured, strict=True)]
        if any(structured):
            fn: Any = RewrittenDistribution(self, run, place, own, structured)
        else:
            fn = self.distribution(own)
        return {**message, "fn": fn} if self.has_fn else message

    def distribution(self, values: list[Any]) -> Any:
        """The distribution, or whatever the function of the message is, of these parameters."""
        own = iter(values)
        leaves = [next(own) if leaf is self.hole else leaf for leaf in self.fn_leaves]
        fn = jax.tree.unflatten(self.fn_tree, leaves)
        for part, validated in zip(_nested(fn), self.validated, strict=False):
            # NumPyro switches it off where a distribution is put together again.
            part._validate_args = validated
        return fn


@dataclass(frozen=True, eq=False)
class Held:
    """What a rewritten distribution is made of; one is equal to itself alone."""

    site: Site
    run: Run
    place: Place
    values: list[Any]


class RewrittenDistribution(Distribution):
    """A distribution of which parameters are products that are not formed.

    What it is asked is what its class computes, rewritten.
    """

    pytree_aux_fields = ("held", "domain")
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, site: Site, run: Run, place: Place, values: list[Any], structured: Any):
        self.held = Held(site, run, place, values)
        bare = [None if s else v for v, s in zip(values, structured, strict=True)]
        shell = site.distribution(bare)
        self.domain = shell.support, shell.has_rsample, shell.is_discrete
        super().__init__(shell.batch_shape, shell.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Where the density is not zero."""
        return self.domain[0]

    @property
    def has_rsample(self) -> bool:
        """Whether draws have derivatives."""
        return self.domain[1]

    @property
    def is_discrete(self) -> bool:
        """Whether values are counts."""
        return self.domain[2]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws."""
        return self._asked(lambda fn, key: fn.sample(key, sample_shape), key)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """The log density."""
        return self._asked(lambda fn, value: fn.log_prob(value), value)

    def entropy(self) -> Array:
        """The entropy."""
        return self._asked(lambda fn: fn.entropy())

    @property
    def mean(self) -> Array:
        """The mean."""
        return self._asked(lambda fn: fn.mean)

    @property
    def variance(self) -> Array:
        """The variances of the entries."""
        return self._asked(lambda fn: fn.variance)

    def _asked(self, question: Callable[..., Any], *args: Any) -> Any:
        site, made_by, values = self.held.site, self.held.run, self.held.values
        run = Run(made_by.log, made_by.rules, made_by.starters, made_by.same_draws)
        count = len(values)

        def program(*arrays: Any) -> Any:
            return question(site.distribution(list(arrays[:count])), *arrays[count:])

        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
        closed = jax.make_jaxpr(program)(*shapes, *args)
        (result,) = run.evaluate(
            closed.jaxpr, closed.consts, [*unshared(values), *args], self.held.place
        )
        return run.formed(result, self.held.place)


class Capture(Messenger):
    """Turns the messages of a model that is traced into equations of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.asking = False

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a traced value, and keep the message from the handlers outside.

        Raises:
            NotImplementedError: for NumPyro's own loops.
        """
        if msg["type"] == "inspect":
            return
        if msg["type"] == "control_flow":
            raise NotImplementedError(
                "kx.rewrite takes no model with numpyro.contrib.control_flow in it; got the site "
                f"{msg.get('name')!r}. Rewrite the function that makes the distribution's log "
                "density, and add what it returns with numpyro.factor."
            )
        msg["stop"] = True
        if self.asking:
            if msg["type"] == "prng_key":
                msg["value"] = jax.random.PRNGKey(0)
            return
        outside = _PYRO_STACK[: _PYRO_STACK.index(self)]
        self.asking = True
        try:
            value = jax.eval_shape(lambda: _value_of(msg, outside))
        finally:
            self.asking = False
        message = {key: part for key, part in msg.items() if key != "stop"}
        result = Site(message, value).bind()
        if msg["type"] in ("sample", "param", "mutable", "prng_key") or msg["value"] is None:
            msg["value"] = result


def _value_of(message: dict[str, Any], outside: list[Any]) -> Any:
    """The value of a message as far as its shape and type go."""
    if message["value"] is not None:
        return message["value"]
    if message["type"] == "prng_key":
        keys = [h.rng_key for h in outside if isinstance(h, handlers.seed)]
        return keys[-1] if keys else None
    if message["type"] != "sample":
        kwargs = dict(message["kwargs"])
        if "rng_key" in kwargs:
            kwargs["rng_key"] = jax.random.PRNGKey(0)
        return message["fn"](*message["args"], **kwargs)
    trial = {
        **message,
        "kwargs": {**message["kwargs"]},
        "cond_indep_stack": [*message["cond_indep_stack"]],
    }
    for handler in reversed(outside):
        if isinstance(handler, numpyro.plate):
            handler.process_message(trial)
    fn, shape = trial["fn"], trial["kwargs"].get("sample_shape", ())
    try:
        return fn.sample(jax.random.PRNGKey(0), shape)
    except NotImplementedError:  # an improper distribution, of which there are no draws
        return jnp.zeros((*shape, *fn.shape()))


def _validated(fn: Distribution) -> list[bool]:
    return [part._validate_args for part in _nested(fn)]


def _nested(fn: Any) -> Iterator[Any]:
    """A distribution and those that it is made of."""
    while isinstance(fn, Distribution):
        yield fn
        fn = getattr(fn, "base_dist", None)


def _emit(run: Run, eqn: Any, *values: Any) -> list[Any]:
    """Send a message to the handlers that are active, and take its value from them."""
    site = eqn.params["site"]
    name = site_name(eqn)
    place = Place.of(eqn)._replace(name=f"sample({name!r})" if name else "site")
    message = apply_stack(site.message(run, place, list(values)))
    found = jax.tree.leaves(message["value"])
    for value, expected in zip(found, site.empty, strict=True):
        if jnp.shape(value) != expected.shape:
            raise ValueError(
                f"The site {name!r} of a rewritten model must have the shape {expected.shape} that "
                f"it was traced with; got {jnp.shape(value)}. Give a value of that shape."
            )
    return [
        value
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key)
        else jnp.asarray(value, expected.dtype)
        for value, expected in zip(found, site.empty, strict=True)
    ]


def site_name(eqn: Any) -> Any:
    """The name of a site."""
    site = eqn.params["site"]
    return jax.tree.unflatten(site.tree, site.leaves).get("name")


def surroundings() -> tuple[Any, ...]:
    """What the shapes of sites depend on, of the handlers that are active."""
    found: list[Any] = []
    for handler in _PYRO_STACK:
        if isinstance(handler, numpyro.plate):
            found.append((handler.name, handler.size, handler.dim, handler.subsample_size))
        elif isinstance(handler, handlers.seed) and handler.rng_key is not None:
            found.append(jax.typeof(handler.rng_key))
    return tuple(found)


@contextmanager
def seen() -> Iterator[None]:
    """Run a model for its shapes alone, hidden from the handlers outside, densities included."""
    with handlers.block(), handlers.trace() as sites, handlers.seed(rng_seed=0):
        yield
    for site in sites.values():
        if isinstance(site.get("fn"), Distribution) and any(
            isinstance(part, RewrittenDistribution) for part in _nested(site["fn"])
        ):
            site["fn"].log_prob(site["value"])


SITE_RULES: dict[str, Any] = {SITE.name: _emit}
