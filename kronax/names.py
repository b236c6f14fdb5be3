"""Names: those that are for users, which completion lists, and those that they may try instead."""

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from kronax.display import Shown
from kronax.paths import closest

# What other libraries call it, and what it is here.
ELSEWHERE = {
    "GP": "kx.GridGP",
    "GaussianProcess": "kx.GridGP",
    "GPRegression": "kx.GridGP",
    "GaussianProcessRegressor": "kx.GridGP, or kx.sklearn.GridRegressor in pipelines",
    "GridRegressor": "kx.sklearn.GridRegressor",
    "MultitaskGP": "kx.GridGP with kx.Categorical on the axis of the tasks",
    "Matern": "kx.Matern12, kx.Matern32 or kx.Matern52, by its smoothness",
    "Exponential": "kx.Matern12",
    "OrnsteinUhlenbeck": "kx.Matern12",
    "OU": "kx.Matern12",
    "ExpQuad": "kx.RBF",
    "SE": "kx.RBF",
    "SquaredExp": "kx.RBF",
    "ExponentiatedQuadratic": "kx.RBF",
    "ExpSineSquared": "kx.Periodic",
    "RQ": "kx.RationalQuadratic",
    "Bias": "kx.Constant",
    "WhiteKernel": "kx.White",
    "WhiteNoise": "kx.White, or `noise=` of kx.GridGP",
    "Coregionalization": "kx.Categorical",
    "Coregion": "kx.Categorical",
    "Index": "kx.Categorical",
    "ScaleKernel": "a number times a kernel, 2.0 * kx.RBF(0.3)",
    "Sum": "k1 + k2",
    "Product": "k1 * k2",
    "Gaussian": "`noise=` of kx.GridGP, the variance of normal data; as a kernel it is kx.RBF",
    "Normal": "`noise=` of kx.GridGP, the variance of normal data",
    "GaussianLikelihood": "`noise=` of kx.GridGP, the variance of normal data",
    "Logistic": "kx.Bernoulli",
    "train": "kx.fit(gp, y)",
    "optimize": "kx.fit(gp, y)",
    "minimize": "kx.fit(model, loss=…)",
    "predict": "gp.condition(y), then .mean(axes=…) and .variance(axes=…)",
    "condition": "gp.condition(y)",
    "posterior": "gp.condition(y)",
    "from_xarray": "kx.GridGP.from_xarray",
    "from_frame": "kx.GridGP.from_frame",
    "from_pandas": "kx.GridGP.from_frame",
    "dump": "kx.save",
    "kron": "kx.Kronecker",
    "KroneckerProduct": "kx.Kronecker",
    "cho_solve": "kx.solve",
    "slogdet": "kx.logdet",
    "MultivariateNormal": "kx.KroneckerNormal",
    "MatrixNormal": "kx.KroneckerNormal",
    "plot": "kx.plot_series, kx.plot_maps, kx.plot_kernels, …",
}

# Packages that are imported when they are asked for, as they subclass classes of an extra.
ROOMS = {"sklearn": "scikit-learn"}


class Named(Shown):
    """A mixin: completion leaves out what is internal, and a guessed name is told the right one.

    Class variables say which, of this class beside those of its bases: `_internal` names that are
    for the library, `_guesses` what users may try, with what it is here.
    """

    _internal: ClassVar[frozenset[str]] = frozenset()
    _guesses: ClassVar[Mapping[str, str]] = {}

    def __dir__(self) -> list[str]:
        hidden = frozenset[str]().union(*_declared(type(self), "_internal"))
        return [name for name in super().__dir__() if name not in hidden]

    if not TYPE_CHECKING:  # which would take every name for one that exists

        def __getattr__(self, name: str) -> Any:
            known = [names[name] for names in _declared(type(self), "_guesses") if name in names]
            hint = f" It is {known[0]}." if known else ""
            raise AttributeError(
                f"A {type(self).__name__} has no attribute {name!r}.{hint}", name=name, obj=self
            )


def words(text: str) -> frozenset[str]:
    """The names in a text."""
    return frozenset(text.split())


def _declared(cls: type, what: str) -> list[Any]:
    return [vars(base)[what] for base in cls.__mro__ if what in vars(base)]


def public_names() -> list[str]:
    """What `dir(kronax)` lists."""
    package = vars(sys.modules[_PACKAGE])
    return [*package["__all__"], *(name for name in package if name.startswith("__"))]


def _unknown(name: str) -> Any:
    """What becomes of a name that the package does not have."""
    known = vars(sys.modules[_PACKAGE]).get("__all__", ())
    if name in ROOMS:
        return _room(name)
    if name in ELSEWHERE:
        hint = f" It is {ELSEWHERE[name]}."
    else:
        found = None if name.startswith("_") else closest(name, known, cutoff=0.6)
        hint = f" Did you mean kx.{found}?" if found else ""
    raise AttributeError(f"kronax has no {name!r}.{hint}")


def _room(name: str) -> Any:
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise ImportError(
            f'kx.{name} needs {ROOMS[name]}, which is not installed: pip install "kronax[{name}]".'
        ) from error


_PACKAGE = __name__.partition(".")[0]
# Set from here, where type checkers do not see it: they would take every name for one that exists.
vars(sys.modules[_PACKAGE])["__getattr__"] = _unknown
