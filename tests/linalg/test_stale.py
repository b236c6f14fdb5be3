"""A decomposition serves for the factors that it was made of, and for no others."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.arrays import fingerprints
from kronax.linalg.arrays.fingerprints import fingerprint
from tests.tolerances import assert_close

RNG = np.random.default_rng(5)
MASK = np.array([[True, False, True], [True, True, True], [False, True, True], [True, True, True]])
Y = jnp.asarray(RNG.normal(size=(4, 3)))
STALE = "made of other factors"


def positive(n):
    root = RNG.normal(size=(n, n))
    return jnp.asarray(root @ root.T + np.eye(n))


A, B, OTHER = positive(4), positive(3), positive(4)
THIN = jnp.asarray(RNG.normal(size=(4, 2)))


def matrix_of(op):
    whole = getattr(op, "op", op)
    return getattr(whole, "kronecker", whole).factors[0].matrix


OPERATORS = {
    "noise": kx.Kronecker(A, B) + 0.3,
    "noise that is correlated": kx.Kronecker(A, B) + kx.Kronecker(OTHER, B),
    "noise-free": kx.Kronecker(A, B),
    "sum": kx.KroneckerSum(A, B) + 0.3,
    "gaps": kx.Masked(kx.Kronecker(A, B) + 0.3, MASK, method="gaps"),
    "merged gaps": kx.Masked(kx.Kronecker(A, B) + 0.3, MASK, method="merged"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_other_factors_are_refused(name):
    held = kx.decompose(OPERATORS[name])
    stale = eqx.tree_at(matrix_of, held, OTHER + jnp.eye(4))
    with pytest.raises(ValueError, match=STALE):
        kx.logdet(stale)
    assert np.isnan(eqx.filter_jit(kx.logdet)(stale))
    fresh = eqx.tree_at(matrix_of, OPERATORS[name], OTHER + jnp.eye(4))
    assert_close(kx.logdet(kx.decompose(stale)), np.asarray(kx.logdet(fresh)))


HELD = kx.decompose(OPERATORS["noise"])
THIN_HELD = kx.decompose(kx.Kronecker(kx.LowRank(THIN), B) + 0.3)
EDITS = {
    "another noise": lambda: eqx.tree_at(lambda op: op.noise, HELD, jnp.asarray(0.5)),
    "a step of an optimiser": lambda: jax.tree.map(
        lambda x, g: x - 0.01 * g, HELD, jax.grad(kx.logdet)(HELD)
    ),
    "twice every leaf": lambda: jax.tree.map(lambda x: 2 * x, HELD),
    "another precision": lambda: jax.tree.map(lambda x: x.astype(jnp.float32), HELD),
    "a thin operator": lambda: eqx.tree_at(lambda op: op.noise, THIN_HELD, jnp.asarray(0.5)),
}
FUNCTIONS = {
    "solve": lambda op: kx.solve(op, Y),
    "columns": lambda op: kx.inverse(op) @ jnp.ones((12, 2)),
    "inv_quad": lambda op: kx.inv_quad(op, Y),
    "normal_logpdf": lambda op: kx.normal_logpdf(Y, 0.0, op),
    "inverse_diagonal": kx.inverse_diagonal,
    "a distribution": lambda op: kx.KroneckerNormal(0.0, op).log_prob(Y),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_shows(edit):
    with pytest.raises(ValueError, match=STALE):
        kx.logdet(EDITS[edit]())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_looks(function):
    with pytest.raises(ValueError, match=STALE):
        FUNCTIONS[function](EDITS["another noise"]())


def test_what_changes_no_value_changes_nothing():
    expected = np.asarray(kx.logdet(OPERATORS["noise"]))
    assert_close(kx.logdet(jax.tree.map(lambda x: x + 0, HELD)), expected)
    assert_close(jax.jit(kx.logdet)(HELD), expected)
    mapped = jax.vmap(lambda s: kx.decompose(kx.Kronecker(s * A, B) + 0.3))
    many = jax.jit(mapped)(np.array([1.0, 2.0]))
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], many)
    for values in (kx.logdet(many)[0], jax.jit(jax.vmap(kx.logdet))(many)[0], kx.logdet(one)):
        assert_close(values, expected)
    gradient = jax.jit(jax.grad(kx.logdet))
    assert_close(gradient(HELD).noise, np.asarray(gradient(OPERATORS["noise"]).noise), 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_checksums_are_the_same_on_the_host_and_compiled(dtype):
    op = kx.Kronecker(A.astype(dtype), kx.Toeplitz(B[0].astype(dtype))) + 0.25
    host, compiled = fingerprint(op), jax.jit(fingerprint)(op)
    assert [x.dtype for x in host] == [dtype] * 3
    assert [float(x) for x in host] == [float(x) for x in compiled]


def test_a_posterior_belongs_to_its_model():
    x = np.linspace(0.0, 1.0, 4)
    gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.5)), (x, x[:3]), noise=0.1)
    post = gp.condition(Y)
    other = kx.replace(post, {"gp.noise": 0.2})
    for call in (
        other.mean,
        other.variance,
        other.leave_one_out,
        lambda: other.sample(jax.random.key(0)),
        lambda: other.mean(points=(x[:2], x[:2])),
    ):
        with pytest.raises(ValueError, match="condition it again"):
            call()
    assert np.isnan(jax.jit(lambda p: p.mean())(other)).all()
    assert_close(jax.jit(lambda p: p.mean())(post), np.asarray(post.mean()))


def test_what_stays_in_a_traced_function_is_not_compared(monkeypatch):
    """It would take half the compilation; what was replaced in there is compared."""
    x, made, checksum = np.linspace(0.0, 1.0, 4), [], fingerprints._checksum
    gp = kx.GridGP((kx.RBF(0.3), kx.RBF(0.5)), (x, x[:3]), noise=0.1)

    def counted(*given, **options):
        made.append(given)
        return checksum(*given, **options)

    def ask(noise, other):
        post = kx.replace(gp, {"noise": noise}).condition(np.asarray(Y))
        before = len(made)
        own = post.mean(), post.variance([x + 0.1, None])
        assert len(made) == before
        return own[0], kx.replace(post, {"gp.noise": other}).mean()

    monkeypatch.setattr(fingerprints, "_checksum", counted)
    same, stale = jax.jit(ask)(0.1, 0.2)
    assert made
    assert_close(same, np.asarray(gp.condition(Y).mean()))
    assert np.isnan(stale).all()


def test_a_traced_factor_that_is_not_symmetric_is_its_symmetric_part():
    skew = A.at[0, 1].add(0.3)
    part = np.asarray(skew + skew.T) / 2

    def value(matrix):
        op = kx.Kronecker(matrix, B) + 0.3
        mean = jnp.sum(op.mv(Y)) + jnp.sum(kx.solve(op, Y))
        return mean + kx.normal_logpdf(Y, 0.0, op)

    dense = np.kron(part, B) + 0.3 * np.eye(12)
    y = np.asarray(Y).ravel()
    quadratic = y @ np.linalg.solve(dense, y)
    truth = (dense @ y).sum() + np.linalg.solve(dense, y).sum()
    truth -= (quadratic + np.linalg.slogdet(dense)[1] + 12 * np.log(2 * np.pi)) / 2
    compiled = jax.jit(value)
    assert_close(compiled(skew), truth)
    slope = jax.jit(jax.grad(value))(skew)
    assert_close(slope, np.asarray(slope).T, 1)
    ahead, behind = (compiled(skew.at[0, 1].add(step)) for step in (1e-6, -1e-6))
    assert slope[0, 1] == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-7)
    ours = jax.jit(lambda m: kx.Centrosymmetric(m).to_dense())(skew)
    assert_close(ours, (part + part[::-1, ::-1]) / 2)


TINY = {np.float32: 1e-40, np.float64: 1e-310}


@pytest.mark.parametrize("dtype", TINY)
def test_subnormal_numbers_are_not_stale(dtype):
    """Compiled programs flush them to zero, the host does not."""
    near = np.array([[1.0, TINY[dtype]], [TINY[dtype], 1.0]], dtype)
    op = kx.Kronecker(near, np.asarray(B[:2, :2], dtype)) + dtype(0.3)
    truth = np.linalg.slogdet(np.kron(near, op.factors[1].matrix).astype(float) + 0.3 * np.eye(4))[
        1
    ]
    for held in (kx.decompose(op), jax.jit(kx.decompose)(op)):
        for value in (kx.logdet(held), jax.jit(kx.logdet)(held)):
            np.testing.assert_allclose(value, truth, rtol=1e-5)
    x = np.array([0.0, 1.0, 37.7], dtype)  # exp(−37.7²/2) is subnormal in double precision
    y = np.array([TINY[dtype], 1.0, -1.0], dtype)
    near = np.exp(-(np.subtract.outer(x, x).astype(float) ** 2) / 2)
    mean = near @ np.linalg.solve(near + 0.1 * np.eye(3), y.astype(float))
    post = kx.GridGP((kx.RBF(dtype(1.0)),), (x,), noise=dtype(0.1)).condition(y)
    for value in (post.mean(), jax.jit(lambda p: p.mean())(post)):
        np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-6)


def test_a_dense_matrix_of_the_cells_knows_of_what_it_was_made():
    variances = jnp.asarray(RNG.uniform(0.1, 1.0, (4, 3)))
    op = kx.Masked(kx.KroneckerPlusDiagonal(kx.Kronecker(A, B), variances), MASK)
    held = kx.decompose(op)
    cells = np.flatnonzero(MASK)
    dense = np.kron(A, B) + np.diag(np.ravel(variances))
    expected = np.linalg.slogdet(dense[np.ix_(cells, cells)])[1]
    assert_close(kx.logdet(held), expected)
    stale = eqx.tree_at(lambda m: m.op.variances, held, 2 * variances)
    with pytest.raises(ValueError, match=STALE):
        kx.logdet(stale)
    assert np.isnan(jax.jit(kx.logdet)(stale))


def test_a_cast_is_said_to_be_one_and_what_to_do():
    with pytest.raises(ValueError, match=r"a cast to another precision.*kx\.decompose\(op\)"):
        kx.logdet(EDITS["another precision"]())
    cast = kx.decompose(EDITS["another precision"]())
    np.testing.assert_allclose(kx.logdet(cast), kx.logdet(OPERATORS["noise"]), rtol=1e-5)


def test_the_terms_of_a_posterior_belong_to_its_model_too():
    x = np.linspace(0.0, 1.0, 4)
    terms = {"a": (kx.RBF(0.3), kx.RBF(0.5)), "b": (kx.Matern12(0.3), kx.RBF(0.5))}
    shared = terms["a"][1]
    terms["b"] = (terms["b"][0], shared)
    post = kx.GridGP(terms=terms, axes=(x, x[:3]), noise=0.1).condition(Y)
    other = kx.replace(post, {"gp.noise": 0.2})
    with pytest.raises(ValueError, match="condition it again"):
        other.terms["a"].mean()
