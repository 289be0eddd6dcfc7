"""A sweep for people: quality against seconds an image, a point a cell."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from regvq_jax.evaluate.sweep_grid import describe, show

# Times that differ by less are taken for equal.
SAME_TIME = 1.05
MARKERS = "os^DvPX*<>"
FRONT_COLOUR = "#d1495b"
# A range wider than this is drawn on a logarithmic scale.
_WIDE_RANGE = 8.0


def pareto_front(seconds: Sequence[float], values: Sequence[float]) -> list[int]:
    """Which are worth their time: nothing that is as fast is better. The fastest come first.

    Args:
        seconds: of each; up to a factor of `SAME_TIME` they count as equal.
        values: of each, smaller is better.

    Returns:
        Indices.
    """
    places = sorted(range(len(values)), key=lambda i: (values[i], seconds[i]))
    front: list[int] = []
    for place in places:  # The better ones have been seen.
        if all(seconds[place] * SAME_TIME < seconds[other] for other in front):
            front.append(place)
    return front[::-1]


def quality_chart(
    settings: Sequence[Mapping[str, Any]],
    seconds: Sequence[float],
    values: Sequence[float],
    deviations: Sequence[float],
    *,
    names: Sequence[str],
    own: int | None,
    metric: str,
    machine: str,
) -> Image.Image:
    """One point a cell, with the front of those that are worth their time.

    Args:
        settings: of the cells, the best first; they are called 1, 2, ... after their places.
        seconds: an image.
        values: figures, smaller is better.
        deviations: of the figures; () = not known.
        names: settings that tell the cells apart.
        own: which cell has the run's own settings.
        metric: what the figures are.
        machine: where the time was taken.
    """
    colour_name, marker_name = _told_by(settings, names)
    levels = {name: _levels(settings, name) for name in (colour_name, marker_name) if name}
    figure = Figure((9.5, 5.2), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    front = pareto_front(seconds, values)
    x, y = np.asarray(seconds), np.asarray(values)
    if len(front) > 1:
        axes.plot(x[front], y[front], drawstyle="steps-post", color=FRONT_COLOUR, linewidth=1.2, zorder=1)
    if len(deviations):
        axes.errorbar(x, y, yerr=deviations, fmt="none", ecolor="#c8c8c8", elinewidth=1, zorder=0)
    for index, cell in enumerate(settings):
        axes.scatter(
            x[index], y[index], s=60, zorder=3, linewidth=1.6 if index in front else 0.6,
            color=_colour(levels, colour_name, cell), marker=_marker(levels, marker_name, cell),
            edgecolor=FRONT_COLOUR if index in front else "white",
        )  # fmt: skip
        if index in front or index == own:
            axes.annotate(
                str(index + 1), (x[index], y[index]), (0, -9), textcoords="offset points", ha="center",
                va="top", fontsize=9, fontweight="bold" if index == 0 else "normal",
            )  # fmt: skip
    _scale(axes, x, y)
    axes.set(xlabel=f"seconds an image ({machine})", ylabel=f"{metric}, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9e9e9", linewidth=0.6, which="both")
    axes.set_axisbelow(True)

    handles = [
        Line2D([], [], linestyle="", color=_colour(levels, name, {name: level}) if name == colour_name else "#777777",
               marker=_marker(levels, name, {name: level}) if name == marker_name else "o", label=f"{name} {show(level)}")
        for name in levels for level in levels[name]
    ]  # fmt: skip
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    lines = [f"{i + 1}  {describe(settings[i], names)}" for i in front]
    if own is not None and own not in front:
        lines.append(f"{own + 1}  the run's own settings")
    figure.legend(
        handles=[Line2D([], [], linestyle="", label=line) for line in lines], loc="outside lower center",
        frameon=False, fontsize=9, handlelength=0, title="nothing as fast is better, fastest first",
        title_fontproperties={"size": 9, "weight": "bold"}, alignment="left",
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _told_by(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, str]:
    """The settings that colours and markers stand for; "" = none. Steps are seen on the axis of time."""
    counts = {name: len(_levels(settings, name)) for name in names}
    varying = sorted(
        (name for name in names if counts[name] > 1), key=lambda name: (name == "steps", -counts[name])
    )
    few = [name for name in varying[1:] if counts[name] <= len(MARKERS)]
    return (*varying[:1], "")[0], (*few[:1], "")[0]


def _levels(settings: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return sorted({cell[name] for cell in settings})


def _colour(levels: Mapping[str, list], name: str, cell: Mapping[str, Any]) -> tuple:
    values = levels.get(name, [None])
    place = values.index(cell.get(name)) / max(len(values) - 1, 1) if name else 0.5
    return colormaps["viridis"](0.05 + 0.85 * place)


def _marker(levels: Mapping[str, list], name: str, cell: Mapping[str, Any]) -> str:
    return MARKERS[levels[name].index(cell[name])] if name else "o"


def _scale(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Logarithmic axes with readable ticks: of time always, of figures where their range is wide."""
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.5, x.max() * 1.5)
    scaled = [(axes.xaxis, x)]
    if y.min() > 0 and y.max() > _WIDE_RANGE * y.min():
        axes.set_yscale("log")
        scaled.append((axes.yaxis, y))
    for axis, values in scaled:
        parts = (1, 1.5, 2, 3, 5, 7) if values.max() < 5 * values.min() else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=parts, numticks=20))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
