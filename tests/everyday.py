"""What the everyday run takes of a product of cases; the full run takes all of them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def everyday(cases: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """All cases as arguments of `parametrize`; those that are not chosen are marked `full`."""
    cases = list(cases)
    unknown = [case for case in chosen if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [case if case in chosen else full(*_values(case)) for case in cases]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


def full(*values: Any, **options: Any) -> Any:
    """One case of the full run alone."""
    return pytest.param(*values, marks=pytest.mark.full, **options)
