"""Values, gradients and Hessians on every case, against the dense oracle."""

import pytest

from tests.cases import CASES
from tests.linalg.contracted import SECOND_ORDER, compare, computed


@pytest.mark.parametrize("name", CASES)
def test_hessians(name):
    compare(computed(CASES[name], SECOND_ORDER), CASES[name])
