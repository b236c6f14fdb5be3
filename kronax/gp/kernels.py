"""Covariance functions of one axis: a formula on a pair of points each.

A kernel is an Equinox module; the base class vectorises the formula. Lengthscales are in the units
of the axis, variances in squared units of the data.
"""

import abc
from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from kronax.parameters import data, parameter


class Kernel(eqx.Module):
    """A covariance function: subclass it with `evaluate` on one pair of points.

    Kernels add and multiply; `number * kernel` scales the variance. Calling one gives the matrix
    between two lists of points, `(n_1,)` or `(n_1, p)` each.

    Examples:
        >>> import jax.numpy as jnp, kronax as kx
        >>> from numpyro.distributions import constraints
        >>> class Triangle(kx.Kernel):
        ...     width: object = kx.parameter(constraints.positive)
        ...
        ...     def evaluate(self, x, z):
        ...         return jnp.maximum(1 - jnp.abs(x - z) / self.width, 0)
        >>> Triangle(2.0)(jnp.arange(3.0), jnp.arange(2.0)).shape
        (3, 2)
    """

    @property
    def stationary(self) -> bool:
        """Whether it depends on `x − x'` only, for every value of its parameters."""
        return False

    @property
    def isotropic(self) -> bool:
        """Whether it depends on the Euclidean distance only, for every value of its parameters."""
        return False

    @abc.abstractmethod
    def evaluate(self, x: Array, z: Array) -> Float[Array, ""]:
        """The covariance of the values at two points, each a scalar or a vector `(p,)`."""

    def __call__(self, x1: Any, x2: Any) -> Float[Array, "n1 n2"]:
        """The matrix of covariances between two lists of points."""
        x1, x2 = (_points(x, self) for x in (x1, x2))
        return jax.vmap(lambda x: jax.vmap(lambda z: self.evaluate(x, z))(x2))(x1)

    def diagonal(self, x: Any) -> Float[Array, " n"]:
        """The variances at a list of points."""
        return jax.vmap(lambda p: self.evaluate(p, p))(_points(x, self))

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
    return jnp.result_type(*(leaf.dtype for leaf in leaves)) if leaves else jnp.zeros(()).dtype


def _points(x: Any, kernel: Kernel) -> Array:
    return jnp.asarray(x).astype(dtype_of(kernel))


def _difference(x: Array, z: Array, lengthscale: Array) -> Array:
    shape = jnp.shape(lengthscale)
    if shape not in ((), jnp.shape(x)):
        places = f"places in {jnp.shape(x)[0]} dimensions" if jnp.ndim(x) else "coordinates (n,)"
        raise ValueError(
            "The lengthscale must be one number, or one per dimension of coordinates (n, p); got "
            f"shape {shape} for {places}."
        )
    return (x - z) / lengthscale


def squared_distance(x: Array, z: Array, lengthscale: Array) -> Array:
    """`Σ ((x − z) / ℓ)²`; `ℓ` is a number, or one per dimension."""
    return jnp.sum(jnp.square(_difference(x, z, lengthscale)))


def distance(x: Array, z: Array, lengthscale: Array) -> Array:
    """The Euclidean distance in lengthscales, with a finite derivative where points coincide."""
    if jnp.ndim(x) == 0:
        return jnp.abs(_difference(x, z, lengthscale))
    square = squared_distance(x, z, lengthscale)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


class Isotropic(Kernel):
    """A kernel of the distance in lengthscales; isotropic if it has a single lengthscale."""

    lengthscale: eqx.AbstractVar[Array]

    @property
    def stationary(self) -> bool:
        """Always."""
        return True

    @property
    def isotropic(self) -> bool:
        """With one lengthscale for all dimensions."""
        return jnp.ndim(self.lengthscale) == 0


class SquaredExponential(Isotropic):
    """`exp(−r²/2)`, `r = |x − x'| / ℓ`; infinitely smooth. Also `kx.RBF`.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.SquaredExponential(1.0).evaluate(0.0, 1.0).item(), 4)
        0.6065
    """

    lengthscale: Array = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.exp(-squared_distance(x, z, self.lengthscale) / 2)


RBF = SquaredExponential


class Matern12(Isotropic):
    """`exp(−r)`, `r = |x − x'| / ℓ`; continuous and nowhere smooth (Ornstein–Uhlenbeck).

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern12(1.0).evaluate(0.0, 1.0).item(), 4)
        0.3679
    """

    lengthscale: Array = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        return jnp.exp(-distance(x, z, self.lengthscale))


class Matern32(Isotropic):
    """`(1 + √3 r) exp(−√3 r)`, `r = |x − x'| / ℓ`; once differentiable.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern32(1.0).evaluate(0.0, 1.0).item(), 4)
        0.4834
    """

    lengthscale: Array = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        r = sqrt(3.0) * distance(x, z, self.lengthscale)
        return (1 + r) * jnp.exp(-r)


class Matern52(Isotropic):
    """`(1 + √5 r + 5 r²/3) exp(−√5 r)`, `r = |x − x'| / ℓ`; twice differentiable.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.

    Examples:
        >>> import kronax as kx
        >>> round(kx.Matern52(1.0).evaluate(0.0, 1.0).item(), 4)
        0.524
    """

    lengthscale: Array = parameter(constraints.positive, start="lengthscale")

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        r = sqrt(5.0) * distance(x, z, self.lengthscale)
        return (1 + r + jnp.square(r) / 3) * jnp.exp(-r)


class RationalQuadratic(Isotropic):
    """`(1 + r²/(2α))^(−α)`, `r = |x − x'| / ℓ`; a mixture of lengthscales.

    Args:
        lengthscale: `ℓ > 0` in units of the axis; `(p,)` for one per dimension.
        alpha: `α > 0`; the larger, the nearer to `SquaredExponential`.

    Examples:
        >>> import kronax as kx
        >>> round(kx.RationalQuadratic(1.0, 1.0).evaluate(0.0, 1.0).item(), 4)
        0.6667
    """

    lengthscale: Array = parameter(constraints.positive, start="lengthscale")
    alpha: Array = parameter(constraints.positive, start=1.0)

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        square = squared_distance(x, z, self.lengthscale)
        return jnp.exp(-self.alpha * jnp.log1p(square / (2 * self.alpha)))


class Periodic(Kernel):
    """`exp(−2 sin²(π |x − x'| / p) / ℓ²)`; repeats with period `p`.

    Twice the lengthscale of PyMC and GPJax, and the root of GPyTorch's.

    Args:
        period: `p > 0` in units of the axis.
        lengthscale: `ℓ > 0`, without units.

    Examples:
        >>> import kronax as kx
        >>> kx.Periodic(period=1.0, lengthscale=0.5).evaluate(0.0, 1.0).round(4).item()
        1.0
    """

    period: Array = parameter(constraints.positive, start="as given")
    lengthscale: Array = parameter(constraints.positive, start=1.0)

    @property
    def stationary(self) -> bool:
        """Always; not isotropic, because it knows its own period."""
        return True

    def evaluate(self, x: Array, z: Array) -> Array:
        """The formula."""
        angle = pi * (x - z) / self.period
        return jnp.exp(-2 * squared_distance(jnp.sin(angle), 0.0 * angle, self.lengthscale))


class Constant(Kernel):
    """The same covariance `c` between all points: an unknown common offset.

    Args:
        variance: `c > 0`.

    Examples:
        >>> import kronax as kx
        >>> kx.Constant(2.0).evaluate(0.0, 1.0).item()
        2.0
    """

    variance: Array = parameter(constraints.positive, start=1.0)

    @property
    def stationary(self) -> bool:
        """Always."""
        return True

    @property
    def isotropic(self) -> bool:
        """Always."""
        return True

    def evaluate(self, x: Array, z: Array) -> Array:
        """The constant."""
        return self.variance


class Sum(Kernel):
    """The sum of two kernels."""

    first: Kernel
    second: Kernel

    @property
    def stationary(self) -> bool:
        """If both are."""
        return self.first.stationary and self.second.stationary

    @property
    def isotropic(self) -> bool:
        """If both are."""
        return self.first.isotropic and self.second.isotropic

    def evaluate(self, x: Array, z: Array) -> Array:
        """Both, added."""
        return self.first.evaluate(x, z) + self.second.evaluate(x, z)

    def __call__(self, x1: Any, x2: Any) -> Array:
        """Both matrices, added."""
        return self.first(x1, x2) + self.second(x1, x2)


class Product(Kernel):
    """The product of two kernels."""

    first: Kernel
    second: Kernel

    @property
    def stationary(self) -> bool:
        """If both are."""
        return self.first.stationary and self.second.stationary

    @property
    def isotropic(self) -> bool:
        """If both are."""
        return self.first.isotropic and self.second.isotropic

    def evaluate(self, x: Array, z: Array) -> Array:
        """Both, multiplied."""
        return self.first.evaluate(x, z) * self.second.evaluate(x, z)

    def __call__(self, x1: Any, x2: Any) -> Array:
        """Both matrices, multiplied entry by entry."""
        return self.first(x1, x2) * self.second(x1, x2)


class Scale(Kernel):
    """`variance · kernel`: what `number * kernel` makes."""

    kernel: Kernel
    variance: Array = parameter(constraints.positive, start=1.0)

    @property
    def stationary(self) -> bool:
        """If the kernel is."""
        return self.kernel.stationary

    @property
    def isotropic(self) -> bool:
        """If the kernel is."""
        return self.kernel.isotropic

    def evaluate(self, x: Array, z: Array) -> Array:
        """The kernel, scaled."""
        return self.variance * self.kernel.evaluate(x, z)

    def __call__(self, x1: Any, x2: Any) -> Array:
        """The matrix, scaled."""
        return self.variance * self.kernel(x1, x2)


class FunctionKernel(Kernel):
    """Any callable `k(x1, x2) -> (n1, n2)`, such as a tinygp kernel or a plain function.

    Its numbers have no known domain: a fit freezes them unless `domains=` gives one.
    """

    function: Callable[[Array, Array], Array] = data()

    def evaluate(self, x: Array, z: Array) -> Array:
        """One entry of the matrix."""
        return self(x[None], z[None])[0, 0]

    def __call__(self, x1: Any, x2: Any) -> Array:
        """The matrix, with its shape checked."""
        x1, x2 = (_points(x, self) for x in (x1, x2))
        result = self.function(x1, x2)
        expected = (x1.shape[0], x2.shape[0])
        if getattr(result, "shape", None) != expected:
            raise ValueError(
                f"A callable kernel must return an array of shape {expected} for "
                f"{expected[0]} and {expected[1]} points; got "
                f"{getattr(result, 'shape', type(result).__name__)}."
            )
        return result


def as_kernel(value: Any, what: str = "A kernel must be") -> Kernel:
    """A kernel, or a callable as one."""
    if isinstance(value, Kernel):
        return value
    if callable(value) and not isinstance(value, type):
        return FunctionKernel(value)
    raise TypeError(
        f"{what} a kronax kernel or a callable k(x1, x2) -> (n1, n2); got {value!r}. "
        "Pass an instance, for example kx.Matern32(lengthscale=1.0)."
    )


def scale(kernel: Kernel, number: Any) -> Kernel:
    """`number · kernel`, with all outermost scales in one place."""
    if jnp.ndim(number) != 0:
        raise ValueError(
            f"A kernel can be multiplied by a single number; got shape {jnp.shape(number)}."
        )
    inner, variance = split_scale(kernel)
    if isinstance(number, int | float) and not isinstance(number, bool):
        number = jnp.asarray(number, dtype_of(kernel))
    return Scale(inner, number if variance is None else number * variance)


def product(first: Kernel, second: Kernel) -> Kernel:
    """The product, with all outermost scales in one place."""
    (first, v1), (second, v2) = split_scale(first), split_scale(second)
    scales = [v for v in (v1, v2) if v is not None]
    inner = Product(first, second)
    return (
        scale(inner, scales[0] if len(scales) == 1 else scales[0] * scales[1]) if scales else inner
    )


def split_scale(kernel: Kernel) -> tuple[Kernel, Array | None]:
    """A kernel without its outermost scale, and that scale."""
    return (kernel.kernel, kernel.variance) if isinstance(kernel, Scale) else (kernel, None)
