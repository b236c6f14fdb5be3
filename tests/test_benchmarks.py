"""The parts of the benchmarks that measure nothing: counting, choosing, writing tables."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

# `benchmarks` insists on one BLAS thread and float64; the tests have settings of their own.
BEFORE = {k: os.environ.get(k) for k in ("OPENBLAS_NUM_THREADS", "JAX_ENABLE_X64")}
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from benchmarks import (  # noqa: E402
    apart,
    certificates,
    chains,
    fitting,
    gap_data,
    gap_tables,
    gaps,
    gpu,
    likelihood,
    many_gaps,
    markov,
    markov_accuracy,
    markov_gaps,
    markov_lines,
    markov_nuts,
    matvec,
    mcmc,
    measure,
    nuts,
    preconditioners,
    rewrite,
    start,
    tables,
    whitening,
)
from benchmarks.certificate_cases import Shape, draw_cases, exact  # noqa: E402
from benchmarks.peers import environments, processes  # noqa: E402

for key, value in BEFORE.items():
    if value is None:
        os.environ.pop(key, None)
    else:
        os.environ[key] = value

pytestmark = pytest.mark.ci


class Remote:
    """A candidate in another process, as far as `alternate` can see."""

    def __init__(self, *times):
        self.times = list(times)

    def seconds(self, repeats=1):
        if not self.times:
            raise measure.CandidateError("over 60 s")
        return self.times.pop(0)


@pytest.fixture(scope="module", autouse=True)
def numpy_broadcasting():
    """Benchmarks hold formulas that broadcast as NumPy does."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_candidates_keep_their_medians_and_their_failures():
    times = measure.alternate(
        {"fast": Remote(9.0, 1.0, 3.0, 1.0, 2.0), "slow": Remote(6.0), "none": Remote()},
        rounds=3,
        budget_s=30.0,
    )
    assert times["fast"]["seconds"] == 2.0
    assert times["fast"]["rounds"] == 3
    assert times["none"] == {"seconds": None, "error": "over 60 s"}


def test_a_slow_candidate_is_called_once():
    slow = Remote(11.0)
    times = measure.alternate({"slow": slow}, rounds=3, budget_s=30.0)
    assert times["slow"]["seconds"] == 11.0
    assert times["slow"]["rounds"] == 1


def test_a_candidate_that_fails_later_has_no_time():
    times = measure.alternate({"a": Remote(1.0, 1.0, 1.0)}, rounds=3)
    assert times["a"] == {"seconds": None, "error": "over 60 s"}


def test_a_peer_that_is_not_installed_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    with processes.Peers() as peers:
        times = measure.alternate({"luas": peers.call("luas", "likelihood")})
        assert times["luas"] == {"seconds": None, "error": "not installed"}
        assert peers.versions() == {}


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="must be one of pymc"):
        environments.install("nothing")


def test_every_environment_names_its_packages():
    assert environments.REQUIREMENTS.keys() == environments.PACKAGES.keys()
    fits = {environment for environment, *_ in fitting.PEERS.values()}
    used = {*likelihood.PEERS.values(), *matvec.PEERS.values(), *fits, gaps.ENVIRONMENT}
    used |= {markov.PEER, markov_lines.PEER}
    used |= {environment for environment, _ in start.METHODS.values()} - {environments.OURS}
    assert used <= environments.REQUIREMENTS.keys()


def test_the_way_from_python_is_shown_by_stages():
    stamps = [
        {"fit": {"seconds": s, "processor_seconds": 2 * s, "programs": n}}
        for s, n in ((3.0, 9), (1.0, 7), (2.0, 8))
    ]
    rows = [
        {"data": "hills", "shape": [3, 4], "method": "kronax", "stages": start.medians(stamps)},
        {"data": "hills", "shape": [3, 4], "method": "GPyTorch", "error": "not installed"},
    ]
    *_, ours, theirs = start.start_table(rows).splitlines()
    assert ours == "| hills, 3×4 | kronax | – | 2 | – | – | 4 | 8 |"
    assert theirs == "| hills, 3×4 | GPyTorch | not installed | – | – | – | – | – |"
    assert start.described(rows[0]).endswith("fit 2.00 s; 4.0 s of processors, 8 programs")


def test_long_axes_are_shown_beside_the_filter():
    row = {"shape": [1000, 20], "spacing": "regular"}
    rows = [
        {**row, "method": markov.MARKOV, "seconds": 4e-3, "bytes": 2e6, "value_error": 3e-16},
        {**row, "method": "tinygp", "seconds": None, "error": "not installed"},
        {**row, "method": markov.OTHER, "seconds": 0.2, "missing": 0.1},
    ]
    *_, ours, peer, other = markov.markov_table(rows).splitlines()
    assert ours == "| 20 × 1,000 regular | kronax, Markov | 4 | 200 | – | 2 MB | 3e-16 | – |"
    assert peer == "| 20 × 1,000 regular | tinygp | not installed | – | – | – | – | – |"
    assert "| 20 × 1,000 regular, 10% missing |" in other
    assert "| 50 × |" in other


def test_fits_of_gappy_grids_are_shown_with_their_scores():
    rows = [
        {"data": "hills", "method": "kronax, Markov", "seconds": 0.5, "rmse": 0.2},
        {"data": "hills", "method": "BoTorch", "error": "not installed"},
        {"data": "hills", "method": "BoTorch", "log_likelihood": 7.0, "by_kronax": {"rmse": 0.1}},
    ]
    *_, ours, peer, _, there = markov_gaps.gaps_table(rows).splitlines()
    assert ours == "| hills | kronax, Markov | 0.5 | – | – | – | 0.200 | – | – | – |"
    assert peer == "| hills | BoTorch | not installed | – | – | – | – | – | – | – |"
    assert there.endswith("fit ended | – | – | – | – | 0.100 | – | – | 7.0 |")


def test_learning_curves_are_cut_off():
    case = gap_data.curves(60, 20)
    assert [x.shape for x in case.places()] == [(60, 2), (20, 1)]
    missing = np.isnan(case.y)
    assert 0.4 < missing.mean() < 0.5
    # What lies ahead of a curve's end is missing, and nothing before it.
    assert (np.diff(missing.astype(int), axis=1) >= 0).all()
    np.testing.assert_array_equal(missing, case.is_held_out)
    assert np.isfinite(case.truth).all()


def test_lines_are_shown_beside_the_other_library():
    row = {"kernel": "oscillator", "shape": [1000], "what": "value"}
    pair = [
        {**row, "method": "kronax", "seconds": 2e-3},
        {**row, "method": "celerite2", "seconds": 1e-3, "difference": 3e-15},
    ]
    *_, shown = markov_lines.lines_table(pair).splitlines()
    assert shown == "| 1,000, oscillator | value | 2 | 1 | 0.5 × | 3e-15 |"
    pair[1] = {**row, "method": "celerite2", "seconds": None, "error": "not installed"}
    assert markov_lines.lines_table(pair).endswith("| value | 2 | not installed | – | – |")


def test_samplers_along_a_long_axis_are_compared_by_their_rates():
    row = {"shape": [2000, 20], "draws": 50, "gradients": 200, "seconds": 4.0}
    rows = [
        {**row, "method": "filter", "effective_samples": {"a": 30.0, "b": 20.0}, "per_second": 5.0},
        {**row, "method": "decomposition", "effective_samples": {"a": 9.0}, "per_second": 0.25}
        | {"draws": 10, "gradients": 40},
        {"shape": [2000, 20], "method": "decomposition", "error": "unfinished"},
    ]
    *_, ours, other, failed = markov_nuts.nuts_table(rows).splitlines()
    assert ours == "| 20 × 2,000 | filter | 50 | 4 | 20 | 4 | 20 | 5 | – |"
    assert other == "| 20 × 2,000 | decomposition | 10 | 4 | 100 | 4 | ≤ 10 | ≤ 0.25 | ≥ 20 × |"
    assert failed.startswith("| 20 × 2,000 | decomposition | unfinished |")


def test_many_gaps_are_shown_by_way():
    row = {"shape": [1000, 100], "noise": 0.1, "outage": 1, "method": "filtered"}
    table = many_gaps.many_gaps_table([{**row, "steps": 12, "seconds": 1.2, "error": 2.0}])
    shown = "| 100 × 1,000 | single cells | 0.1 | filtered | 12 | 1.2 | 2 |"
    assert table.splitlines()[-1] == shown
    _, y = many_gaps.data_of((120, 6), 0.1, 20)
    assert 0.15 < np.isnan(y).mean() < 0.4


def test_outages_and_single_cells_are_missing():
    _, y, seen = markov.data_of(markov.Case((800, 3), True, 0.4))
    assert y.shape == seen.shape == (800, 3)
    assert 0.4 <= 1 - seen.mean() < 0.6
    assert np.isfinite(y).all()


def test_sixty_digits_know_what_dense_numbers_round():
    with jax.enable_x64(True):
        off = markov_accuracy.errors(markov_accuracy.Hard(1e-6), np.float64)
    assert abs(off["Markov"]) < 1e-11 < abs(off["dense Cholesky"]) < 1e-7
    rows = [{"case": "noise", "precision": "float64", "errors": {"eigh": None, "Markov": -2e-13}}]
    assert markov_accuracy.accuracy_table(rows).endswith("| noise | float64 | **NaN** | 2e-13 |")


def test_the_fastest_peer_is_found_among_those_with_a_time():
    rows = [
        {"method": "kronax", "seconds": 1.0},
        {"method": "PyMC", "seconds": None, "error": "not installed"},
        {"method": "luas", "seconds": 3.0},
        {"method": "GPyTorch", "seconds": 4.0},
    ]
    found = likelihood.with_fastest_peer(rows)
    assert found[0]["fastest_peer"] == "luas"
    assert found[0]["fastest_peer_over_this"] == 3.0
    assert found[1] == rows[1]
    assert likelihood.with_fastest_peer(rows[:2]) == rows[:2]


def test_operations_are_those_of_the_cheapest_order():
    assert matvec.operations(matvec.Case("", matvec.square(4, 5))) == 2 * 20 * 9
    narrow = matvec.Case("", ((30, 4), (4, 30)), 3)
    assert matvec.operations(narrow) == 3 * 2 * (4 * 30 * 4 + 4 * 4 * 30)


def test_a_table_shows_times_errors_and_reasons():
    def row(method, seconds, **more):
        return {"kernel": "RBF", "shape": [20, 20], "method": method, "seconds": seconds, **more}

    fastest = {"fastest_peer": "luas", "fastest_peer_over_this": 2.0}
    rows = [
        row("kronax", 1e-3, **fastest),
        row("regular", 5e-4, fastest_peer="luas", fastest_peer_over_this=4.0),
        row("PyMC", 0.2, gradient_error=5.2),
        row("GPyTorch", None, error="not installed"),
        row("luas", 2e-3, gradient_error=1e-14),
    ]
    last = tables.likelihood_peers_table(rows).splitlines()[-1]
    cells = ["RBF", "20×20", "1", "0.5", "200 (**5.2**)", "not installed", "2 (1e-14)", "luas"]
    assert last == "| " + " | ".join([*cells, "2 ×", "4 ×"]) + " |"


def test_fits_are_shown_beside_kronax_with_the_reason_of_those_without():
    def row(method, seconds, **more):
        return {"data": "hills", "shape": [3, 4], "method": method, "seconds": seconds, **more}

    end = {
        "kronax_seconds": 0.02,
        "steps": 9,
        "above_best_per_cell": 0.0,
        "gradient_per_cell": 2e-7,
    }
    rows = [
        row("kronax", 0.02, first_call_seconds=4.0, seconds_to_near=0.01, **end),
        row("GPyTorch", 0.2, first_call_seconds=0.3, seconds_to_near=0.05, **end),
        row("scikit-learn", None, error="not installed"),
        row("starts", 3.0),
        row("progress bar", 3.0),
    ]
    ours, theirs, none = tables.fitting_table(rows).splitlines()[2:]
    assert ours.split(" | ")[2:6] == ["0.01", "0.02", "4", "9"]
    assert theirs.endswith("| 5 ×, 10 × |")
    assert none.startswith("| hills, 3×4 | scikit-learn | not installed |")


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(measure.CandidateError, match="unfinished after 0 s"):
        apart.apart("reference", "rbf", 0.01, x=[0.0], t=0.0)


def found_draws(num_draws=200, shift=0.0, apart=0.0):
    """Independent draws of a sampler, its chains `apart`."""
    rng = np.random.default_rng(0)
    offset = shift + apart * np.arange(2)[:, None]
    draws = {name: offset + rng.normal(size=(2, num_draws)) for name in nuts.TRUTH}
    times = {"seconds": 4.0, "sampling_seconds": 1.0, "cpu_seconds": 8.0}
    steps = {"num_steps": np.full((2, num_draws), 7), "diverging": np.zeros((2, num_draws))}
    return {**times, **steps, "warmup_done": 300, "draws": draws}


def test_draws_are_described_by_rates_and_errors():
    row = mcmc.described(found_draws())
    least = min(row["effective_samples"].values())
    assert 200 < least < 600
    assert row["effective_samples_per_second"] == least / 4
    assert row["effective_samples_per_second_of_sampling"] == least
    assert row["effective_samples_per_cpu_second"] == least / 8
    assert row["steps_per_draw"] == 7
    np.testing.assert_allclose(row["standard_error"]["sigma"], 400**-0.5, rtol=0.3)


def test_a_run_that_was_stopped_early_has_no_rate():
    row = mcmc.described({**found_draws(9), "sampling_seconds": None})
    assert row["draws_done"] == 9
    assert "r_hat" not in row
    draws = {"num_warmup": 300, "num_samples": 300}
    assert mcmc.unfinished(row, draws) == "unfinished after 4 s: 9 of 300 draws"
    row |= {"draws_done": 0, "warmup_done": 20}
    assert mcmc.unfinished(row, draws) == "unfinished after 4 s: 20 of 300 warm-up draws"


def sampler_rows():
    problem = {"kernel": "RBF", "shape": [30, 25], "num_chains": 2}
    problem |= {"num_warmup": 300, "num_samples": 300}
    methods = {
        "kronax": mcmc.described(found_draws()),
        "PyMC": mcmc.described({**found_draws(shift=1.0), "seconds": 80.0}),
        "naive": mcmc.described(found_draws(apart=5.0)),
        "PyMC, dense": {
            "seconds": 300.0,
            "cpu_seconds": 500.0,
            "error": "unfinished after 300 s: 3 of 300 warm-up draws",
        },
    }
    return [{**problem, "method": method, **row} for method, row in methods.items()]


def test_samplers_are_compared_with_kronax_where_they_converged():
    ours, pymc, naive, dense = mcmc.compared(sampler_rows())
    assert "kronax_over_this" not in ours
    np.testing.assert_allclose(pymc["kronax_over_this"], 20)
    expected = 1 / np.hypot(pymc["standard_error"]["sigma"], ours["standard_error"]["sigma"])
    np.testing.assert_allclose(pymc["deviation"]["sigma"], expected)
    assert naive["kronax_over_this"] > 20
    assert "deviation" not in naive
    assert dense["effective_samples_per_second_at_most"] == 2
    rate = ours["effective_samples_per_second"]
    assert dense["kronax_over_this_at_least"] == rate / 2
    assert mcmc.compared([sampler_rows()[1]]) == [sampler_rows()[1]]
    per_cpu = ours["effective_samples_per_cpu_second"]
    np.testing.assert_allclose(dense["kronax_over_this_of_cpu_at_least"], per_cpu / (600 / 500))


def test_the_table_of_samplers_says_what_did_not_end_or_converge():
    rows = mcmc.compared(sampler_rows())
    _, _, ours, naive, pymc, dense = tables.mcmc_table(rows).splitlines()
    assert ours.startswith("| RBF | 30×25 | kronax | 300 + 300 | 4 | 8 | 1 |")
    assert "| 20 × |" in pymc
    assert f"| **{max(rows[2]['r_hat'].values()):.3g}** |" in naive
    assert "unfinished after 300 s" in dense
    assert "| ≥ " in dense


def test_chains_are_mapped_and_timed():
    timed = chains.TimedChains()
    result = timed(lambda x: 2 * x)(jnp.ones((1, 3)))
    np.testing.assert_array_equal(jax.device_get(result), 2 * np.ones((1, 3)))
    assert timed.compile_seconds > 0
    assert timed.sampling_seconds > 0


@pytest.mark.parametrize("kernel", ["RBF", "Matérn-3/2"])
def test_every_likelihood_of_the_samplers_is_the_same_model(kernel):
    axes, y = nuts.data(kernel, (6, 5))
    truth = {name: jnp.asarray(value) for name, value in nuts.TRUTH.items()}

    def density(method):
        model = nuts.model_of(method, kernel, axes, y)
        return float(log_density(model, (), {}, truth)[0])

    with jax.numpy_dtype_promotion("standard"):
        values = [density(method) for method in ("kronax", "regular", "naive", "dense")]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_the_table_of_latent_fields_marks_chains_that_do_not_agree():
    sampled = {"f": 100.0, "variance": 300.0}
    rows = [
        {
            "counts": 2,
            "is_sampled": True,
            "seconds": None,
            "method": "centred",
            "error": "unfinished",
        },
        {
            "counts": 2,
            "is_sampled": True,
            "method": "latent",
            "seconds": 9.0,
            "cpu_seconds": 20.0,
            "steps_per_draw": 63.0,
            "share_at_most_steps": 0.125,
            "r_hat": {"f": 1.004, "variance": 1.06},
            "divergences": 0,
            "effective_samples": sampled,
            "effective_samples_per_cpu_second": 5.0,
        },
    ]
    unfinished, last = tables.whitening_table(rows).splitlines()[-2:]
    assert unfinished.split(" | ")[1:3] == ["centred", "unfinished"]
    cells = ["latent", "63", "12%", "**1.06**", "0", "100", "20", "5"]
    assert last == "| counts about 2, parameters sampled | " + " | ".join(cells) + " |"


def test_the_fewest_effective_samples_are_those_of_what_is_correlated():
    assert whitening.fewest([300.0, -2000.0, 40.0], 200) == 40.0
    assert whitening.fewest(-12.0, 200) == 200.0


def test_the_table_of_posteriors_counts_in_likelihood_values():
    shape = [1000, 1000]
    rows = [
        {"shape": shape, "what": "one likelihood value", "seconds": 0.05, "ratio": 1.0},
        {"shape": shape, "what": "draws", "seconds": 12.0, "ratio": 240.0, "bytes": 1_600_000_000},
        {"shape": shape, "what": "draws", "seconds": None, "error": "unfinished after 600 s"},
    ]
    first, second, third = tables.posterior_table(rows).splitlines()[2:]
    assert first == "| 1000×1000 | one likelihood value | 50 | 1 × | – |"
    assert second == "| 1000×1000 | draws | 12,000 | 240 × | 1.6 GB |"
    assert third == "| 1000×1000 | draws | unfinished after 600 s | – | – |"


def test_every_case_of_gaps_has_methods_and_cells_to_score():
    assert gaps.METHODS.keys() <= gap_data.CASES.keys()
    for method in {*gaps.MIDDLE, *(m for found in gaps.METHODS.values() for m in found)}:
        assert (method in gaps.OWN) != (method in gaps.PEERS)
    case = gap_data.heights(20, 0.1, None)
    np.testing.assert_array_equal(np.isnan(case.y), case.is_held_out)
    blocks = gap_data.heights(40, 0.3, 12)
    assert 0.3 <= blocks.is_held_out.mean() < 0.5
    for found in (case, blocks):
        seen = ~np.isnan(found.y)
        np.testing.assert_array_equal(found.y[seen], found.truth[seen])
        assert np.isfinite(found.truth[found.is_held_out]).all()
        np.testing.assert_allclose((found.y[seen].mean(), found.y[seen].std()), (0, 1), atol=1e-12)


def test_scores_are_those_of_a_normal_distribution():
    case = gap_data.heights(20, 0.1, None)
    deviation = 0.5
    answer = {"mean": case.truth - 0.9, "variance": np.full(case.y.shape, deviation**2)}
    found = gaps.scores(case, answer)
    assert found["rmse"] == pytest.approx(0.9)
    assert found["coverage"] == 1.0
    expected = np.log(deviation * np.sqrt(2 * np.pi)) + 0.5 * (0.9 / deviation) ** 2
    assert found["negative_log_density"] == pytest.approx(expected)
    answer["mean"] = case.truth - 1.0
    assert gaps.scores(case, answer)["coverage"] == 0.0


def test_methods_take_turns_until_their_budget_is_spent(monkeypatch):
    monkeypatch.setattr(gaps, "ROUNDS", 3)
    monkeypatch.setattr(gaps, "BUDGET_S", 10.0)
    slow, fast = Remote(9.0, 8.0, 7.0), Remote(20.0, 1.0, 2.0, 4.0)
    calls = {"BoTorch": slow, "kronax": fast, "long": Remote(20.0), "none": Remote()}
    found = gaps.in_turns({**calls, "once": Remote(1.0)})
    assert found["BoTorch"] == {"first_call_seconds": 9.0, "seconds": 8.0, "rounds": 1}
    assert found["kronax"] == {"first_call_seconds": 20.0, "seconds": 2.0, "rounds": 3}
    assert found["long"] == {"first_call_seconds": 20.0, "seconds": 20.0, "rounds": 0}
    assert found["none"] == found["once"] == {"seconds": None, "error": "over 60 s"}


@pytest.mark.parametrize("name", ["none", "Kronecker inverse", "eigenvectors, rank 100"])
def test_preconditioned_iterations_solve_their_system(name):
    op = preconditioners.operator("50 % at random", 0.1, 12)
    y = op.draw(jax.random.key(0), ())
    cells = np.flatnonzero(np.asarray(op.observed))
    dense = np.asarray(op.to_dense())[np.ix_(cells, cells)]
    expected = np.zeros(op.observed.size)
    expected[cells] = np.linalg.solve(dense, np.asarray(y).ravel()[cells])
    for found in (name, "reference, box 1"):
        system = preconditioners.systems(op, y)[found]()
        end = preconditioners.iterate(system, lambda x: 0.0, 1e-10)
        assert 0 < end.to_residual < 200
        solution = np.asarray(system.solution(end.x)).ravel()
        np.testing.assert_allclose(solution, expected, atol=1e-6)


def test_the_table_of_gaps_marks_fits_that_were_stopped():
    def row(method, seconds, **more):
        scores = {"rmse": 0.1, "negative_log_density": -1.0, "coverage": 0.95, "bytes": 1e9}
        times = {"fit_seconds": seconds, "predict_seconds": 1.0, "first_call_seconds": 9.0}
        case = {"case": "map", "num_missing": 1234, "method": method, "seconds": seconds}
        return {**case, **scores, **times, "is_stopped": False, **more}

    rows = [
        row("kronax, exact", 4.0, log_likelihood=-1234.56),
        row("kronax, iterative", 2.0),
        row("BoTorch", 60.0, is_stopped=True),
        row("GPyTorch, mask", None, error="over 60 s"),
    ]
    lines = gap_tables.gaps_table(rows).splitlines()
    assert [line.count("|") for line in lines] == [12] * 6
    assert "map; 1,234 missing" in lines[2]
    assert lines[2].endswith("| – |")
    assert "| 95.0% | -1,234.6 |" in lines[2]
    assert "| > 60 |" in lines[4]
    assert lines[4].endswith("| > 30 × |")
    assert "over 60 s" in lines[5]


def test_certificates_count_what_lies_within_the_error():
    def row(terms, of_error, of_gradient, converged=True):
        return {
            "terms": terms,
            "box": 4,
            "probes": 16,
            "gaps": "block",
            "ratio": 2e4,
            "converged": converged,
            "error": 0.5,
            "of_error": of_error,
            "of_gradient_error": of_gradient,
            "gradient_error": [1.0, 2.0, 3.0],
            "num_steps": 7,
        }

    rows = [row(1, 0.5, [0.1, 2.0, 0.3]), row(1, 2.0, [0.1] * 3), row(2, 9.0, [9.0] * 3, False)]
    rows.append(row(2, 0.1, [0.1] * 3))
    found = {(r["kind"], r["level"]): r for r in certificates.summarised(rows)}
    assert found["terms", "1"]["num_within"] == 1
    assert found["terms", "1"]["num_within_gradient"] == 5
    assert found["signal over noise", "1e3 to 1e6"]["num_converged"] == 3
    lines = gap_tables.certificates_table(list(found.values())).splitlines()[2:]
    assert lines[-1].split(" | ")[:5] == ["| all", "4", "75.0%", "66.7%", "88.9%"]


def test_cases_of_certificates_have_their_exact_answers():
    shape = Shape(2, (3, 4), 4, 4)
    cases, kinds = draw_cases(shape, 6, 0)
    value, gradient = exact(cases)
    assert [k["ratio"] for k in kinds] == sorted(k["ratio"] for k in kinds)
    for c in range(2):

        def density(p, c=c):
            first = [cases.factors[0][0][c] + p[0] * cases.slope[c], cases.factors[0][1][c]]
            terms = [np.kron(*first), np.kron(*(f[c] for f in cases.factors[1]))]
            seen = np.isfinite(cases.variances[c].ravel())
            noise = np.diag((1 + p[2]) * cases.variances[c].ravel()[seen])
            matrix = (1 + p[1]) * sum(terms)[np.ix_(seen, seen)] + noise
            y = cases.y[c].ravel()[seen]
            quadratic = y @ np.linalg.solve(matrix, y)
            logdet = np.linalg.slogdet(matrix)[1]
            return -0.5 * (quadratic + logdet + seen.sum() * np.log(2 * np.pi))

        np.testing.assert_allclose(density(np.zeros(3)), value[c], rtol=1e-9)
        slopes = [(density(h) - density(-h)) / 2e-5 for h in 1e-5 * np.eye(3)]
        np.testing.assert_allclose(slopes, gradient[c], rtol=1e-4, atol=1e-4)


def test_the_table_of_coverage_weighs_fields_alike():
    def row(gaps, parameters, share, num_fields):
        return {
            "gaps": gaps,
            "parameters": parameters,
            "shape": [4, 5],
            "num_missing": 5,
            "num_fields": num_fields,
            "coverage": {"0.5": share / 2, "0.95": share},
            "standard_error": {"0.5": 0.03, "0.95": 0.04},
        }

    rows = [
        row(gaps, which, share, n)
        for gaps, share, n in (("blocks", 0.9, 30), ("land", 0.96, 10))
        for which in ("fitted", "true")
    ]
    first, _, last = tables.coverage_table(rows).splitlines()[2:]
    assert first == "| blocks | 4×5 | 25% | 30 | 90.0% ± 4.0% | 90.0% ± 4.0% | 45.0% ± 3.0% |"
    assert last == "| all |  |  | 40 | 91.5% ± 3.2% | 91.5% ± 3.2% | 45.8% ± 2.4% |"


def test_the_table_of_rewritten_code_compares_with_code_by_hand():
    case = {"what": "solve, 10²", "case": "vector", "published": 19e-6}
    times = {"rewrite": 2e-5, "kronax": 1.6e-5, "dense": 4e-3, "rewrite, not jitted": 6e-3}
    rows = [{**case, "method": m, "seconds": t, "over": t / 1.6e-5} for m, t in times.items()]
    rows += [{**row, "case": "columns", "published": None} for row in rows[:2]]
    *_, vector, columns = rewrite.rewrite_table(rows).splitlines()
    assert vector == "| solve, 10², vector | 0.02 | 0.016 | 1.25 | 4 | 200 × | 6 | 0.019 |"
    assert columns == "| solve, 10², columns | 0.02 | 0.016 | 1.25 | – | – | – | – |"


def test_the_dense_code_of_the_benchmark_is_what_is_written_by_hand():
    for form in ("vector", "columns", "batch"):
        calls = rewrite.solve_calls(10, form)
        expected = np.asarray(calls["dense"]()) if "dense" in calls else None
        for name in ("rewrite", "kronax"):
            found = np.asarray(calls[name]())
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_device_without_memory_for_one_method_measures_the_others():
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")

    calls = {"one": lambda: gpu._attempted(full, 1.0), "other": lambda: gpu._attempted(abs, 1.0)}
    times = measure.alternate(calls, rounds=1)
    assert times["one"]["error"] == "RESOURCE_EXHAUSTED: Out of memory"
    assert times["other"]["seconds"] > 0


def test_the_table_of_a_gpu_names_devices_and_reasons():
    case = {"workload": "W5", "data": "fields", "shape": [3, 4], "dtype": "float64"}
    rows = [
        {**case, "method": "kronax", "device": "H200", "seconds": 0.5, "loss": 2.0}
        | {"peak_bytes": 2**21},
        {**case, "method": "GPyTorch", "device": "cpu", "seconds": 1.0, "loss": 2.5},
        {**case, "method": "luas", "seconds": None, "error": "not installed"},
    ]
    lines = gpu.gpu_table(rows).splitlines()[-3:]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert [row[4:] for row in cells] == [
        ["H200", "500", "0", "2"],
        ["cpu", "1,000", "0.5", "–"],
        ["–", "–", "–", "–"],
    ]


@pytest.mark.parametrize(("has_gpu", "wanted"), [(True, "jax[cuda12]>=0.10"), (False, "jax>=0.10")])
def test_peers_in_jax_find_a_gpu_where_there_is_one(has_gpu, wanted, monkeypatch):
    monkeypatch.setattr(environments.shutil, "which", lambda name: name if has_gpu else None)
    assert environments.for_this_machine("jax>=0.10") == wanted
    assert environments.for_this_machine("numpy>=2") == "numpy>=2"
