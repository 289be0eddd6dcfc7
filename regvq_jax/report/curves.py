"""Curves of a training for people: the rows of a metrics.jsonl to a few small charts, as SVG."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

COLOURS = ("#2a7fb0", "#d1495b", "#c98a1b", "#4f9d76", "#8a63c4", "#777f87")
# More values than the first are thinned, so few as the second get a dot each.
MAX_POINTS, FEW_POINTS = 400, 12
# A range wider than this is drawn on a logarithmic scale, where all of it is positive.
WIDE_RANGE = 8.0
SIZE = (3.6, 2.0)  # Inches.
Column = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one chart shows.

    Attributes:
        title: of the chart.
        lines: (tag or pattern of tags as in file names, label) of each line; "" labels it by its tag.
        factor: values are shown times this.
        limits: of the values; None = as they come.
        logarithmic: a logarithmic scale where the values are positive and their range is wide.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    factor: float = 1.0
    limits: tuple[float | None, float | None] = (None, None)
    logarithmic: bool = False


class Line(NamedTuple):
    """A line of a chart, for its legend.

    Attributes:
        label: what it is.
        colour: "#rrggbb".
        dotted: one dot a value, because there are few.
        last: its last finite value.
    """

    label: str
    colour: str
    dotted: bool
    last: float


class Chart(NamedTuple):
    """A drawn panel.

    Attributes:
        title: what stands above it.
        lines: in the order in which they were drawn.
        description: what a reader who does not see it is told.
        svg: the picture, without title and legend.
    """

    title: str
    lines: tuple[Line, ...]
    description: str
    svg: bytes


def _codebook_panels(heldout: str) -> tuple[Panel, Panel]:
    """Usage and perplexity, in training and under the tags of the held-out evaluation."""
    usage = (("codebook/train_usage", "training"), (f"{heldout}/usage", "held-out"))
    perplexity = (("codebook/train_perplexity", "training"), (f"{heldout}/perplexity", "held-out"))
    return (
        Panel("Codebook usage, %", usage, factor=100.0, limits=(0.0, 103.0)),
        Panel("Codebook perplexity", perplexity, limits=(0.0, None)),
    )


_SPEED = Panel("Images a second", (("perf/images_per_sec", "training"),), limits=(0.0, None))
PANELS: dict[str, tuple[Panel, ...]] = {
    "tokenizer": (
        Panel("Loss, weighted sum", (("train/loss", "total"),), logarithmic=True),
        Panel(
            "Loss terms: reconstruction",
            (
                ("train/l1", "L1"),
                ("train/l2", "L2"),
                ("train/perceptual", "perceptual"),
                ("train/lpips", "LPIPS"),
            ),
            logarithmic=True,
        ),
        Panel("Loss terms: contrastive", (("train/cl", "CL"), ("train/pcl", "PCL"))),
        Panel(
            "Loss terms: codes",
            (
                ("train/prior_kl", "prior's KL"),
                ("train/gumbel_kl", "Gumbel KL"),
                ("train/entropy", "entropy"),
                ("train/codebook", "codebook"),
                ("train/commitment", "commitment"),
            ),
        ),
        Panel("PSNR of held-out images, dB", (("eval/reconstruction/psnr", "held-out"),)),
        Panel(
            "LPIPS of held-out images",
            (("eval/reconstruction/lpips_vgg16", "VGG16"), ("eval/reconstruction/lpips_alexnet", "AlexNet")),
        ),
        Panel("Fréchet distance of reconstructions", (("eval/reconstruction/f*d_*", ""),), logarithmic=True),
        *_codebook_panels("codebook"),
        Panel("Discriminator's logits", (("train/real_logits", "real"), ("train/fake_logits", "rebuilt"))),
        Panel(
            "Discriminator's accuracy, %",
            (("train/real_accuracy", "real"), ("train/fake_accuracy", "rebuilt")),
            factor=100.0,
            limits=(0.0, 103.0),
        ),
        Panel(
            "Gradient norm",
            (("optim/grad_norm", "tokenizer"), ("optim/discriminator_grad_norm", "discriminator")),
            logarithmic=True,
        ),
        _SPEED,
    ),
    "map_tokenizer": (
        Panel(
            "Loss",
            (
                ("train/loss", "total"),
                ("train/cross_entropy", "cross-entropy"),
                ("train/binary_cross_entropy", "binary cross-entropy"),
            ),
            logarithmic=True,
        ),
        Panel(
            "Right pixels, %",
            (("train/accuracy", "training"), ("eval/map_reconstruction/accuracy", "held-out")),
            factor=100.0,
        ),
        Panel("Mean IoU of held-out maps", (("eval/map_reconstruction/miou", "held-out"),)),
        *_codebook_panels("map_codebook"),
        Panel("Gradient norm", (("optim/grad_norm", "map tokenizer"),), logarithmic=True),
        _SPEED,
    ),
    "prior": (
        Panel(
            "Training loss",
            (("train/loss", "total"), ("train/bound", "bound"), ("train/auxiliary", "auxiliary")),
            logarithmic=True,
        ),
        Panel(
            "Held-out loss, nats a token",
            (("eval/prior/loss", "right conditions"), ("eval/prior/loss_shuffled", "conditions shuffled")),
        ),
        Panel("Fréchet distance of samples", (("eval/*/f*d_*", ""),), logarithmic=True),
        Panel("Gradient norm", (("optim/grad_norm", "prior"),), logarithmic=True),
        _SPEED,
    ),
}


def draw_charts(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The telling curves of one training.

    Args:
        stage: a key of `PANELS`; another one has no charts.
        rows: of its metrics.jsonl: {"step": int, tag: number, ...}. What is no number is a gap.

    Returns:
        A chart for each panel that has anything to show; all of them end at the last step of `rows`.
    """
    panels = PANELS.get(stage, ())
    columns = collect(rows, [tag for panel in panels for tag, _ in panel.lines])
    last_step = max((row["step"] for row in rows), default=0)
    charts = [draw_chart(panel, columns, last_step) for panel in panels]
    return [chart for chart in charts if chart is not None]


def collect(rows: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> dict[str, Column]:
    """The values of every wanted tag that has any.

    Args:
        rows: as in `draw_charts`.
        patterns: tags, or patterns of tags as of file names; deviations of figures ("_std") are left out.

    Returns:
        (steps float64 [n], values float64 [n]) by tag in alphabetical order; NaN where there was no number.
    """
    points: dict[str, list[tuple[float, float]] | None] = {}
    for row in rows:
        for tag, value in row.items():
            if tag not in points:
                wanted = any(fnmatchcase(tag, pattern) for pattern in patterns) and not tag.endswith("_std")
                points[tag] = [] if wanted else None
            if points[tag] is not None:
                points[tag].append((row["step"], to_float(value)))
    columns = {tag: np.array(points[tag], np.float64).T for tag in sorted(points) if points[tag]}
    return {tag: (steps, values) for tag, (steps, values) in columns.items() if np.isfinite(values).any()}


def draw_chart(panel: Panel, columns: Mapping[str, Column], last_step: int) -> Chart | None:
    """One chart, or None where there is nothing to show.

    Args:
        panel: what to show.
        columns: from `collect`.
        last_step: where the axis of steps ends.
    """
    series = [
        (label or tag.rpartition("/")[2].replace("_", " "), *thin(steps, values * panel.factor))
        for pattern, label in panel.lines
        for tag, (steps, values) in columns.items()
        if fnmatchcase(tag, pattern)
    ]
    if not series:
        return None
    lines, described = [], []
    for index, (label, _, values) in enumerate(series):
        finite = _finite(values)
        colour = COLOURS[index % len(COLOURS)]
        lines.append(Line(label, colour, len(values) <= FEW_POINTS, float(finite[-1])))
        described.append(f"{label} from {finite[0]:.4g} to {finite[-1]:.4g}")
    description = f"{panel.title}, up to step {last_step:,}: {'; '.join(described)}."
    return Chart(panel.title, tuple(lines), description, _draw(panel, series, lines, last_step))


def to_float(value: Any) -> float:
    """A number as it stands in JSON, NaN for everything that is no finite number ("nan", null, texts)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours where there are more than `MAX_POINTS` values: more cannot be seen.

    Args:
        steps: float64 [n].
        values: float64 [n], NaN = missing; a mean is that of what is there.

    Returns:
        Both with at most `MAX_POINTS` elements.
    """
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
    means = [_finite(values[part]).mean() if len(_finite(values[part])) else math.nan for part in parts]
    return np.array([steps[part].mean() for part in parts]), np.array(means)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _draw(
    panel: Panel,
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    lines: Sequence[Line],
    last_step: int,
) -> bytes:
    """The SVG of a panel: texts stay texts, and equal rows give equal bytes."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "regvq_jax",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": "#888888",
        "text.color": "#333333",
        "axes.labelcolor": "#333333",
        "xtick.color": "#333333",
        "ytick.color": "#333333",
    }
    with matplotlib.rc_context(style):
        figure = Figure(SIZE, facecolor="white", layout="constrained")
        axes = figure.subplots()
        for (_, steps, values), line in zip(series, lines, strict=True):
            marker = "o" if line.dotted else None
            axes.plot(steps, values, marker=marker, color=line.colour, linewidth=1.4, markersize=4)
        every = np.concatenate([_finite(values) for _, _, values in series])
        if panel.logarithmic and every.min() > 0 and every.max() > WIDE_RANGE * every.min():
            axes.set_yscale("log")
            parts = (1, 2, 5) if every.max() < 100 * every.min() else (1,)
            axes.yaxis.set_major_locator(LogLocator(subs=parts, numticks=8))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.ticklabel_format(axis="y", useOffset=False, style="plain")
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(*panel.limits)
        axes.set_xlim(0, max(last_step, 1) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("step", labelpad=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        buffer = io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue()
