"""Types of fields that hold arrays and may be given as numbers.

The converter of `kx.parameter` makes arrays of numbers, which checkers of types do not know: they
read that of a descriptor, which these are for them. In a running program they are arrays.
"""

from typing import TYPE_CHECKING, Any, overload

from jaxtyping import Array

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    Given = ArrayLike | list[Any] | tuple[Any, ...]

    class ParameterArray:
        """An array; a number, an array or a list may be given."""

        @overload
        def __get__(self, instance: None, owner: Any) -> "ParameterArray": ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Array: ...
        def __get__(self, instance: object, owner: Any) -> Any:
            """The array."""

        def __set__(self, instance: object, value: Given) -> None:
            """What may be given."""

    class OptionalArray:
        """The same, or nothing."""

        @overload
        def __get__(self, instance: None, owner: Any) -> "OptionalArray": ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Array | None: ...
        def __get__(self, instance: object, owner: Any) -> Any:
            """The array."""

        def __set__(self, instance: object, value: Given | None) -> None:
            """What may be given."""
else:
    ParameterArray = Array
    OptionalArray = Array | None
