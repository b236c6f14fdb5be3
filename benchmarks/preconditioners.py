"""Iterations of conjugate gradients with gaps and uneven noise, by preconditioner.

Counted twice: until the residual of the system that is iterated, the preconditioned one, has
fallen by `TOLERANCE`, and until the solution has a relative error of `TOLERANCE` in the norm of
the covariance, against one that was iterated much further. Systems that measure their residuals
differently compare by the second. Kernels are Matérn-3/2, the data a draw of the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import kronax as kx
from benchmarks.measure import save
from kronax.linalg.arrays.mode_products import outer
from kronax.linalg.functions.solve import solve_grid
from kronax.linalg.krylov.preconditioner import Reference, balanced_box, even, reference

SIZE, LENGTHSCALES = 120, (0.2, 0.3)
QUICK_SIZE = 48
NOISES = (1e-1, 1e-2, 1e-4)
BOXES = (1, 100, 400, 900)
RANKS = (100, 900)
PIVOTS = 15
BLOCK = 24
TOLERANCE, MAX_STEPS = 1e-5, 5000
# What the solutions are compared with, on the largest box.
EXACT = 1e-13
FIELDS = ("10 % at random", "50 % at random", "blocks 24×24", "uneven noise")


class System(NamedTuple):
    """What is iterated: `mv` and `precondition` of symmetric operators, `b`, the way to cells."""

    mv: Callable[[Any], Any]
    precondition: Callable[[Any], Any]
    b: Any
    solution: Callable[[Any], Any]


class Found(NamedTuple):
    """Where the iteration ended, and how many steps it took to either end."""

    x: Any
    to_residual: Any
    to_error: Any


def variances(field: str, noise: float, shape: tuple[int, int]) -> np.ndarray:
    """Noise of every cell, infinite at gaps."""
    rng = np.random.default_rng(0)
    even_noise = np.full(shape, noise)
    if field == "uneven noise":
        return noise * np.exp(np.log(10) * rng.standard_normal(shape))
    if field.startswith("blocks"):
        missing = np.zeros(shape, bool)
        for top, left in ((0.1, 0.1), (0.5, 0.05), (0.75, 0.7), (0.2, 0.55)):
            i, j = int(top * shape[0]), int(left * shape[1])
            missing[i : i + BLOCK, j : j + BLOCK] = True
    else:
        missing = rng.random(shape) < (0.1 if field.startswith("10") else 0.5)
    return np.where(missing, np.inf, even_noise)


def operator(field: str, noise: float, size: int) -> kx.KroneckerPlusDiagonal:
    """A signal of variance one and the noise of a field."""
    x = np.linspace(0, 1, size)
    factors = []
    for scale in LENGTHSCALES:
        r = np.abs(x[:, None] - x) * np.sqrt(3) / scale
        factors.append((1 + r) * np.exp(-r))
    return kx.KroneckerPlusDiagonal(kx.Kronecker(*factors), variances(field, noise, (size, size)))


def by_reference(op: kx.KroneckerPlusDiagonal, y: Any, box: int) -> System:
    """What kronax does: the reference of the grid, exact on a box of the spectrum."""
    held: Reference = reference(
        even(op.kronecker, op.precisions), op.precisions, balanced_box(op.grid_shape, box)
    )
    return System(
        mv=lambda x: held.mv(x[None])[0],
        precondition=lambda x: x,
        b=held.filtered_transpose((op.precisions * y)[None])[0],
        solution=lambda x: op.precisions * (y - held.filtered(x[None])[0]),
    )


def in_cells(op: kx.KroneckerPlusDiagonal, y: Any, precondition: Callable[[Any], Any]) -> System:
    """The covariance itself, with something that is close to its inverse."""
    return System(op.mv_grid, lambda x: op.held(precondition(op.held(x))), y, lambda x: x)


def noisy_inverse(op: kx.KroneckerPlusDiagonal) -> Callable[[Any], Any]:
    """`(K + s)⁻¹` of the whole grid; s is the mean of the noise, in logarithms."""
    logs = jnp.where(op.observed, jnp.log(op.held(op.variances) + ~op.observed), 0)
    noise = jnp.exp(jnp.sum(logs) / jnp.sum(op.observed))
    whole = kx.KroneckerPlusNoise(op.kronecker, noise)
    return lambda x: solve_grid(whole, x)


def low_rank(op: kx.KroneckerPlusDiagonal, columns: Any) -> Callable[[Any], Any]:
    """The inverse of the noise plus `columnsᵀ columns`, by Woodbury's identity."""
    u = jnp.where(op.observed, columns, 0).reshape(len(columns), -1)
    w = op.precisions.ravel()
    inner = jnp.linalg.cholesky(jnp.eye(len(u)) + (u * w) @ u.T)

    def apply(x: Any) -> Any:
        scaled = w * x.ravel()
        inside = jax.scipy.linalg.cho_solve((inner, True), u @ scaled)
        return (scaled - w * (u.T @ inside)).reshape(x.shape)

    return apply


def largest_eigenvectors(op: kx.KroneckerPlusDiagonal, rank: int) -> Any:
    """Those of the signal, times the roots of their eigenvalues."""
    first, second = (jnp.linalg.eigh(f.to_dense()) for f in op.factors)
    spectrum = outer([first[0], second[0]])
    i, j = jnp.unravel_index(jnp.argsort(-spectrum.ravel())[:rank], spectrum.shape)
    scale = jnp.sqrt(spectrum[i, j])
    return scale[:, None, None] * first[1].T[i][:, :, None] * second[1].T[j][:, None, :]


def pivoted_cholesky(op: kx.KroneckerPlusDiagonal, rank: int) -> Any:
    """Columns of the Cholesky factor of the signal at observed cells, the largest pivot first."""
    first, second = (np.asarray(f.to_dense()) for f in op.factors)
    observed = np.asarray(op.observed)
    left = np.where(observed, np.outer(np.diag(first), np.diag(second)), 0.0)
    columns = np.zeros((rank, *left.shape))
    for k in range(rank):
        i, j = np.unravel_index(np.argmax(left), left.shape)
        column = np.outer(first[i], second[j]) - np.tensordot(columns[:k, i, j], columns[:k], 1)
        columns[k] = np.where(observed, column, 0) / np.sqrt(left[i, j])
        left = left - columns[k] ** 2
    return jnp.asarray(columns)


def systems(op: kx.KroneckerPlusDiagonal, y: Any) -> dict[str, Callable[[], System]]:
    """What is compared, by name."""
    diagonal = op.diagonal() + ~op.observed
    found: dict[str, Callable[[], System]] = {
        "none": lambda: in_cells(op, y, lambda x: x),
        "diagonal": lambda: in_cells(op, y, lambda x: x / diagonal),
        f"pivoted Cholesky, rank {PIVOTS}": lambda: in_cells(
            op, y, low_rank(op, pivoted_cholesky(op, PIVOTS))
        ),
    }
    for rank in RANKS:
        found[f"eigenvectors, rank {rank}"] = lambda rank=rank: in_cells(
            op, y, low_rank(op, largest_eigenvectors(op, rank))
        )
    found["Kronecker inverse"] = lambda: in_cells(op, y, noisy_inverse(op))
    for box in BOXES:
        found[f"reference, box {box}"] = lambda box=box: by_reference(op, y, box)
    return found


def iterate(system: System, error: Callable[[Any], Any], tolerance: float) -> Found:
    """Preconditioned conjugate gradients until residual and error are both below the tolerance.

    The residual is that of the preconditioned system, relative to the first; `error` is a function
    of the solution.
    """

    @jax.jit
    def run(b: Any) -> Found:
        z = system.precondition(b)
        first = jnp.vdot(b, z)

        def going(state: Any) -> Any:
            step, ends = state[0], state[-1]
            return (step < MAX_STEPS) & jnp.any(ends == MAX_STEPS)

        def body(state: Any) -> Any:
            step, x, r, p, gamma, ends = state
            q = system.mv(p)
            alpha = gamma / jnp.vdot(p, q)
            x, r = x + alpha * p, r - alpha * q
            z = system.precondition(r)
            new = jnp.vdot(r, z)
            is_below = jnp.array(
                [new <= tolerance**2 * first, error(system.solution(x)) <= tolerance]
            )
            ends = jnp.where(is_below, jnp.minimum(ends, step + 1), ends)
            return step + 1, x, r, z + new / gamma * p, new, ends

        ends = jnp.array([MAX_STEPS, MAX_STEPS])
        start = (0, jnp.zeros_like(b), b, z, first, ends)
        _, x, *_, ends = lax.while_loop(going, body, start)
        return Found(x, *ends)

    return run(system.b)


def measure(field: str, noise: float, size: int) -> list[dict[str, Any]]:
    """One row per preconditioner."""
    op = operator(field, noise, size)
    y = op.draw(jax.random.key(1), ())
    candidates = systems(op, y)
    best = candidates[f"reference, box {BOXES[-1]}"]()
    exact = best.solution(iterate(best, lambda x: 0.0, EXACT).x)
    norm = jnp.vdot(exact, op.mv_grid(exact))

    def error(x: Any) -> Any:
        return jnp.sqrt(jnp.vdot(x - exact, op.mv_grid(x - exact)) / norm)

    rows = []
    for name, make in candidates.items():
        system = make()
        found = iterate(system, error, TOLERANCE)
        row = {
            "field": field,
            "noise": noise,
            "shape": op.grid_shape,
            "preconditioner": name,
            "steps_to_error": _steps(found.to_error),
            "steps_to_residual": _steps(found.to_residual),
        }
        rows.append(row)
    return rows


def _steps(count: Any) -> int | None:
    """None where the end was not reached."""
    return int(count) if int(count) < MAX_STEPS else None


def run(quick: bool) -> None:
    """Every field and noise."""
    rows: list[dict[str, Any]] = []
    size = QUICK_SIZE if quick else SIZE
    for field in FIELDS:
        for noise in NOISES[:1] if quick else NOISES:
            new = measure(field, noise, size)
            rows += new
            counts = ", ".join(
                f"{r['preconditioner']}: {r['steps_to_error']} ({r['steps_to_residual']})"
                for r in new
            )
            print(f"{field}, {noise:g}: {counts}", flush=True)
    notes = {"lengthscales": LENGTHSCALES, "tolerance": TOLERANCE, "max_steps": MAX_STEPS}
    save("preconditioners", rows, quick, **notes)
