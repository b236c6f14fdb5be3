"""`kx.sklearn.GridRegressor` against dense NumPy, and in scikit-learn's hands."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import kronax as kx
from kronax.sklearn import GridRegressor
from kronax.sklearn import regressor as room
from tests.everyday import everyday, full

RNG = np.random.default_rng(0)
GRID = RNG.permutation(np.array([[a, b] for a in range(6) for b in range(4)], float))
VALUES = np.sin(GRID[:, 0]) * GRID[:, 1] + 0.1 * RNG.normal(size=len(GRID))
NEW = np.array([[1.0, 2.0], [2.5, 0.5], [7.0, 3.0]])
ELLS, NOISE, LEVEL = (1.5, 2.5), 0.2, 0.3
KERNELS = [kx.RBF(ELLS[0]), 2.0 * kx.RBF(ELLS[1])]
HELD = {"noise": NOISE, "mean": LEVEL, "optimize": False}


def covariance(A, B):
    return 2.0 * np.exp(
        -sum(((A[:, None, k] - B[None, :, k]) / ELLS[k]) ** 2 for k in range(2)) / 2
    )


def dense(X, y, new):
    """Mean and covariance of the function by one dense solve over the rows."""
    cross, S = covariance(new, X), covariance(X, X) + NOISE * np.eye(len(X))
    mean = LEVEL + cross @ np.linalg.solve(S, y - LEVEL)
    return mean, covariance(new, new) - cross @ np.linalg.solve(S, cross.T)


TWICE = np.concatenate([GRID, GRID[:7]]), np.concatenate([VALUES, VALUES[:7] + 0.3])
SCATTERED = RNG.random((15, 2)) * 5, RNG.normal(size=15)
ROWS = {
    "a whole grid": (GRID, VALUES, "grid"),
    "a grid with gaps": (GRID[5:], VALUES[5:], "grid"),
    "replicates": (*TWICE, "grid"),
    "scattered rows": (*SCATTERED, "points"),
    "scattered, one row twice": (*(np.concatenate([a, a[:1]]) for a in SCATTERED), "points"),
}


@pytest.mark.parametrize("case", everyday(ROWS, {"replicates", "scattered, one row twice"}))
def test_both_layouts_are_the_dense_answer(case):
    X, y, chosen = ROWS[case]
    mean, cov = dense(X, y, NEW)
    for layout in dict.fromkeys(("points", "auto", chosen)):
        model = GridRegressor(KERNELS, layout=layout, **HELD).fit(X, y)
        assert model.layout_ == (chosen if layout == "auto" else layout)
        np.testing.assert_allclose(model.predict(NEW), mean, atol=1e-9)
        if layout == "points" != chosen:  # whose variances are those of the other rows
            continue
        got, std = model.predict(NEW, return_std=True)
        np.testing.assert_allclose(got, mean, atol=1e-9)
        np.testing.assert_allclose(std, np.sqrt(np.diag(cov)), atol=1e-8)
        np.testing.assert_allclose(model.predict(NEW, return_cov=True)[1], cov, atol=1e-8)
    noisy = model.predict(NEW, return_std=True, include_noise=True)[1]
    np.testing.assert_allclose(noisy**2, np.diag(cov) + NOISE, atol=1e-8)


def test_rows_of_a_grid_are_predicted_on_it_in_any_order():
    model = GridRegressor(KERNELS, **HELD).fit(GRID[4:], VALUES[4:])
    mean, cov = dense(GRID[4:], VALUES[4:], GRID)
    got, std = model.predict(GRID, return_std=True)
    np.testing.assert_allclose(got, mean, atol=1e-9)
    np.testing.assert_allclose(std, np.sqrt(np.diag(cov)), atol=1e-8)
    draws = model.sample_y(GRID, n_samples=4000, random_state=1)
    assert draws.shape == (len(GRID), 4000)
    np.testing.assert_allclose(draws.mean(axis=1), mean, atol=0.1)


def test_columns_make_an_axis_and_go_by_name():
    pd = pytest.importorskip("pandas", reason="pandas is an extra")
    places = RNG.random((5, 2))
    frame = pd.DataFrame(
        [(t, *p) for p in places for t in range(4)], columns=["t", "east", "north"]
    )
    y = RNG.normal(size=len(frame))
    kernels = {"place": kx.Matern32(0.5), "t": kx.RBF(2.0)}
    axes = {"place": ["east", "north"], "t": "t"}
    model = GridRegressor(kernels, axes=axes, optimize=False, noise=NOISE).fit(frame, y)
    assert model.layout_ == "grid"
    assert model.gp_.grid_shape == (5, 4)
    rows = frame.to_numpy()
    r = np.linalg.norm(rows[:, None, 1:] - rows[None, :, 1:], axis=-1) * np.sqrt(3) / 0.5
    K = (1 + r) * np.exp(-r) * np.exp(-(((rows[:, None, 0] - rows[None, :, 0]) / 2.0) ** 2) / 2)
    S = K + NOISE * np.eye(len(y))
    expected = y.mean() + K @ np.linalg.solve(S, y - y.mean())
    np.testing.assert_allclose(model.predict(frame), expected, atol=1e-9)


def test_both_layouts_have_the_same_optimum():
    fits = [GridRegressor(layout=layout).fit(*TWICE) for layout in ("grid", "points")]
    assert abs(fits[0].result_.loss - fits[1].result_.loss) < 1e-5
    np.testing.assert_allclose(*(fit.predict(NEW) for fit in fits), atol=1e-3)


def test_it_works_in_pipelines_and_cross_validation():
    model = GridRegressor(KERNELS, **HELD)
    copy = clone(model).set_params(noise=0.5)
    assert (copy.noise, model.noise, copy.kernels[1].variance.item()) == (0.5, NOISE, 2.0)
    inner = make_pipeline(StandardScaler(), model)
    whole = TransformedTargetRegressor(inner, transformer=StandardScaler())
    folds = KFold(2, shuffle=True, random_state=0)
    assert cross_val_score(whole, GRID, VALUES, cv=folds).shape == (2,)
    search = GridSearchCV(model, {"noise": [0.01, 10.0]}, cv=folds).fit(GRID, VALUES)
    assert search.best_params_["noise"] in (0.01, 10.0)


MISTAKES = {
    "layout": (lambda: GridRegressor(layout="tree").fit(GRID, VALUES), ValueError, "must be one"),
    "kernels": (lambda: GridRegressor([kx.RBF(1.0)]).fit(GRID, VALUES), ValueError, "per axis, 2"),
    "name": (
        lambda: GridRegressor({"a": kx.RBF(1.0), "b": kx.RBF(1.0)}).fit(GRID, VALUES),
        KeyError,
        "names of the axes",
    ),
    "column": (lambda: GridRegressor(axes=["x0", "y"]).fit(GRID, VALUES), KeyError, "no column"),
    "number": (lambda: GridRegressor(axes=[0, 2]).fit(GRID, VALUES), KeyError, "2 columns"),
    "left out": (lambda: GridRegressor(axes=[0]).fit(GRID, VALUES), ValueError, "Every one"),
    "both": (
        lambda: GridRegressor(**HELD).fit(GRID, VALUES).predict(NEW, True, True),
        ValueError,
        "At most one",
    ),
    "not fitted": (lambda: GridRegressor().predict(NEW), NotFittedError, "not fitted"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    call, error, words = MISTAKES[name]
    with pytest.raises(error, match=words):
        call()


def test_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(room, "MOST_ROWS", 10)
    monkeypatch.setattr(room, "MOST_CELLS", 100)
    with pytest.raises(ValueError, match=r"15 rows are scattered.*at most 10"):
        GridRegressor().fit(*SCATTERED)
    with pytest.raises(ValueError, match="grid of 225 cells"):
        GridRegressor(layout="grid").fit(*SCATTERED)


def test_a_fit_that_is_cut_short_says_so():
    with pytest.warns(ConvergenceWarning, match="has not converged"):
        GridRegressor(num_steps=1).fit(GRID, VALUES)


def test_a_constant_is_predicted():
    model = GridRegressor().fit(GRID, np.full(len(GRID), 3.0))
    assert model.result_ is None
    np.testing.assert_allclose(model.predict(NEW), 3.0)


def test_it_is_imported_when_asked_for():
    assert kx.sklearn.__name__ == "kronax.sklearn"  # tests/gp/test_xarray.py imports kronax alone


def test_a_missing_package_is_told(monkeypatch):
    def fails(name):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.delattr(kx, "sklearn")
    monkeypatch.setattr("importlib.import_module", fails)
    with pytest.raises(ImportError, match=r"pip install \"kronax\[sklearn\]\""):
        kx.sklearn  # noqa: B018


CHECKS = list(estimator_checks_generator(GridRegressor(num_steps=30)))
# Checks that fit little: the others are of the same kind, with a program each.
EVERYDAY = {
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_complex_data",
    "check_estimator_tags_renamed",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pair if pair[1].func.__name__ in EVERYDAY else full(*pair) for pair in CHECKS],
    ids=[f"{pair[1].func.__name__}-{k}" for k, pair in enumerate(CHECKS)],
)
def test_scikit_learn_checks_pass(estimator, check):
    check(estimator)
