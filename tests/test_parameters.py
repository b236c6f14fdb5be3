"""Parameters of any Equinox module: paths, domains, unconstrained values, replacement."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import tinygp
from numpyro.distributions import constraints

import kronax as kx
from tests.tolerances import assert_close

TIME, SPACE = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
Y = np.random.default_rng(0).normal(size=(5, 4))


def make(**changes):
    given = {"kernels": (kx.Matern32(0.5), 2.0 * kx.RBF(0.4)), "axes": (TIME, SPACE), "noise": 0.1}
    return kx.GridGP(**{**given, **changes})


PATHS = ["kernels[0].lengthscale", "kernels[1].lengthscale", "variance", "noise"]


class Model(eqx.Module):
    """Every kind of field."""

    rate: jax.Array = kx.parameter(constraints.positive)
    share: jax.Array = kx.parameter(constraints.unit_interval)
    shift: jax.Array = kx.parameter()
    table: dict
    count: jax.Array
    label: str = eqx.field(static=True)


def model():
    return Model(2, 0.25, [1, -1], {"a": (jnp.ones(2), jnp.zeros(3))}, jnp.arange(3), "x")


def test_a_table_lists_path_value_domain_and_whether_it_trains():
    rows = {p.path: (p.domain, p.trainable) for p in kx.parameters(model())}
    assert rows == {
        "rate": (constraints.positive, True),
        "share": (constraints.unit_interval, True),
        "shift": (constraints.real, True),
        "table['a'][0]": (constraints.real, True),
        "table['a'][1]": (constraints.real, True),
    }


def test_the_table_prints():
    assert repr(kx.parameters(make(), freeze=("noise",))).splitlines() == [
        "parameter               value  domain    trainable",
        "kernels[0].lengthscale  0.5    positive  yes",
        "kernels[1].lengthscale  0.4    positive  yes",
        "variance                2.     positive  yes",
        "noise                   0.1    positive  no",
    ]
    many = kx.RBF(np.arange(1.0, 8.0))
    assert "float64[7] in [1, 7]" in repr(kx.parameters(many))


def test_the_table_prints_under_jit():
    seen = []
    jax.jit(lambda gp: seen.append(repr(kx.parameters(gp))) or gp)(make())
    assert "traced float64[]" in seen[0]


def test_python_numbers_become_floating_point_arrays():
    m = model()
    assert (m.rate.dtype, m.rate.item(), m.rate.weak_type) == (np.float64, 2.0, False)
    assert_close(m.shift, np.array([1.0, -1.0]))


def test_a_field_may_have_a_default():
    class Decay(eqx.Module):
        rate: jax.Array = kx.parameter(constraints.positive, default=3)

    assert Decay().rate.item() == 3.0


def test_freezing_takes_beginnings_of_paths_and_domains_override():
    rows = kx.parameters(make(), freeze=("kernels[0]", "noise"))
    assert {p.path for p in rows if p.trainable} == {"kernels[1].lengthscale", "variance"}
    assert not any(p.trainable for p in kx.parameters(make(), freeze=PATHS))
    halves = constraints.interval(0.0, 1.0)
    rows = kx.parameters(make(), domains={"kernels": halves})
    assert [p.domain is halves for p in rows] == [True, True, False, False]


def test_unconstrained_values_lead_back_to_the_model():
    m = model()
    raw, build = kx.unconstrain(m)
    assert raw["rate"].item() == pytest.approx(np.log(2))
    assert raw["share"].item() == pytest.approx(np.log(0.25 / 0.75))
    back = build(raw)
    for old, new in zip(kx.parameters(m), kx.parameters(back), strict=True):
        assert_close(new.value, old.value)
    np.testing.assert_array_equal(back.count, m.count)
    assert back.label == "x"


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_whatever_the_raw_values_the_model_is_inside_its_domain(shift):
    raw, build = kx.unconstrain(make())
    moved = build({path: value + shift for path, value in raw.items()})
    assert all(p.value > 0 for p in kx.parameters(moved))


def test_frozen_parameters_have_no_raw_value_and_stay():
    raw, build = kx.unconstrain(make(), freeze=("noise",))
    assert list(raw) == PATHS[:3]
    moved = build({path: value + 1 for path, value in raw.items()})
    assert moved.noise.item() == 0.1
    assert moved.variance.item() == pytest.approx(2 * np.e)


def optimise(start, steps=30):
    """Anybody's own loop."""
    raw, build = kx.unconstrain(make())
    optimizer = optax.adam(0.05)

    def loss(values):
        return -build(values).log_marginal_likelihood(Y)

    def step(carry, _):
        values, state = carry
        value, slopes = jax.value_and_grad(loss)(values)
        updates, state = optimizer.update(slopes, state, values)
        return (optax.apply_updates(values, updates), state), value

    raw = jax.tree.map(lambda a: a + start, raw)
    (raw, _), losses = jax.lax.scan(step, (raw, optimizer.init(raw)), length=steps)
    return build(raw), losses


def test_an_own_optax_loop_runs_under_jit_and_vmap():
    fitted, losses = jax.jit(optimise)(0.0)
    assert losses[-1] < losses[0] - 0.5
    assert all(p.value > 0 for p in kx.parameters(fitted))
    np.testing.assert_array_equal(fitted.axes[0].coordinates(float), TIME)
    many, curves = jax.jit(jax.vmap(optimise))(jnp.array([0.0, 0.7]))
    assert curves.shape == (2, 30)
    assert_close(curves[0], losses)
    assert_close(many.noise[0], fitted.noise)
    assert abs(curves[1, 0] - curves[0, 0]) > 1e-3


def test_replace_sets_values_in_natural_units_and_keeps_the_dtype():
    new = kx.replace(make(), {"noise": 3, "kernels[1].lengthscale": np.float32(0.5)})
    assert (new.noise.item(), new.kernels[1].lengthscale.item()) == (3.0, 0.5)
    assert new.noise.dtype == new.kernels[1].lengthscale.dtype == np.float64
    assert make().noise.item() == 0.1
    assert kx.replace(model(), {"table['a'][0]": [5.0, 6.0]}).table["a"][0][1] == 6.0


def test_replace_takes_traced_values():
    slope = jax.jit(
        jax.grad(lambda noise: kx.replace(make(), {"noise": noise}).log_marginal_likelihood(Y))
    )
    value = make(noise=0.3)
    raw, build = kx.unconstrain(value)
    by_raw = jax.grad(lambda r: build(r).log_marginal_likelihood(Y))(raw)
    assert_close(slope(0.3) * 0.3, by_raw["noise"], order=1)


def test_numbers_of_a_callable_kernel_have_no_domain_until_one_is_given():
    kernel = tinygp.kernels.Matern32(np.array(0.7))
    gp = make(kernels=(kernel, kx.RBF(0.4)))
    (row,) = [p for p in kx.parameters(gp) if "function" in p.path]
    assert (row.domain, row.trainable) == (None, False)
    assert "unknown" in repr(kx.parameters(gp))
    rows = kx.parameters(gp, domains={row.path: constraints.positive})
    (row,) = [p for p in rows if "function" in p.path]
    assert (row.domain, row.trainable) == (constraints.positive, True)


def test_numbers_inside_any_pytree_are_found():
    kernel = jax.tree_util.Partial(
        lambda width, x, z: jnp.exp(-jnp.abs(x[:, None] - z[None]) / width)
    )
    gp = make(kernels=(jax.tree_util.Partial(kernel, jnp.array(0.5)), kx.RBF(0.4)))
    (row,) = [p for p in kx.parameters(gp) if "function" in p.path]
    assert not row.trainable
    assert kx.replace(gp, {row.path: 2.0}).kernels[0].function.args[0].item() == 2.0


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: kx.replace(make(), {"kernels[0].lenghtscale": 1.0}),
            KeyError,
            r"'kernels\[0\]\.lenghtscale'.*Did you mean 'kernels\[0\]\.lengthscale'",
        ),
        (lambda: kx.replace(make(), {"kernels[0]": 1.0}), KeyError, r"no parameter 'kernels\[0\]'"),
        (lambda: kx.unconstrain(make(), freeze=("nose",)), KeyError, "'nose'.*mean 'noise'"),
        (
            lambda: kx.parameters(make(), freeze="noise"),
            TypeError,
            r"got 'noise'. Write \('noise',",
        ),
        (
            lambda: kx.parameters(make(), domains={"varance": constraints.positive}),
            KeyError,
            "'varance'.*Did you mean 'variance'",
        ),
        (lambda: kx.replace(make(), {"noise": -2}), ValueError, r"noise.*positive; got -2\.0"),
        (
            lambda: kx.replace(make(), {"noise": np.ones(2)}),
            ValueError,
            r"noise must keep its shape \(\); got shape \(2,\)",
        ),
        (lambda: Model(-1, 0.5, 0, {}, 0, ""), ValueError, r"rate must be positive; got -1\.0"),
        (lambda: Model(1, 1.5, 0, {}, 0, ""), ValueError, r"share must be .*; got 1\.5"),
        (lambda: Model(1, 0.5, np.nan, {}, 0, ""), ValueError, "shift must be real; got nan"),
        (lambda: Model(1, 0.5, "x", {}, 0, ""), TypeError, "shift must be a number.*got 'x'"),
        (
            lambda: kx.unconstrain(eqx.tree_at(lambda m: m.noise, make(), jnp.array(-1.5))),
            ValueError,
            r"noise must be positive to be trained; got -1\.5",
        ),
        (
            lambda: kx.unconstrain(make())[1]({"noise": jnp.ones(())}),
            KeyError,
            r"keys \['kernels\[0\].*got \['noise'\]",
        ),
    ],
)
def test_bad_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()


def trained(**options):
    return [p.path for p in kx.parameters(make(), **options) if p.trainable]


def test_freezing_takes_functions_of_the_model():
    assert trained(freeze=lambda m: m.noise) == PATHS[:3]
    assert trained(freeze=lambda m: (m.kernels[0], m.variance)) == [PATHS[1], PATHS[3]]
    assert trained(freeze=("variance", lambda m: m.kernels)) == ["noise"]


def test_freezing_takes_a_tree_of_booleans():
    spec = jax.tree.map(lambda _: False, make())
    spec = eqx.tree_at(lambda m: (m.noise, m.kernels[1].lengthscale), spec, (True, True))
    assert trained(freeze=spec) == [PATHS[0], PATHS[2]]
    kernel = kx.RationalQuadratic(1.0, 2.0)
    spec = eqx.tree_at(lambda k: k.alpha, jax.tree.map(lambda _: False, kernel), True)
    raw, _ = kx.unconstrain(kernel, freeze=spec)
    assert list(raw) == ["lengthscale"]


@pytest.mark.parametrize(
    "share",
    [
        [("kernels[0].lengthscale", "kernels[1].lengthscale")],
        lambda m: (m.kernels[0].lengthscale, m.kernels[1].lengthscale),
        [lambda m: (m.kernels[0].lengthscale, m.kernels[1].lengthscale)],
    ],
    ids=["paths", "function", "functions"],
)
def test_shared_parameters_have_one_value(share):
    raw, build = kx.unconstrain(make(), share=share)
    assert list(raw) == [PATHS[0], *PATHS[2:]]
    moved = build({**raw, PATHS[0]: jnp.log(0.7)})
    assert moved.kernels[0].lengthscale.item() == pytest.approx(0.7)
    assert moved.kernels[1].lengthscale.item() == pytest.approx(0.7)
    assert "kernels[1].lengthscale  0.4    positive  as kernels[0].lengthscale" in repr(
        kx.parameters(make(), share=share)
    )
    slope = jax.grad(lambda r: -build(r).log_marginal_likelihood(Y))(raw)[PATHS[0]]
    both = jax.grad(lambda v: -kx.replace(make(), v).log_marginal_likelihood(Y))(
        {path: jnp.asarray(0.5) for path in PATHS[:2]}
    )
    assert slope.item() == pytest.approx(0.5 * sum(both.values()).item())


def test_what_shares_with_a_frozen_parameter_takes_its_value():
    raw, build = kx.unconstrain(make(), freeze=(PATHS[0],), share=[tuple(PATHS[:2])])
    assert list(raw) == PATHS[2:]
    assert build(raw).kernels[1].lengthscale.item() == 0.5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"freeze": 3}, TypeError, "freeze must be paths, functions .*; got 3"),
        ({"freeze": lambda m: 2.0}, ValueError, "function in freeze must return parameters"),
        ({"freeze": lambda m: ()}, ValueError, "must return parameters of the model"),
        ({"freeze": make()}, TypeError, "tree in freeze must have the structure .* a boolean"),
        ({"share": ["noise"]}, TypeError, "share must be groups of paths; got the path 'noise'"),
        ({"share": [("noise",)]}, ValueError, "two or more parameters; got \\['noise'\\]"),
        ({"share": [("noise", "nose")]}, KeyError, "'nose'.*Did you mean 'noise'"),
        (
            {"share": [("noise", "variance"), ("noise", PATHS[0])]},
            ValueError,
            "name each parameter once; got noise more often",
        ),
        (
            {"share": [("noise", "variance")], "domains": {"noise": constraints.real}},
            ValueError,
            "must have one domain; got real for noise and positive for variance",
        ),
    ],
)
def test_bad_selections_raise(options, error, match):
    with pytest.raises(error, match=match):
        kx.parameters(make(), **options)


def test_parameters_of_two_shapes_cannot_share():
    both = (kx.RBF(0.5), kx.RBF(np.ones(2)))
    gp = make(kernels=both, axes=(TIME, np.ones((4, 2))))
    with pytest.raises(ValueError, match=r"one shape; got \(\) for .*\[0\].* and \(2,\) for"):
        kx.parameters(gp, share=[tuple(PATHS[:2])])


def test_kernels_go_by_the_names_of_their_axes():
    """Their numbers follow the order of the axes, which that of a file may turn round."""
    kernels, axes = {"time": kx.Matern32(0.5), "space": kx.RBF(0.4)}, {"time": TIME, "space": SPACE}
    for names, y in ((("time", "space"), Y), (("space", "time"), Y.T)):
        gp = kx.GridGP(kernels, {name: axes[name] for name in names}, noise=0.1)
        path = f"kernels[{names.index('time')}].lengthscale"
        changed = kx.replace(gp, {"kernels['time'].lengthscale": 3.0})
        assert {p.path: p.value for p in kx.parameters(changed)}[path] == 3.0
        frozen = kx.parameters(gp, freeze=('kernels["time"]',))
        assert [p.path for p in frozen if not p.trainable] == [path]
        bounded = {"kernels['time'].lengthscale": constraints.interval(0, 2)}
        domains = {p.path: p.domain for p in kx.parameters(gp, domains=bounded)}
        assert domains[path] is bounded["kernels['time'].lengthscale"]
        both = ["kernels['time'].lengthscale", "kernels['space'].lengthscale"]
        shared = {p.path: p.source for p in kx.parameters(gp, share=[both])}
        assert shared[f"kernels[{names.index('space')}].lengthscale"] == path
        prior = {both[0]: dist.LogNormal(0.0, 1.0)}
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
            kx.sample_parameters("gp", gp, prior)
        assert list(trace) == [f"gp.{path}"]
        held = ("noise", "kernels['space']")
        result = kx.fit(gp, y, priors=prior, freeze=held, num_steps=1, progress=False)
        assert list(result.problem.priors) == [path]
        with pytest.raises(ValueError, match=r"kernels\[\d\]\.lengthscale was not: it is frozen"):
            kx.profile_likelihood(result, "kernels['space'].lengthscale")
        with pytest.raises(KeyError, match=r"There is no parameter .*tine"):
            kx.replace(gp, {"kernels['tine'].lengthscale": 1.0})


def test_tables_name_the_axes_of_kernels():
    x = np.linspace(0, 1, 4)
    kernels = {"time": kx.RBF(0.5), "site": kx.RBF(0.4) + kx.White(0.1)}
    gp = kx.GridGP(kernels, {"time": x, "site": x}, noise=0.1)
    table = kx.parameters(gp)
    rows = [line.split()[:2] for line in repr(table).splitlines()]
    assert rows[:3] == [
        ["parameter", "axis"],
        ["kernels[0].lengthscale", "time"],
        ["kernels[1].first.lengthscale", "site"],
    ]
    assert repr(table["noise"]).startswith("noise = 0.1")
    assert "<td>site</td>" in table._repr_html_()
    assert "axis" not in repr(kx.parameters(gp.kernels[0]))
    unnamed = kx.GridGP(tuple(gp.kernels), (x, x), noise=0.1)
    assert "axis" not in repr(kx.parameters(unnamed))
