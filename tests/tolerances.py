"""The one table of tolerances, and how they are applied.

An error is measured against the entry itself and, ten times more strictly, against the
largest entry: components that cancel to nearly zero need not be right in their own last digits.
"""

import numpy as np

# Relative to the truth, per dtype: values, first derivatives, second derivatives.
RELATIVE = {
    "float64": (1e-10, 1e-8, 1e-6),
    "float32": (2e-4, 2e-3, 2e-2),
}


def relative(dtype, order: int = 0) -> float:
    """The tolerance for derivatives of that order; 0 is the value itself."""
    return RELATIVE[str(np.dtype(dtype))][order]


def assert_close(actual, expected, order: int = 0, dtype=None) -> None:
    """Equal to the tolerance of `actual`'s dtype (or of a coarser one that it came from)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"got shape {actual.shape}, not {expected.shape}"
    rtol = relative(dtype or actual.dtype, order)
    # In float32 a component is as good as its array: rounding does not know what cancels.
    share = 0.1 if rtol < 1e-5 else 1.0
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=share * rtol * scale)


def assert_within_error(estimate, truth, share: float) -> None:
    """Estimates keep what they promise, and promise no more than a share of the truth."""
    assert np.all(estimate.converged)
    value, error = (np.asarray(a, float) for a in (estimate.value, estimate.error))
    ratio = np.abs(value - truth) / error
    assert np.mean(ratio <= 1) >= 0.95
    # Nor is the error an empty promise: it is as small as a 99 % interval of what is seen.
    assert 0.1 < np.median(ratio) < 0.5
    assert np.median(error / np.abs(truth)) < share
