"""What input must be, and the wording of every error of the linear algebra."""

from decimal import Decimal
from math import prod
from numbers import Integral, Rational, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kronax.linalg.arrays.host import is_finite, is_spread, numbers, on_device
from kronax.linalg.arrays.nested_lists import parts
from kronax.linalg.arrays.precision import to_have_float64


def is_concrete(*values: Any) -> bool:
    """Whether every leaf has a value now (none is traced)."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


OF_KERNEL = "Of a kernel pass the matrix `kernel(x, x)`."
OF_VECTOR = "For a diagonal factor pass kx.Diagonal(vector)."


def array_of_reals(
    value: Any, name: str, *, finite: bool = True, of_kernel: str = OF_KERNEL
) -> Array:
    """`value` as a floating-point JAX array; one whole number is taken for a real one.

    Refuses arrays of integers, complex numbers, NaN and infinity.

    Args:
        value: what was given.
        name: of it, for errors.
        finite: whether NaN and infinity are refused.
        of_kernel: what to pass where a kernel was given.
    """
    if value is None or isinstance(value, str | dict | set):
        raise TypeError(f"{name} must be an array of real numbers; got {value!r}.")
    value = whole(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    check_plain(value, name)
    given, value = value, plain(value, name)
    if getattr(value, "dtype", None) is None:
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise TypeError(
                f"{name} must be a rectangular array of real numbers; got {value!r}."
            ) from error
    dtype = value.dtype
    if dtype.kind == "O":
        got, advice = type(given).__name__, of_kernel
        if isinstance(given, np.ndarray | list | tuple):
            got, advice = f"{got} of objects", "Convert it, for example with `.astype(float)`."
        raise TypeError(f"{name} must be an array of real numbers; got {got}. {advice}")
    if not jnp.issubdtype(dtype, jnp.floating):
        advice = (
            "Take its real part or model real and imaginary parts as an axis."
            if jnp.issubdtype(dtype, jnp.complexfloating)
            else "Convert it, for example with `.astype(float)`."
        )
        raise TypeError(f"{name} must hold floating-point numbers; got dtype {dtype}. {advice}")
    array = on_device(value)
    if finite and is_concrete(array):
        check_finite(array, name)
    return array


def check_plain(value: Any, name: str) -> None:
    """Refuse arrays that say more than their numbers, where nothing would look at it."""
    for part in parts(value):
        if isinstance(part, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must be a plain array; got a masked one of dtype {part.dtype}. Fill what "
                "is masked: `y.astype(float).filled(numpy.nan)` marks missing cells."
            )
        if hasattr(part, "iloc"):  # a pandas object
            raise TypeError(
                f"{name} must be a plain array; got a {type(part).__name__}, whose labels cannot "
                "be matched with anything here. Pass its values in the order of the axes: "
                "`.to_numpy()`."
            )


def whole(value: Any) -> Any:
    """A single whole number of NumPy or JAX as one of Python, which has any precision.

    Anything else stays as it is.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    return int(value) if kind in "iu" and np.ndim(value) == 0 and is_concrete(value) else value


def plain(value: Any, name: str) -> Any:
    """An array of another library or from a file as JAX can hold it, where nothing is lost.

    Bytes are put in the order of this machine, half precision becomes single, the extension types
    of pandas become those of NumPy, and objects that are real numbers (`Decimal`, for one) become
    floating-point numbers, also in a list. One that is missing (`None`, `pandas.NA`) is NaN.
    Anything else stays as it is.

    Raises:
        TypeError: if digits would be lost, or pandas holds no numbers.
    """
    if isinstance(value, list | Decimal) and is_concrete(value):
        return _of_list(value, name)
    dtype = getattr(value, "dtype", None)
    if dtype is None or is_key(value):
        return value
    if not isinstance(dtype, np.dtype):
        value = _of_extension_type(value, name)
        dtype = value.dtype
    if dtype.kind == "O":
        value = _of_objects(np.asarray(value), name)
    elif not dtype.isnative:
        value = np.asanyarray(value).astype(dtype.newbyteorder("="))
    elif jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize != 4 and dtype.itemsize != 8:
        if dtype.itemsize > 8:
            raise TypeError(
                f"{name} must hold at most double precision; got dtype {dtype}. Convert it with "
                "`.astype(float)`."
            )
        value = value.astype(np.float32)
    return value


def _of_extension_type(value: Any, name: str) -> np.ndarray:
    """Numbers of pandas, whose missing ones are NaN."""
    dtype = value.dtype
    own = getattr(dtype, "numpy_dtype", None)
    missing = bool(np.any(value.isna())) if hasattr(value, "isna") else False
    if isinstance(own, np.dtype) and own.kind == "f":
        return value.to_numpy(own, na_value=np.nan)
    if isinstance(own, np.dtype) and own.kind in "biu" and not missing:
        return value.to_numpy(own)
    if isinstance(own, np.dtype) and own.kind in "iu":
        advice = "Convert it: `.to_numpy(float, na_value=numpy.nan)` marks missing numbers."
    else:
        advice = "Convert it first, for example with `.astype(float)`."
    raise TypeError(f"{name} must be an array of real numbers; got dtype {dtype}. {advice}")


def _of_list(value: Any, name: str) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:  # not rectangular: refused where a shape is asked for
        return value
    return _of_objects(array, name) if array.dtype.kind == "O" else value


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Python's numbers in JAX's default precision; an array of anything else as it is."""
    numbers = [np.nan if _is_missing(v) else v for v in array.ravel()]
    if not all(isinstance(v, Real | Decimal) and not isinstance(v, bool) for v in numbers):
        return array
    for given in numbers:
        if not _is_kept(given):
            raise TypeError(
                f"{name} must hold numbers that double precision can hold; got {given!r}. Round "
                "it, for example with `float(…)`."
            )
    whole = [float(v) for v in numbers]
    return np.array(whole, jnp.result_type(float)).reshape(array.shape)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_kept(value: Any) -> bool:
    """Whether a number survives in double precision, up to the digits in which that is written."""
    if isinstance(value, Decimal):
        near = float(value)
        return not value.is_finite() or value in (Decimal(near), Decimal(repr(near)))
    return not isinstance(value, Integral | Rational) or float(value) == value


def is_key(value: Any) -> bool:
    """Whether it is an array of typed random keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_key(key: Any) -> None:
    """Refuse what is no single random key, of either style."""
    is_single = is_key(key) and key.ndim == 0
    if not is_single and isinstance(key, jax.Array | np.ndarray):
        is_single = key.dtype == np.uint32 and key.ndim == 1 and key.size > 1
    if not is_single:
        got = f"an array of shape {key.shape}" if is_key(key) else repr(key)
        raise TypeError(
            f"key must be a JAX random key, such as jax.random.key(0); got {got}. Split it for "
            "several draws, or pass `sample_shape=`."
        )


def shape_of(sample_shape: Any) -> tuple[int, ...]:
    """A number of draws, or the leading axes of them, as a shape."""
    shape = (sample_shape,) if np.ndim(sample_shape) == 0 else tuple(sample_shape)
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise TypeError(
            "sample_shape must be an integer that is not negative, or a tuple of them; got "
            f"{sample_shape!r}."
        )
    return tuple(int(n) for n in shape)


def check_finite(array: Any, name: str) -> None:
    """Refuse concrete NaN and infinity, naming the first place."""
    if is_spread(array) and is_finite(array):
        return
    values = numbers(array)
    bad = ~np.isfinite(values)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f" at index {place}" if place else ""
        raise ValueError(
            f"{name} must be finite; got {values[place]}{where} ({int(bad.sum())} such "
            f"{'entry' if bad.sum() == 1 else 'entries'}). Remove or replace them first."
        )


def matrix(
    value: Any,
    name: str,
    *,
    square: bool = False,
    of_kernel: str = OF_KERNEL,
    of_vector: str = OF_VECTOR,
) -> Array:
    """`value` as a real matrix `(*batch, m, n)`; what to pass instead of kernels and vectors."""
    array = array_of_reals(value, name, of_kernel=of_kernel)
    if array.ndim < 2:
        raise ValueError(
            f"{name} must be a matrix of shape (*batch, m, n); got shape {array.shape}. {of_vector}"
        )
    if 0 in array.shape[-2:]:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}. Drop that axis.")
    if square:
        check_square(array.shape, name)
    return array


def check_square(shape: tuple[int, ...], name: str) -> None:
    """Refuse a matrix that is not square."""
    if shape[-1] != shape[-2]:
        raise ValueError(
            f"{name} must be square; got shape {tuple(shape)}. "
            "Pass a covariance matrix, not a cross-covariance."
        )


def check_symmetric(array: Any, name: str) -> None:
    """Refuse a concrete matrix that is not symmetric up to rounding."""
    if not is_concrete(array):
        return
    values = np.asarray(array)
    gap = np.abs(values - np.swapaxes(values, -1, -2))
    if gap.size and gap.max() > 64 * np.finfo(values.dtype).eps * np.abs(values).max():
        *_, i, j = (int(k) for k in np.unravel_index(gap.argmax(), gap.shape))
        raise ValueError(
            f"{name} must be symmetric to be used as a covariance; entries ({i}, {j}) and "
            f"({j}, {i}) differ by {gap.max():.3g}. Symmetrise it, or use kx.solve and kx.logdet "
            "without noise, which take general square factors."
        )


def symmetric(array: Array) -> Array:
    """The symmetric part of a traced matrix; a concrete one, which has been looked at, as it is."""
    return array if is_concrete(array) else (array + jnp.swapaxes(array, -1, -2)) / 2


def refuse_traced(what: str, advice: str, *values: Any) -> None:
    """Refuse what runs outside of compiled code only, where it is traced.

    Args:
        what: cannot be done.
        advice: what to do instead.
        values: what it works on.
    """
    # Under jit every new array is traced; this one compiles nothing where there is no jit.
    if is_concrete(values, jax.device_put(np.zeros((), np.float32))):
        return
    raise TypeError(
        f"{what} looks at values, and must be called with concrete ones; got traced ones, inside "
        f"jax.jit, jax.vmap, jax.grad or the like. {advice}"
    )


def check_triangular(array: Any, name: str, lower: bool) -> None:
    """Refuse a concrete matrix with entries on the wrong side of its diagonal."""
    if not is_concrete(array):
        return
    values = np.asarray(array)
    wrong = np.triu(values, 1) if lower else np.tril(values, -1)
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name} must be {'lower' if lower else 'upper'} triangular; got {wrong[place]:.3g} "
            f"at index {place}. Pass the triangle alone, for example `jnp.tril(matrix)`."
        )


def check_centrosymmetric(array: Any, name: str) -> None:
    """Refuse a concrete matrix that is not symmetric about its middle, up to rounding."""
    if not is_concrete(array):
        return
    values = np.asarray(array)
    gap = np.abs(values - values[..., ::-1, ::-1])
    if gap.max() > 64 * np.finfo(values.dtype).eps * np.abs(values).max():
        *_, i, j = (int(k) for k in np.unravel_index(gap.argmax(), gap.shape))
        n = values.shape[-1]
        raise ValueError(
            f"{name} must be symmetric about its middle; entries ({i}, {j}) and "
            f"({n - 1 - i}, {n - 1 - j}) differ by {gap.max():.3g}. Use kx.Dense for it."
        )


def column(value: Any, name: str) -> Array:
    """`value` as a real vector `(*batch, n)`, the first column of a symmetric Toeplitz matrix."""
    array = array_of_reals(
        value, name, of_kernel="Of a kernel pass the first column, `kernel(x, x[:1])[:, 0]`."
    )
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            f"{name} must be a vector (*batch, n) with n ≥ 1; got shape {array.shape}. Pass the "
            "first column of the matrix."
        )
    if is_concrete(array) and array.ndim > 1 and _is_whole_matrix(np.asarray(array)):
        raise ValueError(
            f"{name} must be the first column alone, (*batch, n); got a whole matrix of shape "
            f"{array.shape}, whose rows would be read as a batch of columns. Pass `matrix[:, 0]`."
        )
    return array


def _is_whole_matrix(values: np.ndarray) -> bool:
    """Whether rows, as columns of a batch, are a symmetric Toeplitz matrix that is not constant.

    No batch of columns of covariances is one: the first entry of each is its largest.
    """
    n = values.shape[-1]
    if n < 2 or values.shape[-2] != n or np.ptp(values) == 0:
        return False
    gap = np.abs(values[..., 1:, 1:] - values[..., :-1, :-1]).max()
    skew = np.abs(values - np.swapaxes(values, -1, -2)).max()
    return bool(max(gap, skew) <= 64 * np.finfo(values.dtype).eps * np.abs(values).max())


def check_even(array: Any, name: str) -> None:
    """Refuse a concrete column that is not symmetric about the circle, up to rounding."""
    if not is_concrete(array):
        return
    values = np.asarray(array)
    gap = np.abs(values - np.roll(values[..., ::-1], 1, axis=-1))
    if gap.max() > 64 * np.finfo(values.dtype).eps * np.abs(values).max():
        *_, k = (int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
        raise ValueError(
            f"{name} must be symmetric about the circle, column[k] = column[n - k]; entries {k} "
            f"and {values.shape[-1] - k} differ by {gap.max():.3g}. Use kx.Toeplitz for an axis "
            "that does not close."
        )


def grid_of(
    y: Any, grid_shape: tuple[int, ...], name: str, dtype: Any, *, finite: bool = True
) -> tuple[Array, bool]:
    """`y` as `(*batch, *grid)` in `dtype`, and whether it came in the flat layout.

    Where the trailing shape is the grid's, `y` is a grid; else its last size must be `N`. A matrix
    `(*batch, N, N)` may be vectors in rows or in columns, and is refused.
    """
    if len(grid_shape) > 1 and hasattr(y, "dims") and hasattr(y, "coords"):
        raise TypeError(
            f"{name} names its dimensions, {tuple(y.dims)}, and the axes here have no names. Pass "
            "its values in the order of the axes; a kx.GridGP with named axes puts them into it."
        )
    check_precision(y, name, dtype)
    array = array_of_reals(y, name, finite=finite).astype(dtype)
    num_axes, num_cells = len(grid_shape), prod(grid_shape)
    check_not_square(array.shape, grid_shape, name)
    if array.ndim >= num_axes and array.shape[array.ndim - num_axes :] == grid_shape:
        return array, False
    if array.ndim and array.shape[-1] == num_cells:
        return array.reshape(*array.shape[:-1], *grid_shape), True
    raise ValueError(_layout_message(array.shape, grid_shape, num_cells, name))


def check_not_square(shape: tuple[int, ...], grid_shape: tuple[int, ...], name: str) -> None:
    """Refuse `(*batch, N, N)`: whether its rows or its columns are the vectors cannot be told."""
    num_cells = prod(grid_shape)
    if num_cells == 1 or shape[-2:] != (num_cells, num_cells):
        return
    grid = f", or the grid's, (…, {', '.join(map(str, grid_shape))})" if len(grid_shape) > 1 else ""
    raise ValueError(
        f"{name} of shape {tuple(shape)} may be {num_cells} vectors in rows or in columns. For "
        "columns use `op @ X` to multiply and `kx.inverse(op) @ X` to solve; for a batch of rows "
        f"give it another leading shape: `{name}[..., None, :]`{grid}."
    )


def _layout_message(shape, grid_shape, num_cells, name) -> str:
    start = (
        f"{name} must have shape (*batch, {', '.join(map(str, grid_shape))}) or "
        f"(*batch, {num_cells}); got shape {tuple(shape)}."
    )
    trailing = shape[-len(grid_shape) :]
    if len(shape) >= len(grid_shape) and sorted(trailing) == sorted(grid_shape):
        return f"{start} The axes are in another order than the factors: transpose {name}."
    columns = len(shape) >= 2 and shape[-2] == num_cells
    if columns or (len(shape) > len(grid_shape) and shape[-len(grid_shape) - 1 : -1] == grid_shape):
        return (
            f"{start} A trailing column axis is not a batch: use `op @ X` to multiply and "
            "`kx.inverse(op) @ X` to solve for the columns of X, or move that axis to the front."
        )
    return f"{start} Check that it lies on the grid of the operator."


def check_precision(value: Any, name: str, dtype: Any) -> None:
    """Refuse data of higher precision than the parameters: that precision would be lost."""
    given = getattr(plain(value, name), "dtype", None)
    if given is None or not jnp.issubdtype(given, jnp.floating):
        return
    if jnp.finfo(given).bits > jnp.finfo(dtype).bits:
        raise TypeError(
            f"{name} must not be of higher precision than the parameters; got {given} with "
            f"{jnp.dtype(dtype)} parameters. To have {given}, {to_have_float64()}; or convert "
            f"with `.astype('{jnp.dtype(dtype)}')`."
        )


def check_broadcast(shapes: list[tuple[int, ...]], name: str) -> tuple[int, ...]:
    """The broadcast of several batch shapes."""
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError as error:
        listed = ", ".join(str(tuple(s)) for s in shapes)
        raise ValueError(
            f"The batch shapes of {name} must broadcast against each other; got {listed}. "
            "Insert axes of size one where a batch is to be shared."
        ) from error
