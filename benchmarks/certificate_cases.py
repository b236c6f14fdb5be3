"""Random small problems for the certificates: many of one shape, and their exact answers.

Truth is in extended precision (19 digits): at a signal over noise of 1e12 the dense answer in
float64 is off by more than what is tested.
"""

from typing import Any, NamedTuple

import numpy as np

GAPS = ("even", "uneven", "scattered", "block", "cut short")
MOST_RATIO, MOST_MISSING, LENGTHSCALES = 1e12, 0.7, (0.05, 2.0)
KERNELS = {
    "matern12": lambda r: np.exp(-r),
    "matern32": lambda r: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
    "matern52": lambda r: (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r),
    "rbf": lambda r: np.exp(-0.5 * r**2),
    "periodic": lambda r: np.exp(-2 * np.sin(np.pi * r) ** 2),
}
# For the derivative in the logarithm of a lengthscale, central differences in extended precision.
STEP = np.longdouble("1e-6")


class Shape(NamedTuple):
    """What is compiled once."""

    num_terms: int
    grid: tuple[int, ...]
    box_size: int
    num_probes: int


class Cases(NamedTuple):
    """Problems of one shape, stacked; infinite variances are gaps.

    Args:
        factors: per term and axis, `(c, n, n)`.
        slope: the derivative of the first of them by the logarithm of its lengthscale.
        variances: `(c, *grid)`.
        y: data drawn of the model, zero at gaps.
    """

    factors: list[list[np.ndarray]]
    slope: np.ndarray
    variances: np.ndarray
    y: np.ndarray


def draw_cases(shape: Shape, num_cases: int, seed: int) -> tuple[Cases, list[dict[str, Any]]]:
    """Problems sorted by their signal over noise, and what they are."""
    rng = np.random.default_rng(seed)
    ratios = np.sort(10 ** rng.uniform(0, np.log10(MOST_RATIO), num_cases))
    drawn = [_draw_case(rng, shape, ratio) for ratio in ratios]
    factors = [
        [np.stack([case[0][j][i] for case in drawn]) for i in range(len(shape.grid))]
        for j in range(shape.num_terms)
    ]
    slope, variances, y = (np.stack([case[k] for case in drawn]) for k in (1, 2, 3))
    kinds = [{"gaps": case[4], "ratio": float(r)} for case, r in zip(drawn, ratios, strict=True)]
    return Cases(factors, slope, variances, y), kinds


def _draw_case(rng: np.random.Generator, shape: Shape, ratio: float) -> tuple[Any, ...]:
    factors, slope = [], None
    for j in range(shape.num_terms):
        term = []
        for i, n in enumerate(shape.grid):
            kernel = KERNELS[rng.choice(list(KERNELS))]
            scale = np.exp(rng.uniform(*np.log(LENGTHSCALES)))
            amplitude = np.exp(rng.uniform(-3, 0)) if j and i == 0 else 1.0
            term.append(amplitude * _factor(kernel, n, scale))
            if slope is None:
                up, down = (_factor(kernel, n, scale * np.exp(s)) for s in (STEP, -STEP))
                slope = np.asarray((up - down) / (2 * STEP), float)
        factors.append([np.asarray(f, float) for f in term])
    gaps = rng.choice(GAPS)
    variances = np.full(shape.grid, 1 / ratio)
    if gaps != "even" and (gaps == "uneven" or rng.random() < 0.5):
        variances = variances * np.exp(rng.uniform(0, 3, shape.grid))
    variances[_missing(rng, gaps, shape.grid)] = np.inf
    y = sum(_draw(rng, term) for term in factors)
    finite = np.where(np.isinf(variances), 0, variances)
    y = np.where(np.isinf(variances), 0, y + np.sqrt(finite) * rng.standard_normal(shape.grid))
    return factors, slope, variances, y, str(gaps)


def _factor(kernel: Any, size: int, lengthscale: Any) -> np.ndarray:
    x = np.linspace(0, 1, size).astype(np.longdouble)
    return kernel(np.abs(x[:, None] - x) / lengthscale)


def _missing(rng: np.random.Generator, gaps: str, grid: tuple[int, ...]) -> np.ndarray:
    missing = np.zeros(grid, bool)
    if gaps == "scattered":
        missing = rng.random(grid) < rng.uniform(0, MOST_MISSING)
    elif gaps == "block":
        sides = [rng.integers(1, n) for n in grid]
        corner = [rng.integers(n - side + 1) for n, side in zip(grid, sides, strict=True)]
        missing[tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))] = True
    elif gaps == "cut short":
        missing = np.arange(grid[-1]) >= rng.integers(1, grid[-1] + 1, (*grid[:-1], 1))
    missing.flat[0] = False
    return missing


def _draw(rng: np.random.Generator, factors: list[np.ndarray]) -> np.ndarray:
    x = rng.standard_normal([f.shape[0] for f in factors])
    for i, factor in enumerate(factors):
        values, vectors = np.linalg.eigh(factor)
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        x = np.moveaxis(np.tensordot(root, x, axes=(1, i)), 0, i)
    return x


def exact(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Log densities `(c,)`, and gradients `(c, 3)` in a lengthscale, the signal and the noise."""
    count = len(cases.y)
    terms = [_kron(factors) for factors in cases.factors]
    slope = _kron([cases.slope, *cases.factors[0][1:]])
    variances = cases.variances.reshape(count, -1).astype(np.longdouble)
    seen = np.isfinite(variances)
    both = (seen[:, :, None] & seen[:, None]).astype(np.longdouble)
    identity = np.eye(seen.shape[1], dtype=np.longdouble)
    noise = np.where(seen, variances, 0)[:, :, None] * identity
    # The identity at the gaps changes nothing.
    matrix = both * sum(terms) + noise + np.where(seen, 0, 1)[:, :, None] * identity
    root = _cholesky(matrix)
    data = cases.y.reshape(count, -1, 1)
    columns = np.concatenate([data, np.broadcast_to(identity, matrix.shape)], -1)
    white = _substituted(root, columns)
    weights = np.einsum("cij,ci->cj", white[:, :, 1:], white[:, :, 0])
    inverse = np.einsum("cki,ckj->cij", white[:, :, 1:], white[:, :, 1:])
    logs = np.log(np.einsum("cii->ci", root)).sum(1)
    value = -0.5 * (white[:, :, 0] ** 2).sum(1) - logs - 0.5 * seen.sum(1) * np.log(2 * np.pi)
    by_matrix = 0.5 * (weights[:, :, None] * weights[:, None] - inverse)
    moved = [both * slope, both * sum(terms), noise]
    gradient = np.stack([(by_matrix * m).sum((1, 2)) for m in moved], -1)
    return value.astype(float), gradient.astype(float)


def _kron(factors: list[np.ndarray]) -> np.ndarray:
    whole = np.ones((len(factors[0]), 1, 1), np.longdouble)
    for factor in factors:
        product = whole[:, :, None, :, None] * factor[:, None, :, None, :]
        size = whole.shape[1] * factor.shape[1]
        whole = product.reshape(-1, size, size)
    return whole


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    root = np.zeros_like(matrix)
    for j in range(matrix.shape[1]):
        column = matrix[:, j:, j] - np.einsum("cik,ck->ci", root[:, j:, :j], root[:, j, :j])
        root[:, j:, j] = column / np.sqrt(column[:, :1])
    return root


def _substituted(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = b.astype(np.longdouble)
    for j in range(root.shape[1]):
        known = np.einsum("ck,ckm->cm", root[:, j, :j], x[:, :j])
        x[:, j] = (x[:, j] - known) / root[:, j, j, None]
    return x
