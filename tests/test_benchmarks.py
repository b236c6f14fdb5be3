"""The parts of the benchmarks that measure nothing: counting, choosing, writing tables."""

import os

import pytest

# `benchmarks` insists on one BLAS thread and float64; the tests have settings of their own.
BEFORE = {k: os.environ.get(k) for k in ("OPENBLAS_NUM_THREADS", "JAX_ENABLE_X64")}
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from benchmarks import apart, likelihood, matvec, measure, tables, whitening  # noqa: E402
from benchmarks.peers import environments, processes  # noqa: E402

for key, value in BEFORE.items():
    if value is None:
        os.environ.pop(key, None)
    else:
        os.environ[key] = value


class Remote:
    """A candidate in another process, as far as `alternate` can see."""

    def __init__(self, *times):
        self.times = list(times)

    def seconds(self, repeats=1):
        if not self.times:
            raise measure.CandidateError("over 60 s")
        return self.times.pop(0)


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
    used = {*likelihood.PEERS.values(), *matvec.PEERS.values()}
    assert used <= environments.REQUIREMENTS.keys()


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


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(measure.CandidateError, match="unfinished after 0 s"):
        apart.apart("reference", "rbf", 0.01, x=[0.0], t=0.0)
