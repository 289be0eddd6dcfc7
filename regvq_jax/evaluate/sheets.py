"""Pictures for people: reconstructions below originals, captioned samples, codebooks."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont

from regvq_jax.evaluate.codebook import perplexity, usage

BACKGROUND, INK, FAINT_INK = (255, 255, 255), (30, 30, 30), (120, 120, 120)
GAP, MARGIN = 4, 12
FONT_SIZE, LINE_HEIGHT = 13, 17
MIN_CAPTION_WIDTH = 140
MAX_CAPTION_LINES = 5
USED_COLOUR, UNUSED_COLOUR = "#2a6f97", "#d1495b"


def reconstruction_sheet(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    *,
    columns: int = 8,
    scale: int | None = None,
) -> Image.Image:
    """Rows of originals, each with the row of its reconstructions right below.

    Args:
        originals: uint8 [B, H, W, 3].
        reconstructions: uint8 [B, H, W, 3].
        columns: images a row.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    lines = {"original": originals, "rebuilt": reconstructions}
    return labelled_sheet(lines, columns=columns, scale=scale)


def labelled_sheet(
    lines: Mapping[str, np.ndarray], *, columns: int = 8, scale: int | None = None
) -> Image.Image:
    """Versions of the same images in lines with a label each, right below one another.

    Args:
        lines: uint8 [B, H, W, 3] by label, all of one shape.
        columns: images a line; what does not fit goes on in a second group of lines.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    for images in lines.values():
        _check_images(images)
    if len({images.shape for images in lines.values()}) != 1:
        raise ValueError(", ".join(f"{label} {images.shape}" for label, images in lines.items()))
    count, height, width, _ = next(iter(lines.values())).shape
    scale = scale or _default_scale(width)
    columns = min(columns, count)
    groups = -(-count // columns)
    cell_height, cell_width = scale * height, scale * width
    font = _font()
    left = MARGIN + round(max(font.getlength(label) for label in lines)) + MARGIN
    group_height = len(lines) * (cell_height + GAP) - GAP + MARGIN
    sheet = Image.new(
        "RGB",
        (left + columns * (cell_width + GAP) - GAP + MARGIN, MARGIN + groups * group_height),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for group in range(groups):
        for line, (label, images) in enumerate(lines.items()):
            top = MARGIN + group * group_height + line * (cell_height + GAP)
            draw.text((MARGIN, top + cell_height // 2), label, FAINT_INK, font, anchor="lm")
            for column, image in enumerate(images[group * columns : (group + 1) * columns]):
                sheet.paste(_enlarge(image, scale), (left + column * (cell_width + GAP), top))
    return sheet


def captioned_sheet(
    images: np.ndarray, captions: Sequence[str], *, columns: int = 4, scale: int | None = None
) -> Image.Image:
    """Images in rows, each with its caption below.

    Args:
        images: uint8 [B, H, W, 3].
        captions: B texts; long ones are wrapped, very long ones cut.
        columns: images a row.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    _check_images(images)
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} images, {len(captions)} captions")
    count, height, width, _ = images.shape
    scale = scale or _default_scale(width)
    columns = min(columns, count)
    font = _font()
    cell_width = max(scale * width, MIN_CAPTION_WIDTH)
    wrapped = [wrap(caption, font, cell_width) for caption in captions]
    rows = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    row_heights = [
        scale * height + GAP + LINE_HEIGHT * max(len(wrapped[index]) for index in row) + MARGIN
        for row in rows
    ]
    sheet_width = MARGIN + columns * (cell_width + MARGIN)
    sheet = Image.new("RGB", (sheet_width, MARGIN + sum(row_heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, index in enumerate(row):
            left = MARGIN + column * (cell_width + MARGIN)
            sheet.paste(_enlarge(images[index], scale), (left + (cell_width - scale * width) // 2, top))
            for line, text in enumerate(wrapped[index]):
                position = (left + cell_width // 2, top + scale * height + GAP + line * LINE_HEIGHT)
                draw.text(position, text, INK, font, anchor="ma")
        top += row_height
    return sheet


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


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks `text` into lines of at most `width` pixels, at spaces where there are any.

    Args:
        text: may be empty, which gives no line.
        font: that it is drawn in.
        width: pixels; wide enough for any one letter.

    Returns:
        At most `MAX_CAPTION_LINES` lines; an ellipsis shows that there was more.
    """
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        while font.getlength(line) > width:  # one word, wider than a line
            cut = max(end for end in range(1, len(line)) if font.getlength(line[:end]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    lines += [line] if line else []
    if len(lines) > MAX_CAPTION_LINES:
        last = lines[MAX_CAPTION_LINES - 1]
        while font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[MAX_CAPTION_LINES - 1 :] = [f"{last.rstrip()}…"]
    return lines


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"want uint8 [B, H, W, 3] images, got {images.dtype} {images.shape}")


def _default_scale(width: int) -> int:
    return max(1, round(96 / width))


def _enlarge(image: np.ndarray, scale: int) -> Image.Image:
    height, width, _ = image.shape
    return Image.fromarray(image).resize((scale * width, scale * height), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib's own, since Pillow's has no letters beyond English.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, FONT_SIZE)
