"""Parameters of any Equinox module: their names, domains, and unconstrained values.

One mechanism serves `kx.fit` and anybody's own loop: a parameter is an array in natural units, its
domain is declared on the field, and optimisers see it through NumPyro's `biject_to`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform

from kronax.display import short
from kronax.linalg.arrays.checks import check_plain, is_concrete, plain
from kronax.linalg.arrays.host import numpy_of, on_device, on_host
from kronax.parameter_table import Parameter, ParameterTable, describe_domain
from kronax.paths import check_known, frozen_paths, matching, numbered, path_of, shared_paths

Model = TypeVar("Model")

# What a field may say that its parameter starts at when data are there (`GridGP.initialise`): a
# power of the distance over which the data are correlated, their mean, or what only its user knows.
LENGTH_POWERS = {"lengthscale": 1, "1/lengthscale": -1, "1/lengthscale²": -2}
DATA_MEAN = "mean"
AS_GIVEN = "as given"


def parameter(
    constraint: Any = constraints.real,
    *,
    default: Any = dataclasses.MISSING,
    start: float | str | None = None,
) -> Any:
    """Declare a field of an Equinox module as a parameter with a domain.

    Python numbers become arrays, so that they train. Concrete values outside the domain raise. With
    the annotation `kx.ParameterArray`, an array, checkers of types know that numbers may be given.

    Args:
        constraint: a NumPyro constraint, such as `numpyro.distributions.constraints.positive`.
        default: value of the field if none is given; with `None` it may be left without one.
        start: what `GridGP.initialise` sets it to: a number, for a parameter without units; in a
            kernel `"lengthscale"`, `"1/lengthscale"` or `"1/lengthscale²"`, for one in units of the
            axis; in a mean `"mean"`, that of the data. By default it stays, and random starts move
            it; with `"as given"`, for what only the user knows, such as a period, they do not.

    Raises:
        ValueError: if `start` is none of these.

    Examples:
        >>> import equinox as eqx, kronax as kx
        >>> from numpyro.distributions import constraints
        >>> class Decay(eqx.Module):
        ...     rate: kx.ParameterArray = kx.parameter(constraints.positive)
        >>> Decay(2).rate.item()
        2.0
    """

    def convert(value: Any) -> Any:
        if value is None and default is None:
            return None
        return as_parameter(value, constraint, getattr(field, "name", None) or "The parameter")

    known = (*LENGTH_POWERS, DATA_MEAN, AS_GIVEN)
    if isinstance(start, str) and start not in known:
        raise ValueError(f"start must be a number or one of {', '.join(known)}; got {start!r}.")
    given = {} if default is dataclasses.MISSING else {"default": default}
    field = eqx.field(
        converter=convert, metadata={"constraint": constraint, "start": start}, **given
    )
    return field


def data(**options: Any) -> Any:
    """Declare a field whose numbers have no known domain: frozen unless a domain is given."""
    return eqx.field(metadata={"unknown_domain": True}, **options)


def refuse_plain_numbers(module: Any) -> None:
    """Refuse Python numbers in fields of a module that are neither parameters nor static.

    No fit would train them, and `jax.jit` would trace them. Fields that hold arrays, and modules of
    other kinds, are left alone.

    Raises:
        TypeError: naming the field.
    """
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        wanted = (float,) if "float" not in str(field.type) else (float, int)
        leaves = value if isinstance(value, tuple | list) else [value]
        plain = [v for v in leaves if isinstance(v, wanted) and not isinstance(v, bool)]
        if plain and not field.metadata.get("static", False):
            raise TypeError(
                f"The field `{field.name}` of {type(module).__name__} holds the Python number "
                f"{plain[0]!r}, which is no parameter. Declare it as `{field.name}: Array = "
                "kx.parameter(constraints.positive)` to have it trained, or as "
                f"`{field.name}: float = eqx.field(static=True)` for a constant."
            )


def as_parameter(value: Any, constraint: Any, name: str) -> Any:
    """Numbers as a floating-point array inside the domain; other objects pass as they are."""
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{name} must be a number or an array; got {value!r}.")
    check_plain(value, name)
    if isinstance(value, tuple):
        return tuple(v if v is None else as_parameter(v, constraint, name) for v in value)
    value = plain(np.asarray(value) if hasattr(value, "to_numpy") else value, name)
    if not isinstance(value, int | float | complex | list | np.ndarray | np.generic | jax.Array):
        return value
    given = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    if not (jnp.issubdtype(given, jnp.floating) or jnp.issubdtype(given, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers; got {value!r} of dtype {given}.")
    if isinstance(value, jax.core.Tracer):
        array = value if jnp.issubdtype(given, jnp.floating) else value.astype(float)
        return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array
    host = _on_host(value)
    # Looked at now, also under jit, which would trace it and hide what is wrong.
    with jax.ensure_compile_time_eval():
        _check_domain(host, constraint, name)
    is_ready = isinstance(value, jax.Array) and value.dtype == host.dtype and not value.weak_type
    return value if is_ready else on_device(host)


def _on_host(value: Any) -> np.ndarray:
    """Concrete numbers as JAX will hold them, in NumPy: nothing is compiled to look at them."""
    array = np.asarray(value)
    dtype = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else float
    with np.errstate(over="ignore"):  # infinity is refused as such
        return array.astype(jax.dtypes.canonicalize_dtype(dtype))


def _check_domain(values: np.ndarray, constraint: Any, name: str) -> None:
    # Compiled programs take subnormal numbers for zero.
    is_zero = np.abs(values) < np.finfo(values.dtype).tiny
    seen = np.where(is_zero, np.zeros_like(values), values)
    is_own = type(constraint).__module__.startswith("numpyro.")
    if np.isfinite(seen).all() and np.all(constraint(seen if is_own else on_device(seen))):
        return
    advice = _advice(values, constraint)
    raise ValueError(f"{name} must be {describe_domain(constraint)}; got {values}. {advice}")


def _advice(values: np.ndarray, constraint: Any) -> str:
    """What to do about values outside of a domain, by what is wrong with them."""
    if not np.isfinite(values).all():
        return "Remove NaN and infinities: it must be finite."
    if constraint is constraints.simplex:
        return "Its entries are shares: none is negative, and they sum to one; divide by the sum."
    if getattr(constraint, "lower_bound", None) != 0 or hasattr(constraint, "upper_bound"):
        return "Give a value inside of that domain."
    if values.min() == 0:
        return (
            "Zero is the edge of the domain: give a small positive number, or leave the part out."
        )
    return "Give it in natural units, not as a logarithm."


def parameters(
    model: Any,
    *,
    freeze: Any = (),
    domains: Mapping[str, Any] | None = None,
    share: Any = (),
) -> ParameterTable:
    """Every parameter of a model: path, value, domain, and whether a fit would train it.

    Args:
        model: any Equinox module.
        freeze: what stays as it is: paths, or beginnings of paths; functions from the model to
            nodes of it, as for `eqx.tree_at`; or a tree of booleans like the model, true where
            frozen.
        domains: NumPyro constraints by path, where none is declared or another is wanted.
        share: groups of parameters that have one value, that of the first: each a tuple of paths,
            or a function from the model to a tuple of its leaves.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.
        TypeError: if `freeze` or `share` is of another kind.
        ValueError: if parameters that share a value have different shapes or domains.

    Examples:
        >>> import kronax as kx
        >>> kx.parameters(kx.Matern32(lengthscale=0.5))
        parameter    value  domain    trainable
        lengthscale  0.5    positive  yes
    """
    domains = dict(domains or {})
    found = list(_leaves(model))
    paths = [path for path, *_ in found]
    frozen = set(frozen_paths(model, freeze))
    given = {
        path: domain
        for name, domain in domains.items()
        for path in matching(numbered(model, name), paths)
    }
    rows = {}
    for path, value, domain, known in found:
        known = known or path in given
        domain = given.get(path, domain) if known else None
        rows[path] = Parameter(path, value, domain, known and path not in frozen)
    for first, *others in shared_paths(model, share):
        for path in others:
            _check_alike(rows[first], rows[path])
            rows[path] = dataclasses.replace(rows[path], trainable=False, source=first)
    return ParameterTable.of(rows.values(), getattr(model, "axis_names", None))


def _check_alike(first: Parameter, other: Parameter) -> None:
    if first.value.shape != other.value.shape:
        raise ValueError(
            f"Parameters that share a value must have one shape; got {first.value.shape} for "
            f"{first.path} and {other.value.shape} for {other.path}."
        )
    if first.domain is not other.domain and first.domain != other.domain:
        domains = [p.domain and describe_domain(p.domain) for p in (first, other)]
        raise ValueError(
            f"Parameters that share a value must have one domain; got {domains[0] or 'unknown'} "
            f"for {first.path} and {domains[1] or 'unknown'} for {other.path}. Give both the same "
            "by `domains=`."
        )


def unconstrain(
    model: Model,
    *,
    freeze: Any = (),
    domains: Mapping[str, Any] | None = None,
    share: Any = (),
) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], Model]]:
    """Unconstrained values of the trainable parameters, and the way back.

    For your own loop: run any optax optimiser on `raw`; `build(raw)` is the model inside its
    domain. Both are pure and go through jit, grad and vmap.

    Args:
        model: any Equinox module.
        freeze: what stays as it is, as for `kx.parameters`.
        domains: NumPyro constraints by path, where none is declared or another is wanted.
        share: groups of parameters that have one value, as for `kx.parameters`.

    Returns:
        `raw`, a dictionary from path to array, and `build`.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.
        TypeError: if `freeze` or `share` is of another kind.
        ValueError: if a value lies outside its domain, or parameters that share a value have
            different shapes or domains.

    Examples:
        >>> import kronax as kx
        >>> raw, build = kx.unconstrain(kx.Matern32(lengthscale=1.0))
        >>> raw["lengthscale"].item(), build(raw).lengthscale.item()
        (0.0, 1.0)
    """
    table = parameters(model, freeze=freeze, domains=domains, share=share)
    rows = [p for p in table if p.trainable]
    sharing = {p.path: p.source for p in table if p.source is not None}
    fixed = {p.path: p.value for p in table}
    transforms = {p.path: biject_to(p.domain) for p in rows}
    raw = {}
    for p in rows:
        raw[p.path] = unconstrained_by(transforms[p.path], p.value)
        _check_inside(p, raw[p.path])

    def build(values: Mapping[str, Array]) -> Model:
        if set(values) != set(raw):
            raise KeyError(
                f"The unconstrained values must have the keys {sorted(raw)}; got {sorted(values)}."
            )
        natural = {path: natural_by(transforms[path], v) for path, v in values.items()}
        for path, source in sharing.items():
            natural[path] = natural.get(source, fixed[source]).astype(fixed[path].dtype)
        return _put(model, natural)

    return raw, build


def natural_by(transform: Any, raw: Array) -> Array:
    """A value in natural units; a known exponential in NumPy, where nothing is compiled for it."""
    return on_host(_exp, raw) if type(transform) is ExpTransform else transform(raw)


def unconstrained_by(transform: Any, value: Array) -> Array:
    """And back."""
    return on_host(_log, value) if type(transform) is ExpTransform else transform.inv(value)


def _exp(x: Any) -> Any:
    with np.errstate(over="ignore"):
        return numpy_of(x).exp(x)


def _log(x: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return numpy_of(x).log(x)


def replace(model: Model, values: Mapping[str, Any]) -> Model:
    """The model with other values at some paths, in natural units.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.
        ValueError: if a value has another shape, or lies outside its domain.

    Examples:
        >>> import kronax as kx
        >>> kx.replace(kx.Matern32(lengthscale=1.0), {"lengthscale": 2.0}).lengthscale.item()
        2.0
    """
    rows = {p.path: p for p in parameters(model)}
    new = {}
    for name, value in values.items():
        path = numbered(model, name)
        check_known(path, list(rows))
        old = rows[path]
        # Python numbers stay out of a trace, so that they are checked under jit too.
        if value is None or isinstance(value, str | bool):
            raise TypeError(f"{path} must be a number or an array; got {value!r}.")
        value = plain(value, path)
        is_array = isinstance(value, jax.Array) or not is_concrete(value)
        array = jnp.asarray(value) if is_array else np.asarray(value)
        if array.shape != old.value.shape:
            raise ValueError(
                f"{path} must keep its shape {old.value.shape}; got shape {array.shape}."
            )
        array = array.astype(old.value.dtype)
        new[path] = array if old.domain is None else as_parameter(array, old.domain, path)
    return _put(model, new)


def _leaves(model: Any) -> Iterator[tuple[str, Array, Any, bool]]:
    """Path, value, domain and whether the domain is known, of every floating-point array."""
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if eqx.is_inexact_array(leaf):
            domain, known = _declared(model, key_path)
            yield path_of(key_path), leaf, domain, known


def _declared(model: Any, key_path: tuple) -> tuple[Any, bool]:
    """The domain that the innermost field on the way declares; undeclared numbers are real."""
    domain, known, node = constraints.real, True, model
    for key in key_path:
        if isinstance(key, jax.tree_util.GetAttrKey) and dataclasses.is_dataclass(node):
            field = next((f for f in dataclasses.fields(node) if f.name == key.name), None)
            meta = field.metadata if field else {}
            if "constraint" in meta:
                domain, known = meta["constraint"], True
            elif meta.get("unknown_domain"):
                known = False
        node = _child(node, key)
    return domain, known


def _child(node: Any, key: Any) -> Any:
    """One step down a key path, whatever kind of pytree the node is."""
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return next(child for path, child in children if path == (key,))


def _put(model: Model, values: Mapping[str, Any]) -> Model:
    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    new = [values.get(path_of(key_path), leaf) for key_path, leaf in leaves]
    return jax.tree_util.tree_unflatten(tree, new)


def _check_inside(p: Parameter, raw: Array) -> None:
    if not isinstance(raw, jax.core.Tracer) and not np.isfinite(raw).all():
        raise ValueError(
            f"{p.path} must be {describe_domain(p.domain)} to be trained; got {short(p.value)}. "
            "Move it inside its domain, or freeze it."
        )
