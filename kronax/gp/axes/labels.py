"""Labels of categories as codes 0, 1, … in the order in which they first appear."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kronax.paths import nearest


def is_labels(values: np.ndarray) -> bool:
    """Whether they are text."""
    return values.dtype.kind in "UT" or (
        values.dtype == object and any(isinstance(value, str) for value in values.flat)
    )


@dataclass(frozen=True)
class Labels:
    """How labels become codes: the place of each in `categories`."""

    categories: tuple[str, ...]

    @property
    def what(self) -> str:
        """What the axis holds."""
        return "labels"

    def describe(self, given: np.ndarray) -> str:
        """The labels in words."""
        shown = ", ".join(self.categories[:4])
        return f"{shown}, …" if len(self.categories) > 4 else shown

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """The code of each label.

        Raises:
            KeyError: if a label is unknown.
            TypeError: if something is no label.
        """
        codes = {label: code for code, label in enumerate(self.categories)}
        labels = plain(values, name)
        for label in labels:
            if label not in codes:
                raise KeyError(
                    f"There is no label {label!r} on the axis of {name.removeprefix('new ')}."
                    f"{nearest(label, self.categories)} Categories that the data do not hold "
                    "cannot be predicted."
                )
        return np.array([codes[label] for label in labels])


def labels_from(values: np.ndarray, name: str) -> Labels:
    """The codes that these labels define."""
    return Labels(tuple(dict.fromkeys(plain(values, name))))


def plain(values: np.ndarray, name: str) -> Sequence[str]:
    """Labels `(n,)` as text."""
    labels: list[Any] = values.tolist() if values.ndim == 1 else []
    for place, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"The labels of {name} must all be text; entry {place} is {label!r}.")
    if not labels:
        raise ValueError(
            f"The labels of {name} must have shape (n,) with n ≥ 1; got shape {values.shape}."
        )
    return labels
