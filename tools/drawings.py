"""Draws the pictures of "How it works": `python tools/drawings.py` writes docs/images/*.svg."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.45"


def save(figure, name):
    """Text stays text, and a picture is the same each time that it is drawn."""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def smooth(n, lengthscale):
    x = np.linspace(0, 1, n)
    return np.exp(-0.5 * ((x[:, None] - x) / lengthscale) ** 2)


def rough(n, lengthscale):
    x = np.linspace(0, 1, n)
    return np.exp(-np.abs(x[:, None] - x) / lengthscale)


def product():
    """Two small matrices and the large one that nobody needs."""
    first, second = rough(5, 0.5), smooth(6, 0.4)
    figure, panels = plt.subplots(
        1, 3, figsize=(8, 3.4), width_ratios=(1, 1.2, 3), layout="constrained"
    )
    titles = "$K_1$: 5 × 5", "$K_2$: 6 × 6", "$K_1 \\otimes K_2$: 30 × 30, never built"
    for panel, title, matrix in zip(
        panels, titles, (first, second, np.kron(first, second)), strict=True
    ):
        panel.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        panel.set(xticks=[], yticks=[])
        panel.set_title(title, fontsize=10)
    for edge in np.arange(1, 5) * 6 - 0.5:
        panels[2].axhline(edge, color=GREY, linewidth=0.6)
        panels[2].axvline(edge, color=GREY, linewidth=0.6)
    save(figure, "product")


def spectrum():
    """Eigenvalues of a product plus noise: an outer product and a floor."""
    values = [np.linalg.eigvalsh(k)[::-1] for k in (rough(12, 0.4), smooth(16, 0.2))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    image = left.imshow(np.log10(np.outer(*values) + 1e-3), cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=left, label="log₁₀")
    left.set(xlabel="eigenvalue of $K_2$", ylabel="eigenvalue of $K_1$")
    left.set_title(
        "$\\lambda_1 \\otimes \\lambda_2 + \\sigma^2$: the whole covariance", fontsize=10
    )
    sorted_values = np.sort(np.outer(*values).ravel())[::-1]
    right.semilogy(np.maximum(sorted_values, 1e-8), color=BLUE, label="signal")
    right.axhline(1e-3, color=ORANGE, label="noise $\\sigma^2$")
    right.semilogy(sorted_values + 1e-3, color="k", linewidth=0.8, label="sum")
    right.set(xlabel="number", ylim=(1e-8, None))
    right.set_title("in order", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    save(figure, "spectrum")


def derivative():
    """What the derivative of `eigh` divides by, and what the closed form does."""
    gaps = np.geomspace(1e-16, 1, 200)
    figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
    panel.loglog(
        gaps,
        1 / gaps,
        color=ORANGE,
        label="derivative of eigenvectors: $1/(\\lambda_i-\\lambda_j)$",
    )
    closed = np.where(gaps > 1e-8, np.log1p(gaps) / gaps, 1.0)
    panel.loglog(
        gaps,
        closed,
        color=BLUE,
        label="divided difference: $(\\log\\lambda_i-\\log\\lambda_j)/(\\lambda_i-\\lambda_j)$",
    )
    panel.axvspan(1e-16, 1e-13, color="0.9")
    panel.text(1.5e-16, 1e5, "neighbours in\na smooth kernel", fontsize=8, color=GREY)
    panel.set(xlabel="distance of two eigenvalues near 1", ylim=(0.1, 1e17), xlim=(1e-16, 1))
    panel.legend(frameon=False, fontsize=9, loc="upper right")
    save(figure, "derivative")


def gaps():
    """Where the missing cells lie decides what they cost."""
    rng = np.random.default_rng(1)
    masks = [rng.random((12, 20)) < 0.12, np.zeros((12, 20), bool), np.zeros((12, 20), bool)]
    masks[1][:, 7:10] = True
    masks[2][[2, 3, 6, 9], :] = True
    masks[2][4:6, :] = rng.random((2, 1)) < 0.5
    titles = (
        "scattered: one matrix\nof all gaps",
        "whole times: the axis\nis shorter, no cost",
        "land, the same at all times:\none small problem per eigenvalue",
    )
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.5), layout="constrained")
    for panel, title, mask in zip(panels, titles, masks, strict=True):
        panel.pcolormesh(mask, cmap="Blues", vmax=1.4, edgecolors="w", linewidth=0.5)
        panel.set(xticks=[], yticks=[], xlabel="time", ylabel="place", aspect="equal")
        panel.set_title(title, fontsize=9)
    save(figure, "gaps")


def chain():
    """A filter along time carries a state of a few numbers."""
    figure, panel = plt.subplots(figsize=(8, 2.2), layout="constrained")
    for i in range(5):
        panel.add_patch(
            plt.Circle((2 * i, 1), 0.45, facecolor="white", edgecolor=BLUE, linewidth=1.5)
        )
        panel.text(2 * i, 1, f"$s_{i + 1}$", ha="center", va="center")
        seen = i != 2
        panel.text(
            2 * i,
            -0.55,
            f"$y_{i + 1}$" if seen else "gap",
            ha="center",
            va="center",
            color="k" if seen else GREY,
        )
        if seen:
            panel.annotate(
                "", (2 * i, -0.25), (2 * i, 0.5), arrowprops={"arrowstyle": "->", "color": GREY}
            )
        if i < 4:
            panel.annotate("", (2 * i + 1.5, 1), (2 * i + 0.5, 1), arrowprops={"arrowstyle": "->"})
            panel.text(
                2 * i + 1, 1.2, f"$A(t_{i + 2}-t_{i + 1})$", ha="center", fontsize=8, color=GREY
            )
    panel.set(xlim=(-0.8, 8.8), ylim=(-0.9, 1.7), aspect="equal")
    panel.axis("off")
    save(figure, "chain")


def site():
    """One cell's likelihood and the normal density that stands for it."""
    f = np.linspace(-3, 4, 400)
    prior = np.exp(-0.5 * f**2)
    likelihood = np.exp(3 * f - np.exp(f))
    likelihood /= likelihood.max()
    posterior = prior * likelihood
    mode = f[posterior.argmax()]
    precision = 1 + np.exp(mode)
    normal = np.exp(-0.5 * precision * (f - mode) ** 2)
    centre = mode + (3 - np.exp(mode)) / np.exp(mode)
    figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
    panel.fill_between(f, prior, color="0.9", label="prior of the cell")
    panel.plot(f, likelihood, color=ORANGE, label="likelihood of three deaths")
    panel.plot(
        f, np.exp(-0.5 * np.exp(mode) * (f - centre) ** 2), color=ORANGE, ls="--", label="its site"
    )
    panel.plot(f, posterior / posterior.max(), color=BLUE, label="posterior")
    panel.plot(f, normal, color=BLUE, ls="--", label="prior × site")
    panel.set(xlabel="logarithm of the rate, $f$", yticks=[])
    panel.legend(frameon=False, fontsize=8)
    save(figure, "site")


def choosing():
    """From the data to the way of solving, as a tree of questions."""
    figure, panel = plt.subplots(figsize=(9, 5.4))
    panel.set(xlim=(0, 18), ylim=(0, 10.8))
    panel.axis("off")

    def box(x, y, text, colour, width=3.9):
        panel.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - 0.5),
                width,
                1.0,
                boxstyle="round,pad=0.06",
                facecolor=colour,
                edgecolor="0.3",
                linewidth=0.8,
            )
        )
        panel.text(x, y, text, ha="center", va="center", fontsize=8)

    def arrow(start, end, text=""):
        panel.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        panel.text(middle[0] + 0.1, middle[1] + 0.12, text, fontsize=8, color=BLUE)

    question, answer = "0.95", "#d6e6f5"
    box(3, 10, "Data normal?", question)
    box(9, 10, "Sites: the same ways,\na few times", answer)
    arrow((5, 10), (7, 10), "no")
    box(3, 8, "Is a long axis Markov,\nthe rest short?", question)
    arrow((3, 9.45), (3, 8.55), "yes")
    box(9, 8, "Filter along it,\nany gaps, exact", answer)
    arrow((5, 8), (7, 8), "yes")
    box(3, 6, "Grid complete,\nnoise along axes?", question)
    arrow((3, 7.45), (3, 6.55), "no")
    box(9, 6, "One product, or two:\neigenbasis of every axis", answer)
    arrow((5, 6), (7, 6), "yes")
    box(15, 6, "per axis: Fourier, two halves,\nlow rank, or dense", answer, 4.6)
    arrow((11, 6), (12.6, 6))
    box(3, 4, "Some 2 000 cells observed,\nor few gaps?", question, 4.4)
    arrow((3, 5.45), (3, 4.55), "no")
    box(9, 4, "One dense matrix,\nthe smallest that serves", answer)
    arrow((5.25, 4), (7, 4), "yes")
    box(3, 2, "Same gaps along an axis?", question)
    arrow((3, 3.45), (3, 2.55), "no")
    box(9, 2, "One problem per eigenvalue\nof that axis, exact", answer, 4.4)
    arrow((5, 2), (6.75, 2), "yes")
    box(15, 0.7, "Conjugate gradients,\nevery number with its error", "#fde3c8", 4.6)
    arrow((3, 1.45), (12.6, 0.7), "no")
    figure.subplots_adjust(0, 0, 1, 1)
    save(figure, "choosing")


if __name__ == "__main__":
    for draw in (product, spectrum, derivative, gaps, chain, site, choosing):
        draw()
