"""Functions with dense Kronecker products, rewritten."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from kronax.rewrite.calls import CALL_RULES
from kronax.rewrite.interpreter import Run
from kronax.rewrite.loops import LOOP_RULES
from kronax.rewrite.programs import Programs, is_array
from kronax.rewrite.report import Log, Place
from kronax.rewrite.rules import STARTERS, TENSOR_RULES
from kronax.rewrite.sites import SITE, SITE_RULES, seen
from kronax.rewrite.solves import SOLVE_RULES

RULES = {**TENSOR_RULES, **SOLVE_RULES, **CALL_RULES, **LOOP_RULES, **SITE_RULES}
ASKED_ALWAYS = STARTERS | {SITE.name}


class Rewritten:
    """A function of which the Kronecker products are not formed; see `kx.rewrite`."""

    def __init__(self, function: Callable[..., Any], strict: bool, same_draws: bool):
        functools.update_wrapper(self, function, updated=())
        self.function, self.strict, self.same_draws = function, strict, same_draws
        self.programs = Programs(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self._run(Log(strict=self.strict), args, kwargs)

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
            with seen():
                result = self._run(log, own_args, own_kwargs)
            return eqx.filter(result, is_array)

        jax.eval_shape(abstract, dynamic)
        return str(log)

    def _run(self, log: Log, args: Any, kwargs: Any) -> Any:
        program, leaves = self.programs.of(args, kwargs)
        run = Run(log, RULES, ASKED_ALWAYS, self.same_draws)
        results = run.evaluate(program.closed.jaxpr, program.closed.consts, leaves)
        place = _returned(self.function)
        return program.returned([jnp.asarray(run.formed(value, place)) for value in results])


def rewrite(
    function: Callable[..., Any], *, strict: bool = False, same_draws: bool = True
) -> Rewritten:
    """`function` with the same arguments and results, and without dense Kronecker products.

    The program is traced, and `jnp.kron` with what is done to it is recognised: products of any
    number of factors, multiples, transposes, sums of two, and `+ c * jnp.eye(n)`; then `solve`,
    `inv`, `det`, `slogdet`, `cholesky` with triangular solves and the logarithms of its diagonal,
    `cho_solve`, `@`, `einsum`, `trace`, `diagonal`, and what is made of these: the log densities of
    SciPy and of NumPyro's `MultivariateNormal`. What is computed then is kronax's, derivatives
    included. What is not recognised is computed as written, with a warning that says where.

    The result composes with `jax.jit`, `grad`, `hessian` and `vmap`, on either side. Python
    numbers among the arguments are constants, as in `eqx.filter_jit`.

    Where an exact rule needs symmetric factors (with noise, in a sum, after `cholesky`), concrete
    factors that are not are computed densely, with the warning; traced ones give NaN.

    Args:
        function: of arrays or pytrees of them.
        strict: raise where a product would be formed.
        same_draws: whether `L @ ε` with a Cholesky factor `L` is to be the number of the dense
            code. The factor of a product plus noise, or of a sum, is no product. With False another
            root of the same matrix takes its place, `R Rᵀ = L Lᵀ`, without a dense array: draws are
            equal in distribution then, and so are residuals `L⁻¹ y` that are handed out.

    Raises:
        DenseProductError: with `strict`, when it is called, naming the line.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> def f(A, B, b):
        ...     return jnp.linalg.solve(jnp.kron(A, B) + 0.5 * jnp.eye(6), b)
        >>> kx.rewrite(f)(jnp.eye(3), jnp.eye(2), jnp.ones(6)).sum().round(3).item()
        4.0
    """
    return Rewritten(function, strict, same_draws)


def _returned(function: Callable[..., Any]) -> Place:
    code = getattr(function, "__code__", None)
    name = "return"
    if code is None:
        return Place(name, "<unknown>", 0)
    return Place(name, code.co_filename, code.co_firstlineno)
