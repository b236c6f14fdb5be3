"""Hessians in every combination of modes, of the fused density, and in float32."""

import pytest

from tests.cases import CASES, REPRESENTATIVE
from tests.linalg.contracted import FUSED, MODES, SECOND_ORDER, compare, computed


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_combination_of_modes(name, modes):
    case = CASES[name]
    compare(computed(case, FUSED if case.covariance else SECOND_ORDER[:2], modes), case)


@pytest.mark.parametrize("name", ["full Kronecker noise", "RBF 30 × 25"])
def test_hessians_of_the_density(name):
    compare(computed(CASES[name], FUSED), CASES[name])


@pytest.mark.parametrize("name", [*REPRESENTATIVE, "RBF 30 × 25"])
def test_float32(name):
    case = CASES[name].astype("float32")
    compare(computed(case, FUSED if case.covariance else SECOND_ORDER[:2]), case)
