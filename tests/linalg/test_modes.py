"""Hessians in every combination of modes, of the fused density, and in float32."""

from itertools import product

import pytest

from tests.cases import CASES, REPRESENTATIVE
from tests.everyday import everyday
from tests.linalg.contracted import FUSED, MODES, SECOND_ORDER, compare, computed

# Every combination where eigenvalues repeat, and each once more.
EVERYDAY = [
    *product(["circulant"], MODES),
    ("both terms singular", "reverse over forward"),
    ("both terms singular", "reverse over reverse"),
    ("noise-free, one axis", "forward over reverse"),
    ("noise-free, one axis", "forward over forward"),
]


@pytest.mark.parametrize(("name", "modes"), everyday(product(REPRESENTATIVE, MODES), EVERYDAY))
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
