"""Parameters of any Equinox module: their names, domains, and unconstrained values.

One mechanism serves `kx.fit` and anybody's own loop: a parameter is an array in natural units, its
domain is declared on the field, and optimisers see it through NumPyro's `biject_to`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints

Model = TypeVar("Model")


def parameter(constraint: Any = constraints.real, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of an Equinox module as a parameter with a domain.

    Python numbers become arrays, so that they train. Concrete values outside the domain raise.

    Args:
        constraint: a NumPyro constraint, such as `numpyro.distributions.constraints.positive`.
        default: value of the field if none is given.

    Examples:
        >>> import equinox as eqx, kronax as kx
        >>> from numpyro.distributions import constraints
        >>> class Decay(eqx.Module):
        ...     rate: object = kx.parameter(constraints.positive)
        >>> Decay(2).rate.item()
        2.0
    """

    def convert(value: Any) -> Any:
        return as_parameter(value, constraint, getattr(field, "name", None) or "The parameter")

    given = {} if default is dataclasses.MISSING else {"default": default}
    field = eqx.field(converter=convert, metadata={"constraint": constraint}, **given)
    return field


def data(**options: Any) -> Any:
    """Declare a field whose numbers have no known domain: frozen unless a domain is given."""
    return eqx.field(metadata={"unknown_domain": True}, **options)


def as_parameter(value: Any, constraint: Any, name: str) -> Any:
    """Numbers as a floating-point array inside the domain; other objects pass as they are."""
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{name} must be a number or an array; got {value!r}.")
    if isinstance(value, tuple):
        return tuple(v if v is None else as_parameter(v, constraint, name) for v in value)
    if not isinstance(value, int | float | complex | list | np.ndarray | np.generic | jax.Array):
        return value
    given = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    if not (jnp.issubdtype(given, jnp.floating) or jnp.issubdtype(given, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers; got {value!r} of dtype {given}.")
    if not isinstance(value, jax.core.Tracer):
        # Looked at now, also under jit, which would trace it and hide what is wrong.
        with jax.ensure_compile_time_eval():
            _check_domain(_as_floating(value), constraint, name)
    return _as_floating(value)


def _as_floating(value: Any) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array


def _check_domain(array: Array, constraint: Any, name: str) -> None:
    if bool(jnp.all(constraint(array))):
        return
    advice = (
        "Remove NaN and infinities."
        if constraint is constraints.real
        else "Give it in natural units, not as a logarithm."
    )
    raise ValueError(
        f"{name} must be {describe_domain(constraint)}; got {np.asarray(array)}. {advice}"
    )


def describe_domain(constraint: Any) -> str:
    """A constraint in words."""
    if constraint is constraints.positive:
        return "positive"
    if constraint is constraints.real:
        return "real"
    return str(constraint)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of `kx.parameters`: where it is, what it is, and what may become of it."""

    path: str
    value: Array
    domain: Any
    trainable: bool


class ParameterTable(tuple[Parameter, ...]):
    """The parameters of a model; prints as a table."""

    def __repr__(self) -> str:
        rows = [("parameter", "value", "domain", "trainable")]
        for p in self:
            domain = "unknown" if p.domain is None else describe_domain(p.domain)
            rows.append((p.path, _short(p.value), domain, "yes" if p.trainable else "no"))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _short(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return f"traced {value.dtype}{list(value.shape)}"
    array = np.asarray(value)
    if array.size <= 4:
        return np.array2string(array, precision=4, separator=", ")
    return f"{array.dtype}{list(array.shape)} in [{array.min():.4g}, {array.max():.4g}]"


def parameters(
    model: Any, *, freeze: Collection[str] = (), domains: Mapping[str, Any] | None = None
) -> ParameterTable:
    """Every parameter of a model: path, value, domain, and whether a fit would train it.

    Args:
        model: any Equinox module.
        freeze: paths, or beginnings of paths, that stay as they are.
        domains: NumPyro constraints by path, where none is declared or another is wanted.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.

    Examples:
        >>> import kronax as kx
        >>> kx.parameters(kx.Matern32(lengthscale=0.5))
        parameter    value  domain    trainable
        lengthscale  0.5    positive  yes
    """
    if isinstance(freeze, str):
        raise TypeError(
            f"freeze must be a collection of paths; got {freeze!r}. Write ({freeze!r},)."
        )
    domains = dict(domains or {})
    found = list(_leaves(model))
    paths = [path for path, *_ in found]
    frozen = {p for name in freeze for p in _matching(name, paths)}
    given = {p: domain for name, domain in domains.items() for p in _matching(name, paths)}
    rows = []
    for path, value, domain, known in found:
        known = known or path in given
        domain = given.get(path, domain) if known else None
        rows.append(Parameter(path, value, domain, known and path not in frozen))
    return ParameterTable(rows)


def unconstrain(
    model: Model, *, freeze: Collection[str] = (), domains: Mapping[str, Any] | None = None
) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], Model]]:
    """Unconstrained values of the trainable parameters, and the way back.

    For your own loop: run any optax optimiser on `raw`; `build(raw)` is the model inside its
    domain. Both are pure and go through jit, grad and vmap.

    Args:
        model: any Equinox module.
        freeze: paths, or beginnings of paths, that stay as they are.
        domains: NumPyro constraints by path, where none is declared or another is wanted.

    Returns:
        `raw`, a dictionary from path to array, and `build`.

    Raises:
        KeyError: if a path is unknown; the nearest is suggested.
        ValueError: if a value lies outside its domain, or two parameters share a path.

    Examples:
        >>> import kronax as kx
        >>> raw, build = kx.unconstrain(kx.Matern32(lengthscale=1.0))
        >>> raw["lengthscale"].item(), build(raw).lengthscale.item()
        (0.0, 1.0)
    """
    rows = [p for p in parameters(model, freeze=freeze, domains=domains) if p.trainable]
    transforms = {p.path: biject_to(p.domain) for p in rows}
    raw = {}
    for p in rows:
        raw[p.path] = transforms[p.path].inv(p.value)
        _check_inside(p, raw[p.path])

    def build(values: Mapping[str, Array]) -> Model:
        if set(values) != set(raw):
            raise KeyError(
                f"The unconstrained values must have the keys {sorted(raw)}; got {sorted(values)}."
            )
        return _put(model, {path: transforms[path](v) for path, v in values.items()})

    return raw, build


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
    for path, value in values.items():
        _exact(path, list(rows))
        old = rows[path]
        # Python numbers stay out of a trace, so that they are checked under jit too.
        array = np.asarray(value) if isinstance(value, int | float) else jnp.asarray(value)
        if array.shape != old.value.shape:
            raise ValueError(
                f"{path} must keep its shape {old.value.shape}; got shape {array.shape}."
            )
        array = array.astype(old.value.dtype)
        new[path] = array if old.domain is None else as_parameter(array, old.domain, path)
    return _put(model, new)


def nearest(name: Any, known: Collection[Any]) -> str:
    """A hint that names what was probably meant."""
    names = {str(k): k for k in known}
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.0)
    hint = f" Did you mean {names[close[0]]!r}?" if close else ""
    return f"{hint} Known: {', '.join(map(repr, known)) or 'none'}."


def path_of(key_path: tuple) -> str:
    """A JAX key path as users write it: without the leading dot."""
    return jax.tree_util.keystr(key_path).removeprefix(".")


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


def _matching(name: str, paths: list[str]) -> list[str]:
    found = [p for p in paths if p == name or p.startswith((f"{name}.", f"{name}["))]
    if not found:
        raise KeyError(f"There is no parameter {name!r}.{nearest(name, paths)}")
    return found


def _exact(name: str, paths: list[str]) -> None:
    if name not in paths:
        raise KeyError(f"There is no parameter {name!r}.{nearest(name, paths)}")


def _check_inside(p: Parameter, raw: Array) -> None:
    if not isinstance(raw, jax.core.Tracer) and not bool(jnp.isfinite(raw).all()):
        raise ValueError(
            f"{p.path} must be {describe_domain(p.domain)} to be trained; got {_short(p.value)}. "
            "Move it inside its domain, or freeze it."
        )
