"""Values, gradients and Hessians on every case, against the dense oracle."""

from tests.cases import CASES, few_cases
from tests.linalg.contracted import SECOND_ORDER, compare, computed


@few_cases
def test_hessians(name):
    compare(computed(CASES[name], SECOND_ORDER), CASES[name])
