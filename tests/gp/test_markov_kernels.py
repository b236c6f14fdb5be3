"""State spaces of kernels: their covariances, their digits at small steps, and what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kronax as kx
from kronax.linalg.state_spaces import cosines
from tests.gp import dense
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
every_kernel = pytest.mark.parametrize("name", KERNELS)


@every_kernel
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_recursion_has_the_covariance(name, dtype):
    kernel, formula, order = KERNELS[name]
    kernel = jax.tree.map(lambda x: x.astype(dtype), kernel)
    spaces = [
        (kernel.state_space(np.diff(PLACES)), PLACES),
        (kernel.state_space(np.asarray(0.5)), REGULAR),
    ]
    assert spaces[0][0].order == order or "White" in repr(kernel)
    assert [space.regular for space, _ in spaces] == [False, True]
    for space, x in spaces:
        assert space.dtype == dtype
        assert_close(kx.Markov(space, len(x)).to_dense(), formula(x, x))
        assert_close(space.initial[:1, 0], formula(x[:1], x[:1])[0][: space.order] - _white(space))


def _white(space):
    return 0.0 if space.nugget is None else np.asarray(space.nugget)


def longdouble_innovation(drift, stationary, tau):
    """`P − A P Aᵀ` by Taylor series of the exponential, with the zeroth power taken out."""
    drift, stationary = np.longdouble(drift), np.longdouble(stationary)
    term = moved = np.zeros_like(drift)
    term = np.eye(len(drift), dtype=np.longdouble)
    for k in range(1, 60):
        term = term @ drift * np.longdouble(tau) / k
        moved = moved + term
    across = moved @ stationary
    return -(across + across.T + moved @ stationary @ moved.T)


DRIFTS = {
    1: ([[-1.0]], [[1.0]]),
    2: ([[0, 1], [-1, -2]], np.eye(2)),
    3: ([[0, 1, 0], [0, 0, 1], [-1, -3, -3]], np.array([[3, 0, -1], [0, 1, 0], [-1, 0, 3]]) / 3),
}


@pytest.mark.parametrize("kernel", [kx.Matern12, kx.Matern32, kx.Matern52])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_innovations_keep_their_digits(kernel, dtype):
    """Beside the leading power of a tiny step, and beside extended precision at others."""
    order = kernel(1.0).state_space(np.ones(1)).order
    rate, scale = np.sqrt(2 * order - 1), [2.0, 4.0, 16 / 3][order - 1]
    taus = np.array([1e-6, 0.4, 1.3, 2.9, 3.1, 9.0]).astype(dtype)
    space = kernel(np.asarray(1, dtype)).state_space((taus / rate).astype(dtype))
    for k, tau in enumerate(taus):
        exact = longdouble_innovation(*DRIFTS[order], tau)
        if k == 0:
            powers = np.arange(order)[::-1]
            sums = powers[:, None] + powers + 1
            factorials = np.array([1.0, 1.0, 2.0])[powers]
            exact = scale * np.longdouble(tau) ** sums / sums / np.outer(factorials, factorials)
        deviations = np.sqrt(np.diag(exact))
        error = (np.asarray(space.innovations[k]) - exact) / np.outer(deviations, deviations)
        # The leading power is wrong by a part of the step itself.
        assert np.abs(error).max() < 40 * np.finfo(dtype).eps + (4 * tau if k == 0 else 0)


def exact_oscillation(s, quality):
    """Value, slope and what is lost of both in extended precision, at small steps by series."""
    drift = np.array([[0, 1], [-1, -1 / np.longdouble(quality)]], np.longdouble)
    return longdouble_innovation(drift, np.eye(2), s)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_oscillator_is_smooth_in_its_quality_and_keeps_its_digits(dtype):
    qualities = np.array([0.06, 0.33, 0.34, 0.4999, 0.5, 0.5001, 2.0, 1e4]).astype(dtype)
    steps = np.array([0.03, 0.6, 0.99, 1.01, 1.5]).astype(dtype)
    one = np.asarray(1, dtype)
    spaces = jax.jit(jax.vmap(lambda q: kx.SHO(one, q).state_space(steps)))(qualities)
    for q, quality in enumerate(qualities):
        for k, step in enumerate(steps):
            exact = exact_oscillation(step, quality)
            deviations = np.sqrt(np.diag(exact))
            error = (np.asarray(spaces.innovations[q, k]) - exact) / np.outer(*[deviations] * 2)
            assert np.abs(error).max() < 60 * np.finfo(dtype).eps, (quality, step)


LENGTHS = {
    "Matern12": kx.Matern12,
    "Matern32": kx.Matern32,
    "Matern52": kx.Matern52,
    "Cosine": kx.Cosine,
    "Periodic": lambda v: kx.Periodic(3.0 * v, 0.8 + v / 5, num_terms=12),
    "SHO": lambda v: kx.SHO(1 / v, 0.5 + v - v),
    "SHO of quality": lambda v: kx.SHO(v, v / 2),
    "a sum": lambda v: kx.Matern32(v) * kx.Cosine(v) + v * kx.Matern12(v) * kx.White(v),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_derivatives_are_those_of_the_formula_to_second_order(name):
    x = np.array([0.0, 0.4, 0.4, 1.3, 3.0])
    weights = np.random.default_rng(0).normal(size=(5, 5))

    def of_recursion(v):
        return jnp.sum(kx.Markov(LENGTHS[name](v).state_space(np.diff(x)), 5).to_dense() * weights)

    def of_formula(v):
        return jnp.sum(LENGTHS[name](v)(x, x) * weights)

    @jax.jit
    def both(v):
        return [
            [f(v) for f in (function, jax.grad(function), jax.grad(jax.grad(function)))]
            for function in (of_recursion, of_formula)
        ]

    for v in (1.0, 0.93):
        ours, theirs = both(v)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in LENGTHS if name != "Periodic"])
def test_steps_of_every_size_have_finite_derivatives(name):
    def leaves(v, gaps):
        return jax.tree.leaves(LENGTHS[name](v).state_space(gaps))

    run = jax.jit(lambda v, gaps: [leaves(v, gaps), jax.jacfwd(jax.jacfwd(leaves))(v, gaps)])
    for dtype, lengths in (("float64", (1e-6, 1e6)), ("float32", (1e-3, 1e6))):
        gaps = np.array([0.0, 1e-30, 1e-9, 1e-3, 1.0, 1e3, 1e9]).astype(dtype)
        for length in lengths:
            for x in jax.tree.leaves(run(np.asarray(length, dtype), gaps)):
                assert np.isfinite(x).all()


def test_the_series_of_a_periodic_kernel_knows_what_it_leaves_out():
    x, terms = np.linspace(0.0, 2.0, 41), 9
    for lengthscale in (0.55, 0.7):
        weights, left = cosines.weights(jnp.asarray(lengthscale**-2.0), terms)
        series = np.cos(2 * np.pi * x[:, None] * np.arange(terms + 1)) @ np.asarray(weights)
        lost = np.abs(series - dense.periodic(x, x[:1], 1.0, lengthscale)[:, 0]).max()
        assert lost <= left <= 1.1 * lost
    assert cosines.weights(jnp.asarray(0.0), 4)[0].tolist() == [1, 0, 0, 0, 0]
    assert cosines.weights(jnp.asarray(1e-60), 4)[1] == 0


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
    np.testing.assert_allclose(kernel(lag, lag[:1])[:, 0], expected, rtol=1e-6)


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


@pytest.mark.parametrize("name", MODELS)
def test_a_markov_axis_is_the_dense_one(name):
    kernel, time = MODELS[name]
    kernels, axes = {"time": kernel, "site": kx.Matern32(0.4)}, {"time": time, "site": SITES}
    models = [
        kx.GridGP(kernels, axes, noise=0.1, structure={"time": kind})
        for kind in ("markov", "dense")
    ]
    assert isinstance(models[0].covariance(include_noise=False).factors[0], kx.Markov)
    y = np.random.default_rng(3).normal(size=models[0].grid_shape)

    @jax.jit
    def told(gp):
        post = gp.condition(y)
        return gp.log_marginal_likelihood(y), post.mean(), post.variance(), gp.covariance().mv(y)

    for ours, theirs in zip(*map(told, models), strict=True):
        assert_close(ours, theirs)


def test_terms_of_a_markov_axis_are_markov():
    terms = {
        "slow": {"time": kx.Matern52(3.0), "site": kx.RBF(0.5)},
        "fast": 0.5 * {"time": kx.Matern12(0.3), "site": kx.RBF(0.5)}["time"],
    }
    terms["fast"] = {"time": kx.Matern12(0.3), "site": kx.RBF(0.5)}
    axes, y = {"time": TIME, "site": SITES}, np.random.default_rng(3).normal(size=(8, 3))
    parts = [
        kx.GridGP(terms, axes, noise=0.1, structure={"time": kind}).condition(y).terms["slow"]
        for kind in ("markov", "dense")
    ]
    assert_close(parts[0].mean(), parts[1].mean())
    assert_close(parts[0].variance(), parts[1].variance())


class Own(kx.Kernel):
    """Exponential, with a state space that may be wrong."""

    stationary = True
    lengthscale: jax.Array = kx.parameter()
    factor: float = 1.0

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
    assert_close(
        markov(Own(2.0), TIME).covariance().to_dense(),
        kx.GridGP((Own(2.0),), (TIME,), 0.1).covariance().to_dense(),
    )
    with pytest.raises(
        ValueError, match=r"covariance of time is not markov: it differs .* by 0\.\d"
    ):
        markov(Own(2.0, 1.1), np.random.default_rng(0).uniform(size=300))


def test_a_description_says_whether_a_long_axis_can_be_markov():
    long = np.arange(250.0)
    gp = kx.GridGP({"time": kx.Matern32(2.0), "x": kx.RBF(9.0)}, {"time": long, "x": long}, 0.1)
    assert 'time can be Markov: structure="markov" takes time linear' in gp.describe()
    assert "x is not Markov: SquaredExponential: it is infinitely smooth" in gp.describe()
    assert "Markov" not in markov(kx.Matern32(2.0), long).describe()
