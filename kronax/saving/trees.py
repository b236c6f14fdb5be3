"""Objects as trees of JSON and arrays, and back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kronax.fitting.problem import Domain, Problem
from kronax.fitting.result import FitResult
from kronax.gp.coordinates.spacing import Coordinates
from kronax.gp.coordinates.static_arrays import FrozenArray, FrozenAttributes
from kronax.gp.kernels.named import Kernels
from kronax.gp.posterior.posterior import Posterior, posterior_of
from kronax.gp.sites.conditioned import LikelihoodPosteriors, posterior_of_sites
from kronax.gp.sites.posterior import LikelihoodPosterior
from kronax.linalg.arrays.checks import is_concrete
from kronax.parameter_table import ParameterTable
from kronax.saving.archive import Arrays
from kronax.saving.classes import (
    class_named,
    fields_of,
    function_named,
    made,
    name_of_class,
    name_of_function,
)
from kronax.saving.foreign import (
    NUMPYRO,
    PLAIN,
    numpyro_of,
    numpyro_parts,
    plain_of,
    plain_parts,
)

# What a class is made of, where that is less than its fields, and how it is made of these again: a
# posterior is conditioned anew, so that nothing of a decomposition is in a file.
PARTS: dict[type, tuple[tuple[str, ...], Callable[..., Any]]] = {
    FrozenArray: (("values",), FrozenArray),
    FrozenAttributes: (("values",), FrozenAttributes),
    Coordinates: (("values", "origin", "counted", "is_fixed"), Coordinates),
    Domain: (("constraint",), Domain),
    Kernels: (("items", "names"), Kernels),
    ParameterTable: (("rows", "axis_names"), ParameterTable.of),
    Posterior: (("gp", "y", "template"), posterior_of),
    LikelihoodPosterior: (("model", "data", "template", "sites"), posterior_of_sites),
}
# Fields that are left out: a compiled loop, and devices, which another machine has not.
LEFT_OUT: dict[type, dict[str, Any]] = {
    FitResult: {"loop": None},
    LikelihoodPosteriors: {"sharding": None, "whole": None},
}
# Functions without which the rest serves.
OPTIONAL: dict[type, tuple[str, ...]] = {Problem: ("loss",)}


class Writer:
    """Makes a tree of an object and collects its arrays."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.functions: dict[str, Any] = {}

    def tree(self, value: Any, where: str, is_optional: bool = False) -> Any:
        """The tree of a value at some place of the object.

        Raises:
            TypeError: if a file cannot hold it.
        """
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        plain = numpyro_parts(value)
        if plain is not None:
            return {plain[0]: self.tree(plain[1], where)}
        parts = None if isinstance(value, np.generic) else plain_parts(value)
        if parts is not None:
            return parts
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return self._array(value, where)
        if isinstance(value, dict):
            pairs = [(k, f"{where}[{k!r}]", v) for k, v in value.items()]
            return {"dict": [[self.tree(k, at), self.tree(v, at)] for k, at, v in pairs]}
        if type(value) is list:
            return [self.tree(v, f"{where}[{k}]") for k, v in enumerate(value)]
        if isinstance(value, tuple) and not (hasattr(value, "_fields") or type(value) in PARTS):
            items = [self.tree(v, f"{where}[{k}]") for k, v in enumerate(value)]
            if type(value) is tuple:
                return {"tuple": items}
            return {"items": [name_of_class(type(value), where), items]}
        return self._object(value, where, is_optional)

    def _object(self, value: Any, where: str, is_optional: bool) -> Any:
        cls = type(value)
        if cls in PARTS:
            fields = {name: getattr(value, name) for name in PARTS[cls][0]}
        elif dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
            fields = {**fields_of(value), **LEFT_OUT.get(cls, {})}
        elif callable(value):
            name = name_of_function(value, where)
            if self.functions.setdefault(name, value) is not value:
                raise TypeError(
                    f"Two functions have the name {name!r}; give them different names, or make "
                    "them Equinox modules."
                )
            return {"function": [name, is_optional]}
        else:
            raise TypeError(
                f"{where} is a {cls.__module__}.{cls.__name__}, which a file cannot hold. It holds "
                "numbers, text, dates, arrays, Equinox modules, and distributions of NumPyro."
            )
        optional = OPTIONAL.get(cls, ())
        tree = {
            name: self.tree(v, f"{where}.{name}", name in optional) for name, v in fields.items()
        }
        return {"class": [name_of_class(cls, where), tree]}

    def _array(self, value: Any, where: str) -> Any:
        if not is_concrete(value):
            raise TypeError(f"{where} must have concrete values to be saved; got a traced array.")
        kind = "jax" if isinstance(value, jax.Array) else "numpy"
        if kind == "jax" and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.arrays.append(np.asarray(jax.random.key_data(value)))
            return {"key": [len(self.arrays) - 1, str(jax.random.key_impl(value))]}
        array = np.asarray(value)
        if array.dtype == object:
            items = [self.tree(v, where) for v in array.ravel().tolist()]
            return {"objects": [list(array.shape), items]}
        if array.dtype.kind not in "biufcmMSU":
            raise TypeError(f"{where} has the dtype {array.dtype}, which a file cannot hold.")
        self.arrays.append(array)
        return {"scalar" if isinstance(value, np.generic) else kind: len(self.arrays) - 1}


class Reader:
    """Makes an object of a tree."""

    def __init__(self, arrays: Arrays, written: str, given: Mapping[str, Any]):
        self.arrays, self.written, self.given = arrays, written, given

    def value(self, tree: Any) -> Any:
        """The value of a tree.

        Raises:
            ValueError: if it is none of `Writer`, or cannot be read in this version.
        """
        if tree is None or isinstance(tree, bool | int | str):
            return tree
        if isinstance(tree, list):
            return [self.value(v) for v in tree]
        kind, parts = next(iter(tree.items())) if isinstance(tree, dict) and tree else (None, None)
        if kind in PLAIN:
            return plain_of(kind, parts)
        if kind in NUMPYRO:
            return numpyro_of(kind, self.value(parts))
        make = getattr(self, f"_{kind}", None) if kind in KINDS else None
        if make is None:
            raise ValueError(f"The file holds something of the kind {kind!r}, which is unknown.")
        return make(parts)

    def _dict(self, pairs: Any) -> dict:
        return {self.value(k): self.value(v) for k, v in pairs}

    def _tuple(self, items: Any) -> tuple:
        return tuple(self.value(v) for v in items)

    def _items(self, parts: Any) -> Any:
        cls = class_named(parts[0], self.given)
        if not issubclass(cls, tuple):
            raise TypeError(f"The file names {parts[0]!r} as a tuple, which it is not.")
        return cls(self._tuple(parts[1]))

    def _class(self, parts: Any) -> Any:
        cls = class_named(parts[0], self.given)
        values = {name: self.value(v) for name, v in parts[1].items()}
        if cls in PARTS:
            names, make = PARTS[cls]
            return make(*(values[name] for name in names))
        return made(cls, values, self.written)

    def _function(self, parts: Any) -> Any:
        return function_named(str(parts[0]), self.given, bool(parts[1]))

    def _numpy(self, k: Any) -> np.ndarray:
        return self.arrays[k]

    def _scalar(self, k: Any) -> Any:
        return self.arrays[k][()]

    def _jax(self, k: Any) -> jax.Array:
        array = self.arrays[k]
        kept = jax.dtypes.canonicalize_dtype(array.dtype)
        if kept != array.dtype and array.dtype.kind in "fc":
            raise ValueError(
                f"The file holds numbers in {array.dtype}, and JAX is set to {kept}: switch it to "
                'double precision before, jax.config.update("jax_enable_x64", True).'
            )
        return jnp.asarray(array)

    def _key(self, parts: Any) -> jax.Array:
        return jax.random.wrap_key_data(jnp.asarray(self.arrays[parts[0]]), impl=str(parts[1]))

    def _objects(self, parts: Any) -> np.ndarray:
        shape, items = parts
        array = np.empty(len(items), object)
        for k, item in enumerate(items):
            array[k] = self.value(item)
        return array.reshape(shape)


KINDS = ("dict", "tuple", "items", "class", "function", "numpy", "scalar", "jax", "key", "objects")
