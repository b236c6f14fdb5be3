"""Values, gradients and Hessians on every case, against the dense oracle."""

from tests.cases import CASES, each_case
from tests.linalg.contracted import SECOND_ORDER, compare, computed


@each_case
def test_hessians(name):
    compare(computed(CASES[name], SECOND_ORDER), CASES[name])
