"""What a function refers to: a program that was traced serves while all of it is the same.

`jax.jit` looks at arguments alone. Here a variable that is bound anew is seen as well, in what the
function closes over, in globals, and in functions of the user that it calls; so are lists and
dictionaries with other contents, and NumPy arrays with other numbers.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from kronax.rewriting.report import is_library

# What has more entries is not compared one by one.
MAX_ENTRIES = 200_000
PLAIN = (bool, int, float, complex, str, bytes, np.dtype, type(None))
# Of functions that these libraries wrap the function itself is looked at.
WRAPPERS = ("jax", "functools", "equinox", "kronax")
FIXED = (types.BuiltinFunctionType, np.ufunc, jax.Array)


class Changeable(Exception):
    """Something may change without a trace."""


@dataclass
class References:
    """Objects that are to be the same ones, and values that are to be equal."""

    objects: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)

    def same_as(self, other: "References") -> bool:
        """Whether nothing has changed."""
        if len(self.objects) != len(other.objects) or self.values != other.values:
            return False
        return all(a is b for a, b in zip(self.objects, other.objects, strict=True))

    def add(self, value: Any) -> None:
        """A value with all that it refers to.

        Raises:
            Changeable: if that cannot be told.
        """
        if isinstance(value, PLAIN):
            self.values.append((type(value), value))
        elif isinstance(value, jax.core.Tracer):
            raise Changeable(value)
        elif isinstance(value, np.ndarray | np.generic):
            if value.size > MAX_ENTRIES or value.dtype.hasobject:
                raise Changeable(value)
            self.values.append((value.dtype, value.shape, value.tobytes()))
        elif isinstance(value, tuple | list | dict) and len(value) > MAX_ENTRIES // 100:
            raise Changeable(value)
        else:
            known = len(self.seen)
            # Which of all objects stands here: one that was met before may take another's place.
            self.values.append(self.seen.setdefault(id(value), known))
            if len(self.seen) > known:
                self.objects.append(value if _is_kept(value) else type(value))
                for part in _parts(value):
                    self.add(part)


def references(*values: Any) -> References | None:
    """All that these refer to; None if it may change without a trace."""
    found = References()
    try:
        for value in values:
            found.add(value)
    except Changeable:
        return None
    return found


def _is_kept(value: Any) -> bool:
    """Whether it is to be the same object; of others the parts are to be the same."""
    return not isinstance(value, tuple | list | dict) and not _is_frozen(value)


def _is_frozen(value: Any) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
    )


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, FIXED):
        return
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.ModuleType):
        if not is_library(getattr(value, "__file__", None) or "<frozen"):
            raise Changeable(value)
    elif isinstance(value, type):
        if not is_library(_file_of(value)):
            yield from value.__bases__
            yield from _of_class(value)
    elif isinstance(value, dict):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, tuple | list):
        yield len(value)
        yield from value
    elif _is_frozen(value):
        yield type(value)
        yield from (getattr(value, each.name, None) for each in dataclasses.fields(value))
    elif type(value).__module__.startswith(WRAPPERS) and hasattr(value, "__wrapped__"):
        yield value.__wrapped__
    else:
        raise Changeable(value)


def _of_class(kind: type) -> Iterator[Any]:
    """The functions of a class, and its attributes."""
    for name, value in vars(kind).items():
        if isinstance(value, property):
            yield value.fget
        elif isinstance(value, types.FunctionType | staticmethod | classmethod):
            yield getattr(value, "__func__", value)
        elif not name.startswith(("__", "_abc_")) and not _is_slot(value):
            yield value


def _is_slot(value: Any) -> bool:
    """Whether a class has it for what its instances hold."""
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from (v for k, v in vars(function).items() if not k.startswith("__"))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue
    if is_library(function.__code__.co_filename):
        return
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _file_of(kind: type) -> str:
    module = kind.__module__.partition(".")[0]
    if module in ("builtins", "kronax", "jax", "jaxlib", "numpy", "numpyro", "equinox"):
        return "<frozen"
    functions = [v for v in vars(kind).values() if isinstance(v, types.FunctionType)]
    return functions[0].__code__.co_filename if functions else ""
