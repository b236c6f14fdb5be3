"""Hessians in every combination of modes, of the fused density, and in float32."""

from itertools import product

import pytest

from tests.cases import CASES, REPRESENTATIVE
from tests.everyday import everyday, full
from tests.linalg.contracted import FUSED, MODES, SECOND_ORDER, compare, computed

# Every combination once; forward over reverse is that of `test_hessians.py`, reverse over reverse
# that of scans in `test_transformations.py` and in `test_gaps.py`.
EVERYDAY = [
    ("both terms singular", "reverse over forward"),
    ("noise-free, one axis", "forward over forward"),
]


def names_of(case):
    return SECOND_ORDER if case.covariance else SECOND_ORDER[:2]


@pytest.mark.parametrize(("name", "modes"), everyday(product(REPRESENTATIVE, MODES), EVERYDAY))
def test_every_combination_of_modes(name, modes):
    case = CASES[name]
    compare(computed(case, names_of(case), modes), case)


@pytest.mark.parametrize("name", [full("full Kronecker noise"), "RBF 30 × 25"])
def test_hessians_of_the_density(name):
    compare(computed(CASES[name], FUSED), CASES[name])


# Where eigenvalues crowd.
SINGLE = ["RBF 30 × 25"]


@pytest.mark.parametrize("name", everyday([*REPRESENTATIVE, "RBF 30 × 25"], SINGLE))
def test_float32(name):
    case = CASES[name].astype("float32")
    compare(computed(case, FUSED if case.covariance else SECOND_ORDER[:2]), case)
