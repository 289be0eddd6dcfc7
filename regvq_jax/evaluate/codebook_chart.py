"""Charts of codebooks: how often each code is used, and where the codes lie."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from regvq_jax.evaluate.codebook import perplexity, usage

USED_COLOUR, UNUSED_COLOUR = "#2a6f97", "#d1495b"


def codebook_chart(counts: np.ndarray, codebook: np.ndarray | None = None, *, title: str = "") -> Image.Image:
    """How often each code was used, beside where the used and the unused codes lie.

    Args:
        counts: int [K].
        codebook: float [K, D], drawn in its first two principal components; None draws the usage alone.
        title: a first line above the figures.
    """
    panels = 1 if _principal_components(codebook) is None else 2
    figure = _make_figure(2.2 + 4.0 * panels, 4.4)
    _draw_codebook(figure, (1, panels), title, np.asarray(counts), codebook, max(1, np.max(counts)))
    return _render(figure)


def codebook_comparison(
    rivals: Sequence[tuple[str, np.ndarray, np.ndarray | None]], *, columns: int = 4
) -> Image.Image:
    """`codebook_chart` of several tokenizers side by side, with the same scales for all counts.

    Args:
        rivals: (name, counts int [K], codebook float [K, D] or None) of each.
        columns: rivals a row.
    """
    columns = min(columns, len(rivals))
    rows = -(-len(rivals) // columns)
    panels = 1 if all(_principal_components(codebook) is None for _, _, codebook in rivals) else 2
    figure = _make_figure(4.2 * columns, (1.1 + 3.4 * panels) * rows)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    most = max(1, *(np.max(counts) for _, counts, _ in rivals))
    for cell, (name, counts, codebook) in zip(cells, rivals, strict=False):
        _draw_codebook(cell, (panels, 1), name, np.asarray(counts), codebook, most)
    return _render(figure)


def _draw_codebook(
    figure: FigureBase,
    grid: tuple[int, int],
    title: str,
    counts: np.ndarray,
    codebook: np.ndarray | None,
    most: int,
) -> None:
    """The panels of one tokenizer; `most` is where the scales of the counts end."""
    size, total, used = len(counts), int(counts.sum()), int(np.count_nonzero(counts))
    figure.suptitle(
        f"{title}\n" * bool(title) + f"{used:,} of {size:,} codes used ({100 * usage(counts):.1f} %)\n"
        f"perplexity {perplexity(counts):,.1f}, {total:,} tokens counted",
        fontsize=10,
    )
    panels = figure.subplots(*grid, squeeze=False).ravel()
    # Steps, not one bar each: a codebook may have tens of thousands of codes.
    axes = panels[0]
    axes.stairs(np.sort(counts)[::-1], np.arange(size + 1), baseline=0.5, fill=True, color=USED_COLOUR)
    axes.axhline(max(total / size, 0.5), color="black", linestyle="--", linewidth=1, label="all codes alike")
    if used < size:
        axes.axvspan(used, size, color=UNUSED_COLOUR, alpha=0.15, linewidth=0, label="never used")
    axes.set_yscale("log")
    axes.set(xlim=(0, size), ylim=(0.5, 3 * most), xlabel="codes, most frequent first", ylabel="times used")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", fontsize=9)

    components = _principal_components(codebook)
    if components is None:
        for empty in panels[1:]:
            empty.axis("off")
            empty.text(0.5, 0.5, "codes on a fixed grid", ha="center", color="grey", size=9)
        return
    places, shares = components
    axes = panels[1]
    marker_size = float(np.clip(6000 / size, 3, 30))
    unused, order = counts == 0, np.argsort(counts)
    order = order[counts[order] > 0]  # The most frequent lie on top.
    axes.scatter(*places[unused].T, s=marker_size, marker="x", linewidth=0.8, color=UNUSED_COLOUR, alpha=0.7)
    points = axes.scatter(
        *places[order].T, s=marker_size, c=counts[order], cmap="viridis_r", norm=LogNorm(1, max(most, 2))
    )
    figure.colorbar(points, ax=axes, label="times used", shrink=0.85)
    axes.set(
        xticks=[], yticks=[],
        xlabel=f"component 1 ({100 * shares[0]:.0f} % of variance)",
        ylabel=f"component 2 ({100 * shares[1]:.0f} %)", title="principal components of the codes",
    )  # fmt: skip
    axes.title.set_size(10)
    axes.set_box_aspect(1)
    axes.set_aspect("equal", adjustable="datalim")


def _principal_components(codebook: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(float [K, 2] places, float [2] shares of the variance), or None where there is no plane to draw."""
    if codebook is None or codebook.shape[1] < 2:
        return None
    centred = np.asarray(codebook, np.float64) - np.mean(codebook, 0, dtype=np.float64)
    # Of the covariance [D, D]: a codebook has many more codes than dimensions.
    _, variances, directions = np.linalg.svd(centred.T @ centred)
    return centred @ directions[:2].T, variances[:2] / max(variances.sum(), np.finfo(float).tiny)


def _make_figure(width: float, height: float) -> Figure:
    return Figure((width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))


def _render(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
