"""The numbers of PyMC that `tests/test_porting.py` holds kronax to.

    PYTHON_WITH_PYMC tools/pymc_reference.py > tests/porting_pymc.json

PyMC is no dependency of the tests: they read the file, which names the version that made it.
"""

import json

import numpy as np
import pymc as pm
import pytensor

cov = pm.gp.cov
X, Z = np.array([0.0, 0.4, 1.1]), np.array([0.0, 0.7, 0.9, 2.0])
NEW_X, NEW_Z = np.array([0.2, 1.5]), np.array([0.5, 0.9, 3.0])
SIGMA, SHIFT, ETA = 0.4, 0.3, 1.5
Y = np.sin(1.0 + np.arange(12.0)) + 0.1 * np.arange(12.0)
# The covariance at a distance of 0.3, with PyMC's arguments as they are written.
KERNELS = {
    "ExpQuad(1, ls=0.5)": cov.ExpQuad(1, ls=0.5),
    "Matern52(1, ls=0.5)": cov.Matern52(1, ls=0.5),
    "Matern32(1, ls=0.5)": cov.Matern32(1, ls=0.5),
    "Matern12(1, ls=0.5)": cov.Matern12(1, ls=0.5),
    "Exponential(1, ls=0.5)": cov.Exponential(1, ls=0.5),
    "RatQuad(1, ls=0.5, alpha=2.0)": cov.RatQuad(1, ls=0.5, alpha=2.0),
    "Periodic(1, period=1.0, ls=0.5)": cov.Periodic(1, period=1.0, ls=0.5),
    "Cosine(1, ls=0.5)": cov.Cosine(1, ls=0.5),
    "Linear(1, c=0.2)": cov.Linear(1, c=0.2),
    "Constant(2.0)": cov.Constant(2.0),
    "1.5**2 * ExpQuad(1, ls=0.5)": ETA**2 * cov.ExpQuad(1, ls=0.5),
}


def columns(*axes):
    """Coordinates as PyMC has them."""
    return [x[:, None] for x in axes]


def kernels():
    """Each kernel at two points."""
    near = np.array([[0.0], [0.3]])
    return {name: float(k(near).eval()[0, 1]) for name, k in KERNELS.items()}


def matrices():
    """Kernels that are no function of a distance, as matrices."""
    weights, own = np.array([[1.0, 0.2], [0.5, -0.3], [0.1, 0.8]]), np.array([0.3, 0.5, 0.1])
    coregion, codes = cov.Coregion(1, W=weights, kappa=own), np.arange(3)[:, None]
    return {
        "Coregion(1, W=W, kappa=kappa)": coregion(codes).eval().tolist(),
        "WhiteNoise(0.3)": cov.WhiteNoise(0.3)(X[:, None]).eval().tolist(),
    }


def cov_funcs():
    """Different ones, on axes of different sizes: an order that is wrong shows."""
    return [ETA**2 * cov.Matern52(1, ls=0.6), cov.Periodic(1, period=1.7, ls=0.5)]


def densities():
    """`KroneckerNormal` from covariances, Cholesky factors and eigendecompositions."""
    covs = [f(x).eval() for f, x in zip(cov_funcs(), columns(X, Z), strict=True)]
    covs = [k + 0.2 * np.eye(len(k)) for k in covs]
    ways = {
        "covs": covs,
        "chols": [np.linalg.cholesky(k) for k in covs],
        "evds": [np.linalg.eigh(k) for k in covs],
    }
    mu = 0.1 * np.arange(12.0)
    return {
        f"{way}, sigma={sigma}": float(
            pm.logp(pm.KroneckerNormal.dist(mu, sigma=sigma, **{way: given}), Y).eval()
        )
        for way, given in ways.items()
        for sigma in (0.0, SIGMA)
    }


def marginal():
    """`MarginalKron`: likelihood, and predictions with and without noise."""
    new = pm.math.cartesian(NEW_X, NEW_Z)
    with pm.Model() as model:
        gp = pm.gp.MarginalKron(mean_func=pm.gp.mean.Constant(SHIFT), cov_funcs=cov_funcs())
        gp.marginal_likelihood("y", Xs=columns(X, Z), y=Y, sigma=SIGMA)
        mean, variance = gp.predict(new, diag=True)
        _, noisy = gp.predict(new, diag=True, pred_noise=True)
        _, covariance = gp.predict(new)
        _, noisy_covariance = gp.predict(new, pred_noise=True)
    return {
        "log_marginal_likelihood": float(model.compile_logp()({})),
        "mean": mean.tolist(),
        "variance": variance.tolist(),
        "variance, pred_noise=True": noisy.tolist(),
        "diagonal of covariance": np.diagonal(covariance).tolist(),
        "diagonal of covariance, pred_noise=True": np.diagonal(noisy_covariance).tolist(),
    }


def latent():
    """`LatentKron`: the field made of a white one, and the conditional given that field."""
    new = pm.math.cartesian(NEW_X, NEW_Z)
    with pm.Model() as model:
        gp = pm.gp.LatentKron(mean_func=pm.gp.mean.Constant(SHIFT), cov_funcs=cov_funcs())
        f = gp.prior("f", Xs=columns(X, Z))
        mean, covariance = gp._build_conditional(new, jitter=1e-6)
        function = pytensor.function([model["f_rotated_"]], [f, mean, covariance])
    field, mean, covariance = function(Y)
    return {
        "f": field.tolist(),
        "mean": mean.tolist(),
        "variance": np.diagonal(covariance).tolist(),
    }


if __name__ == "__main__":
    numbers = {
        "pymc": pm.__version__,
        "kernels": kernels(),
        "matrices": matrices(),
        "densities": densities(),
        "marginal": marginal(),
        "latent": latent(),
    }
    print(json.dumps(numbers, indent=1))
