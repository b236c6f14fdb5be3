"""Categories: coregionalisation against its matrix, labels as codes, and what they refuse."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given

import kronax as kx
from tests.everyday import everyday
from tests.gp import dense
from tests.gp.orders import three_orders
from tests.tolerances import assert_close

WEIGHTS = np.array([[1.0, 0.2], [0.5, -0.7], [-0.3, 0.4]])
SHARES = np.array([0.5, 0.2, 0.3])
COVARIANCE = WEIGHTS @ WEIGHTS.T + 3 * np.diag(SHARES)
TREES = np.array(["oak", "ash", "elm"])
TIME = dense.TIME
Y = np.random.default_rng(2).normal(size=(3, 5))


def forest(trees=TREES, kernel=None, **options):
    kernel = 2.0 * kx.Categorical(WEIGHTS, SHARES) if kernel is None else kernel
    kernels = {"tree": kernel, "time": kx.Matern32(0.6)}
    return kx.GridGP(kernels, {"tree": trees, "time": TIME}, noise=0.1, **options)


def test_the_formula_holds():
    codes = [2, 0, 0, 1]

    @jax.jit
    def found(kernel):
        one = kernel.evaluate(jnp.asarray(1.0), jnp.asarray(2.0))
        return kernel.covariance, kernel(codes, [1, 2]), kernel.diagonal(codes), one

    whole, rows, diagonal, one = found(kx.Categorical(WEIGHTS, SHARES))
    assert_close(whole, COVARIANCE)
    assert_close(rows, COVARIANCE[np.ix_(codes, [1, 2])])
    assert_close(diagonal, np.diagonal(COVARIANCE)[codes])
    assert_close(one, COVARIANCE[1, 2])


def test_categories_without_anything_of_their_own():
    """A pure low-rank coregionalisation: `W Wᵀ` is singular, and noise carries the density."""
    rng = np.random.default_rng(8)
    y = rng.normal(size=(3, TIME.size))
    axes = {"tree": np.arange(3.0), "time": TIME}
    time = np.asarray(kx.Matern32(0.6)(TIME, TIME))

    def value(weights, kernel_of):
        kernels = {"tree": kernel_of(weights), "time": kx.Matern32(0.6)}
        return kx.GridGP(kernels, axes, noise=0.1).log_marginal_likelihood(y)

    def dense(weights):
        s = jnp.kron(weights @ weights.T, time) + 0.1 * jnp.eye(y.size)
        half = jnp.linalg.cholesky(s)
        white = jax.scipy.linalg.solve_triangular(half, y.ravel(), lower=True)
        logs = jnp.sum(jnp.log(jnp.diagonal(half))) + y.size / 2 * np.log(2 * np.pi)
        return -jnp.sum(white**2) / 2 - logs

    expected, slope = jax.jit(jax.value_and_grad(dense))(WEIGHTS[:, :1])
    for kernel_of in (kx.Categorical, lambda w: kx.Categorical(w, np.zeros(3))):
        found = jax.jit(jax.value_and_grad(value), static_argnums=1)(WEIGHTS[:, :1], kernel_of)
        np.testing.assert_allclose(found[0], expected, rtol=1e-10)
        np.testing.assert_allclose(found[1], slope, rtol=1e-9)
    kernel = kx.Categorical(WEIGHTS, np.zeros(3))
    assert [p.path for p in kx.parameters(kernel)] == ["weights"]
    post = kx.GridGP({"tree": kernel, "time": kx.Matern32(0.6)}, axes, noise=0.1).condition(y)
    assert np.isfinite(post.sample(jax.random.key(0))).all()
    assert (np.asarray(post.variance()) > 0).all()


def test_a_given_covariance_is_a_scale_times_a_categorical():
    own = np.array([0.4, 2.0, 0.9])
    scale = own.mean()
    kernel = scale * kx.Categorical(WEIGHTS / np.sqrt(scale), own / own.sum())
    assert_close(kernel([0, 1, 2], [0, 1, 2]), WEIGHTS @ WEIGHTS.T + np.diag(own))


@given(
    weights=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    shares=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
def test_covariances_are_positive_definite(weights, shares):
    kernel = kx.Categorical(np.reshape(weights, (3, 2)), np.array(shares) / np.sum(shares))
    matrix = np.asarray(kernel.covariance)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-14)
    assert np.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("rank", everyday([1, 2, 3], [2]))
def test_a_start_shares_half_of_the_variance_and_is_no_saddle(rank):
    kernel = kx.Categorical.with_rank(3, rank)
    assert kernel.weights.shape == (3, rank)
    assert_close(kernel.diagonal([0, 1, 2]), np.full(3, 2.0))
    gp = forest(kernel=kernel)
    slopes = jax.jit(jax.grad(lambda model: model.log_marginal_likelihood(Y)))(gp)
    slope = slopes.kernels[0].weights
    assert np.abs(slope).max(axis=0).min() > 1e-3
    assert np.linalg.matrix_rank(kernel.weights) == rank


def test_the_process_is_the_dense_one_with_one_amplitude():
    gp = forest()
    truth = 2 * np.kron(COVARIANCE, dense.matern32(TIME, TIME, 0.6))
    assert_close(gp.covariance(include_noise=False).to_dense(), truth)
    assert gp.variance.item() == 2.0
    assert gp.structures[0].kind == "dense"
    assert "labels oak, ash, elm" in gp.describe()
    covariance = truth + 0.1 * np.eye(15)
    mean = (truth @ np.linalg.solve(covariance, Y.ravel())).reshape(3, 5)
    post = gp.condition(Y)
    assert_close(post.mean(), mean)
    # Other trees in another order, one of them twice.
    assert_close(post.mean({"tree": ["elm", "oak", "elm"]}), mean[[2, 0, 2]])
    assert_close(post.variance({"tree": ["elm"]}), post.variance()[2:])
    coded = forest(trees=np.arange(3)).condition(Y)
    assert_close(coded.mean({"tree": np.array([2, 0])}), mean[[2, 0]])


def test_gradients_and_hessians_are_those_of_the_matrix():
    raw, build = kx.unconstrain(kx.Categorical(WEIGHTS, SHARES))
    probe = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

    def by_kernel(values):
        return jnp.sum(probe * build(values)([0, 1, 2], [0, 1, 2]) ** 2)

    def by_hand(values):
        kernel = build(values)
        matrix = kernel.weights @ kernel.weights.T + 3 * jnp.diag(kernel.shares)
        return jnp.sum(probe * matrix**2)

    for order, (ours, theirs) in enumerate(
        zip(three_orders(by_kernel, raw), three_orders(by_hand, raw), strict=True)
    ):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert_close(a, b, order=order)


def test_a_fit_finds_what_outputs_share():
    truth = kx.GridGP(
        (3.0 * kx.Categorical([[1.5], [1.5], [-1.5]], np.full(3, 1 / 3)), kx.RBF(1.0)),
        (TREES, np.arange(60.0)),
        noise=0.01,
    )
    y = truth.sample(jax.random.key(0), include_noise=True)
    start = kx.GridGP(
        (kx.Categorical.with_rank(3), kx.RBF(1.0)), (TREES, np.arange(60.0)), noise=0.01
    )
    model = kx.fit(start, y, num_steps=100, optimizer=optax.adam(0.1), progress=False).model
    correlation = np.asarray(model.kernels[0].covariance)
    scale = np.sqrt(np.diagonal(correlation))
    correlation = correlation / scale / scale[:, None]
    assert correlation[0, 1] > 0.4
    assert correlation[0, 2] < -0.4


def test_slices_that_are_independent_need_no_decomposition():
    """`White` on labels: the same model for every tree, none tells of another."""
    apart = forest(kernel=3.0 * kx.White())
    assert apart.structures[0].kind == "diagonal"
    assert isinstance(apart.covariance(include_noise=False).factors[0], kx.ScaledIdentity)
    post, new = apart.condition(Y), np.array([0.2, 2.0])
    own = 3.0 * dense.matern32(TIME, TIME, 0.6) + 0.1 * np.eye(5)
    cross = 3.0 * dense.matern32(new, TIME, 0.6)
    weights = np.linalg.solve(own, cross.T)
    value = scipy.stats.multivariate_normal(cov=own).logpdf(Y).sum()
    assert_close(apart.log_marginal_likelihood(Y), value)
    assert_close(post.mean({"time": new}), Y @ weights)
    variance = 3.0 - np.sum(cross.T * weights, axis=0)
    assert_close(post.variance({"time": new}), np.broadcast_to(variance, (3, 2)))
    draws = jax.eval_shape(lambda: post.sample(jax.random.key(0), {"time": new}))
    assert draws.shape == (3, 2)
    repeated = forest(trees=["oak", "ash", "oak"], kernel=kx.White())
    assert repeated.structures[0].kind == "dense"


def test_a_white_value_belongs_to_its_place():
    """The same place has the same value, to rounding; at another one the prior holds."""
    days = 0.1 * np.arange(20)
    gp = kx.GridGP((kx.RBF(0.5) + 0.5 * kx.White(),), (days,), noise=0.01)
    post = gp.condition(np.random.default_rng(1).normal(size=20))
    assert_close(post.mean((np.linspace(days[3], days[8], 6),)), post.mean()[3:9])
    assert_close(post.mean((days[3:9].astype("float32"),)), post.mean()[3:9])
    between = post.variance((days[3:8] + 0.03,))
    assert np.all(between > 0.5)
    assert np.all(post.variance()[3:9] < 0.02)


def test_codes_that_do_not_exist_are_nan_where_they_are_traced():
    kernel = kx.Categorical(WEIGHTS, SHARES)
    values = jax.jit(lambda x: kernel(x, [0, 1]))(jnp.array([0.0, 3.0, -1.0, 0.5]))
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: forest().condition(Y).mean({"tree": ["eml"]}),
            KeyError,
            "no label 'eml' on the axis of tree. Did you mean 'elm'.*cannot be predicted",
        ),
        (
            lambda: forest().condition(Y).mean({"tree": [1, 2]}),
            TypeError,
            "new tree must be labels, as the old ones; got numbers",
        ),
        (
            lambda: forest(trees=[0, 1, 2]).condition(Y).mean({"tree": [3]}),
            ValueError,
            "new tree must be labels, or codes 0 to 2.*got 3",
        ),
        (lambda: forest(trees=[0, 1, 5]), ValueError, "codes 0 to 2, for .* 3 categories; got 5"),
        (lambda: forest(trees=[0, 1, 1.5]), ValueError, r"codes 0 to 2.*got 1\.5"),
        (lambda: forest(trees=[*"abcd"]), ValueError, "codes 0 to 2.*got 3"),
        (
            lambda: forest(kernel=kx.Categorical.with_rank(5)),
            ValueError,
            "kernel of tree must have one category per label, 3; got one of 5 categories",
        ),
        (lambda: forest(kernel=kx.RBF(1.0)), TypeError, "tree must take labels.*SquaredExp"),
        (lambda: forest(kernel=kx.Linear()), TypeError, "tree must take labels.*Linear"),
        (
            lambda: forest(kernel=kx.Categorical.with_rank(3) + kx.RBF(1.0)),
            TypeError,
            "tree must take labels.*Sum",
        ),
        (lambda: forest(trees=["oak", 3, "ash"]), TypeError, "must all be text; entry 1 is 3"),
        (lambda: forest(trees=["oak", None]), TypeError, "must all be text; entry 1 is None"),
        (lambda: forest(trees=[["oak"], ["ash"]]), ValueError, r"shape \(n,\).*got shape \(2, 1\)"),
        (lambda: kx.circle(TREES, 3.0), TypeError, "must be numbers or dates; got labels"),
        (
            lambda: kx.Categorical(WEIGHTS, SHARES[:2] / 0.7),
            ValueError,
            r"1 ≤ r ≤ n.*got shapes \(3, 2\) and \(2,\)",
        ),
        (lambda: kx.Categorical(WEIGHTS[0], SHARES), ValueError, r"got shapes \(2,\) and \(3,\)"),
        (
            lambda: kx.Categorical(WEIGHTS, 2 * SHARES),
            ValueError,
            r"shares must be Simplex.*divide by the sum",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()
