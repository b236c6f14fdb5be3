"""Comparison of models beside the dense formulas, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats

import kronax as kx
from tests.everyday import everyday
from tests.gp.dense import (
    DenseGP,
    full_noise,
    matern12,
    matern52,
    squared_exponential,
    two_axes,
)

ADAM = optax.adam(0.01)  # its loop compiles in a third of the time of a line search's
LONG, WIDE = np.linspace(0, 1, 7), np.linspace(0, 2, 6)


def process(time, space, kernels):
    return DenseGP(
        kx.GridGP((time, space), (LONG, WIDE), noise=0.1), kernels, (LONG, WIDE), noise=0.1
    )


def smooth():
    return process(
        kx.Matern52(0.5),
        kx.RBF(1.0),
        (lambda x, z: matern52(x, z, 0.5), lambda x, z: squared_exponential(x, z, 1.0)),
    )


def rough():
    return process(
        kx.Matern12(0.5),
        kx.Matern12(1.0),
        (lambda x, z: matern12(x, z, 0.5), lambda x, z: matern12(x, z, 1.0)),
    )


Y = np.asarray(smooth().gp.sample(jax.random.key(4), include_noise=True))


@pytest.fixture(scope="module")
def fitted():
    return kx.fit(smooth().gp, Y, freeze=("noise",), progress=False)


def fitted_for(num_steps, gp, y, **options):
    return kx.fit(gp, y, num_steps=num_steps, optimizer=ADAM, progress=False, **options)


def densities(case, y):
    means, variances = case.left_out(y)
    return scipy.stats.norm(means, np.sqrt(variances)).logpdf(y), np.sqrt(np.mean((y - means) ** 2))


def test_every_column_is_the_dense_one():
    table = kx.compare({"rough": rough().gp, "smooth": smooth().gp}, Y)
    assert [row.name for row in table] == ["smooth", "rough"]
    best, _ = densities(smooth(), Y)
    for name, case in (("smooth", smooth()), ("rough", rough())):
        row = table[name]
        loo, rmse = densities(case, Y)
        value = scipy.stats.multivariate_normal(cov=case.covariance()).logpdf(Y.ravel())
        assert row.num_parameters == 4
        expected = {
            "log_marginal_likelihood": value,
            "aic": 8 - 2 * value,
            "bic": 4 * np.log(42) - 2 * value,
            "loo": loo.sum(),
            "loo_error": np.sqrt(42) * loo.std(),
            "loo_difference": (loo - best).sum(),
            "difference_error": np.sqrt(42) * (loo - best).std(),
            "loo_rmse": rmse,
        }
        found = {what: getattr(row, what) for what in expected}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert table["rough"].loo_difference < 0 < table["rough"].difference_error


def test_noise_along_axes_and_correlated_noise():
    case = full_noise()
    row = kx.compare({"one": case.gp}, case.y)["one"]
    loo, rmse = densities(case, case.y)
    assert (row.loo, row.loo_rmse) == pytest.approx((loo.sum(), rmse), rel=1e-9)


def test_batches_are_added():
    both = np.stack([Y, Y[::-1]])
    row = kx.compare({"one": smooth().gp}, both)[0]
    loo, _ = densities(smooth(), Y)
    other, _ = densities(smooth(), Y[::-1])
    assert row.loo == pytest.approx(loo.sum() + other.sum(), rel=1e-9)
    assert row.bic == pytest.approx(4 * np.log(84) - 2 * row.log_marginal_likelihood)


def test_the_parameters_of_a_result_are_those_that_it_trained(fitted):
    table = kx.compare({"fit": fitted, "model": fitted.model}, Y)
    assert (table["fit"].num_parameters, table["model"].num_parameters) == (3, 4)
    assert table["fit"].loo == table["model"].loo
    assert table["fit"].log_marginal_likelihood == pytest.approx(-fitted.loss)
    assert table["fit"].remarks == ()
    shared = kx.fit(
        smooth().gp,
        Y,
        share=[("kernels[0].lengthscale", "kernels[1].lengthscale")],
        num_steps=1,
        optimizer=ADAM,
        progress=False,
    )
    assert kx.compare({"shared": shared}, Y)[0].num_parameters == 3


def test_the_order_can_be_chosen():
    """By BIC a model without parameters is ahead where both describe the data alike."""
    frozen = fitted_for(1, smooth().gp, Y, freeze=("kernels", "noise"))
    models = {"free": smooth().gp, "frozen": frozen, "rough": rough().gp}
    for by, best in (("loo", max), ("log_marginal_likelihood", max), ("aic", min), ("bic", min)):
        values = [getattr(row, by) for row in kx.compare(models, Y, by=by)]
        assert values[0] == best(values)
        assert values == sorted(values, reverse=best is max)
    assert kx.compare(models, Y, by="bic")[0].name == "frozen"


def test_it_prints_as_an_aligned_table_with_remarks():
    priors = {"noise": dist.HalfNormal(1.0)}
    few = fitted_for(2, rough().gp, Y, priors=priors)
    table = kx.compare({"rough, 2 steps": few, "smooth": smooth().gp}, Y)
    lines = repr(table).splitlines()
    heads = ["model", "k", "log L", "Δ log L", "Δ AIC", "Δ BIC", "LOO", "Δ LOO", "LOO RMSE"]
    assert re.split(r"\s{2,}", lines[0]) == heads
    assert lines[1].startswith("smooth          4  ")
    assert lines[1].index(f"{table[0].loo:.2f} ± ") == lines[0].index("LOO")
    assert "0.00 ± 0.00" in lines[1]
    assert "rough, 2 steps: the fit has not converged: the limit of 2 steps" in lines[3]
    assert "rough, 2 steps: fitted with priors" in lines[4]
    # The priors are no part of what is compared.
    value = few.model.log_marginal_likelihood(Y).item()
    assert table["rough, 2 steps"].log_marginal_likelihood == pytest.approx(value)
    assert abs(value + few.loss) > 0.1


def test_flat_data_join_grids_of_other_shapes():
    """A model of 42 places and one of a 7 × 6 grid see the same cells."""
    places = np.stack(np.meshgrid(LONG, WIDE, indexing="ij"), axis=-1).reshape(42, 2)
    scattered = kx.GridGP((kx.RBF(jnp.array([0.5, 1.0])),), (places,), noise=0.1)
    grid = kx.GridGP((kx.RBF(0.5), kx.RBF(1.0)), (LONG, WIDE), noise=0.1)
    table = kx.compare({"places": scattered, "grid": grid}, Y.ravel())
    assert table["places"].loo == pytest.approx(table["grid"].loo, rel=1e-9)
    assert abs(table[1].loo_difference) < 1e-8
    assert table[1].difference_error < 1e-8


def test_float32_models():
    gp = jax.tree.map(lambda a: a.astype(np.float32), smooth().gp)
    row = kx.compare({"one": gp}, Y.astype(np.float32))[0]
    exact = kx.compare({"one": smooth().gp}, Y)[0]
    assert row.loo == pytest.approx(exact.loo, rel=1e-4)
    assert row.log_marginal_likelihood == pytest.approx(exact.log_marginal_likelihood, rel=1e-4)


def with_mean(mean):
    return kx.GridGP((kx.Matern52(0.5), kx.RBF(1.0)), smooth().gp.axes, noise=0.1, mean=mean)


def test_restricted_likelihoods_are_ordered_among_their_own_kind():
    line = kx.MarginalMean(kx.LinearMean(0))
    proper = kx.MarginalMean(kx.LinearMean(0), variance=10.0)
    kx.compare({"a": with_mean(line), "b": with_mean(line)}, Y, by="log_marginal_likelihood")
    kx.compare({"a": with_mean(proper), "b": with_mean(None)}, Y, by="aic")
    assert "restricted" in repr(kx.compare({"a": with_mean(line), "b": with_mean(None)}, Y))


@pytest.mark.parametrize(
    ("models", "options", "error", "match"),
    [
        (dict, {}, ValueError, r"one model or more by name; got \{\}"),
        (lambda: [smooth().gp], {}, ValueError, "must be a dictionary .* got list"),
        (lambda: {"a": smooth().gp}, {"by": "waic"}, ValueError, r"'loo', .*; got 'waic'"),
        (
            lambda: {"line": with_mean(kx.MarginalMean(kx.LinearMean(0))), "none": with_mean(None)},
            {"by": "bic"},
            ValueError,
            "'line' has axis 0: level, axis 0: slope; 'none' has none. Order by 'loo'",
        ),
        (lambda: {"a": kx.RBF(1.0)}, {}, TypeError, "'a' is of type SquaredExponential.*inside it"),
        (lambda: {"a": two_axes().gp}, {}, ValueError, r"'a' does not take these data.*\(7, 6\)"),
        (
            lambda: {"a": jax.tree.map(lambda a: a.astype(np.float32), smooth().gp)},
            {},
            TypeError,
            "'a' does not take these data.*float64",
        ),
        (
            lambda: {"a": fitted_for(1, smooth().gp, 2 * Y)},
            {},
            ValueError,
            r"'a' was fitted to data of other values.*pass result\.model",
        ),
        (
            lambda: {"a": fitted_for(1, smooth().gp, np.stack([Y, Y]))},
            {},
            ValueError,
            r"of shape \(2, 7, 6\), not \(7, 6\)",
        ),
        (
            lambda: {"a": fitted_for(1, smooth().gp, np.stack([Y, Y]), independent=True)},
            {},
            TypeError,
            r"'a' holds 2 independent ones.*result\[i\]",
        ),
    ],
)
def test_bad_input_raises(models, options, error, match):
    with pytest.raises(error, match=match):
        kx.compare(models(), Y, **options)


def test_an_unknown_row_raises():
    with pytest.raises(KeyError, match=r"no model 'b'. Known: 'a'"):
        kx.compare({"a": smooth().gp}, Y)["b"]


@pytest.mark.parametrize("hidden", everyday(["a mask", "infinite noise"], ["infinite noise"]))
def test_cells_that_a_model_does_not_observe_have_no_score(hidden):
    x = np.arange(6.0)
    y, seen = np.sin(x), np.arange(6) != 2
    noise = np.where(seen, 0.1, np.inf)
    options = {"noise": 0.1, "observed": seen} if hidden == "a mask" else {"noise": noise}
    gp = kx.GridGP({"x": kx.RBF(1.0)}, {"x": x}, **options)
    gaps = kx.GridGP({"x": kx.RBF(1.0)}, {"x": x}, noise=0.1)
    (row,), (expected,) = (
        kx.compare({"a": gp}, y),
        kx.compare({"a": gaps}, np.where(seen, y, np.nan)),
    )
    np.testing.assert_allclose(row.loo, expected.loo, rtol=1e-12)
    np.testing.assert_allclose(row.loo_error, expected.loo_error, rtol=1e-12)
    with pytest.raises(ValueError, match=r"on the same observations; '[ab]' observes"):
        kx.compare({"a": gp, "b": gaps}, y)
