"""Rewritten NumPyro models, and the distributions in them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.util import initialize_model, log_density

import kronax as kx
from tests.everyday import everyday
from tests.tolerances import assert_close

M, N = 5, 8
SIZE = M * N
X1, X2 = jnp.linspace(0.0, 1.0, M), jnp.linspace(0.0, 2.0, N)
RNG = np.random.default_rng(5)
Y = jnp.asarray(RNG.normal(size=SIZE))
NORMAL = dist.MultivariateNormal


@pytest.fixture(autouse=True)
def _ranks():
    """NumPyro adds axes by itself."""
    with jax.numpy_rank_promotion("allow"):
        yield


def _kernel(x, lengthscale):
    lags = (x[:, None] - x[None, :]) / lengthscale
    return jnp.exp(-0.5 * lags**2) + 0.1 * jnp.eye(len(x))


A, B = _kernel(X1, 0.4), _kernel(X2, 0.6)


def _product(a, b):
    return jnp.kron(a, b)


def _noisy(a, b):
    return jnp.kron(a, b) + 0.3 * jnp.eye(SIZE)


def _roots(a, b):
    return jnp.kron(jnp.linalg.cholesky(a), jnp.linalg.cholesky(b))


def _root(a, b):
    return jnp.linalg.cholesky(_noisy(a, b))


PARAMETERS = {
    "covariance": ("covariance_matrix", _product),
    "covariance, noise": ("covariance_matrix", _noisy),
    "precision": ("precision_matrix", _product),
    "precision, noise": ("precision_matrix", _noisy),
    "root": ("scale_tril", _roots),
    "root, noise": ("scale_tril", _root),
}


@pytest.mark.parametrize("name", everyday(PARAMETERS, ("precision, noise", "root")))
def test_a_normal_from_what_it_takes(name):
    parameter, made = PARAMETERS[name]
    loc = jnp.full(SIZE, 0.5)

    def density(a, b):
        normal = NORMAL(loc, **{parameter: made(a, b)})
        return normal.log_prob(Y), normal.entropy(), normal.variance

    def draws(a, b):
        return NORMAL(loc, **{parameter: made(a, b)}).sample(jax.random.key(0), (3,))

    fast = jax.jit(kx.rewrite(density, strict=True))
    jax.tree.map(assert_close, fast(A, B), jax.jit(density)(A, B))
    expected = jax.jit(draws)(A, B)
    if "noise" not in name:
        assert_close(jax.jit(kx.rewrite(draws, strict=True))(A, B), expected)
        return
    with pytest.warns(kx.DenseProductWarning, match="kron"):
        assert_close(jax.jit(kx.rewrite(draws))(A, B), expected)


@pytest.mark.parametrize("name", ["covariance, noise", "precision, noise"])
def test_other_draws_have_the_same_distribution(name):
    """All of it: a draw is linear in white numbers, by a root of the covariance."""
    parameter, made = PARAMETERS[name]

    def coloured(a, b):
        normal = NORMAL(jnp.zeros(SIZE), **{parameter: made(a, b)})
        return (normal.scale_tril @ jnp.eye(SIZE)[:, :, None])[..., 0]

    def root_times(a, b):
        normal = NORMAL(jnp.zeros(SIZE), **{parameter: made(a, b)})
        return normal.scale_tril @ WHITE

    fast = kx.rewrite(root_times, strict=True, same_draws=False)
    found, matrix = map(np.asarray, jax.jit(lambda a, b: (fast(a, b), made(a, b)))(A, B))
    assert_close(found @ found.T, matrix if "covariance" in name else np.linalg.inv(matrix))
    text = jax.jit(lambda a, b: fast(a, b)[:, 0]).lower(A, B).as_text()
    assert "cholesky" not in text


WHITE = jnp.asarray(np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0])


def test_other_draws_are_consistent_with_what_whitens_them():
    def program(a, b):
        root = jnp.linalg.cholesky(_noisy(a, b))
        white = jax.scipy.linalg.solve_triangular(root, Y, lower=True)
        return root @ white, white @ white, white

    fast = kx.rewrite(program, strict=True, same_draws=False)
    same, squared, white = map(np.asarray, jax.jit(fast)(A, B))
    assert_close(same, Y)
    assert_close(white @ white, squared)
    matrix = np.kron(A, B) + 0.3 * np.eye(SIZE)
    assert_close(squared, np.asarray(Y) @ np.linalg.solve(matrix, Y))


def model(y=None):
    lengthscale = numpyro.sample("lengthscale", dist.LogNormal(-1.0, 0.5))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("levels", 2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    squared = numpyro.deterministic("squared", lengthscale**2)
    product = jnp.kron(_kernel(X1, lengthscale), _kernel(X2, squared))
    covariance = product + (0.1 + noise) * jnp.eye(SIZE)
    return numpyro.sample("y", NORMAL(level[:1], covariance), obs=y)


fast_model = kx.rewrite(model, strict=True)
POINT = {
    "lengthscale": jnp.asarray(0.3),
    "noise": jnp.asarray(0.5),
    "level": jnp.array([0.1, 0.2]),
}


def test_a_rewritten_model_has_the_sites_and_the_density_of_the_model():
    def of(function):
        kept = {}

        def density(point):
            value, sites = log_density(function, (Y,), {}, point)
            kept.update({name: dict(site) for name, site in sites.items()})
            return value, {name: site["value"] for name, site in sites.items()}

        found, slope = jax.jit(jax.value_and_grad(density, has_aux=True))(POINT)
        for name, value in found[1].items():
            kept[name]["value"] = value
        return (found[0], slope), kept

    (found, ours), (expected, theirs) = of(fast_model), of(model)
    jax.tree.map(assert_close, found, expected)
    assert list(ours) == list(theirs)
    for name, site in theirs.items():
        assert ours[name]["type"] == site["type"]
        assert ours[name].get("is_observed") == site.get("is_observed")
        assert ours[name]["cond_indep_stack"] == site["cond_indep_stack"]
        np.testing.assert_allclose(ours[name]["value"], site["value"], rtol=1e-12)


def test_no_array_of_the_size_of_the_product_is_in_the_program_of_a_model():
    slope = jax.jit(jax.grad(lambda p: log_density(fast_model, (Y,), {}, p)[0]))
    assert f"{SIZE}x{SIZE}x" not in slope.lower(POINT).as_text()


def _potential(function):
    """What samplers start from."""

    @jax.jit
    def both(key):
        found = initialize_model(key, function, model_args=(Y,))
        return found.param_info.z, found.potential_fn(found.param_info.z)

    return both(jax.random.key(0))


def _posterior(function):
    sampler = MCMC(NUTS(function), num_warmup=8, num_samples=8, progress_bar=False)
    sampler.run(jax.random.key(0), Y)
    return sampler.get_samples()


def _losses(function):
    guide = autoguide.AutoNormal(function)
    svi = SVI(function, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    return svi.run(jax.random.key(0), 3, Y, progress_bar=False).losses


@pytest.mark.parametrize(
    "inferred", everyday([_potential, _posterior, _losses], [_potential]), ids=lambda f: f.__name__
)
def test_inference_takes_a_rewritten_model(inferred):
    found, expected = inferred(fast_model), inferred(model)
    jax.tree.map(lambda got, want: assert_close(got, want, 2), found, expected)


def test_predictions_of_a_rewritten_model():
    samples = {name: jnp.stack([value, 1.1 * value]) for name, value in POINT.items()}
    with pytest.warns(kx.DenseProductWarning, match=r"`sample\('y'\)` at .*test_rewrite_models.py"):
        found = Predictive(kx.rewrite(model), samples)(jax.random.key(1))
    expected = Predictive(model, samples)(jax.random.key(1))
    jax.tree.map(assert_close, found, expected)
    other = kx.rewrite(model, strict=True, same_draws=False)
    drawn = Predictive(other, samples)(jax.random.key(1))
    assert drawn["y"].shape == (2, SIZE)
    assert_close(drawn["squared"], expected["squared"])


def test_handlers_reach_the_sites_of_a_rewritten_model():
    other = kx.rewrite(model, strict=True, same_draws=False)

    def trace(function):
        held = handlers.condition(function, {"lengthscale": jnp.asarray(0.2)})
        masked = handlers.mask(handlers.scale(held, 2.0), True)
        return handlers.trace(handlers.seed(masked, 0)).get_trace()

    @jax.jit
    def values():
        ours, theirs = trace(other), trace(model)
        assert ours["lengthscale"]["is_observed"]
        assert ours["noise"]["scale"] == theirs["noise"]["scale"] == 2.0
        pairs = [(ours[name]["value"], theirs[name]["value"]) for name in ("noise", "level")]
        return pairs, ours["y"]["fn"].log_prob(ours["y"]["value"])

    pairs, log_prob = values()
    for found, expected in pairs:
        assert_close(found, expected)
    assert np.isfinite(log_prob)


def test_a_latent_field_and_its_mixture_of_plates_and_batches():
    def latent(y):
        scale = numpyro.param("scale", 1.5, constraint=dist.constraints.positive)
        field = numpyro.sample("field", NORMAL(jnp.zeros(SIZE), scale * _product(A, B)))
        with numpyro.plate("cells", SIZE) as cell:
            numpyro.sample("y", dist.Normal(field[cell], 0.5), obs=y)
        numpyro.factor("penalty", -0.1 * scale)
        with numpyro.plate("fields", 2):
            numpyro.sample("more", NORMAL(jnp.zeros(SIZE), _noisy(A, B)), obs=jnp.stack([Y, 2 * Y]))

    point = {"scale": jnp.asarray(1.2), "field": 0.5 * Y}

    def of(function):
        traced = handlers.trace(handlers.seed(function, 0)).get_trace(Y)
        return log_density(function, (Y,), {}, point)[0], traced["field"]["value"]

    fast = kx.rewrite(latent, strict=True)
    found, expected = (jax.jit(of, static_argnums=0)(function) for function in (fast, latent))
    jax.tree.map(assert_close, found, expected)


def test_a_site_in_a_plate_outside_of_the_model():
    def row():
        return numpyro.sample("f", NORMAL(jnp.zeros(SIZE), _product(A, B)))

    def rows(function):
        def outer():
            with numpyro.plate("rows", 3):
                return function()

        return jax.jit(handlers.seed(outer, 0))()

    assert_close(rows(kx.rewrite(row, strict=True)), rows(row))


def test_what_a_model_cannot_have():
    def looped():
        numpyro.contrib.control_flow.scan(lambda c, _: (c, c), 0.0, None, length=2)

    import numpyro.contrib.control_flow

    with pytest.raises(NotImplementedError, match=r"numpyro\.factor"):
        handlers.seed(kx.rewrite(looped), 0)()
    with pytest.raises(ValueError, match=r"The site 'level' .* must have the shape \(2,\)"):
        log_density(fast_model, (Y,), {}, {**POINT, "level": jnp.zeros(3)})


def test_explain_tells_of_the_densities_of_a_model():
    text = fast_model.explain(Y)
    assert "sample('y')" in text
    assert "kx.inv_quad" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(handlers.seed(fast_model, 0))(Y)
