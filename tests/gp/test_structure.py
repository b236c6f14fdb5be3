"""The choice of a factor per axis: exact for every value of the parameters, and visible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from tests.everyday import full
from tests.tolerances import assert_close

NODES = np.cos(np.pi * (np.arange(20) + 0.5) / 20)
REGULAR = np.linspace(0, 1, 21, dtype="float32")
LONGITUDE = np.arange(0.0, 360.0, 20.0)
IRREGULAR = np.sort(np.random.default_rng(0).uniform(size=18))


def model(structure=None):
    return kx.GridGP(
        kernels={
            "time": 2.0 * kx.Matern32(0.3) + kx.Periodic(0.25, 0.7),
            "longitude": kx.Matern52(60.0),
            "node": kx.RBF(0.8),
        },
        axes={"time": REGULAR, "longitude": kx.circle(LONGITUDE, 360.0), "node": NODES},
        noise=0.1,
        structure=structure,
    )


DENSE = dict.fromkeys(("time", "longitude", "node"), "dense")


@pytest.mark.parametrize(
    ("kernel", "axis", "kind"),
    [
        (kx.Matern32(0.3), REGULAR, "toeplitz"),
        (kx.Matern32(0.3) * kx.Periodic(0.3, 1.0) + 2.0 * kx.Constant(1.0), REGULAR, "toeplitz"),
        (kx.RBF(0.3), np.arange(1950, 1990), "toeplitz"),
        (kx.RBF(0.3), REGULAR[::-1], "toeplitz"),
        (kx.RBF(0.3), NODES, "centrosymmetric"),
        (kx.RBF(0.3), IRREGULAR, "dense"),
        (kx.RBF(0.3), REGULAR[:5], "dense"),
        (kx.RBF(30.0), kx.circle(LONGITUDE, 360.0), "circulant"),
        (kx.RBF(30.0), kx.circle(LONGITUDE[:-1], 360.0), "dense"),
        (kx.Periodic(360.0, 1.0), kx.circle(LONGITUDE, 360.0), "toeplitz"),
        (kx.RBF(30.0), LONGITUDE, "toeplitz"),
        (lambda x, z: jnp.exp(-jnp.abs(x[:, None] - z[None])), REGULAR, "dense"),
        (kx.RBF(0.3), np.stack([REGULAR, REGULAR], axis=1), "dense"),
    ],
)
def test_choice(kernel, axis, kind):
    gp = kx.GridGP((kernel,), (axis,), noise=0.1)
    assert gp.structures[0].kind == kind
    assert kind in gp.describe()
    assert gp.structures[0].reason in gp.describe()


def test_an_axis_off_by_more_than_rounding_is_not_regular():
    axis = np.linspace(0, 1, 21)
    axis[7] += 1e-9
    assert kx.GridGP((kx.RBF(0.3),), (axis,), noise=0.1).structures[0].kind == "dense"
    snapped = kx.regular(axis)
    gp = kx.GridGP((kx.RBF(0.3),), (snapped,), noise=0.1)
    assert gp.structures[0].kind == "toeplitz"
    assert "snapped by at most 1e-09" in gp.describe()


@pytest.mark.parametrize(
    "axis", [full(REGULAR), NODES, full(np.arange(1950, 1990)), 1.7e9 + REGULAR[:18]]
)
@pytest.mark.parametrize("lengthscale", [full(0.3), np.array([0.3])])
def test_a_column_of_coordinates_is_one_dimension(lengthscale, axis):
    line = kx.GridGP((kx.Matern32(0.3),), (axis,), noise=0.1)
    column = kx.GridGP((kx.Matern32(lengthscale),), (axis[:, None],), noise=0.1)
    assert column.structures == line.structures
    assert_close(*jax.jit(lambda gps: [gp.covariance().to_dense() for gp in gps])((column, line)))


def test_a_column_of_coordinates_is_predicted_at_a_column():
    axis, y = 1.7e9 + REGULAR, np.cos(20 * REGULAR).astype(float)
    line, column = (
        kx.GridGP((kx.Matern32(0.3),), (x,), noise=0.1).condition(y) for x in (axis, axis[:, None])
    )
    new = axis[:3] + 0.01
    assert_close(column.mean((new[:, None],)), line.mean((new,)))
    with pytest.raises(ValueError, match=r"must have shape \(m, 1\), as the old.*got shape \(3,\)"):
        column.mean((new,))


def test_traced_coordinates_are_dense():
    @jax.jit
    def value(x):
        gp = kx.GridGP((kx.RBF(0.3),), (x,), noise=0.1)
        assert gp.structures[0].kind == "dense"
        return gp.log_marginal_likelihood(jnp.zeros(21))

    assert np.isfinite(value(jnp.linspace(0.0, 1.0, 21)))


def test_structure_is_found_under_jit():
    @jax.jit
    def value(scale):
        gp = kx.GridGP((kx.RBF(scale),), (REGULAR,), noise=0.1)
        assert gp.structures[0].kind == "toeplitz"
        return gp.log_marginal_likelihood(jnp.zeros(21))

    assert np.isfinite(value(0.3))


def test_structure_is_checked_under_jit_where_it_can_be():
    """Kernels from outside are concrete there, but what they are evaluated to is traced."""
    kernel = kx.RBF(0.3)
    for given, structure in ((kernel, None), (lambda x, z: kernel(x, z), ("toeplitz",))):

        @jax.jit
        def covariance(noise, given=given, structure=structure):
            return kx.GridGP((given,), (REGULAR,), noise, structure=structure).covariance()

        assert isinstance(covariance(0.1).factors[0], kx.Toeplitz)


def test_structured_equals_dense_with_gradient_and_prediction():
    fast, slow = model(), model(DENSE)
    y = np.random.default_rng(0).normal(size=slow.grid_shape)
    new = {"longitude": np.array([5.0, 355.0, 365.0])}
    results = []
    for gp in (fast, slow):
        raw, build = kx.unconstrain(gp)

        @jax.jit
        def asked(raw, build=build):
            post = build(raw).condition(y)
            predicted = post.mean(), post.mean(new), post.variance(new)
            value = jax.value_and_grad(lambda raw: build(raw).log_marginal_likelihood(y))
            return value(raw), predicted

        results.append(asked(raw))
    ((v1, g1), first), ((v2, g2), second) = results
    np.testing.assert_allclose(v1, v2, rtol=1e-12)
    for path in g1:
        np.testing.assert_allclose(g1[path], g2[path], rtol=1e-8, err_msg=path)
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    around = first[1]
    np.testing.assert_allclose(around[:, 0], around[:, 2], atol=1e-9)
    assert np.abs(around[:, 0] - around[:, 1]).max() > 1e-3


def test_kernel_on_a_circle_sees_chords():
    gp = kx.GridGP((kx.Matern12(50.0),), (kx.circle(LONGITUDE, 360.0),), noise=0.1)
    chord = 360 / np.pi * np.abs(np.sin(np.pi * (LONGITUDE[:, None] - LONGITUDE) / 360))
    matrix = jax.jit(lambda gp: gp.covariance(include_noise=False).to_dense())(gp)
    np.testing.assert_allclose(matrix, np.exp(-chord / 50.0), atol=1e-12)


ERRORS = [
    (lambda: model({**DENSE, "node": "toeplitz"}), ValueError, r"node is not toeplitz.*0\.\d"),
    (
        lambda: model({"time": "circulant"}),
        ValueError,
        r"covariance of time is not circulant: .* by \d\.\d+\. .* round a kx\.circle; leave",
    ),
    (
        lambda: kx.GridGP((kx.RBF(0.3),), (IRREGULAR,), 0.1, structure=("centrosymmetric",)),
        ValueError,
        r"axis 0 is not centrosymmetric: .* by 0\.\d+\. .* symmetric about its middle; leave",
    ),
    (lambda: model({"time": "fast"}), ValueError, "one of .*'circulant'.* got 'fast'"),
    (lambda: model({"tyme": "dense"}), KeyError, "tyme.*time"),
    (lambda: kx.circle(LONGITUDE, 180.0), ValueError, "period 180.0 .* 0.0 to 340.0"),
    (lambda: kx.circle(np.linspace(0, 1, 25), 1.0), ValueError, "0.0 and 1.0 with period 1.0"),
    (lambda: kx.circle(LONGITUDE, -1.0), ValueError, "positive number; got -1.0"),
    (lambda: kx.circle(np.ones((4, 2)), 9.0), ValueError, r"shape \(n,\); got \(4, 2\)"),
    (lambda: kx.regular(IRREGULAR), ValueError, "a tenth of the step .* coordinate"),
    (lambda: kx.regular(np.ones(1)), ValueError, r"n ≥ 2; got \(1,\)"),
    (lambda: kx.Centrosymmetric(np.diag([1.0, 2.0])), ValueError, r"\(0, 0\) and \(1, 1\).*by 1"),
    (lambda: kx.Circulant(np.array([1.0, 0.5, 0.1])), ValueError, "entries 1 and 2 differ by 0.4"),
    (lambda: kx.Toeplitz(1.0 * np.ones(())), ValueError, r"n ≥ 1; got shape \(\)"),
]


@pytest.mark.parametrize(("call", "exception", "message"), ERRORS)
def test_errors(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_large_coordinates_keep_their_differences_in_float32():
    seconds = 1.7e9 + 3600 * np.arange(40)
    kernels = (kx.Matern32(np.float32(4e4)), kx.RBF(np.float32(1.0)))
    gp = kx.GridGP(kernels, (seconds, np.arange(5.0)), noise=0.1)
    post = gp.condition(np.random.default_rng(0).normal(size=(40, 5)).astype("float32"))
    assert post.mean().dtype == jnp.float32
    np.testing.assert_allclose(post.mean(axes=(seconds, None)), post.mean(), atol=1e-5)


def test_kernel_that_is_not_symmetric_is_refused_by_axis_name():
    with pytest.raises(ValueError, match="covariance of time must be symmetric"):
        kx.GridGP(
            {"time": lambda a, b: jnp.sin(a[:, None] - b[None])}, {"time": REGULAR}, noise=0.1
        )


def test_meshgrid_axes_and_a_kernel_as_mean_are_refused():
    mesh = np.meshgrid(np.arange(6.0), np.arange(5.0), indexing="ij")
    with pytest.raises(ValueError, match="meshgrid"):
        kx.GridGP((kx.RBF(1.0), kx.RBF(1.0)), mesh, noise=0.1)
    with pytest.raises(TypeError, match="mean must be a number"):
        kx.GridGP((kx.RBF(1.0),), (REGULAR,), noise=0.1, mean=kx.RBF(1.0))


class Claims(kx.Kernel):
    """Says that it is stationary, and is not."""

    stationary = True

    def evaluate(self, x, z):
        return x * z + 1.0


def test_a_false_claim_to_be_stationary_is_found():
    with pytest.raises(ValueError, match="kernel of axis 0 must be stationary, as it says"):
        kx.GridGP((Claims(),), (np.linspace(0, 1, 40),), noise=0.1)


def test_circle_in_float32_closes_in_float64():
    """Longitudes of a NetCDF file: their last one is rounded, the step of their circle is not."""
    longitude = (np.arange(432) * (360 / 432)).astype(np.float32)
    rounded = kx.circle(longitude, 360.0)
    assert rounded.is_full_circle
    kernel = kx.Matern32(2.0)
    data = np.cos(np.deg2rad(longitude.astype(float)))
    gp = kx.GridGP((kernel,), (rounded,), noise=0.1)
    even = kx.GridGP((kernel,), (kx.circle(np.arange(432) * (360 / 432), 360.0),), noise=0.1)
    assert_close(gp.log_marginal_likelihood(data), even.log_marginal_likelihood(data))
    assert_close(gp.condition(data).mean({0: longitude[5:8]}), even.condition(data).mean()[5:8])


LONG = np.arange(1000.0)


@pytest.mark.parametrize(
    ("kernel", "places", "kind"),
    [
        (kx.Matern32(9.0), 3, "markov"),
        (kx.Matern32(9.0) + kx.Matern12(2.0), 100, "markov"),
        (kx.Matern32(9.0), 101, "toeplitz"),
        (kx.RBF(9.0), 3, "toeplitz"),
        (kx.Matern32(9.0) * kx.Periodic(24.0, 1.0), 3, "toeplitz"),  # a state of 66 numbers
    ],
    ids=["Matérn", "sum", "many places", "not Markov", "long state"],
)
def test_a_long_axis_is_filtered_unasked(kernel, places, kind):
    def process(**noise):
        return kx.GridGP((kernel, kx.RBF(1.0)), (LONG, np.arange(float(places))), **noise)

    gp = process(noise=0.1)
    assert gp.structures[0].kind == kind
    assert f" {kind} (" in gp.describe()
    assert process(noise=0).structures[0].kind == "toeplitz" or kind != "markov"


def test_a_markov_axis_that_is_not_filtered_is_described():
    correlated = kx.Kronecker(kx.Dense(np.eye(4) + 0.1), kx.ScaledIdentity(1.0, 2))
    gp = kx.GridGP(
        (kx.Matern32(1.0), kx.RBF(1.0)),
        (np.arange(4.0), np.arange(2.0)),
        noise=correlated,
        structure=("markov", None),
    )
    assert "axis 0 is not filtered but a dense matrix: noise that is correlated" in gp.describe()
