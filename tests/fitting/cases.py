"""One small grid, its data and its model, shared so that fits share compiled loops."""

import jax
import numpy as np

import kronax as kx

TIME, SPACE = np.linspace(0, 1, 7), np.linspace(0, 2, 6)


def make(dtype=np.float64):
    """A model away from the optimum."""
    kernels = (kx.Matern52(dtype(0.3)), dtype(1.0) * kx.RBF(dtype(0.7)))
    return kx.GridGP(kernels, (TIME, SPACE), noise=dtype(0.3))


def draws(count=1):
    """Data sets from the same truth, `(count, 7, 6)`."""
    with jax.enable_x64(True):
        truth = kx.GridGP((kx.Matern52(0.5), 2.0 * kx.RBF(1.0)), (TIME, SPACE), noise=0.1)
        return np.asarray(truth.sample(jax.random.key(4), (count,), include_noise=True))


def fit(gp=None, y=None, **options):
    """A fit without a bar, of the first data set by default."""
    y = draws()[0] if y is None else y
    return kx.fit(make() if gp is None else gp, y, **{"progress": False, **options})


def natural(result):
    """The parameters of `make()`, by path."""
    return {p.path: np.asarray(p.value) for p in result.parameters}
