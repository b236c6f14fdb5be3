"""Data from files and other libraries: converted where nothing is lost, else refused by name."""

from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest

import kronax as kx

X = np.arange(4.0)
Y = np.array([1.0, 2.0, 0.5, 3.0])  # exact in every floating-point type
GAP = np.array([1.0, np.nan, 0.5, 3.0])
MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])

LOSSLESS = {
    "big-endian double": lambda a: a.astype(">f8"),
    "big-endian single": lambda a: a.astype(">f4"),
    "float16": lambda a: a.astype(np.float16),
    "bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "bfloat16 of JAX": lambda a: jnp.asarray(a, jnp.bfloat16),
    "objects": lambda a: a.astype(object),
    "decimals": lambda a: [Decimal(repr(float(v))) for v in a],
    "Float64": lambda a: pd.array(a, dtype="Float64"),
    "Float32": lambda a: pd.array(a.astype("float32"), dtype="Float32"),
}
every_kind = pytest.mark.parametrize("kind", LOSSLESS)


def gp(**changed):
    given = {"kernels": (kx.RBF(1.0),), "axes": (X,), "noise": 0.1, **changed}
    return kx.GridGP(**given)


@every_kind
def test_data_of_other_types_are_the_same_data(kind):
    y = LOSSLESS[kind](Y)
    plain, normal = gp(), kx.KroneckerNormal(0.0, (np.eye(4),), 0.1)
    op = kx.Kronecker(np.eye(4)) + 0.1
    for function in (
        plain.log_marginal_likelihood,
        lambda v: plain.condition(v).mean(),
        lambda v: gp(mean=v if hasattr(v, "dtype") else np.array(v)).log_marginal_likelihood(Y),
        normal.log_prob,
        lambda v: kx.solve(op, v),
        lambda v: kx.inv_quad(op, v),
    ):
        np.testing.assert_array_equal(function(y), function(Y), err_msg=kind)


@every_kind
def test_variances_and_parameters_of_other_types(kind):
    given = LOSSLESS[kind](Y)
    dtype = kx.Diagonal(given).dtype
    kernels = (kx.RBF(dtype.type(1.0)),)
    for function in (
        lambda v: gp(kernels=kernels, noise={0: v}).noise.variances[0],
        lambda v: kx.Diagonal(v).diagonal(),
        lambda v: kx.Matern32(v).lengthscale,
        lambda v: kx.replace(kx.Matern32(np.ones(4)), {"lengthscale": v}).lengthscale,
    ):
        np.testing.assert_array_equal(function(given), Y)
    if hasattr(given, "dtype"):
        np.testing.assert_array_equal(gp(kernels=kernels, noise=given).noise.variances, Y)


@pytest.mark.parametrize("kind", ["big-endian double", "float16", "bfloat16", "objects"])
def test_factors_of_other_types(kind):
    op = kx.Kronecker(LOSSLESS[kind](MATRIX)) + 0.125
    exact = np.linalg.slogdet(MATRIX + 0.125 * np.eye(2))[1]
    np.testing.assert_allclose(kx.logdet(op), exact, rtol=1e-6)


@pytest.mark.parametrize("order", [">f8", ">f4", ">i4"])
def test_coordinates_of_files(order):
    axis = X.astype(order)
    expected = gp().condition(Y).mean([X[1:3]])
    np.testing.assert_array_equal(gp(axes=(axis,)).condition(Y).mean([axis[1:3]]), expected)


def test_what_is_missing_is_a_gap():
    expected = gp().log_marginal_likelihood(GAP)
    missing = [
        [1.0, None, 0.5, 3.0],
        [Decimal(1), None, 0.5, 3],
        np.array([1.0, None, 0.5, 3.0], object),
        pd.array([1.0, None, 0.5, 3.0], dtype="Float64"),
        np.array([1.0, pd.NA, 0.5, 3.0], object),
        GAP.astype(">f8"),
    ]
    for y in missing:
        np.testing.assert_array_equal(gp().log_marginal_likelihood(y), expected)
    mask = pd.array([True, False, True, True], dtype="boolean")
    np.testing.assert_array_equal(gp(observed=mask).log_marginal_likelihood(GAP), expected)


REFUSED = [
    (lambda: gp().condition(pd.array([1, None, 3, 4], dtype="Int64")), r"dtype Int64.*na_value"),
    (lambda: gp().condition(pd.Categorical(Y)), "y must be an array of real.*dtype category"),
    (lambda: gp().condition(pd.array(list("abcd"), dtype="string")), "dtype string"),
    (lambda: gp().condition(list("abcd")), "y must hold floating-point numbers; got dtype <U1"),
    (lambda: gp().condition([Fraction(1, 3), 1, 2, 3]), r"y must hold numbers that double.*1, 3"),
    (lambda: gp().condition([Decimal("0.1234567890123456789"), 1, 2, 3]), "that double precision"),
    (lambda: gp().condition(np.array([2**53 + 1, 1, 2, 3], object)), "got 9007199254740993"),
    (lambda: gp().condition(Y.astype(np.longdouble)), "at most double precision; got dtype float"),
    (lambda: kx.Matern32(Y.astype(np.longdouble)), "lengthscale must hold at most double"),
    (lambda: gp(noise={0: [1.0, None, 1.0, 1.0]}), r"along 0 must be positive; got \[ 1. nan"),
    (lambda: gp(mean=pd.array([1.0, None, 1, 1], dtype="Float64")), "The mean must be finite"),
    (lambda: kx.Kronecker(np.array([[1.0, None], [None, 1.0]], object)), "0 must be finite"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_what_would_be_lost_is_refused(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call()


OP = kx.Kronecker(np.eye(4)) + 0.1
POST = gp().condition(Y)
KEY = jax.random.key(0)
DRAWS = {
    "an operator": lambda key, shape: kx.sample_normal(key, OP, shape),
    "the prior": lambda key, shape: gp().sample(key, shape),
    "the posterior": lambda key, shape: POST.sample(key, sample_shape=shape),
    "points": lambda key, shape: POST.sample(key, points=[[0.5]], sample_shape=shape),
    "a normal": lambda key, shape: kx.KroneckerNormal(0.0, (np.eye(4),)).sample(key, shape),
    "a t": lambda key, shape: kx.KroneckerStudentT(3.0, 0.0, (np.eye(4),)).sample(key, shape),
    "a posterior in NumPyro": lambda key, shape: POST.numpyro_dist().sample(key, shape),
}


@pytest.mark.parametrize("name", DRAWS)
def test_keys_and_shapes_of_draws(name):
    draw = DRAWS[name]
    for key in (0, 0.5, None, np.zeros(2), jnp.zeros(2), jax.random.split(KEY, 3), "seed"):
        with pytest.raises(TypeError, match="key must be a JAX random key"):
            draw(key, ())
    for shape in (2.5, (2, 1.5), -1, (2, -1), True, "3"):
        with pytest.raises(TypeError, match="sample_shape must be an integer that is not neg"):
            draw(KEY, shape)
    pairs = ((KEY, 2), (KEY, np.int64(2)), (jax.random.PRNGKey(0), [2]))
    shapes = [jax.eval_shape(lambda pair=pair: draw(*pair)).shape for pair in pairs]
    assert shapes[0][0] == 2
    assert shapes == [shapes[0]] * 3


def test_keys_elsewhere():
    for call in (
        lambda: kx.fit(gp(), Y, restarts=1, key=0, progress=False),
        lambda: gp().random_start(0, Y),
        lambda: POST.to_dataset(num_samples=2, key=0),
    ):
        with pytest.raises(TypeError, match="key must be a JAX random key"):
            call()
