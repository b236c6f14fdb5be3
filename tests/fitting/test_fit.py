"""Fitting: where it ends, what it says, and what stops it."""

import io
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import kronax as kx
from tests.everyday import everyday, full
from tests.gp.dense import matern52, squared_exponential

TIME, SPACE = np.linspace(0, 1, 7), np.linspace(0, 2, 6)


def make(dtype=np.float64):
    kernels = (kx.Matern52(dtype(0.3)), dtype(1.0) * kx.RBF(dtype(0.7)))
    return kx.GridGP(kernels, (TIME, SPACE), noise=dtype(0.3))


def data():
    truth = kx.GridGP((kx.Matern52(0.5), 2.0 * kx.RBF(1.0)), (TIME, SPACE), noise=0.1)
    return np.asarray(truth.sample(jax.random.key(4), include_noise=True))


Y = data()


class Scaled(eqx.Module):
    a: jax.Array = kx.parameter(constraints.positive)


class Padded(Scaled):
    none: jax.Array = kx.parameter(constraints.positive)


def fit(gp=None, y=Y, **options):
    return kx.fit(make() if gp is None else gp, y, progress=False, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit()


@pytest.fixture(scope="module")
def dense_optimum():
    """The negative log density from the formulas, minimised by SciPy."""

    def loss(raw):
        first, second, variance, noise = np.exp(raw)
        signal = np.kron(matern52(TIME, TIME, first), squared_exponential(SPACE, SPACE, second))
        covariance = variance * signal + noise * np.eye(42)
        return -scipy.stats.multivariate_normal(cov=covariance).logpdf(Y.ravel())

    start = np.log([0.3, 0.7, 1.0, 0.3])
    found = scipy.optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
    return found.fun, np.exp(found.x)


def natural(result):
    paths = ("kernels[0].lengthscale", "kernels[1].lengthscale", "variance", "noise")
    values = {p.path: p.value for p in result.parameters}
    return np.array([values[path] for path in paths])


def test_the_default_reaches_the_dense_optimum(fitted, dense_optimum):
    loss, values = dense_optimum
    assert fitted.losses[-1] == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(natural(fitted), values, rtol=1e-3)
    assert fitted.num_steps < 60


def test_converged_means_that_the_gradient_per_cell_is_small(fitted):
    assert fitted.converged
    raw, build = kx.unconstrain(fitted.model)
    slopes = jax.jit(jax.grad(lambda values: -build(values).log_marginal_likelihood(Y)))(raw)
    largest = max(float(abs(s)) for s in slopes.values()) / Y.size
    assert largest <= 1e-6
    assert fitted.gradient_norms[-1] == pytest.approx(largest, rel=0.1, abs=1e-9)
    # The tolerance decides: at the start it was not reached.
    assert fitted.gradient_norms[0] > 1e-3


def test_a_looser_tolerance_stops_earlier(fitted):
    loose = fit(tolerance=1e-2)
    assert loose.converged
    assert loose.num_steps < fitted.num_steps
    assert 1e-6 < loose.gradient_norms[-1] <= 1e-2


def test_losses_are_total_nats_and_decrease(fitted):
    assert fitted.losses[0] == pytest.approx(-make().log_marginal_likelihood(Y).item())
    assert fitted.losses[-1] == pytest.approx(-fitted.model.log_marginal_likelihood(Y).item())
    assert len(fitted.losses) == len(fitted.gradient_norms) == fitted.num_steps + 1
    assert (np.diff(fitted.losses) < 1e-9).all()


def test_the_summary_tells_how_it_ended(fitted):
    text = fitted.summary()
    assert text.startswith(f"converged after {fitted.num_steps} steps in ")
    assert "the unconstrained gradient per cell is below 1e-06" in text
    assert "kernels[0].lengthscale" in text
    few = fit(num_steps=2)
    assert (few.converged, few.num_steps, few.reason) == (
        False,
        2,
        "the limit of 2 steps was reached",
    )
    assert few.summary().startswith("not converged after 2 steps")


@pytest.mark.parametrize(
    "optimizer",
    [
        full(optax.adam(0.05), id="adam"),
        full(
            optax.sgd(optax.exponential_decay(3e-3, 50, 0.5), momentum=0.9),
            id="sgd with a schedule",
        ),
        pytest.param(
            optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(0.05)), id="clipped adamw"
        ),
    ],
)
def test_any_optax_optimiser_runs(optimizer, fitted):
    result = fit(optimizer=optimizer, num_steps=100)
    assert result.losses[-1] < result.losses[0] - 0.3 * (result.losses[0] - fitted.losses[-1])
    assert (natural(result) > 0).all()
    assert np.isfinite(result.losses).all()


def test_positive_parameters_stay_positive_under_huge_steps():
    result = fit(optimizer=HUGE_STEPS, num_steps=10)
    assert np.isfinite(result.losses).all()
    assert (natural(result) > 0).all()
    assert result.losses.min() == pytest.approx(
        -result.model.log_marginal_likelihood(Y).item(), rel=1e-9
    )


def test_frozen_parameters_stay(fitted):
    result = fit(freeze=("noise", "kernels[0]"), optimizer=optax.sgd(1e-3), num_steps=2)
    assert result.model.noise.item() == 0.3
    assert result.model.kernels[0].lengthscale.item() == 0.3
    assert result.model.variance.item() != 1.0
    assert result.losses[-1] > fitted.losses[-1]
    assert [p.path for p in result.parameters if not p.trainable] == [
        "kernels[0].lengthscale",
        "noise",
    ]


class Stretched(eqx.Module):
    """A callable kernel of no kronax class."""

    width: jax.Array

    def __call__(self, x, z):
        return jnp.exp(-jnp.abs(x[:, None] - z[None]) / self.width)


def test_a_callables_numbers_are_frozen_and_said_so_unless_they_have_a_domain():
    gp = kx.GridGP((Stretched(jnp.array(0.3)), kx.RBF(0.7)), (TIME, SPACE), noise=0.3)
    path = "kernels[0].function.width"
    frozen = fit(gp, optimizer=SMALL_STEPS, num_steps=2)
    assert frozen.model.kernels[0].function.width.item() == 0.3
    assert re.search(rf"{re.escape(path)} .*unknown .*no", frozen.summary())
    free = fit(gp, optimizer=SMALL_STEPS, num_steps=2, domains={path: constraints.positive})
    assert free.model.kernels[0].function.width.item() != 0.3
    assert re.search(rf"{re.escape(path)} .*positive .*yes", free.summary())


def test_losses_of_a_batch_are_added(fitted):
    both = fit(y=np.stack([Y, Y]), optimizer=SMALL_STEPS, num_steps=1)
    np.testing.assert_allclose(both.losses[0], 2 * fitted.losses[0])
    np.testing.assert_allclose(both.gradient_norms[0], fitted.gradient_norms[0])


def test_float32_models_stay_float32(fitted):
    gp = make(np.float32)
    result = fit(gp, Y.astype(np.float32))
    assert {p.value.dtype for p in result.parameters} == {np.dtype("float32")}
    assert result.losses.dtype == np.float32
    assert result.losses.min() == pytest.approx(fitted.losses[-1], rel=1e-4)


def test_float32_stops_where_rounding_hides_any_progress():
    start = Point(np.float32(3.0), np.float32(-2.0))

    def loss(m):
        return bowl(m) + jnp.exp(0.3 * m.a - m.b)

    result = kx.fit(start, loss=loss, tolerance=0.0, progress=False)
    assert not result.converged
    assert result.reason == "the loss no longer changes at this precision"
    assert result.num_steps < 200


class Point(eqx.Module):
    """Two numbers."""

    a: jax.Array = kx.parameter(constraints.real)
    b: jax.Array = kx.parameter(constraints.real)


def bowl(m):
    return (m.a - 1) ** 2 + m.b**2


SMALL_STEPS, HUGE_STEPS = optax.sgd(0.1), optax.sgd(0.3)


def test_any_module_with_a_loss_is_fitted():
    result = kx.fit(Point(3.0, -2.0), loss=bowl, progress=False)
    assert result.converged
    np.testing.assert_allclose([result.model.a, result.model.b], [1, 0], atol=1e-6)


@pytest.mark.parametrize("restarts", everyday([0, 2], [2]))
def test_the_support_of_a_prior_is_a_bound(fitted, restarts):
    """The noise of the unbounded fit is below it; random starts are inside as well."""
    assert float(fitted.model.noise) < 0.25
    result = fit(priors={"noise": dist.Uniform(0.25, 0.5)}, restarts=restarts, tolerance=1e-4)
    assert 0.25 <= float(result.model.noise) < 0.26
    assert all(np.isfinite(end.loss) for end in result.restarts)
    assert "between 0.25 and 0.5" in repr(result)


def test_other_numbers_in_a_prior_need_no_new_compilation(monkeypatch):
    calls, x = [], np.linspace(0, 0.93, 5)  # places that no other test has
    gp = kx.GridGP((kx.Matern52(0.3),), (x,), noise=0.3)
    inner = kx.GridGP.checked_log_likelihood
    monkeypatch.setattr(
        kx.GridGP, "checked_log_likelihood", lambda gp, y: calls.append(1) or inner(gp, y)
    )
    options = {"optimizer": SMALL_STEPS, "num_steps": 3}
    fit(gp, np.sin(9 * x), priors={"noise": dist.HalfNormal(1.0)}, **options)
    before = len(calls)
    fit(gp, np.sin(9 * x), priors={"noise": dist.HalfNormal(2.0)}, **options)
    assert before > 0
    assert len(calls) == before


def test_a_parameter_of_lower_precision_trains_with_the_others(fitted):
    gp = eqx.tree_at(lambda gp: gp.kernels[0].lengthscale, make(), jnp.float32(0.3))
    assert fit(gp).loss == pytest.approx(fitted.loss, abs=1e-5)


def test_parameters_without_entries_and_losses_of_lower_precision_do_no_harm():
    model = Padded(a=jnp.ones(()), none=jnp.ones(0))
    result = kx.fit(model, loss=lambda m: (m.a.astype("float32") - 2) ** 2, progress=False)
    assert result.losses.dtype == np.float64
    np.testing.assert_allclose(result.model.a, 2.0, rtol=1e-3)


def test_strict_promotion_is_no_obstacle():
    """Of a loss of one's own; fits of processes are under it in tests/gp."""
    with jax.numpy_dtype_promotion("strict"):
        assert kx.fit(Point(3.0, -2.0), loss=bowl, num_steps=2, progress=False).num_steps > 0


def test_a_start_that_is_not_finite_raises_and_names_what():
    with pytest.raises(FloatingPointError, match=r"cannot start: the loss is inf .*in a at step 0"):
        kx.fit(Point(0.0, 1.0), loss=lambda m: 1 / m.a + m.b, optimizer=SMALL_STEPS, progress=False)
    with pytest.raises(FloatingPointError, match=r"cannot start: the gradient is .* in b at step"):
        kx.fit(Point(1.0, 0.0), loss=lambda m: m.a**2 + jnp.sqrt(m.b), progress=False)


def test_a_later_fault_stops_with_the_best_point_and_names_the_parameter():
    def loss(m):
        return jnp.sqrt(m.a - 0.5) + m.b**2

    with pytest.warns(RuntimeWarning, match=r"the loss is nan and the gradient .* in a at step"):
        result = kx.fit(Point(2.0, 1.0), loss=loss, optimizer=optax.sgd(0.4), progress=False)
    assert not result.converged
    assert "not finite in a at step" in result.reason
    assert np.isnan(result.losses[-1])
    assert np.isfinite(result.losses[:-1]).all()
    assert loss(result.model).item() == pytest.approx(np.nanmin(result.losses))
    assert result.model.a > 0.5


def test_a_loss_that_ends_before_its_minimum_did_not_converge():
    def loss(m):
        return jnp.where(m.a < 3, (m.a - 4) ** 2, jnp.nan) + m.b**2

    result = kx.fit(Point(2.0, 1.0), loss=loss, progress=False)
    assert not result.converged
    assert "still falls in a, but is not finite a step further" in result.reason
    assert 2.9 < result.model.a < 3
    # One that only steps over it on its way has converged.
    assert kx.fit(Point(2.0, 1.0), loss=lambda m: loss(m) + 2.5 * m.a, progress=False).converged


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_bar_shows_in_a_terminal_only(monkeypatch):
    for stream, options, delay, shown in (
        (Terminal(), {}, 0.0, True),
        (io.StringIO(), {}, 0.0, False),
        (Terminal(), {"progress": False}, 0.0, False),
        (Terminal(), {}, 60.0, False),
    ):
        monkeypatch.setattr("kronax.fitting.driver.SECONDS_TO_BAR", delay)
        monkeypatch.setattr("sys.stderr", stream)
        kx.fit(Point(3.0, -2.0), loss=bowl, optimizer=SMALL_STEPS, num_steps=3, **options)
        text = stream.getvalue()
        assert bool(text) is shown
        if shown:
            assert "3/3" in text
            assert "loss=" in text


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kx.fit(make()), TypeError, "data `y`.*or a `loss`.*got neither"),
        (lambda: fit(loss=lambda m: 0.0), TypeError, "got both"),
        (lambda: fit(num_steps=0), ValueError, "num_steps must be a positive integer; got 0"),
        (lambda: fit(num_steps=-3), ValueError, "num_steps must be a positive integer; got -3"),
        (lambda: fit(num_steps=1.5), ValueError, r"num_steps must be .*; got 1\.5"),
        (lambda: fit(num_steps=True), ValueError, "num_steps must be .*; got True"),
        (lambda: fit(kx.RBF(1.0)), TypeError, "needs a GridGP; got SquaredExponential.*`loss=`"),
        (
            lambda: fit(freeze=("kernels", "variance", "noise")),
            ValueError,
            r"Nothing is trainable(.|\n)*kernels\[0\]\.lengthscale  0\.3    positive  no",
        ),
        (
            lambda: kx.fit(eqx.nn.Identity(), loss=lambda m: 0.0),
            ValueError,
            "Nothing is trainable",
        ),
        (lambda: fit(freeze=("nose",)), KeyError, "'nose'.*Did you mean 'noise'"),
        (lambda: fit(freeze="noise"), TypeError, "got 'noise'"),
        (
            lambda: fit(domains={"kernel[0]": constraints.positive}),
            KeyError,
            r"'kernel\[0\]'.*Did you mean 'kernels\[0\]",
        ),
        (lambda: fit(optimizer="adam"), TypeError, "an optax transformation; got 'adam'"),
        (lambda: fit(optimizer=optax.adam), TypeError, "transformation; got <function adam"),
        (lambda: kx.fit(make(), loss=3.5), TypeError, r"function of the model; got 3\.5"),
        (
            lambda: kx.fit(make(), loss=lambda m: m.noise * jnp.ones(3)),
            ValueError,
            r"must be a scalar; got shape \(3,\)",
        ),
        (
            lambda: kx.fit(Scaled(jnp.ones((), "float32")), loss=lambda m: m.a * np.ones(())),
            TypeError,
            "at most the precision of the parameters, float32; got float64",
        ),
        (
            lambda: kx.fit(Scaled(jnp.ones(())), loss=lambda m: jnp.int32(1)),
            TypeError,
            "must be a real number .*; got int32",
        ),
        (
            lambda: kx.fit(Scaled(jnp.ones(0)), loss=lambda m: jnp.sum(m.a)),
            ValueError,
            "Nothing is trainable",
        ),
        (lambda: fit(tolerance=np.nan), ValueError, "tolerance must be a finite number.*nan"),
        (lambda: fit(tolerance=-1e-3), ValueError, r"that is not negative; got -0\.001"),
        (lambda: fit(restarts=1, key=0), TypeError, r"such as jax\.random\.key\(0\); got 0"),
        (lambda: fit(y=np.zeros((7, 6))), ValueError, r"Data must vary.*got 0\.0 in every cell"),
        (
            lambda: fit(y=np.stack([Y, np.ones((7, 6))]), independent=True),
            ValueError,
            r"every cell \(data set 1\)",
        ),
        (
            lambda: fit(freeze=("kernels['x'].lengthscale",)),
            KeyError,
            "in the order of the axes, kernels",
        ),
        (
            lambda: fit(priors={"noise": dist.Uniform(0.01, 0.1)}),
            ValueError,
            r"support of its prior, between 0\.01 and 0\.1; got 0\.3",
        ),
        (
            lambda: fit(priors={"noise": dist.Poisson(1.0)}),
            TypeError,
            "noise must be continuous; got Poisson",
        ),
        (lambda: fit(y=Y.T), ValueError, r"got shape \(6, 7\). The axes are in another order"),
        (lambda: fit(y=np.full_like(Y, np.nan)), ValueError, "some cell; got NaN in all 42"),
        (lambda: fit(y=Y.astype(int)), TypeError, "got dtype int64"),
        (lambda: fit(make(np.float32)), TypeError, "got float64 with float32 parameters"),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.MultiSteps(optax.adam(0.1), 10),
        optax.chain(optax.sgd(1e-3), optax.apply_every(10)),
    ],
)
def test_an_optimiser_that_rests_between_steps_is_not_stuck(optimizer):
    start = Quadratic(jnp.zeros(()))
    result = kx.fit(
        start, loss=lambda m: (m.a - 3) ** 2 + 5, optimizer=optimizer, num_steps=60, progress=False
    )
    assert result.num_steps == 60
    assert result.losses[-1] < result.losses[0] - 0.1


def test_fits_of_one_form_share_their_compiled_loop(monkeypatch):
    traces = []
    original = kx.GridGP.checked_log_likelihood

    def counted(self, y):
        traces.append(1)
        return original(self, y)

    monkeypatch.setattr(kx.GridGP, "checked_log_likelihood", counted)
    x = np.linspace(0, 0.97, 5)  # places that no other test has
    gp, y = kx.GridGP((kx.RBF(0.31),), (x,), noise=0.1), np.cos(9 * x)
    kx.fit(gp, y, num_steps=2, progress=False)
    count = len(traces)
    assert count > 0
    kx.fit(gp, 2 * y, num_steps=2, progress=False)
    assert len(traces) == count


class Quadratic(eqx.Module):
    a: jax.Array


def test_the_model_that_is_given_survives():
    """The state's buffers are donated step by step; none of them is the caller's."""
    gp = make()
    field = kx.replace(gp, {"variance": jnp.asarray(2.0)})
    fit(gp)
    fit(field, optimizer=HUGE_STEPS, num_steps=10)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves((gp, field)))
    assert np.isfinite(gp.log_marginal_likelihood(Y))
