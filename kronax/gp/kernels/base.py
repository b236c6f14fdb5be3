"""What a covariance function is, and how kernels add, multiply and scale."""

import abc
from collections.abc import Callable, Iterator
from operator import mul, truediv
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.annotations import ParameterArray
from kronax.domains import data, parameter, refuse_plain_numbers
from kronax.gp.kernels import adapters
from kronax.gp.kernels.markov import checked_gaps, not_markov
from kronax.gp.kernels.points import Points
from kronax.linalg.arrays.checks import whole
from kronax.linalg.arrays.host import on_device, on_host
from kronax.linalg.state_spaces import algebra
from kronax.linalg.state_spaces.state_space import StateSpace
from kronax.names import Named, words


class Kernel(Named, eqx.Module):
    """A covariance function: subclass it with `evaluate` on one pair of points.

    Kernels add and multiply; `number * kernel` scales the variance. Calling one gives the matrix
    between two lists of points, `(n_1,)` or `(n_1, p)` each.

    Where `stationary` is overridden to be true, coordinates come less their origin, and regular
    axes are decomposed faster. Where `state_space` is given as well, an axis may have
    `structure="markov"`.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> from numpyro.distributions import constraints
        >>> class Triangle(kx.Kernel):
        ...     width: kx.ParameterArray = kx.parameter(constraints.positive)
        ...
        ...     def evaluate(self, x, z):
        ...         return jnp.maximum(1 - jnp.abs(x - z) / self.width, 0)
        >>> Triangle(2.0)(jnp.arange(3.0), jnp.arange(2.0)).shape
        (3, 2)
    """

    __array_ufunc__: ClassVar[None] = None  # NumPy numbers leave `number * kernel` to the kernel
    # Why it has no state space, where it has none.
    not_markov: ClassVar[str] = "it does not say what its `state_space` is"
    _internal: ClassVar[frozenset[str]] = words(
        "all_terms check_coordinates form_of has_slope matrix_at not_markov split_scale "
        "takes_labels uncorrelated variances_at"
    )

    def __check_init__(self) -> None:
        """Refuse Python numbers in fields that are neither parameters nor static."""
        refuse_plain_numbers(self)

    @property
    def stationary(self) -> bool:
        """Whether it depends on `x − x'` only, for every value of its parameters."""
        return False

    @property
    def isotropic(self) -> bool:
        """Whether it depends on the Euclidean distance only, for every value of its parameters."""
        return False

    @property
    def uncorrelated(self) -> bool:
        """Whether it is zero between different points, for every value of its parameters."""
        return False

    @property
    def has_slope(self) -> bool:
        """Whether functions with this covariance have a derivative everywhere."""
        return True

    @property
    def takes_labels(self) -> bool:
        """Whether labels make sense to it, which it sees as codes 0, 1, … in no order."""
        return not self.stationary

    @abc.abstractmethod
    def evaluate(self, x: Array, z: Array) -> Float[Array, ""]:
        """The covariance of the values at two points, each a scalar or a vector `(p,)`."""

    def __call__(self, x1: Any, x2: Any) -> Float[Array, "n1 n2"]:
        """The matrix of covariances between two lists of points."""
        x1, x2 = (as_points(x, self) for x in (x1, x2))
        return jax.vmap(lambda x: jax.vmap(lambda z: self._scalar(x, z))(x2))(x1)

    def diagonal(self, x: Any) -> Float[Array, " n"]:
        """The variances at a list of points."""
        return jax.vmap(lambda p: self._scalar(p, p))(as_points(x, self))

    def _scalar(self, x: Array, z: Array) -> Array:
        value = jnp.asarray(self.evaluate(x, z))
        if value.shape:
            raise ValueError(
                f"`evaluate` of {type(self).__name__} must return one number for a pair of points, "
                f"here of shape {x.shape}; got shape {value.shape}. Reduce over the dimensions of "
                "a point, for example by jnp.sum, and give parameters one number each."
            )
        return value

    def matrix_at(self, x1: Points, x2: Points) -> Float[Array, "n1 n2"]:
        """The matrix between points of an axis, in the form that suits this kernel."""
        matrix = self(self.form_of(x1), self.form_of(x2))
        return self._checked(matrix, (x1.raw.shape[0], x2.raw.shape[0]), "__call__")

    def variances_at(self, x: Points) -> Float[Array, " n"]:
        """The variances at points of an axis, in the form that suits this kernel."""
        return self._checked(self.diagonal(self.form_of(x)), (x.raw.shape[0],), "diagonal")

    def _checked(self, values: Array, shape: tuple[int, ...], method: str) -> Array:
        if jnp.shape(values) != shape:
            raise ValueError(
                f"`{method}` of {type(self).__name__} must return an array of shape {shape} for "
                f"that many points; got shape {jnp.shape(values)}."
            )
        return values

    def form_of(self, x: Points) -> Array:
        """The form of the points that this kernel sees."""
        if self.isotropic and x.places is not None:
            return x.places
        return x.centred if self.stationary else x.raw

    def state_space(self, gaps: Any) -> StateSpace:
        """The process at sorted places as a linear recursion of a few numbers.

        Args:
            gaps: distances between neighbours, not negative, `(n - 1,)`; or one number, if all
                steps are the same: then there is one transition, and `regular` is true.

        Raises:
            NotMarkovError: if there is none: no finite number of values tells the future.
        """
        raise not_markov(self, self.not_markov)

    def check_coordinates(self, x: np.ndarray, name: str) -> None:
        """Refuse coordinates of an axis at which the kernel is not defined."""

    def all_terms(self) -> Iterator["Kernel"]:
        """What it is made of by sums, products and scales."""
        yield self

    def split_scale(self) -> tuple["Kernel", Array | None]:
        """The kernel without its amplitude, and that amplitude if it has one."""
        return self, None

    def __add__(self, other: Any) -> "Kernel":
        return Sum(self, as_kernel(other, "What is added to a kernel must be"))

    __radd__ = __add__

    def __mul__(self, other: Any) -> "Kernel":
        if isinstance(other, int | float | np.generic | jax.Array | np.ndarray):
            return scale(self, other)
        return product(self, as_kernel(other, "What multiplies a kernel must be a number,"))

    __rmul__ = __mul__


def dtype_of(tree: Any) -> Any:
    """The precision of a module's parameters; JAX's default where it has none."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.result_type(*(leaf.dtype for leaf in leaves)) if leaves else jnp.result_type(float)


def as_points(x: Any, kernel: Kernel) -> Array:
    """Coordinates in the precision of a kernel; in their own where it has no parameters."""
    x = on_device(x)
    if jnp.issubdtype(x.dtype, jnp.floating) and not any(
        map(eqx.is_inexact_array, jax.tree.leaves(kernel))
    ):
        return x
    return x.astype(dtype_of(kernel))


class Exchangeable(Kernel):
    """A kernel that sees no more of two points than whether they are the same."""

    @property
    def stationary(self) -> bool:
        """Always."""
        return True

    @property
    def isotropic(self) -> bool:
        """Always."""
        return True

    @property
    def takes_labels(self) -> bool:
        """Always."""
        return True


class Ones(Exchangeable):
    """One between all points: what `Constant` is without its variance."""

    def state_space(self, gaps: Any) -> StateSpace:
        """A value that stays."""
        steps = as_points(checked_gaps(gaps), self)
        return algebra.level(steps, jnp.ones((), steps.dtype))

    def evaluate(self, x: Array, z: Array) -> Array:
        """One."""
        return jnp.ones((), jnp.result_type(x, z))


class Pair(Kernel):
    """Two kernels and an operation on their values."""

    first: eqx.AbstractVar[Kernel]
    second: eqx.AbstractVar[Kernel]

    @property
    def stationary(self) -> bool:
        """If both are."""
        return self.first.stationary and self.second.stationary

    @property
    def isotropic(self) -> bool:
        """If both are."""
        return self.first.isotropic and self.second.isotropic

    @property
    def has_slope(self) -> bool:
        """If both do."""
        return self.first.has_slope and self.second.has_slope

    @property
    def takes_labels(self) -> bool:
        """If both do."""
        return self.first.takes_labels and self.second.takes_labels

    def all_terms(self) -> Iterator[Kernel]:
        """Those of both."""
        yield from self.first.all_terms()
        yield from self.second.all_terms()

    @abc.abstractmethod
    def combine(self, a: Array, b: Array) -> Array:
        """The operation."""

    def evaluate(self, x: Array, z: Array) -> Array:
        """Both formulas."""
        return self.combine(self.first.evaluate(x, z), self.second.evaluate(x, z))

    def __call__(self, x1: Any, x2: Any) -> Array:
        """Both matrices."""
        x1, x2 = (as_points(x, self) for x in (x1, x2))
        return self.combine(self.first(x1, x2), self.second(x1, x2))

    def diagonal(self, x: Any) -> Array:
        """Both diagonals."""
        x = as_points(x, self)
        return self.combine(self.first.diagonal(x), self.second.diagonal(x))

    def matrix_at(self, x1: Points, x2: Points) -> Array:
        """Both matrices; each kernel sees the points in its own form."""
        return self.combine(self.first.matrix_at(x1, x2), self.second.matrix_at(x1, x2))

    def variances_at(self, x: Points) -> Array:
        """Both diagonals."""
        return self.combine(self.first.variances_at(x), self.second.variances_at(x))


class Sum(Pair):
    """The sum of two kernels."""

    first: Kernel
    second: Kernel

    @property
    def uncorrelated(self) -> bool:
        """If both are."""
        return self.first.uncorrelated and self.second.uncorrelated

    def state_space(self, gaps: Any) -> StateSpace:
        """Both processes, side by side."""
        return algebra.added(self.first.state_space(gaps), self.second.state_space(gaps))

    def combine(self, a: Array, b: Array) -> Array:
        """Added."""
        return a + b

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """`a k + b k' = a (k + (b / a) k')`: where both have one, the first is the sum's."""
        (first, a), (second, b) = self.first.split_scale(), self.second.split_scale()
        if a is None or b is None:
            return self, None
        return Sum(first, scale(second, on_host(truediv, b, a))), a


class Product(Pair):
    """The product of two kernels."""

    first: Kernel
    second: Kernel

    @property
    def uncorrelated(self) -> bool:
        """If one is."""
        return self.first.uncorrelated or self.second.uncorrelated

    def state_space(self, gaps: Any) -> StateSpace:
        """All products of entries of both states."""
        return algebra.product(self.first.state_space(gaps), self.second.state_space(gaps))

    def combine(self, a: Array, b: Array) -> Array:
        """Multiplied."""
        return a * b

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """The product of the scales."""
        (first, a), (second, b) = self.first.split_scale(), self.second.split_scale()
        if isinstance(first, Ones) or isinstance(second, Ones):
            inner = second if isinstance(first, Ones) else first
        else:
            inner = Product(first, second)
        return inner, _times(a, b)


class Scale(Kernel):
    """`variance · kernel`: what `number * kernel` makes."""

    kernel: Kernel
    variance: ParameterArray = parameter(constraints.positive, start=1.0)

    @property
    def stationary(self) -> bool:
        """If the kernel is."""
        return self.kernel.stationary

    @property
    def isotropic(self) -> bool:
        """If the kernel is."""
        return self.kernel.isotropic

    @property
    def uncorrelated(self) -> bool:
        """If the kernel is."""
        return self.kernel.uncorrelated

    @property
    def has_slope(self) -> bool:
        """If the kernel does."""
        return self.kernel.has_slope

    @property
    def takes_labels(self) -> bool:
        """If the kernel does."""
        return self.kernel.takes_labels

    def all_terms(self) -> Iterator[Kernel]:
        """Those of the kernel."""
        yield from self.kernel.all_terms()

    def split_scale(self) -> tuple[Kernel, Array | None]:
        """The variance, times what the kernel inside has."""
        inner, variance = self.kernel.split_scale()
        return inner, _times(variance, self.variance)

    def state_space(self, gaps: Any) -> StateSpace:
        """That of the kernel, scaled."""
        return self.kernel.state_space(gaps).scaled(self.variance)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The kernel, scaled."""
        return self.variance * self.kernel.evaluate(x, z)

    def __call__(self, x1: Any, x2: Any) -> Array:
        """The matrix, scaled."""
        x1, x2 = (as_points(x, self) for x in (x1, x2))
        return self.variance * self.kernel(x1, x2)

    def diagonal(self, x: Any) -> Array:
        """The diagonal, scaled."""
        return self.variance * self.kernel.diagonal(as_points(x, self))

    def matrix_at(self, x1: Points, x2: Points) -> Array:
        """The matrix, scaled."""
        return self.variance * self.kernel.matrix_at(x1, x2)

    def variances_at(self, x: Points) -> Array:
        """The diagonal, scaled."""
        return self.variance * self.kernel.variances_at(x)


class FunctionKernel(Kernel):
    """Any callable `k(x1, x2) -> (n1, n2)`, such as a kernel of tinygp or a plain function.

    A kernel of GPJax is one by its `cross_covariance`. Numbers inside have no known domain: a fit
    freezes them unless `domains=` gives one.
    """

    not_markov: ClassVar[str] = "a function of two lists of points has no `state_space`"
    function: Callable[[Array, Array], Array] = data()

    def evaluate(self, x: Array, z: Array) -> Array:
        """One entry of the matrix."""
        return self(x[None], z[None])[0, 0]

    def __call__(self, x1: Any, x2: Any) -> Array:
        """The matrix, with its shape checked."""
        return adapters.call(self.function, as_points(x1, self), as_points(x2, self))


def as_kernel(value: Any, what: str = "A kernel must be") -> Kernel:
    """A kernel, or a callable as one."""
    if isinstance(value, Kernel):
        return value
    function = adapters.matrix_function(value)
    if function is None:
        raise TypeError(
            f"{what} a kronax kernel or a callable k(x1, x2) -> (n1, n2); got {value!r}. "
            "Pass an instance, for example kx.Matern32(lengthscale=1.0)."
        )
    return FunctionKernel(function)


def scale(kernel: Kernel, number: Any) -> Kernel:
    """`number · kernel`, with all outermost scales in one place."""
    if jnp.ndim(number) != 0:
        raise ValueError(
            f"A kernel can be multiplied by a single number; got shape {jnp.shape(number)}."
        )
    inner, variance = kernel.split_scale()
    number = whole(number)
    if isinstance(number, int | float) and not isinstance(number, bool):
        number = np.asarray(number, dtype_of(kernel))
    return Scale(inner, number if variance is None else on_host(mul, number, variance))


def product(first: Kernel, second: Kernel) -> Kernel:
    """The product, with all outermost scales in one place."""
    inner, variance = Product(first, second).split_scale()
    return inner if variance is None else scale(inner, variance)


def _times(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return on_host(mul, a, b)
