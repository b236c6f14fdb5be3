"""State spaces of kernels: their covariances, their digits at small steps, and what has none."""

from decimal import Decimal, localcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.gp.model import components, solver_choice
from kronax.linalg.functions.choice import decomposition_of
from kronax.linalg.markov.kalman import AbstractKalman
from kronax.linalg.markov.lanes import KalmanLanes
from kronax.linalg.operators.gap_geometry import Mask
from kronax.linalg.state_spaces import cosines, matern
from tests.everyday import everyday, full
from tests.gp import dense
from tests.gp.dense import matern32, matern52, squared_exponential
from tests.tolerances import assert_close

# A place that occurs twice, a tiny and a huge step.
PLACES = np.array([0.0, 0.3, 0.3, 0.3001, 1.1, 2.0, 40.0])
REGULAR = np.linspace(0.0, 3.0, 7)


def oscillator(x, z, omega, quality):
    """Its closed form in complex numbers, away from critical damping."""
    s = omega * np.abs(x[:, None] - z)
    eta = np.sqrt(1 - 1 / (4 * quality**2) + 0j)
    value = np.cos(eta * s) + np.sin(eta * s) / (2 * eta * quality)
    return (np.exp(-s / (2 * quality)) * value).real


KERNELS = {
    "Matern12": (kx.Matern12(0.7), lambda x, z: dense.matern12(x, z, 0.7), 1),
    "Matern32": (kx.Matern32(0.7), lambda x, z: dense.matern32(x, z, 0.7), 2),
    "Matern52": (kx.Matern52(0.7), lambda x, z: dense.matern52(x, z, 0.7), 3),
    "one dimension of one": (kx.Matern32([0.7]), lambda x, z: dense.matern32(x, z, 0.7), 2),
    "Constant": (kx.Constant(2.5), lambda x, z: dense.constant(x, z, 2.5), 1),
    "Cosine": (kx.Cosine(1.5), lambda x, z: dense.cosine(x, z, 1.5), 2),
    "Periodic": (kx.Periodic(1.5, 0.9), lambda x, z: dense.periodic(x, z, 1.5, 0.9), 33),
    "White": (kx.White(0.7), lambda x, z: dense.white(x, z, 0.7), 1),
    "underdamped": (kx.SHO(3.0, 4.0), lambda x, z: oscillator(x, z, 3.0, 4.0), 2),
    "overdamped": (kx.SHO(3.0, 0.1), lambda x, z: oscillator(x, z, 3.0, 0.1), 2),
    "critical": (kx.SHO(3.0, 0.5), lambda x, z: dense.matern32(x, z, np.sqrt(3) / 3), 2),
    "a sum": (
        0.3 * kx.Matern12(0.5) + (kx.White(0.2) + 2.0 * kx.Matern52(0.4)) + kx.Constant(1.5),
        lambda x, z: (
            0.3 * dense.matern12(x, z, 0.5)
            + dense.white(x, z, 0.2)
            + 2 * dense.matern52(x, z, 0.4)
            + 1.5
        ),
        6,
    ),
    "a product": (
        kx.Matern32(2.0) * (kx.Cosine(1.3) + kx.White(0.2)) * (kx.Matern12(5.0) + kx.White(0.4)),
        lambda x, z: (
            dense.matern32(x, z, 2.0)
            * (dense.cosine(x, z, 1.3) + dense.white(x, z, 0.2))
            * (dense.matern12(x, z, 5.0) + dense.white(x, z, 0.4))
        ),
        12,
    ),
}


def dense_of(space, size):
    """The covariance of a recursion by NumPy, and by how much its state is not stationary."""
    a, q, p = (np.asarray(x) for x in (space.transitions, space.innovations, space.initial))
    order = len(p)
    a, q = (np.broadcast_to(x, (size - 1, order, order)) for x in (a, q))
    matrix = np.zeros((size, size), p.dtype)
    for i in range(size if order else 0):
        moved = p[:, 0]
        for j in range(i, size):
            matrix[i, j] = matrix[j, i] = moved[0]
            moved = a[j] @ moved if j < size - 1 else moved
    if space.nugget is not None:
        matrix = matrix + np.diag(np.broadcast_to(space.nugget, size))
    return matrix, np.abs(a @ p @ np.swapaxes(a, 1, 2) + q - p).max(initial=0)


@pytest.mark.parametrize("dtype", everyday(["float64", "float32"], ["float64"]))
def test_recursions_have_the_covariances(dtype):
    kernels = jax.tree.map(lambda x: x.astype(dtype), {k: v[0] for k, v in KERNELS.items()})
    axes = ((PLACES, np.diff(PLACES)), (REGULAR, np.asarray(0.5)))
    spaces = jax.jit(lambda ks: {k: [v.state_space(g) for _, g in axes] for k, v in ks.items()})(
        kernels
    )
    for name, (_, formula, order) in KERNELS.items():
        assert spaces[name][0].order == order
        assert [space.regular for space in spaces[name]] == [False, True]
        for space, (x, _) in zip(spaces[name], axes, strict=True):
            assert space.dtype == dtype
            matrix, drift = dense_of(space, len(x))
            assert_close(matrix, formula(x, x).astype(dtype))
            assert drift < 20 * np.finfo(dtype).eps * np.abs(matrix).max()


def exact_innovation(drift, stationary, tau):
    """`P − A P Aᵀ` in 160 digits, by the series of the exponential less its first term."""
    exact = np.vectorize(Decimal, otypes=[object])
    with localcontext(prec=160):
        drift, stationary, term = (exact(x) for x in (drift, stationary, np.eye(len(drift))))
        moved = 0 * drift
        for k in range(1, 600):
            term = term @ drift * Decimal(float(tau)) / k
            moved = moved + term
        across = moved @ stationary
        return (-(across + across.T + across @ moved.T)).astype(float)


THIRD = 1 / Decimal(3)
DRIFTS = {
    1: ([[-1.0]], [[1.0]]),
    2: ([[0, 1], [-1, -2]], np.eye(2)),
    3: ([[0, 1, 0], [0, 0, 1], [-1, -3, -3]], [[1, 0, -THIRD], [0, THIRD, 0], [-THIRD, 0, 1]]),
}


@pytest.mark.parametrize("dtype", everyday(["float64", "float32"], ["float32"]))
def test_innovations_keep_their_digits(dtype):
    """Every entry beside the deviations of its row and column, at steps of any size."""
    steps = np.array([1e-4, 1e-3, 0.4, 1.3, 2.9, 3.1, 9.0]).astype(dtype)
    qualities = np.array([0.06, 0.33, 0.34, 0.4999, 0.5, 0.5001, 2.0, 1e4]).astype(dtype)
    one = np.asarray(1, dtype)

    @jax.jit
    def found(qualities):
        materns = [matern.innovation(jnp.asarray(steps), order=order) for order in DRIFTS]
        return materns, jax.vmap(lambda q: kx.SHO(one, q).state_space(steps).innovations)(qualities)

    materns, oscillators = found(qualities)
    cases = list(zip(DRIFTS.values(), materns, strict=True))
    for quality, values in zip(qualities, oscillators, strict=True):
        with localcontext(prec=160):
            friction = -1 / Decimal(float(quality))
        cases.append((([[0, 1], [-1, friction]], np.eye(2)), values))
    for process, values in cases:
        for step, value in zip(steps, np.asarray(values), strict=True):
            exact = exact_innovation(*process, step)
            deviations = np.sqrt(np.diag(exact))
            error = (value - exact) / np.outer(deviations, deviations)
            assert np.abs(error).max() < 20 * np.finfo(dtype).eps, (process, step)


LENGTHS = {
    "Matern12": kx.Matern12,
    "Matern32": kx.Matern32,
    "Matern52": kx.Matern52,
    "Periodic and Cosine": lambda v: kx.Periodic(3 * v, 0.7 + v / 5) + kx.Cosine(v),
    "SHO": lambda v: kx.SHO(v, v / 2),  # critical at one
    "a sum": lambda v: kx.Matern32(v) * kx.Cosine(v) + v * kx.Matern12(v) * kx.White(v),
}


@pytest.mark.parametrize("name", everyday(LENGTHS, ["Matern52", "Periodic and Cosine", "SHO"]))
def test_derivatives_are_those_of_the_formula_to_second_order(name):
    """And the state is stationary to that order; at steps of any size they are finite."""
    gaps = np.array([0.4, 0.0, 0.9, 1.7])

    def of_recursion(v, gaps):
        space = LENGTHS[name](v).state_space(gaps)
        a, q, p, row = space.transitions, space.innovations, space.initial, [space.initial[:, 0]]
        for k in range(len(gaps)):
            row.append(a[k] @ row[-1])
        kept = jnp.einsum("nij,jk,nlk->nil", a, p, a)
        return jnp.stack(row)[1:, 0], kept + q - p[None], [a, q, p]

    def of_formula(v):
        return LENGTHS[name](v)(np.zeros(1), np.cumsum(gaps))[0]

    def first(v, gaps):
        value, slope = jax.jvp(lambda v: (of_recursion(v, gaps), of_formula(v)), (v,), (1.0,))
        return slope, (value, slope)

    @jax.jit
    def both(v, gaps):
        (_, found), (bend, _) = jax.jvp(lambda v: first(v, gaps), (v,), (1.0,))
        return *found, bend

    for v in (1.0, 0.93):
        for (row, drift, _), expected in both(v, gaps):
            np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(drift, 0, atol=1e-11)
    for v in (1e-6, 1e6) if name != "Periodic and Cosine" else (2.0,):
        found = both(v, np.array([0.0, 1e-30, 1e-9, 1e9]))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves([f[0] for f in found]))


def test_the_series_of_a_periodic_kernel_knows_what_it_leaves_out():
    x, terms = np.linspace(0.0, 2.0, 41), 9
    for lengthscale in (0.55, 0.7):
        weights, left = cosines.weights(jnp.asarray(lengthscale**-2.0), terms)
        series = np.cos(2 * np.pi * x[:, None] * np.arange(terms + 1)) @ np.asarray(weights)
        lost = np.abs(series - dense.periodic(x, x[:1], 1.0, lengthscale)[:, 0]).max()
        assert lost <= left <= 1.1 * lost
    assert cosines.weights(jnp.asarray(0.0), 4)[0].tolist() == [1, 0, 0, 0, 0]
    assert cosines.weights(jnp.asarray(1e-60), 4)[1] < 1e-300


def test_a_periodic_kernel_asks_for_more_terms():
    with pytest.raises(
        kx.NotMarkovError, match="Periodic: at this lengthscale it needs num_terms=22"
    ):
        kx.Periodic(1.0, 0.4).state_space(np.ones(3))
    kx.Periodic(1.0, 0.4, num_terms=22).state_space(np.ones(3))
    traced = jax.jit(lambda v: kx.Periodic(1.0, v).state_space(np.ones(3)).initial)
    assert np.isfinite(traced(0.7)).all()
    assert np.isnan(traced(0.4)).all()
    with pytest.raises(ValueError, match="num_terms must be an integer, at least 1; got 0"):
        kx.Periodic(1.0, 0.4, num_terms=0)


def test_an_oscillator_by_its_definition():
    """As the Fourier integral of the power spectrum of celerite."""
    omega0, quality, s0, lag = 2.0, 1.5, 0.7, np.array([0.0, 0.4, 1.7])
    omega = np.linspace(-400.0, 400.0, 400_001)
    power = s0 * omega0**4 / ((omega**2 - omega0**2) ** 2 + (omega * omega0 / quality) ** 2)
    expected = [np.trapezoid(power * np.cos(omega * x), omega) / np.pi for x in lag]
    kernel = s0 * omega0 * quality * kx.SHO(omega0, quality)
    # Their Fourier transform has 1/√(2π) in front, and so the power √(2/π).
    np.testing.assert_allclose(eqx.filter_jit(kernel)(lag, lag[:1])[:, 0], expected, rtol=1e-6)


TIME = np.array([2.0, 0.1, 0.1, 3.3, 0.9, 1.4, 5.2, 4.1])
SITES = np.array([0.0, 0.3, 1.0])
MODELS = {
    "unsorted": (2.0 * kx.Matern32(0.7) + 0.3 * kx.White(), TIME),
    "regular, backwards": (kx.Matern52(0.7) + kx.Constant(0.5) * kx.White(), REGULAR[::-1]),
    "a column": (kx.SHO(2.0, 3.0), TIME[:, None]),
    "dates": (
        kx.Matern12(40.0) * kx.Cosine(365.25),
        np.arange("2020-01", "2020-09", dtype="M8[M]"),
    ),
    "one place": (kx.Matern12(1.0), TIME[:1]),
    "white alone": (kx.White(0.7), np.arange(5.0)),
    "on a circle": (kx.Periodic(7.0, 0.9) + kx.Constant(), kx.circle(np.arange(7.0), 7.0)),
}


def models(kernel, time):
    kernels, axes = {"time": kernel, "site": kx.Matern32(0.4)}, {"time": time, "site": SITES}
    kinds = ("markov", "dense")
    return [kx.GridGP(kernels, axes, 0.1, structure={"time": kind}) for kind in kinds]


@pytest.mark.parametrize("name", MODELS)
def test_a_markov_axis_has_the_covariance_of_the_dense_one(name):
    @jax.jit
    def factors(gps):
        ours, theirs = (gp.covariance(include_noise=False).factors[0] for gp in gps)
        return ours, theirs.to_dense()

    ours, theirs = factors(models(*MODELS[name]))
    assert isinstance(ours, kx.Markov)
    matrix, _ = dense_of(ours.space, ours.size)
    unsorted = jax.jit(lambda factor, matrix: factor.unsorted(factor.unsorted(matrix).T))
    assert_close(np.asarray(unsorted(ours, matrix)), theirs)


def test_a_model_with_a_markov_axis_is_the_dense_one():
    y = np.random.default_rng(3).normal(size=(8, 3))
    gp, _ = models(*MODELS["unsorted"])
    post = gp.condition(y)
    time = 2 * matern32(TIME, TIME, 0.7) + 0.3 * dense.white(TIME, TIME, 1.0)
    signal = np.kron(time, matern32(SITES, SITES, 0.4))
    data = signal + 0.1 * np.eye(24)
    weights = np.linalg.solve(data, np.column_stack([y.ravel(), signal]))
    constant = np.linalg.slogdet(data)[1] + 24 * np.log(2 * np.pi)
    assert_close(gp.log_marginal_likelihood(y), -(y.ravel() @ weights[:, 0] + constant) / 2)
    assert_close(post.mean(), (signal @ weights[:, 0]).reshape(8, 3))
    assert_close(post.variance(), np.diag(signal - signal @ weights[:, 1:]).reshape(8, 3))


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["complete", "gaps"])
def test_the_floor_of_a_fit_is_that_of_the_other_axes_in_linear_memory(share):
    n, places = 2000, np.array([0.0, 0.3, 1.0])
    kernels, axes = (
        {"time": 2.0 * kx.Matern32(9.0), "site": kx.Matern12(0.7)},
        (np.arange(n), places),
    )
    gp = kx.GridGP(kernels, dict(zip(kernels, axes, strict=True)), noise=0.1)
    assert gp.structures[0].kind == "markov"
    seen = np.random.default_rng(0).random((n, 3)) >= share
    observed = None if seen.all() else Mask.of(seen, seen.shape)
    level = jax.jit(lambda: gp.noise_level(observed, gp.dtype)).lower().compile()
    assert level.memory_analysis().temp_size_in_bytes < 100 * n
    others = dense.matern12(places, places, 0.7).sum(axis=1).max()
    assert_close(level().ends.largest, 2.0 * others + 0.1)


class Own(kx.Kernel):
    """Exponential, with a state space that may be wrong."""

    stationary = True
    lengthscale: jax.Array = kx.parameter()
    factor: float = eqx.field(static=True, default=1.0)

    def evaluate(self, x, z):
        return jnp.exp(-jnp.abs(x - z) / self.lengthscale)

    def state_space(self, gaps):
        decay = jnp.exp(-self.factor * gaps / self.lengthscale)[..., None, None]
        return kx.StateSpace(decay, 1 - decay**2, jnp.ones((1, 1)), regular=gaps.ndim == 0)


def markov(kernel, axis, name="time"):
    return kx.GridGP({name: kernel}, {name: axis}, noise=0.1, structure={name: "markov"})


REFUSED = [
    (kx.RBF(1.0), TIME, "SquaredExponential: it is infinitely smooth"),
    (kx.Matern32(1.0) + kx.RationalQuadratic(1.0, 1.0), TIME, "RationalQuadratic: it is infin"),
    (kx.SpectralMixture([1.0], [0.3], [0.1]), TIME, "its components are infinitely smooth"),
    (kx.Matern32(1.0) * kx.Linear(0.0), TIME, "Linear: it depends on where places are"),
    (lambda x, z: jnp.exp(-jnp.abs(x[:, None] - z)), TIME, "a function of two lists of points"),
    (kx.Matern32(1.0), kx.circle(np.arange(7.0), 7.0), "on a circle what lies ahead also lies"),
    (kx.Matern32(1e3), kx.sphere([[0.0, 1.0], [4.0, 2.0]]), "several dimensions have no order"),
    (kx.Matern32(1.0), np.ones((4, 2)), "several dimensions have no order"),
    (kx.White(1.0), ["elm", "oak"], "labels have no order"),
    (kx.Periodic(1.0, 0.1), TIME, "at this lengthscale it needs num_terms=75"),
]


@pytest.mark.parametrize(("kernel", "axis", "reason"), REFUSED)
def test_what_is_not_markov_is_refused_with_the_reason(kernel, axis, reason):
    with pytest.raises(
        kx.NotMarkovError, match=f"structure of time cannot be 'markov': .*{reason}"
    ):
        markov(kernel, axis)


def test_what_state_spaces_refuse():
    with pytest.raises(
        kx.NotMarkovError, match="must be Markov to have a state space; got ActiveD"
    ):
        kx.ActiveDims(kx.Matern32(1.0), 0).state_space(np.ones(2))
    with pytest.raises(kx.NotMarkovError, match="one lengthscale per dimension"):
        kx.Matern32([1.0, 2.0]).state_space(np.ones(2))
    with pytest.raises(
        ValueError, match=r"must not be negative; got -0\.5\. Sort the places first"
    ):
        kx.Matern32(1.0).state_space([1.0, -0.5])
    with pytest.raises(ValueError, match=r"must have shape \(n - 1,\).*got shape \(2, 2\)"):
        kx.Matern32(1.0).state_space(np.ones((2, 2)))
    with pytest.raises(
        ValueError, match=r"oscillator, must have coordinates \(n,\); got shape \(4, 2"
    ):
        kx.GridGP((kx.SHO(1.0, 1.0),), (np.ones((4, 2)),), noise=0.1)

    def traced(x):
        with pytest.raises(ValueError, match="must be dense: its coordinates are traced"):
            markov(kx.Matern32(1.0), x)
        return x

    jax.jit(traced)(TIME)


def test_a_state_space_of_ones_own_is_compared_with_its_kernel():
    assert markov(Own(2.0), TIME).structures[0].kind == "markov"
    with pytest.raises(
        ValueError, match=r"covariance of time is not markov: it differs .* by 0\.\d"
    ):
        markov(Own(2.0, 1.1), np.random.default_rng(0).uniform(size=300))


class Wiener(kx.Kernel):
    """It begins at zero, with a variance there."""

    start: float = eqx.field(static=True, default=0.5)

    def evaluate(self, x, z):
        return self.start + jnp.minimum(x, z)

    def state_space(self, gaps):
        gaps = jnp.asarray(gaps)[..., None, None]
        return kx.StateSpace(
            jnp.ones_like(gaps), gaps, jnp.full((1, 1), self.start), stationary=False
        )


def test_a_process_that_begins_goes_on_but_not_back():
    places, new, y = np.array([0.0, 0.7, 2.0, 3.1]), np.array([1.0, 0.7, 5.0]), np.arange(4.0)
    gp = kx.GridGP((Wiener(),), (places,), noise=0.1, structure=("markov",))
    post = gp.condition(y)
    data = 0.5 + np.minimum(places[:, None], places) + 0.1 * np.eye(4)
    rows = 0.5 + np.minimum(new[:, None], places)
    np.testing.assert_allclose(post.mean((new,)), rows @ np.linalg.solve(data, y), rtol=1e-10)
    variance = 0.5 + new - np.sum(rows * np.linalg.solve(data, rows.T).T, axis=1)
    np.testing.assert_allclose(post.variance((new,)), variance, rtol=1e-10)
    with pytest.raises(ValueError, match=r"must not lie before the first one.*Got one 0\.2"):
        post.mean((np.array([-0.2, 1.0]),))
    assert np.isnan(jax.jit(lambda x: post.mean((x,)))(np.array([-0.2, 1.0]))).all()


def test_a_description_says_whether_a_long_axis_can_be_markov():
    long = np.arange(250.0)
    gp = kx.GridGP({"time": kx.Matern32(2.0), "x": kx.RBF(9.0)}, {"time": long, "x": long}, 0.1)
    assert 'time can be Markov: structure="markov" takes time linear' in gp.describe()
    assert "x is not Markov: SquaredExponential: it is infinitely smooth" in gp.describe()
    assert "Markov" not in markov(kx.Matern32(2.0), long).describe()


@pytest.mark.parametrize("gaps", [full(False, id="complete"), pytest.param(True, id="gaps")])
def test_terms_are_parts_of_one_state(gaps, monkeypatch):
    """No matrix of the axis is made: variances of terms at old and new places by the smoother."""
    rng = np.random.default_rng(0)
    times, new = np.sort(rng.uniform(0, 10, 9)), np.array([4.4, -1.0, 12.0])
    across = kx.RBF(0.4)
    terms = {  # one without a state, in front of the others
        "white": {"t": kx.White(0.2), "x": across},
        "slow": {"t": kx.Matern52(5.0), "x": across},
        "wave": {"t": 0.2 * kx.SHO(3.0, 2.0), "x": across},
    }
    y = rng.normal(size=(9, 4))
    if gaps:
        y[2, 1] = np.nan
        monkeypatch.setattr(solver_choice, "dense_cost", lambda count: (1e12, 1e6))

    axes = {"t": times, "x": np.linspace(0, 1, 4)}
    gp = kx.GridGP(terms=terms, axes=axes, noise=0.1, structure={"t": "markov"})
    got = gp.condition(y)
    assert isinstance(decomposition_of(got.operator), AbstractKalman)

    @jax.jit
    def variances(post):
        places = {"white": None, "slow": {"t": new}, "wave": None}
        return [post.terms[name].variance(axes) for name, axes in places.items()]

    in_time = (
        lambda x, z: 0.2 * dense.white(x, z, 1.0),
        lambda x, z: matern52(x, z, 5.0),
        lambda x, z: 0.2 * oscillator(x, z, 3.0, 2.0),
    )
    places, seen = squared_exponential(axes["x"], axes["x"], 0.4), ~np.isnan(y.ravel())
    data = np.kron(sum(k(times, times) for k in in_time), places) + 0.1 * np.eye(36)
    inverse = np.linalg.inv(data[np.ix_(seen, seen)])
    truths = []
    for kernel, at in zip(in_time, (times, new, times), strict=True):
        rows = np.kron(kernel(at, times), places)[:, seen]
        prior = np.diag(np.kron(kernel(at, at), places))
        left = prior - np.einsum("ij,jk,ik->i", rows, inverse, rows)
        truths.append(left.reshape(len(at), 4))
    monkeypatch.setattr("kronax.gp.posterior.variances.factor_of", None)
    for value, truth in zip(variances(got), truths, strict=True):
        assert_close(value, truth)


@pytest.mark.parametrize("gaps", [full(False), True])
def test_slopes_of_the_mean_come_from_the_state(gaps, monkeypatch):
    """`k' = −3 d/ℓ² exp(−√3 r)` and `−5/3 d/ℓ² (1 + √5 r) exp(−√5 r)`, in no matrix of the axis."""
    monkeypatch.setattr(components, "slope_matrix", None)
    rng = np.random.default_rng(3)
    t, x = rng.uniform(0, 6, 12), np.linspace(0, 1, 3)
    new = np.append(t[:2], [-1.0, 3.3, 7.0])
    kernel = kx.Matern52(0.9) * kx.Matern32(3.0) + 0.5 * kx.Matern32(2.0)
    gp = kx.GridGP((2.0 * kernel, kx.RBF(0.5)), (t, x), 0.1, structure=("markov", None))
    seen = rng.random((12, 3)) > 0.3 if gaps else np.ones((12, 3), bool)
    y = np.where(seen, rng.normal(size=(12, 3)), np.nan)

    def slope32(x, z, scale):
        d = x[:, None] - z
        return -3 * d / scale**2 * np.exp(-np.sqrt(3) * np.abs(d) / scale)

    def slope52(x, z, scale):
        d, r = x[:, None] - z, np.sqrt(5) * np.abs(x[:, None] - z) / scale
        return -5 / 3 * d / scale**2 * (1 + r) * np.exp(-r)

    def slope(x, z):
        product = slope52(x, z, 0.9) * matern32(x, z, 3.0) + matern52(x, z, 0.9) * slope32(x, z, 3)
        return 2 * (product + 0.5 * slope32(x, z, 2.0))

    values = 2 * (matern52(t, t, 0.9) * matern32(t, t, 3.0) + 0.5 * matern32(t, t, 2.0))
    places = squared_exponential(x, x, 0.5)
    data = (np.kron(values, places) + 0.1 * np.eye(36))[np.ix_(seen.ravel(), seen.ravel())]
    weights = np.linalg.solve(data, y[seen])
    post = gp.condition(y)
    for axes, at in ((None, t), ((new, None), new)):
        wanted = np.kron(slope(at, t), places)[:, seen.ravel()] @ weights
        found = post.mean_derivative(0, axes=axes)
        np.testing.assert_allclose(np.ravel(found), wanted, rtol=1e-10, atol=1e-10)


def test_derivatives_of_variances_take_no_matrix_of_the_axis(monkeypatch):
    monkeypatch.setattr(KalmanLanes, "_dense", None)
    rng = np.random.default_rng(4)
    t, x = rng.uniform(0, 6, 12), np.linspace(0, 1, 3)
    seen = np.ones((12, 3), bool)
    seen[5] = False
    weights, cells = rng.normal(size=(12, 3)), seen.ravel()

    def by_numpy(scale, places, noise):
        covariance = np.kron(matern32(t, t, scale), squared_exponential(x, x, places))
        inverse = np.linalg.inv((covariance + noise * np.eye(36))[np.ix_(cells, cells)])
        rows = covariance[:, cells]
        variance = np.diag(covariance) - np.einsum("ij,jk,ik->i", rows, inverse, rows)
        return variance @ weights.ravel() + weights.ravel()[cells] @ (1 / np.diag(inverse))

    def ours(values):
        kernels = kx.Matern32(values[0]), kx.RBF(values[1])
        options = {"observed": seen, "structure": ("markov", None)}
        post = kx.GridGP(kernels, (t, x), values[2], **options).condition(jnp.zeros((12, 3)))
        alone = jnp.where(seen, post.leave_one_out().variance, 0)
        return jnp.sum(weights * (post.variance() + alone))

    at, step = np.array([1.3, 0.4, 0.2]), 1e-5
    slopes = [
        (by_numpy(*(at + move)) - by_numpy(*(at - move))) / (2 * step) for move in step * np.eye(3)
    ]
    value, found = jax.jit(jax.value_and_grad(ours))(jnp.asarray(at))
    np.testing.assert_allclose(value, by_numpy(*at), rtol=1e-10)
    np.testing.assert_allclose(found, slopes, rtol=1e-6)
