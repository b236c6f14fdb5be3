"""Values, gradients and Hessians on every case, against the dense oracle."""

from tests.cases import CASES, hessian_cases
from tests.linalg.contracted import FUSED, SECOND_ORDER, compare, computed


@hessian_cases
def test_hessians(name):
    # The density is the primitive of the other two with both weights at once.
    case = CASES[name]
    compare(computed(case, FUSED if case.covariance else SECOND_ORDER), case)
