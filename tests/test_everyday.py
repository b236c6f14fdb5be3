"""The everyday run leaves out combinations, and no kind of anything."""

from itertools import product

import pytest

from tests.cases import CASES, EVERYDAY, FEW, HESSIANS, KINDS
from tests.everyday import everyday


def form(name):
    """Of the noise: none, a variance, a product, or a Kronecker sum with and without one."""
    noise = CASES[name].layout.noise
    return "product" if isinstance(noise, tuple) else noise


def batched(name):
    return CASES[name].leaves[-1].value.ndim > len(CASES[name].grid)


def traits(name):
    """What must be in the everyday run: most are pairs of a kind and a form."""
    layout = CASES[name].layout
    yield from product((kind for kind, _ in layout.signal), [form(name)])
    yield batched(name), form(name)
    if form(name) == "product":
        yield from (("noise", kind) for kind, _ in layout.noise)
    yield "axes", min(len(layout.signal), 3)
    yield from (("size", min(size, 2)) for _, size in layout.signal)


def test_every_kind_of_factor_stands_beside_every_form_of_noise():
    of_all = {trait for name in CASES for trait in traits(name)}
    assert {trait for name in EVERYDAY for trait in traits(name)} == of_all
    assert set(EVERYDAY) < set(CASES)


@pytest.mark.parametrize("names", [FEW, HESSIANS], ids=["few", "hessians"])
def test_even_a_few_cases_hold_every_kind_and_every_form(names):
    layouts = {name: CASES[name].layout for name in CASES}
    assert {kind for name in names for kind, _ in layouts[name].signal} == set(KINDS)
    assert {form(name) for name in names} == {form(name) for name in CASES}
    assert {batched(name) for name in names} == {False, True}


def test_what_is_not_chosen_is_of_the_full_run():
    first, second = everyday("ab", "b")
    assert [mark.name for mark in first.marks] == ["full"]
    assert (first.values, second) == (("a",), "b")
    with pytest.raises(AssertionError, match="no such cases"):
        everyday("ab", "c")
