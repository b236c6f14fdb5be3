"""Functions with dense Kronecker products, rewritten."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CellType, FunctionType
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp

from kronax.rewriting.calls import CALL_RULES
from kronax.rewriting.interpreter import Run
from kronax.rewriting.loops import LOOP_RULES
from kronax.rewriting.programs import Programs, is_array
from kronax.rewriting.report import Log, Place
from kronax.rewriting.rules import STARTERS, TENSOR_RULES
from kronax.rewriting.sites import SITE, SITE_RULES, seen
from kronax.rewriting.solves import SOLVE_RULES

RULES = {**TENSOR_RULES, **SOLVE_RULES, **CALL_RULES, **LOOP_RULES, **SITE_RULES}
# What JAX calls the functions that `grad`, `value_and_grad`, `jacfwd` and `jacrev` return.
DERIVATIVES = ("grad_f", "value_and_grad_f", "jacfun", "reraise_with_filtered_traceback")
JAX = os.path.dirname(jax.__file__) + os.sep
ASKED_ALWAYS = STARTERS | {SITE.name}


class Rewritten:
    """A function of which the Kronecker products are not formed; see `kx.rewrite`."""

    def __init__(self, function: Callable[..., Any], strict: bool, same_draws: bool):
        functools.update_wrapper(self, function, updated=())
        self.function, self.strict, self.same_draws = function, strict, same_draws
        self.programs = Programs(function)
        # Where the function is a transformation of JAX: that of the rewritten function, and this.
        self.inner: list[Rewritten] = []
        self.transformed = _transformed(function, self._within)
        self.log: Log | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        if self.transformed is not None:
            return self.transformed(*args, **kwargs)
        return self._run(self.log or Log(strict=self.strict), args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The method of an object, where a class has a rewritten function in its body."""
        if instance is None:
            return self
        method: Any = functools.partial(self, instance)
        method.explain = functools.partial(self.explain, instance)
        return method

    def _within(self, function: Callable[..., Any]) -> "Rewritten":
        self.inner.append(Rewritten(function, self.strict, self.same_draws))
        return self.inner[-1]

    @contextmanager
    def _telling(self, log: Log) -> Iterator[None]:
        """What happens, here and inside, goes into `log`."""
        with ExitStack() as stack:
            for each in self.inner:
                stack.enter_context(each._telling(log))
            self.log = log
            try:
                yield
            finally:
                self.log = None

    def explain(self, *args: Any, **kwargs: Any) -> str:
        """A table of what is found in the function, where, and what becomes of it.

        Nothing is computed: shapes alone are looked at, and values, such as whether a factor is
        symmetric, are taken to be as the program needs them.

        Args:
            *args: those of the function.
            **kwargs: the same.
        """
        log = Log(quiet=True)
        dynamic, static = eqx.partition((args, kwargs), is_array)

        def abstract(arrays: Any) -> Any:
            own_args, own_kwargs = eqx.combine(arrays, static)
            with seen(), self._telling(log):
                result = self(*own_args, **own_kwargs)
            return eqx.filter(result, is_array)

        jax.eval_shape(abstract, dynamic)
        return str(log)

    def _run(self, log: Log, args: Any, kwargs: Any) -> Any:
        program, leaves = self.programs.of(args, kwargs)
        run = Run(log, RULES, ASKED_ALWAYS, self.same_draws)
        results = run.evaluate(program.closed.jaxpr, program.closed.consts, leaves)
        place = _returned(self.function)
        return program.returned([jnp.asarray(run.formed(value, place)) for value in results])


@overload
def rewrite(
    function: Callable[..., Any], *, strict: bool = ..., same_draws: bool = ...
) -> Rewritten: ...
@overload
def rewrite(
    function: None = None, *, strict: bool = ..., same_draws: bool = ...
) -> Callable[[Callable[..., Any]], Rewritten]: ...
def rewrite(
    function: Callable[..., Any] | None = None, *, strict: bool = False, same_draws: bool = True
) -> Any:
    """`function` with the same arguments and results, and without dense Kronecker products.

    The program is traced, and `jnp.kron` with what is done to it is recognised: products of any
    number of factors, multiples, transposes, sums of two, and `+ c * jnp.eye(n)`; then `solve`,
    `inv`, `det`, `slogdet`, `cholesky` with triangular solves and the logarithms of its diagonal,
    `cho_solve`, `@`, `einsum`, `trace`, `diagonal`, and what is made of these: the log densities of
    SciPy and of NumPyro's `MultivariateNormal`, with batches. What is computed then is kronax's,
    derivatives included. What is not recognised is computed as written, with a warning that says
    where.

    A NumPyro model is rewritten as a whole, `@kx.rewrite` above it: it is a model then as before,
    for `NUTS`, `SVI`, `Predictive` and every handler. With options it is a decorator as well,
    `@kx.rewrite(strict=True)`.

    The result composes with `jax.jit`, `grad`, `hessian` and `vmap`, on either side. Python
    numbers among the arguments are constants, as in `eqx.filter_jit`. It is traced once for the
    same shapes, and again when what the function refers to has changed.

    Where a Cholesky factor is taken, factors must be symmetric. Concrete ones that are not are
    computed densely, with the warning; traced ones give NaN, and an error inside `kx.debug_nans()`.

    Args:
        function: of arrays or pytrees of them; without one, a decorator with these options.
        strict: raise where a product would be formed.
        same_draws: whether `L @ ε` with a Cholesky factor `L` is to be the number of the dense
            code. The factor of a product plus noise, or of a sum, is no product. With False another
            root of the same matrix takes its place, `R Rᵀ = L Lᵀ`, without a dense array: draws are
            equal in distribution then, and so are residuals `L⁻¹ y` that are handed out.

    Raises:
        TypeError: if `function` is none.
        DenseProductError: with `strict`, when it is called, naming the line.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> def f(A, B, b):
        ...     return jnp.linalg.solve(jnp.kron(A, B) + 0.5 * jnp.eye(6), b)
        >>> kx.rewrite(f)(jnp.eye(3), jnp.eye(2), jnp.ones(6)).sum().round(3).item()
        4.0
    """
    if function is None:
        return functools.partial(rewrite, strict=strict, same_draws=same_draws)
    if not callable(function):
        raise TypeError(
            f"kx.rewrite takes a function; got {type(function).__name__}. Options go by name: "
            "kx.rewrite(function, strict=True)."
        )
    return Rewritten(function, strict, same_draws)


def _transformed(function: Any, rewritten: Callable[..., Any]) -> Any:
    """`jax.grad(f)` and the like with `rewritten(f)` in place of `f`; None for other functions.

    What a derivative is made of is harder to recognise than the program, and kronax has its own.
    """
    code = getattr(function, "__code__", None)
    if code is None or not code.co_filename.startswith(JAX) or function.__closure__ is None:
        return None
    cells, changed = [], False
    for name, cell in zip(code.co_freevars, function.__closure__, strict=True):
        if name in ("fun", "f") or name.endswith("_f"):
            inside = cell.cell_contents
            if callable(inside):
                found = _transformed(inside, rewritten)
                if found is None and code.co_name in DERIVATIVES and not _is_jax(inside):
                    found = rewritten(inside)
                if found is not None:
                    cell, changed = CellType(found), True
        cells.append(cell)
    if not changed:
        return None
    made = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _is_jax(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(JAX)


def _returned(function: Callable[..., Any]) -> Place:
    code = getattr(function, "__code__", None)
    name = "return"
    if code is None:
        return Place(name, "<unknown>", 0)
    return Place(name, code.co_filename, code.co_firstlineno)
