"""What compiled programs contain, and how many there are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import jax

COMPILED: list[str] = []
VERSIONS = count(1)


def _listen(event: str, _: float, **details: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(str(details.get("fun_name", event)))


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def anew() -> Iterator[None]:
    """Inside no program of before is used, and outside none of those inside.

    JAX keeps programs by its settings: one that says nothing to a CPU has a value of its own here.
    """
    name = "jax_xla_profile_version"
    before = getattr(jax.config, name)
    jax.config.update(name, next(VERSIONS))
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextmanager
def programs() -> Iterator[list[str]]:
    """The names of the programs that are compiled inside, as in a process that has none yet."""
    found: list[str] = []
    before = len(COMPILED)
    with anew():
        try:
            yield found
        finally:
            found += COMPILED[before:]


def num_eigh(function, *args) -> int:
    """How many calls of LAPACK's symmetric eigensolver the compiled function has."""
    program = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"custom_call_target=\"[^\"]*syevd", program))


def for_cuda(function, *args) -> str:
    """The program that a GPU would compile, of arguments that stand for their shapes."""
    shapes = jax.tree.map(jax.typeof, args)
    return jax.export.export(jax.jit(function), platforms=["cuda"])(*shapes).mlir_module()


def host_callbacks(text: str) -> list[str]:
    """The calls out of a program to Python."""
    return [call for call in custom_calls(text) if "callback" in call]


def custom_calls(text: str) -> list[str]:
    """The names of library functions in a program."""
    return re.findall(r"custom_call @([\w.$]+)", text)


def rounded_products(text: str) -> list[str]:
    """Products of float32 that a GPU may do in TF32, with three digits."""
    products = [
        line
        for line in text.splitlines()
        if re.search(r"stablehlo\.(dot_general|convolution)", line)
    ]
    return [line for line in products if "xf32>" in line and "HIGHEST, HIGHEST" not in line]


def float64_numbers(text: str) -> list[str]:
    """Where a program of float32 has numbers of float64, constants among them.

    But for the infinity by which NumPyro masks a density: Python's own, handed on to be converted.
    """
    numpyro = r"constant dense<0xFFF0000000000000> : tensor<f64>|call @_where|@_where\w*\(|%arg2"
    found = [line for line in text.splitlines() if "f64" in line]
    masks = any("0xFFF0000000000000" in line for line in found)
    return [line for line in found if not (masks and re.search(numpyro, line))]
