"""The parts of the benchmarks of counts that need no run: truth, scores, tables, kept rows."""

import os

import numpy as np
import pytest
from scipy import stats

# `benchmarks` insists on one BLAS thread and float64; the tests have settings of their own.
BEFORE = {k: os.environ.get(k) for k in ("OPENBLAS_NUM_THREADS", "JAX_ENABLE_X64")}
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from benchmarks import __main__ as command_line  # noqa: E402
from benchmarks import measure, nongaussian, parts  # noqa: E402
from benchmarks.nongaussian import (  # noqa: E402
    accuracy,
    calibration,
    data,
    others,
    speed,
)
from benchmarks.peers import environments  # noqa: E402

for key, value in BEFORE.items():
    if value is None:
        os.environ.pop(key, None)
    else:
        os.environ[key] = value

NOISE = 0.5
NORMAL = data.Kind(
    None,
    lambda rng, f: f + NOISE * rng.standard_normal(f.shape),
    lambda y, f: stats.norm.logpdf(y, f, NOISE),
    lambda y, f: stats.norm.cdf(y, f, NOISE),
    is_discrete=False,
)


def posterior_of_normal_data():
    """The prior covariance, data, and what is true of the posterior."""
    prior, rng = data.covariance((3, 4), (2.0, 3.0)), np.random.default_rng(0)
    y = data.MEAN + rng.standard_normal(12)
    whole = prior + NOISE**2 * np.eye(12)
    gain = np.linalg.solve(whole, prior).T
    mean, covariance = data.MEAN + gain @ (y - data.MEAN), prior - gain @ prior
    evidence = stats.multivariate_normal(np.full(12, data.MEAN), whole).logpdf(y)
    return prior, y, mean, np.sqrt(np.diag(covariance)), evidence


def test_sites_that_are_the_likelihood_leave_no_weights():
    prior, y, mean, sd, evidence = posterior_of_normal_data()
    sites = y, np.full(12, NOISE**-2)
    found = accuracy.sampled(NORMAL, y, prior, sites, 20)
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.sd, sd)
    assert found.log_evidence == pytest.approx(evidence)
    assert found.effective_share == pytest.approx(1)
    assert found.mean_error < 1e-10 > found.log_evidence_error


def test_weights_find_the_posterior_from_other_sites():
    prior, y, mean, sd, evidence = posterior_of_normal_data()
    sites = y + 0.1, np.full(12, 0.9 * NOISE**-2)
    found = accuracy.sampled(NORMAL, y, prior, sites, 8000)
    errors = (found.mean - mean) / sd
    assert np.sqrt(np.mean(errors**2)) < 3 * found.mean_error < 0.05
    assert np.sqrt(np.mean((found.sd / sd - 1) ** 2)) < 3 * found.sd_error < 0.05
    assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_error < 0.05
    assert found.effective_share < 0.99


@pytest.mark.parametrize("name", ["Poisson", "Binomial", "NegativeBinomial"])
def test_predicted_probabilities_sum_to_one_and_are_the_steps_of_their_distribution(name):
    kind, moments = data.KINDS[name], (np.array([0.3]), np.array([0.2]))
    counts = np.arange(data.TRIALS + 1 if name == "Binomial" else 200)
    steps = [float(np.exp(data.log_scores(kind, np.array([n]), *moments))[0]) for n in counts]
    assert sum(steps) == pytest.approx(1, abs=1e-6)
    rng = np.random.default_rng(0)
    place = data.transforms(kind, np.array([2]), *moments, rng)[0]
    assert sum(steps[:2]) < place < sum(steps[:3])


def test_what_the_model_draws_is_where_it_should_be():
    rng = np.random.default_rng(0)
    for name, kind in data.KINDS.items():
        mean, variance = np.full(20_000, 0.4), np.full(20_000, 0.3)
        y = kind.draw(rng, mean + np.sqrt(variance) * rng.standard_normal(20_000))
        places = data.transforms(kind, y, mean, variance, rng)
        assert stats.kstest(places, "uniform").pvalue > 1e-3, name
        assert abs(data.is_central(places).mean() - 0.95) < 0.008, name


def test_a_part_is_measured_again_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "_commit", lambda: "first")
    calls = {"a": lambda: [{"x": 1}], "b": lambda: [{"x": 2}, {"x": 3}]}
    parts.measured("some.part", calls, str, True)
    calls["a"] = lambda: [{"x": 4}]
    monkeypatch.setattr(measure, "_commit", lambda: "later")
    parts.measured("some.part", calls, str, True, only=["a"])
    found = parts.stored("some.part", True)
    assert {name: [row["x"] for row in rows] for name, rows in found.items()} == {
        "a": [4],
        "b": [2, 3],
    }
    assert [found[name][0]["commit"] for name in "ab"] == ["later", "first"]
    assert list(found) == ["a", "b"]


def test_the_command_line_knows_workloads_and_their_sections(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "nongaussian.nothing"])
    with pytest.raises(SystemExit):
        command_line.main()
    assert "unknown: nongaussian.nothing" in capsys.readouterr().err
    ran = []
    monkeypatch.setattr(accuracy, "run", lambda quick, only=(): ran.append((quick, only)))
    monkeypatch.setattr(
        "sys.argv", ["benchmarks", "nongaussian.accuracy", "--quick", "--only", "Poisson"]
    )
    command_line.main()
    assert ran == [(True, ["Poisson"])]
    assert set(nongaussian.SECTIONS) == {"accuracy", "calibration", "speed", "others"}


def test_errors_of_an_approximation_are_shown_beside_those_of_the_truth():
    row = {
        "likelihood": "Poisson",
        "method": "Laplace",
        "mean_rms": 0.0942,
        "mean_bias": 0.091,
        "sd_ratio": 0.997,
        "sd_ratio_ends": [0.98, 1.01],
        "first_order_error": -0.059,
        "second_order_error": 0.019,
        "stated_error": 0.014,
        "truth_mean_error": 0.0032,
        "truth_log_evidence_error": 0.001,
        "effective_share": 0.86,
        "is_close": True,
    }
    cells = accuracy.accuracy_table([row]).splitlines()[-1].split(" | ")
    assert cells[2:5] == ["0.094 ± 0.003", "+0.091", "0.997"]
    assert cells[6:9] == ["-0.059 ± 0.001", "+0.019 ± 0.014", "86%"]
    better = {**row, "method": "variational", "mean_rms": 0.003, "first_order_error": -0.0698}
    cells = accuracy.short_table([row, better]).splitlines()[-1].strip("| ").split(" | ")
    assert cells[:5] == ["Poisson", "0.003", "0.094", "0.997", "0.997"]
    assert cells[5:] == ["-0.070", "+0.019", "-0.059", "+0.019"]


def test_coverage_of_rates_and_data_is_shown():
    rng = np.random.default_rng(0)
    mean, variance = np.zeros((30, 8, 9)), np.full((30, 8, 9), 0.25)
    f = mean + 0.5 * rng.standard_normal(mean.shape)
    y, seen = data.KINDS["Poisson"].draw(rng, f), rng.random((8, 9)) > 0.3
    found = calibration.covered("Poisson", f, y, seen, (mean, variance))
    for key, share in found["coverage"].items():
        level = 0.95 if "0.95" in key else 0.5
        assert abs(share - level) < 5 * found["standard_error"][key], key
    assert sum(found["histogram"]) == pytest.approx(1)
    row = {"likelihood": "Poisson", "method": "Laplace", "parameters": "true", "num_fields": 30}
    last = calibration.calibration_table([{**row, **found}]).splitlines()[-1]
    assert last.startswith("| Poisson | Laplace | true | 30 | 9")
    short = calibration.short_table([{**row, **found}]).splitlines()[-1]
    assert short.startswith("| Poisson | – | 9")
    assert short.endswith(" | – | – | – |")


def test_fits_and_other_libraries_are_shown_or_why_not():
    done = {"way": "dense", "evaluation_seconds": 1.5, "first_evaluation_seconds": 9.0}
    done |= {"seconds": 40.0, "wall_seconds": 50.0, "num_steps": 12, "converged": False}
    done |= {"predict_seconds": 3.0, "log_score": -1.5, "log_score_of_the_true_rate": -1.25}
    done |= {"rate_coverage": 0.951, "data_coverage": 0.962, "part": "30×40"}
    stopped = {"part": "300×400", "seconds": None, "error": "unfinished after 3000 s"}
    first, second = speed.speed_table([done, stopped]).splitlines()[2:]
    assert "| 40 (50) | 12, stopped | 3 | -1.500 | -1.250 | 95.1% | 96.2% |" in first
    assert "| unfinished after 3000 s |" in second
    assert first.count("|") == second.count("|")
    row = {"problem": "counts", "shape": [20, 20]}
    rows = [
        {**row, "method": "kronax", "seconds": 9.0, "log_score": -1.5, "coverage": 0.96},
        {**row, "method": "GPJax, variational", "seconds": None, "error": "not installed"},
    ]
    first, second = others.others_table(rows).splitlines()[2:]
    assert first == "| counts, 20×20 | kronax | 9 | – | – | – | -1.5000 | 96.0% |"
    assert second == "| counts, 20×20 | GPJax, variational | not installed | – | – | – | – | – |"
    used = {environment for peers in others.PEERS.values() for environment, _ in peers.values()}
    assert used <= environments.REQUIREMENTS.keys()


def test_scores_go_by_the_link_of_the_library():
    f, y, held = others.simulated("yes or no", (6, 7))
    found = {"mean": f.ravel(), "variance": np.full(f.size, 1e-12), "link": "logit"}
    scores = others.scores("yes or no", found, (6, 7))
    truth = data.KINDS["Bernoulli"].log_density(y, f)[held].mean()
    assert scores["log_score"] == pytest.approx(truth, abs=1e-5)
    probit = others.scores("yes or no", {**found, "link": "probit"}, (6, 7))
    assert probit["log_score"] == pytest.approx(
        stats.norm.logcdf((2 * y - 1) * f)[held].mean(), abs=1e-5
    )
