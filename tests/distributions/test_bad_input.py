"""Bad input raises under and outside jit, and says what to do."""

import jax
import numpy as np
import pytest

import kronax as kx
from tests.distributions.cases import BATCH_A, LOC, N1, N2, A, B

LOPSIDED = np.array([[1.0, 0.5], [0.1, 1.0]])
INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])
TWO = np.eye(2)
Y = np.random.default_rng(0).normal(size=(3, 4))
GAPS = np.where(np.arange(12).reshape(3, 4) % 5 == 0, np.nan, Y)
NEGATIVE_NOISE = kx.Kronecker(N1, -N2)
SINGLE = tuple(m.astype(np.float32) for m in (A, B))


def make(**options):
    return kx.KroneckerNormal(LOC, (A, B), 0.1, **options)


def draw(d):
    return d.sample(jax.random.key(0))


@pytest.mark.parametrize("under_jit", [False, True], ids=["outside jit", "under jit"])
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.KroneckerNormal(0.0), TypeError, "got none"),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO,), scale_trils=(TWO,)),
            TypeError,
            "got `factors` and `scale_trils`",
        ),
        (lambda: kx.KroneckerNormal(0.0, ()), ValueError, "at least one factor"),
        (lambda: kx.KroneckerNormal(0.0, A), TypeError, r"factors must be.*kx\.Kronecker"),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, A[:2])),
            ValueError,
            r"factor 1 must be square.*got shape \(2, 3\)",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, LOPSIDED), 0.1),
            ValueError,
            r"factor 1 must be symmetric.*differ by 0\.4",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (LOPSIDED, TWO)),
            ValueError,
            r"factor 0 must be symmetric.*differ by 0\.4",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, INDEFINITE)).log_prob(TWO),
            np.linalg.LinAlgError,
            "factor 1 of the covariance must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (TWO, INDEFINITE), 0.1).log_prob(TWO),
            np.linalg.LinAlgError,
            "factor 1 of the signal must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: draw(kx.KroneckerNormal(0.0, (TWO, INDEFINITE), 0.1)),
            np.linalg.LinAlgError,
            "factor 1 of the signal must be positive semidefinite.*eigenvalue is -1",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, scale_trils=(TWO, INDEFINITE)),
            ValueError,
            r"must be lower triangular; got 2 at index \(0, 1\)",
        ),
        (lambda: kx.KroneckerNormal(0.0, (A, B), -0.1), ValueError, r"not be negative; got -0\.1"),
        (
            lambda: kx.KroneckerNormal(0.0, (A, B), np.full((3, 4), 0.1)),
            ValueError,
            r"got shape \(3, 4\) on the grid \(3, 4\) without a batch",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (A, B), kx.Kronecker(N2, N1)),
            ValueError,
            r"got \(3, 4\) and \(4, 3\)",
        ),
        (lambda: kx.KroneckerNormal(LOC.T, (A, B)), ValueError, r"got shape \(4, 3\).*transpose"),
        (lambda: kx.KroneckerNormal(Y.astype(int), (A, B)), TypeError, "loc.*got dtype int64"),
        (lambda: kx.KroneckerNormal(LOC * np.nan, (A, B)), ValueError, "loc must be finite.*nan"),
        (
            lambda: kx.KroneckerNormal(np.zeros((4, 3, 4)), (BATCH_A, B)),
            ValueError,
            r"batch shapes of loc and factors.*got \(4,\), \(2,\)",
        ),
        (
            lambda: make(validate_args=False).log_prob(Y[0]),
            ValueError,
            r"value must have shape \(\*batch, 3, 4\); got shape \(4,\)",
        ),
        (
            lambda: make().log_prob(Y.ravel()[None]),
            ValueError,
            r"got shape \(1, 12\).*flatten=True",
        ),
        (
            lambda: make(flatten=True).log_prob(Y),
            ValueError,
            r"\(\*batch, 12\); got shape \(3, 4\).*flatten=False",
        ),
        (
            lambda: make().log_prob(np.ones((3, 4), int)),
            TypeError,
            "value must hold floating-point numbers; got dtype int64",
        ),
        (
            lambda: make().log_prob(GAPS),
            ValueError,
            r"no missing cells; got NaN in 3 of 12 cells.*kx\.MaskedKroneckerNormal\(.*=mask",
        ),
        (
            lambda: make().expand((2,)).log_prob(np.stack([Y, GAPS])),
            ValueError,
            "got NaN in 3 of 12 cells",
        ),
        (
            lambda: make().log_prob(Y.T),
            ValueError,
            r"shape \(\*batch, 3, 4\); got shape \(4, 3\).*in another order.*transpose the value",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, SINGLE, 0.1).log_prob(Y),
            TypeError,
            "value must not be of higher precision.*got float64 with float32",
        ),
        (
            lambda: kx.KroneckerNormal(LOC, SINGLE, 0.1),
            TypeError,
            "loc must not be of higher precision.*got float64 with float32",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (BATCH_A, B), np.array([0.1, -0.2])),
            ValueError,
            r"not be negative; got -0\.2",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, (A, B), NEGATIVE_NOISE),
            np.linalg.LinAlgError,
            "factor 1 of the noise must be positive semidefinite",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, precision_factors=(TWO, INDEFINITE)),
            np.linalg.LinAlgError,
            "factor 1 of the precision must be positive definite.*eigenvalue is -1",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, precision_factors=kx.Kronecker(TWO, TWO) + 0.1),
            TypeError,
            "precision factors of KroneckerNormal must be one.*Pass `noise` beside them",
        ),
        (
            lambda: kx.KroneckerNormal(0.0, scale_trils=(TWO, np.diag([1.0, 0.0]))),
            np.linalg.LinAlgError,
            "Cholesky factor 1 must have no zero on its diagonal; got one at place 1",
        ),
        (lambda: kx.KroneckerNormal(np.nan, (A, B)), ValueError, "loc must be finite; got nan"),
        (
            lambda: kx.KroneckerStudentT(-1.0, 0.0, (A, B)),
            ValueError,
            r"degrees of freedom, must be positive; got -1\.0",
        ),
        (
            lambda: kx.KroneckerStudentT(np.ones(3), np.zeros((2, 3, 4)), (A, B)),
            ValueError,
            r"batch shapes of df, loc and factors.*got \(2,\), \(\), \(3,\)",
        ),
        (lambda: kx.KroneckerStudentT(3.0), TypeError, "KroneckerStudentT needs exactly one"),
    ],
)
def test_bad_input_raises(call, error, match, under_jit):
    with pytest.raises(error, match=match):
        (jax.jit(call) if under_jit else call)()


def test_noise_per_row_without_a_batch_is_not_taken_for_a_batch():
    factors = (np.eye(3), np.eye(2))
    for shape in ((3,), (2,), (6,), (3, 2)):
        with pytest.raises(ValueError, match=r"one per batch entry; got shape \(\d"):
            kx.KroneckerNormal(0.0, factors, np.ones(shape))
    assert kx.KroneckerNormal(np.zeros((3, 3, 2)), factors, np.ones(3)).batch_shape == (3,)


def test_a_factor_that_is_merely_singular_raises_where_it_must_be_inverted():
    d = kx.KroneckerNormal(0.0, (TWO, np.ones((2, 2))))
    assert draw(d).shape == (2, 2)
    with pytest.raises(np.linalg.LinAlgError, match=r"factor 1 .*positive definite"):
        d.log_prob(TWO)
    with pytest.raises(np.linalg.LinAlgError, match=r"factor 1 .*positive definite"):
        d.entropy()


def test_events_that_are_missing_as_a_whole_may_be_masked():
    values = np.stack([Y, np.full((3, 4), np.nan)])
    d = make().expand((2,)).mask(np.array([True, False]))
    expected = [float(make().log_prob(Y)), 0.0]
    np.testing.assert_allclose(d.log_prob(values), expected)


def test_without_validation_values_are_not_looked_at():
    d = make(validate_args=False)
    assert np.isnan(d.log_prob(np.full((3, 4), np.nan)))
    assert np.isnan(d.log_prob(GAPS))
    assert np.isnan(kx.KroneckerNormal(np.nan, (A, B), validate_args=False).mean).all()
    assert kx.KroneckerStudentT(-1.0, 0.0, (A, B), validate_args=False).df == -1
    upper = np.array([[1.0, 5.0], [0.5, 1.0]])  # as NumPyro's: never read
    d = kx.KroneckerNormal(0.0, scale_trils=(upper, TWO), validate_args=False)
    expected = kx.KroneckerNormal(0.0, scale_trils=(np.tril(upper), TWO)).log_prob(TWO)
    np.testing.assert_allclose(d.log_prob(TWO), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: kx.KroneckerNormal(0.0, (a, B), 0.1),
        lambda a: kx.KroneckerNormal(0.0, (a, B)),
        lambda a: kx.KroneckerNormal(0.0, precision_factors=(a, B)),
        lambda a: kx.KroneckerStudentT(3.0, 0.0, (a, B), 0.1),
    ],
)
def test_traced_factors_that_are_no_covariance_give_nan(make):
    value = jax.jit(lambda a: make(a).log_prob(Y))(A - 5 * np.eye(3))
    assert np.isnan(value)
