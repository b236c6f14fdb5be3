"""Classes and functions by name: which a file may name, and where they are found again."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

PACKAGE = "kronax"
ELEMENTWISE = ("abs", "cos", "cosh", "exp", "log", "log1p", "sin", "sqrt", "square", "tanh")
# Functions that a file may name: what networks and warps are made of, none of which does more.
ROOMS: dict[str, dict[str, Any]] = {
    "jax.nn": {name: f for name, f in vars(jax.nn).items() if callable(f)},
    "jax.numpy": {name: getattr(jnp, name) for name in ELEMENTWISE},
    "equinox.nn": {"no_activation": signature(eqx.nn.MLP).parameters["final_activation"].default},
}


class NotInFile:
    """Stands for a function that a file only names; calling it says so."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"The file names the function {self.name!r} but does not hold it. {_pass(self.name)}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NotInFile) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def name_of_class(cls: type, where: str) -> str:
    """The name under which a class is found again.

    Raises:
        TypeError: if it cannot be.
    """
    if getattr(sys.modules[PACKAGE], cls.__name__, None) is cls:
        return f"{PACKAGE}:{cls.__name__}"
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"{where} is a {cls.__name__}, a class that is defined inside a function, where no "
            "file can find it again. Define it at the top of a module."
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def class_named(name: str, given: Mapping[str, Any]) -> type:
    """The class of a name: one of kronax, or of its user, who subclasses Equinox's modules.

    Raises:
        ImportError: if there is none.
        TypeError: if it is another object.
    """
    module, _, path = str(name).partition(":")
    found = given.get(name)
    if found is None and module.partition(".")[0] == PACKAGE:
        found = _own(module, path)
    elif found is None:
        found = _imported(module, path, name)
    is_own = getattr(found, "__module__", "").partition(".")[0] == PACKAGE
    if not isinstance(found, type) or not (issubclass(found, eqx.Module) or is_own):
        raise TypeError(
            f"The file names {name!r} as a class of a model, which must be a subclass of "
            "equinox.Module; it is not. It is no file of kx.save, or the name means something else "
            "now."
        )
    return found


def _own(module: str, path: str) -> type:
    """A class of kronax, also where it has moved since."""
    if module == PACKAGE and path in sys.modules[PACKAGE].__all__:
        found = getattr(sys.modules[PACKAGE], path)
        if isinstance(found, type):
            return found
    homes = {
        name: vars(room)[path]
        for name, room in list(sys.modules.items())
        if name.partition(".")[0] == PACKAGE
        and isinstance(vars(room).get(path), type)
        and vars(room)[path].__module__ == name
    }
    if module in homes:
        return homes[module]
    if len(homes) == 1:
        return next(iter(homes.values()))
    raise ImportError(
        f"The file holds a {path} of {module}, which this version of kronax does not have. Load it "
        "with the version that wrote it."
    )


def _imported(module: str, path: str, name: str) -> Any:
    """A class of a user, by the module that defines it."""
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = vars(found)[part]
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise ImportError(
            f"The file needs the class {name!r}, which cannot be imported ({error!r}). Make its "
            f"module importable. {_pass(name)}"
        ) from error
    return found


def name_of_function(function: Callable, where: str) -> str:
    """The name of a function, which a file has in place of it."""
    for room, known in ROOMS.items():
        for name, value in known.items():
            if value is function:
                return f"{room}:{name}"
    own = getattr(function, "__name__", None)
    if own is None or not hasattr(function, "__module__"):
        raise TypeError(
            f"{where} is a {type(function).__name__}, which a file cannot hold. Make it an Equinox "
            "module."
        )
    return f"{function.__module__}:{function.__qualname__}"


def function_named(name: str, given: Mapping[str, Any], is_optional: bool) -> Any:
    """A function: of JAX, or as it was given; a file never leads to another.

    Raises:
        ValueError: if it is not known.
    """
    room, _, own = name.partition(":")
    found = given.get(name, ROOMS.get(room, {}).get(own))
    if found is not None:
        return found
    if is_optional:
        return NotInFile(name)
    raise ValueError(
        f"The file names the function {name!r}, and functions are not loaded by their names, since "
        f"that could run anything. {_pass(name)}"
    )


def _pass(name: str) -> str:
    own = name.rpartition(":")[2].rpartition(".")[2].strip("<>")
    return f"Pass it: kx.load(path, given={{{name!r}: {own}}})."


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a module, a dataclass or a named tuple; defaults may stand in the class."""
    if isinstance(value, tuple):
        named: Any = value
        return named._asdict()
    own = vars(value)
    return {f.name: own[f.name] for f in dataclasses.fields(value) if f.name in own}


def made(cls: Any, values: Mapping[str, Any], written: str) -> Any:
    """An instance with these fields; its constructor does not run.

    Raises:
        ValueError: if its fields are others now.
    """
    missing, factories = dataclasses.MISSING, dict[str, Any]()
    if issubclass(cls, tuple):
        known, defaults = list(cls._fields), dict(cls._field_defaults)
    else:
        fields = {f.name: f for f in dataclasses.fields(cls)}
        factories = {n: f.default_factory for n, f in fields.items()}
        factories = {n: make for n, make in factories.items() if make is not missing}
        known, defaults = (
            list(fields),
            {n: f for n, f in fields.items() if f.default is not missing},
        )
        defaults |= factories
    if not set(values) <= set(known) or not set(known) <= {*values, *defaults}:
        raise ValueError(
            f"The file was written by kronax {written}, whose {cls.__name__} had the fields "
            f"{', '.join(values)}; here it has {', '.join(known)}. Load it with the version that "
            "wrote it."
        )
    if issubclass(cls, tuple):
        return cls(**values)
    instance = object.__new__(cls)
    fresh = {name: make() for name, make in factories.items() if name not in values}
    for name, value in {**fresh, **values}.items():
        object.__setattr__(instance, name, value)
    return instance
