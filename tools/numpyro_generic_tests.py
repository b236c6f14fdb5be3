"""NumPyro's own generic distribution tests, run on the distributions of kronax.

    python tools/numpyro_generic_tests.py PATH_OF_A_NUMPYRO_CHECKOUT [PYTEST_ARGUMENTS]

The checkout should be of the installed version. A plugin puts our distributions into the parameter
lists of `test/test_distributions.py`, in place of NumPyro's, and leaves every other test out. It
prints how many passed, failed and were skipped, per test. In double precision: the tests compare
with finite differences.

NumPyro's tests do arithmetic on every parameter of a distribution, so a tuple of factors cannot be
one: each case is a subclass that takes its factors one by one and has nothing else of its own.
"""

import collections
import functools
import inspect
import os
import sys
from pathlib import Path

os.environ["JAX_ENABLE_X64"] = "1"

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over

import kronax as kx
from kronax.distributions import vmap_over_grid, vmap_over_student_t

POSITIVE = constraints.dependent(is_discrete=False, event_dim=0)
MATRIX = constraints.dependent(is_discrete=False, event_dim=2)


def case_class(name, base, way="factors", num_axes=2, noise=False, **settings):
    """A subclass of `base` whose factors are parameters of their own: `first`, `second`, …"""
    student = base is kx.KroneckerStudentT
    axes = ("first", "second", "third")[:num_axes]
    own = [*(["df"] if student else []), "loc", *(["noise"] if noise else []), *axes]
    limits = {"df": constraints.positive, "loc": constraints.real, "noise": POSITIVE}

    def build(self, *values, validate_args=None):
        given = dict(zip(own, values, strict=True))
        matrices = tuple(given.pop(axis) for axis in axes)
        base.__init__(self, **given, **{way: matrices}, **settings, validate_args=validate_args)

    # The tests read the names of the parameters from the signature.
    names = {}
    exec(
        f"def __init__(self, {', '.join(own)}, *, validate_args=None):\n"
        f"    build(self, {', '.join(own)}, validate_args=validate_args)\n"
        f"def axes(d, {', '.join(f'{p}=None' for p in own)}):\n"
        f"    return mapped(d, {', '.join(f'{p}={p}' for p in own)})\n",
        {"build": build, "mapped": lambda d, **axes: mapped(d, **axes)},
        names,
    )

    def mapped(d, **by_name):
        per_axis = tuple(by_name.pop(axis) for axis in axes)
        over = vmap_over_student_t if student else vmap_over_grid
        return over(d, **by_name, **{way: per_axis})

    def matrix_of(self, index):
        # Beside noise only the covariance factors made of them are held.
        return (getattr(self, way) or self.factors)[index].to_dense()

    def infer_shapes(cls, *shapes):
        given = dict(zip(own, shapes, strict=True))
        matrices = tuple(given.pop(axis) for axis in axes)
        return base.infer_shapes(**given, **{way: matrices}, **settings)

    members = {
        "__init__": names["__init__"],
        "arg_constraints": {p: limits.get(p, MATRIX) for p in own},
        "reparametrized_params": own,
        "pytree_data_fields": (),
        "infer_shapes": classmethod(infer_shapes),
        **{a: property(functools.partial(matrix_of, index=i)) for i, a in enumerate(axes)},
    }
    made = type(name, (base,), members)
    vmap_over.register(made, names["axes"])
    return made


class FlatStudent:
    """SciPy's multivariate t, with the moments that it lacks."""

    def __init__(self, df, loc, scale):
        self.df, self.loc, self.scale = float(df), np.asarray(loc), np.asarray(scale)
        self.frozen = scipy.stats.multivariate_t(self.loc, self.scale, df=self.df)
        self.rvs, self.logpdf, self.entropy = (
            self.frozen.rvs,
            self.frozen.logpdf,
            self.frozen.entropy,
        )

    def mean(self):
        return self.loc

    def cov(self):
        return self.df / (self.df - 2) * self.scale


def covariance(size, seed, batch=()):
    root = np.random.default_rng(seed).normal(size=(*batch, size, size + 2))
    return root @ np.swapaxes(root, -1, -2) / size


def normal(loc, matrix):
    return scipy.stats.multivariate_normal(np.asarray(loc).ravel(), np.asarray(matrix))


def cases():
    """`(class, SciPy's distribution or None, parameters)`; NumPyro wants no JAX arrays yet."""
    normal_base, student_base = kx.KroneckerNormal, kx.KroneckerStudentT
    a, b, c = covariance(2, 0), covariance(3, 1), covariance(2, 2)
    la, lb = np.linalg.cholesky(a), np.linalg.cholesky(b)
    batch_a, batch_b = covariance(2, 3, (2, 1)), covariance(3, 4, (3,))
    loc = np.random.default_rng(5).normal(size=(2, 3))
    locs = np.stack([loc, 2 * loc])
    noise, noises = 0.5, np.array([0.5, 0.8])

    make = functools.partial(case_class, base=normal_base)
    plain, noisy = make("Noisefree"), make("Noisy", noise=True)
    flat = make("Flat", flatten=True)
    flat_noisy = make("FlatNoisy", noise=True, flatten=True)
    cholesky = make("Cholesky", way="scale_trils")
    cholesky_noisy = make("CholeskyNoisy", way="scale_trils", noise=True)
    precision = make("Precision", way="precision_factors")
    three = make("ThreeAxes", num_axes=3, noise=True)
    yield plain, None, (loc, a, b)
    yield plain, None, (locs, a, b)
    yield plain, None, (loc, batch_a, batch_b)
    yield plain, None, (0.5, a, b)
    yield flat, lambda loc, a, b: normal(loc, np.kron(a, b)), (loc.ravel(), a, b)
    yield noisy, None, (loc, noise, a, b)
    yield noisy, None, (locs, noises, a, b)
    yield noisy, None, (loc, noise, batch_a, batch_b)
    yield (
        flat_noisy,
        lambda loc, noise, a, b: normal(loc, np.kron(a, b) + np.asarray(noise) * np.eye(6)),
        (loc.ravel(), noise, a, b),
    )
    yield cholesky, None, (loc, la, lb)
    yield cholesky, None, (locs, la, lb)
    yield make("FlatCholesky", way="scale_trils", flatten=True), None, (loc.ravel(), la, lb)
    yield cholesky_noisy, None, (loc, noise, la, lb)
    yield precision, None, (loc, a, b)
    yield precision, None, (locs, batch_a[:, 0], b)
    yield (
        make("PrecisionNoisy", way="precision_factors", noise=True),
        None,
        (loc, noise, a, b),
    )
    yield three, None, (np.zeros((2, 3, 2)), noise, a, b, c)
    # Its name tells the tests that draws have pathwise gradients in `df`, as NumPyro's StudentT.
    student = functools.partial(case_class, "StudentT", student_base)
    yield student(), None, (6.0, loc, a, b)
    yield student(noise=True), None, (6.0, loc, noise, a, b)
    yield student(noise=True), None, (np.array([6.0, 7.0]), locs, noises, a, b)
    yield student(way="scale_trils"), None, (np.array([6.0, 7.0]), loc, la, lb)
    yield (
        student(flatten=True),
        lambda df, loc, a, b: FlatStudent(df, loc, np.kron(a, b)),
        (6.0, loc.ravel(), a, b),
    )


class Injection:
    """The pytest plugin."""

    def __init__(self):
        self.counts = collections.defaultdict(collections.Counter)
        self.reasons = collections.Counter()
        self.cases = None

    def pytest_pycollect_makeitem(self, collector, name, obj):
        """Keep the tests that are generic over distributions, with our cases for theirs."""
        if not inspect.isfunction(obj) or not name.startswith("test_"):
            return None
        generic = False
        for mark in getattr(obj, "pytestmark", []):
            names = mark.args[0] if mark.name == "parametrize" and mark.args else ""
            if names in ("jax_dist, sp_dist, params", "jax_dist_cls, sp_dist, params"):
                self.cases = self.cases or list(cases())
                mark.args[1][:] = self.cases
                generic = True
        return None if generic else []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            test = report.nodeid.partition("::")[2].partition("[")[0]
            self.counts[test][report.outcome] += 1
            if report.outcome == "skipped":
                reason = getattr(report, "wasxfail", None) or report.longrepr[2]
                self.reasons[reason] += 1

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        total = collections.Counter()
        write("")
        for test, counts in self.counts.items():
            total += counts
            write(f"{test:35}" + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
        for reason, count in self.reasons.items():
            write(f"{count:4} x {reason}")
        outcomes = ("passed", "failed", "skipped")
        write("total: " + ", ".join(f"{total[outcome]} {outcome}" for outcome in outcomes))


def main(arguments):
    if (
        not arguments
        or not (tests := Path(arguments[0]) / "test" / "test_distributions.py").is_file()
    ):
        sys.exit(f"usage: {sys.argv[0]} PATH_OF_A_NUMPYRO_CHECKOUT [PYTEST_ARGUMENTS]")
    options = [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "ignore",
        "-o",
        "addopts=",
    ]
    return pytest.main([str(tests), *options, *arguments[1:]], plugins=[Injection()])


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert dist.MultivariateNormal  # NumPyro is imported from the environment, not the checkout
    sys.exit(main(sys.argv[1:]))
