"""Appended slices: the same numbers as from scratch, at the cost of one axis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.functions import decompose as decompositions
from tests.everyday import full
from tests.gp.dense import matern32
from tests.tolerances import assert_close

YEARS = np.arange("2000", "2024", dtype="datetime64[Y]")
TREES = ["ash", "elm", "oak"]
HEIGHT = np.array([0.0, 0.4, 1.0])
Y = np.random.default_rng(0).normal(size=(24, 3)) + np.arange(3)
BY_YEAR = np.linspace(0.1, 0.5, 24)


def forest(years=YEARS, trees=TREES, noise=0.3, mean=0.5, structure=None):
    return kx.GridGP(
        {"year": 2.0 * kx.Matern32(3.0), "tree": kx.Categorical.with_rank(3, rank=2)},
        {"year": kx.dates(years, "years"), "tree": trees},
        noise=noise,
        mean=mean,
        structure=structure,
    )


to_dense = jax.jit(lambda op: op.to_dense())
matrices = eqx.filter_jit(lambda gp, op: (gp.covariance().to_dense(), op.to_dense()))


def assert_same(post, scratch, y=Y, exact=1e-12):
    """As conditioned from scratch: data, covariance and weights, from which all else follows."""
    gp, y = post.gp, np.asarray(y)
    assert [s.kind for s in gp.structures] == [s.kind for s in scratch.structures]
    assert gp.grid_shape == scratch.grid_shape
    covariance, matrix = map(np.asarray, matrices(scratch, post.operator))
    residual = (y - scratch.mean_on((None, None))).reshape(-1, len(covariance))
    weights = np.linalg.solve(covariance, residual.T).T
    pairs = [(post.y, y), (np.reshape(post.weights, residual.shape), weights)]
    pairs.append((matrix, covariance))
    for value, expected in pairs:
        np.testing.assert_allclose(value, expected, rtol=exact, atol=exact)


def test_a_new_year_of_data():
    post = forest(YEARS[:20]).condition(Y[:20]).append(Y[20:], {"year": YEARS[20:]})
    assert_same(post, forest())
    assert post.gp.structures[0].kind == "toeplitz"
    assert post.gp.axes[0].describe() == "dates 2000 to 2023 in years"
    later = {"year": np.array(["2025"], "datetime64[Y]")}
    across = np.asarray(post.gp.kernels[1].covariance)
    cross = np.kron(2.0 * matern32(np.array([25.0]), np.arange(24.0), 3.0), across)
    assert_close(post.mean(later), 0.5 + (cross @ np.ravel(post.weights))[None])


def test_earlier_years_stand_in_front():
    post = forest(YEARS[4:]).condition(Y[4:]).append(Y[:4], {"year": YEARS[:4]})
    np.testing.assert_array_equal(post.y, Y)
    np.testing.assert_array_equal(post.gp.axes[0].given.values, YEARS)
    assert post.gp.structures[0].kind == "toeplitz"
    assert_same(post, forest())


def test_slices_in_between_stand_at_the_end():
    x = np.linspace(0, 1, 20)
    late = np.array([3, 8, 9])
    order = np.r_[np.setdiff1d(np.arange(20), late), late]

    def gp(places):
        return kx.GridGP((kx.Matern32(0.4), kx.RBF(0.6)), (places, HEIGHT), noise=0.2)

    early = order[:17]
    post = gp(x[early]).condition(Y[early]).append(Y[late], [x[late], None])
    assert_same(post, gp(x[order]), Y[order])
    assert post.gp.structures[0].kind == "dense"

    def extended(old, y, new, y_new):
        return jax.eval_shape(lambda: gp(old).condition(y).append(y_new, [new, None])).gp.axes[0]

    falling = extended(x[:4:-1], Y[15:0:-1], x[4:1:-1], Y[20:23])
    assert falling.static.is_regular  # x[4] … x[2] come after x[5] here
    ahead = extended(x[15::-1], Y[:16], x[:15:-1], Y[16:20])
    np.testing.assert_allclose(ahead.coordinates(float), x[::-1])


def test_irregular_years_make_the_axis_dense_and_regular_ones_stay_so_in_float32():
    post = forest(YEARS[:20]).condition(Y[:20])
    apart = jax.eval_shape(lambda: post.append(Y[:1], {"year": YEARS[22:23]}))
    assert apart.gp.structures[0].kind == "dense"
    x = np.linspace(0, 1, 24).astype(np.float32)

    def gp(places):
        return kx.GridGP((kx.RBF(0.1), kx.RBF(0.6)), (places, HEIGHT), noise=0.2)

    post = gp(x[:20]).condition(Y[:20]).append(Y[20:], [np.linspace(0, 1, 24)[20:], None])
    assert_same(post, gp(x))
    assert post.gp.structures[0].kind == "toeplitz"


def test_an_axis_that_was_snapped_goes_on_in_its_steps():
    x = np.arange(20.0) + 0.02 * np.sin(np.arange(20))
    gp = kx.GridGP((kx.RBF(2.0), kx.RBF(0.6)), (kx.regular(x), HEIGHT), noise=0.2)
    post = gp.condition(Y[:20])
    first, last = post.gp.axes[0].coordinates(float)[np.array([0, -1])]
    step = (last - first) / 19
    longer = jax.eval_shape(lambda: post.append(Y[20:22], [np.array([20.05, 20.98]), None]))
    np.testing.assert_allclose(
        longer.gp.axes[0].coordinates(float)[-2:], last + step * np.array([1.0, 2.0])
    )
    assert longer.gp.structures[0].kind == "toeplitz"
    with pytest.raises(ValueError, match=r"continue the regular axis.*20\.4"):
        post.append(Y[20:21], [np.array([20.4]), None])


def test_another_category():
    """Codes may leave out some that the kernel has; labels have one category each."""
    post = forest(trees=[0, 1]).condition(Y[:, :2]).append(Y[:, 2:], {"tree": [2]})
    assert_same(post, forest(trees=[0, 1, 2]))
    assert post.leave_one_out().outliers(number=1)[0].where["tree"] in range(3)
    with pytest.raises(ValueError, match="kernel of 3 categories; got 3"):
        forest().condition(Y).append(Y[:, :1], {"tree": ["fir"]})


def test_noise_by_axis_goes_on():
    noise = {"year": BY_YEAR[:20], "tree": np.array([0.5, 1.0, 2.0])}
    post = forest(YEARS[:20], noise=noise).condition(Y[:20])
    longer = post.append(Y[20:], {"year": YEARS[20:]}, noise=BY_YEAR[20:])
    assert_same(longer, forest(noise={**noise, "year": BY_YEAR}))
    same = jax.jit(
        lambda: post.append(Y[20:], {"year": YEARS[20:]}, noise=0.25).gp.noise.variances[0]
    )
    np.testing.assert_allclose(same()[20:], 0.25)
    with pytest.raises(ValueError, match=r"varies along year .* one number or 4"):
        post.append(Y[20:], {"year": YEARS[20:]})
    with pytest.raises(ValueError, match=r"one for each of them, \(4,\); got shape \(3,\)"):
        post.append(Y[20:], {"year": YEARS[20:]}, noise=BY_YEAR[:3])
    with pytest.raises(ValueError, match="must be positive"):
        post.append(Y[20:], {"year": YEARS[20:]}, noise=0.0)


def test_correlated_noise_on_the_other_axis():
    across = 0.2 * np.eye(3) + 0.1
    noise = [kx.Kronecker(kx.ScaledIdentity(1.0, n), across) for n in (20, 24)]
    post = forest(YEARS[:20], noise=noise[0]).condition(Y[:20])
    assert_same(post.append(Y[20:], {"year": YEARS[20:]}), forest(noise=noise[1]))
    with pytest.raises(ValueError, match="correlated along tree and not defined at its new"):
        post.append(Y[:20, :1], {"tree": ["ash"]})


def test_coefficients_that_are_integrated_out():
    """Centre and scale of a line stay, or its coefficients would be others."""
    short = np.linspace(0, 1, 20)
    line = kx.LinearMean(0, centre=0.5, scale=0.5)

    def gp(x):
        return kx.GridGP((kx.Matern32(0.4), kx.RBF(0.6)), (x, HEIGHT), 0.2, kx.MarginalMean(line))

    x = np.arange(24) / 19
    post = gp(short).condition(Y[:20]).append(Y[20:], [x[20:], None])
    scratch = gp(x).condition(Y)
    value, expected = ((one.weights, to_dense(one.operator)) for one in (post, scratch))
    for found, known in zip(value, expected, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-12)
    assert_close(post.regression.standard_errors, scratch.regression.standard_errors)
    unbound = kx.GridGP(
        (kx.Matern32(0.4), kx.RBF(0.6)), (short, HEIGHT), 0.2, kx.MarginalMean(kx.LinearMean(0))
    )
    bound = unbound.condition(Y[:20]).append(Y[20:], [x[20:], None])
    assert_close(bound.regression.coefficients, post.regression.coefficients)


@pytest.mark.parametrize("asked", [full("dense"), 20])
def test_a_structure_that_was_asked_for_stays(asked):
    x = np.linspace(0, 1, 24)

    def gp(places):
        kernels = (kx.RBF(0.5), kx.RBF(0.6))
        return kx.GridGP(kernels, (places, HEIGHT), noise=0.2, structure=(asked, None))

    post = gp(x[:21]).condition(Y[:21]).append(Y[21:], [x[21:], None])
    assert_same(post, gp(x), exact=1e-10 if asked == 20 else 1e-12)


def test_a_low_rank_axis_beside_the_one_that_grows():
    x = np.linspace(0, 1, 24)

    def gp(heights):
        kernels = (kx.RBF(0.5), kx.Matern32(0.6))
        return kx.GridGP(
            kernels, (x, heights), noise={1: np.full(heights.size, 0.2)}, structure=(20, None)
        )

    post = gp(HEIGHT[:2]).condition(Y[:, :2]).append(Y[:, 2:], [None, HEIGHT[2:]], noise=0.2)
    assert_same(post, gp(HEIGHT))


def test_only_the_axis_that_grows_is_decomposed(monkeypatch):
    """Of sizes that no other test has, so that no program of before is used."""
    post = forest(YEARS[:17]).condition(Y[:17])
    seen = []
    original = decompositions.eigenbasis

    def counted(signal, noise):
        seen.append(signal.size)
        return original(signal, noise)

    monkeypatch.setattr(decompositions, "eigenbasis", counted)
    longer = post.append(Y[17:23], {"year": YEARS[17:23]})
    assert seen == [23]
    assert longer.operator.decomposition[1] is not None
    np.testing.assert_array_equal(
        longer.operator.decomposition[1].values, post.operator.decomposition[1].values
    )


def test_batches_and_repeated_appends():
    several = np.stack([Y, 2 * Y, Y - 1])
    post = forest(YEARS[:20]).condition(several[:, :20])
    longer = post.append(several[:, 20:22], {"year": YEARS[20:22]})
    longer = longer.append(several[:, 22:].reshape(3, -1), {"year": YEARS[22:]})
    assert_same(longer, forest(), several)
    with pytest.raises(
        ValueError, match=r"as many data sets as y, of batch shape \(3,\); got \(\)"
    ):
        post.append(Y[20:], {"year": YEARS[20:]})


@pytest.mark.parametrize("mean", [full(0.5), kx.MarginalMean(kx.LinearMean("year"))])
def test_inside_jit(mean):
    post = forest(YEARS[:20], mean=mean).condition(Y[:20])
    expected = post.append(Y[20:], {"year": YEARS[20:]}).mean()

    @eqx.filter_jit
    def found(post, first, second):
        """Of a posterior that is an argument, and of one that is made inside."""
        inside = forest(YEARS[:20], mean=mean).condition(first)
        return [one.append(second, {"year": YEARS[20:]}).mean() for one in (post, inside)]

    for value in found(post, jnp.asarray(Y[:20]), jnp.asarray(Y[20:])):
        assert_close(value, expected)


def test_traced_coordinates():
    x = np.linspace(0, 1, 24)
    gp = kx.GridGP((kx.Matern32(0.4), kx.RBF(0.6)), (x[:20], HEIGHT), noise=0.2)
    post = gp.condition(Y[:20])
    warped = jax.jit(lambda new: post.append(Y[20:], [new, None]).mean())(x[20:])
    assert_close(warped, post.append(Y[20:], [x[20:], None]).mean())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: p.append(Y[:2], {"year": YEARS[20:]}), ValueError, r"y_new .*4, 3.*\(2, 3\)"),
        (lambda p: p.append(Y[:4] * np.inf, {"year": YEARS[20:]}), ValueError, "finite"),
        (lambda p: p.append(Y[:4], {"year": np.arange(4.0)}), TypeError, "must be dates"),
        (lambda p: p.append(Y[:4], {"yer": YEARS[20:]}), KeyError, "Did you mean 'year'"),
        (lambda p: p.append(Y[:4], {}), ValueError, "one axis at a time; got .* for none"),
        (
            lambda p: p.append(Y[:4], {"year": YEARS[20:], "tree": TREES}),
            ValueError,
            "one axis at a time; got .* for year, tree",
        ),
        (
            lambda p: p.append(Y[20:], {"year": YEARS[20:]}, noise=0.1),
            TypeError,
            "noise varies along year, and this one's does not",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call(forest(YEARS[:20]).condition(Y[:20]))


def test_a_mean_known_on_its_grid_only_cannot_go_on():
    post = forest(YEARS[:20], mean=np.zeros((20, 1))).condition(Y[:20])
    with pytest.raises(ValueError, match="On a new grid use a mean that is a function"):
        post.append(Y[20:], {"year": YEARS[20:]})
