"""Models, fits and posteriors in files: the same numbers again, or a refusal by name."""

import datetime
import json
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
import xarray as xr

import kronax as kx
from tests.everyday import everyday
from tests.saving import own

X = np.linspace(0, 1, 5)
Z = np.array([0.0, 0.2, 0.7])
RNG = np.random.default_rng(20)
Y = RNG.normal(size=(5, 3))
PAIR = (kx.RBF(0.3), 1.5 * kx.Matern32(0.4))


def over_time(times, **options):
    kernels = {"time": kx.Matern32(2.0), "site": kx.Categorical(3, rank=1)}
    return kx.GridGP(kernels, {"time": times, "site": ["a", "b", "c"]}, **options)


def labelled():
    coords = {"time": pd.date_range("2020-01-01", periods=5), "x": ("x", Z, {"units": "km"})}
    data = xr.DataArray(Y, coords, name="t2m", attrs={"units": "K", "_FillValue": np.nan})
    kernels = {"x": kx.RBF(0.3), "time": kx.Periodic(2.0, 0.5) * kx.RBF(3.0)}
    return kx.GridGP.from_xarray(data, kernels, noise=0.2)


def tabular():
    zone = pd.date_range("2020-01-01", periods=3, tz="Europe/Berlin")
    frame = pd.DataFrame({"time": zone, "station": ["a", "b", "b"], "pm": [1.0, 2.0, 4.0]})
    kernels = {"time": kx.RBF(2.0), "station": kx.Categorical(2, rank=1)}
    return kx.GridGP.from_frame(frame, ["time", "station"], "pm", kernels)


def iterative():
    noise = np.exp(RNG.normal(size=(5, 3)))
    return kx.GridGP(PAIR, (X, Z), noise=noise, gaps="iterative", iteration=kx.Iteration(seed=3))


def terms():
    parts = {"slow": (kx.RBF(0.8), PAIR[1]), "fast": (2.0 * kx.RBF(0.1), PAIR[1])}
    return kx.GridGP(terms=parts, axes=(X, Z), noise=0.1)


MEAN = kx.CovariateMean(rain=np.where(Y > 1, np.nan, Y)) * kx.HarmonicMean(0, 2.0)
NETWORK = eqx.nn.MLP(1, "scalar", 2, 1, activation=jax.nn.softplus, key=jax.random.key(0))
MODELS = {
    "one number of noise": lambda: kx.GridGP(PAIR, (X, Z), noise=0.1, mean=0.5),
    "no noise": lambda: kx.GridGP(PAIR, (X, Z), noise=0),
    "noise by axis": lambda: over_time(np.arange(5.0), noise={"site": [0.1, 0.2, 0.3]}),
    "correlated noise": lambda: kx.GridGP(
        PAIR, (X, Z), noise=kx.Kronecker(np.diag(1 + X), np.eye(3) + 0.2)
    ),
    "noise per cell": iterative,
    "dates": lambda: over_time(np.arange("2020-01", "2020-06", dtype="M8[M]"), noise=0.1),
    "dates of Python": lambda: over_time([datetime.date(2020, 1, k) for k in (1, 2, 4)], noise=0.1),
    "dates of a calendar": lambda: over_time(
        xr.date_range("2001-01-01", periods=4, calendar="noleap", use_cftime=True).values, noise=0.1
    ),
    "a DataArray": labelled,
    "a table": tabular,
    "terms": terms,
    "a circle and places": lambda: kx.GridGP(
        (kx.RBF(0.3), kx.RBF([0.3, 0.5])), (kx.circle(X[:-1], 1.0), RNG.normal(size=(4, 2))), 0.1
    ),
    "structures": lambda: kx.GridGP(
        (kx.RBF(0.3), kx.Matern12(1.0)), (X, Z), 0.1, structure=(3, "markov")
    ),
    "a regression": lambda: kx.GridGP(PAIR, (X, Z), 0.1, mean=kx.MarginalMean(MEAN)),
    "gaps that are told": lambda: kx.GridGP(PAIR, (X, Z), 0.1, observed=Y > -0.5),
    "a likelihood": lambda: kx.GridGP(
        PAIR, (X, Z), likelihood=kx.NegativeBinomial(2.0, exposure=1 + np.abs(Y))
    ),
    "Student's errors": lambda: kx.GridGP(
        PAIR, (X, Z), likelihood=kx.StudentT(4.0, 0.5), approximation="laplace"
    ),
    "a kernel of one's own": lambda: kx.GridGP((own.Triangle(2.0, 1.5), PAIR[1]), (X, Z), 0.1),
    "single precision": lambda: kx.GridGP((kx.RBF(np.float32(0.3)),), (X,), np.float32(0.1)),
}


def same(one, other):
    """Whether two trees are the same, NaN in gaps included."""
    plain = [
        jax.tree.map(lambda x: np.nan_to_num(x) if eqx.is_inexact_array(x) else x, tree)
        for tree in (one, other)
    ]
    return eqx.tree_equal(*plain, typematch=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_again(name, tmp_path):
    gp = MODELS[name]()
    kx.save(tmp_path / "gp.kx", gp)
    again = kx.load(tmp_path / "gp.kx")
    assert type(again) is kx.GridGP
    assert eqx.tree_equal(again, gp, typematch=True)
    assert jax.tree.structure(again) == jax.tree.structure(gp)
    assert again.describe() == gp.describe()
    assert [p.name for p in tmp_path.iterdir()] == ["gp.kx"]


@pytest.mark.parametrize(
    "name",
    everyday(
        ["one number of noise", "a regression", "a DataArray", "terms"],
        ["a regression", "a DataArray"],
    ),
)
def test_a_posterior_predicts_the_same(name, tmp_path):
    gp = MODELS[name]()
    y = Y.copy()
    y[Y > 1] = np.nan
    if name == "a DataArray":
        time = np.asarray(gp.axes[0].index.values.values)
        attrs = {"units": "K", "long_name": "air"}
        y = xr.DataArray(y, {"time": time, "x": Z, "height": 2.0}, ("time", "x"), "t2m", attrs)
    post = gp.condition(y)
    kx.save(tmp_path / "post.kx", post)
    again = kx.load(tmp_path / "post.kx")
    assert same(again, post)
    np.testing.assert_array_equal(again.mean(), post.mean())
    if name == "a DataArray":
        xr.testing.assert_identical(again.to_dataset(), post.to_dataset())


def test_a_posterior_of_counts_keeps_its_sites(tmp_path):
    counts = np.array([0.0, 3.0, 1.0, 5.0, 2.0])
    gp = kx.GridGP((kx.RBF(0.7),), (X,), likelihood=kx.Poisson(), mean=0.3)
    post = gp.condition(counts)
    kx.save(tmp_path / "post.kx", post)
    again = kx.load(tmp_path / "post.kx")
    assert same(again, post)
    assert (again.mean() == post.mean()).all()


def test_a_fit_goes_on_saying_what_it_said(tmp_path):
    gp = kx.GridGP({"x": PAIR[0], "z": PAIR[1]}, {"x": X, "z": Z}, noise=0.3)
    result = kx.fit(
        gp,
        Y,
        priors={"kernels[0].lengthscale": dist.LogNormal(-1.0, 0.5), "noise": dist.Gamma(2.0, 4.0)},
        domains={"variance": dist.constraints.interval(0.01, 10.0)},
        freeze=("kernels[1].lengthscale",),
        progress=False,
    )
    kx.save(tmp_path / "fit.kx", result)
    again = kx.load(tmp_path / "fit.kx")
    assert again.summary(standard_errors=False) == result.summary(standard_errors=False)
    assert eqx.tree_equal(again.model, result.model, typematch=True)
    assert (again.losses == result.losses).all()
    np.testing.assert_array_equal(again.laplace().covariance, result.laplace().covariance)
    # And it is a start for another.
    step = {"optimizer": optax.sgd(1e-3), "num_steps": 1, "progress": False}
    assert kx.fit(again.model, Y, **step).loss <= kx.fit(gp, Y, **step).loss


def test_a_loss_is_named_and_may_be_missing(tmp_path):
    result = kx.fit(own.Triangle(1.0), loss=own.loss, num_steps=3, progress=False)
    kx.save(tmp_path / "fit.kx", result)
    again = kx.load(tmp_path / "fit.kx")
    assert again.model.width == result.model.width
    assert again.parameters == result.parameters
    with pytest.raises(ValueError, match=r"names the function 'tests.saving.own:loss'"):
        again.laplace()
    kept = kx.load(tmp_path / "fit.kx", given={"tests.saving.own:loss": own.loss})
    assert kept.problem.loss is own.loss


def test_other_objects_and_collections(tmp_path):
    kept = {
        "numbers": [1, 2.5, float("inf"), complex(1, 2), np.float32(0.1), None, True],
        "arrays": (jnp.arange(3), np.array(["a", "bc"]), np.array([1, "x", None], object)),
        "key": jax.random.key(3),
        "prior": dist.TruncatedNormal(0.0, 1.0, low=-1.0).expand([2]).to_event(1),
        "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "network": NETWORK,
        ("a", 1): b"bytes",
    }
    kx.save(tmp_path / "kept.kx", kept)
    again = kx.load(tmp_path / "kept.kx")
    assert list(again) == list(kept)
    assert again["numbers"] == kept["numbers"]
    assert type(again["numbers"][4]) is np.float32
    assert again["when"] == kept["when"]
    assert again[("a", 1)] == b"bytes"
    assert again["arrays"][2].tolist() == [1, "x", None]
    assert (again["prior"].sample(again["key"]) == kept["prior"].sample(kept["key"])).all()
    assert eqx.tree_equal(again["network"], NETWORK)
    assert again["network"](X[:1]) == NETWORK(X[:1])


def test_a_function_must_be_given(tmp_path):
    gp = kx.GridGP((kx.RBF(0.3),), (X,), 0.1, mean=own.ramp)
    kx.save(tmp_path / "gp.kx", gp)
    with pytest.raises(ValueError, match=r"given=\{'tests.saving.own:ramp': ramp\}"):
        kx.load(tmp_path / "gp.kx")
    again = kx.load(tmp_path / "gp.kx", {"tests.saving.own:ramp": own.ramp})
    assert eqx.tree_equal(again, gp)


def test_double_precision_is_not_rounded_in_silence(tmp_path):
    kx.save(tmp_path / "gp.kx", MODELS["one number of noise"]())
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"in float64.*jax_enable_x64"):
        kx.load(tmp_path / "gp.kx")


def test_what_cannot_be_saved_raises_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.kx"
    kx.save(path, own.Triangle(2.0))

    class Local(eqx.Module):
        pass

    for value, match in (
        (Local(), "defined inside a function"),
        ({"a": [own.NotAModule()]}, r"dict\['a'\]\[0\] is a tests.saving.own.NotAModule"),
        ((lambda x: x, lambda x: 2 * x), "Two functions have the name"),
    ):
        with pytest.raises(TypeError, match=match):
            kx.save(path, value)
    with pytest.raises(TypeError, match="got a traced array"):
        jax.jit(lambda w: kx.save(path, own.Triangle(w)))(1.0)
    with pytest.raises(FileNotFoundError, match="folder that exists"):
        kx.save(tmp_path / "none" / "gp.kx", own.Triangle(2.0))
    assert kx.load(path).width == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["kept.kx"]


def altered(path, change):
    """The file with another text."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(parts["kronax.json"])
    change(header)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "kronax.json": json.dumps(header)}.items():
            archive.writestr(name, content)


def put(tree):
    return lambda header: header.update(tree=tree)


def renamed(header):
    fields = header["tree"]["class"][1]
    fields["breadth"] = fields.pop("width")


def moved(header):
    header["tree"]["class"][0] = "elsewhere:Triangle"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda h: h.update(format=99), ValueError, r"by kronax .* in format 99; this version"),
        (renamed, ValueError, r"whose Triangle had the fields power, breadth; here it has width"),
        (moved, ImportError, r"'elsewhere:Triangle'.*given=\{'elsewhere:Triangle': Triangle\}"),
        (put({"class": ["os:system", {}]}), TypeError, "must be a subclass of equinox.Module"),
        (put({"class": ["tests.saving.own:NotAModule", {}]}), TypeError, "subclass of equinox"),
        (put({"class": ["subprocess:Popen", {"args": "true"}]}), TypeError, "subclass of equinox"),
        (put({"class": ["kronax:Gone", {}]}), ImportError, "holds a Gone of kronax, which"),
        (put({"function": ["os:system", False]}), ValueError, "functions are not loaded"),
        (put({"function": ["jax.numpy:save", False]}), ValueError, "functions are not loaded"),
        (put({"distribution": ["constraints", [], []]}), TypeError, "as a distribution of NumPyro"),
        (put({"items": ["kronax:RBF", []]}), TypeError, "as a tuple, which it is not"),
        (put({"numpy": 77}), ValueError, "its array 77 is not there"),
        (put({"_dict": []}), ValueError, "of the kind '_dict', which is unknown"),
        (lambda h: h.pop("tree"), ValueError, "must be a whole file of kx.save"),
    ],
)
def test_a_file_that_is_another_is_refused_by_name(change, error, match, tmp_path):
    kx.save(tmp_path / "kept.kx", own.Triangle(2.0))
    altered(tmp_path / "kept.kx", change)
    with pytest.raises(error, match=match):
        kx.load(tmp_path / "kept.kx")


def test_a_class_that_moved_is_found_or_given(tmp_path):
    path = tmp_path / "kept.kx"
    kx.save(path, MODELS["one number of noise"]())
    text = zipfile.ZipFile(path).read("kronax.json").decode()
    assert "kronax.gp.axes.axis:Axis" in text
    altered(path, lambda h: h.update(json.loads(json.dumps(h).replace("gp.axes.axis", "old"))))
    assert eqx.tree_equal(kx.load(path), MODELS["one number of noise"]())
    kx.save(path, own.Triangle(2.0))
    altered(path, moved)
    assert kx.load(path, {"elsewhere:Triangle": own.Triangle}).width == 2.0


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "kept.kx"
    kx.save(path, own.Triangle(np.arange(1.0, 900.0)))
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"PK", content.replace(b"width", b"wid")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"must be a whole file of kx\.save"):
            kx.load(path)
    spoilt = bytearray(content)
    spoilt[content.index(b"NUMPY") + 600] ^= 255
    path.write_bytes(bytes(spoilt))
    with pytest.raises(ValueError, match=r"must be a whole file of kx\.save"):
        kx.load(path)
    with pytest.raises(FileNotFoundError):
        kx.load(tmp_path / "none.kx")
