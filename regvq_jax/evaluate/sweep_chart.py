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

from regvq_jax.evaluate.sweep_grid import describe

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
        deviations: of the figures, drawn as bars; 0 = not known.
        names: settings that tell the cells apart.
        own: which cell has the run's own settings.
        metric: what the figures are.
        machine: where the time was taken.
    """
    looks = _Looks(settings, names)
    front = pareto_front(seconds, values)
    figure = Figure((9.5, 5.2), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    x, y = np.asarray(seconds), np.asarray(values)
    axes.plot(x[front], y[front], drawstyle="steps-post", color=FRONT_COLOUR, linewidth=1.2, zorder=1)
    axes.errorbar(x, y, yerr=deviations, fmt="none", ecolor="#c8c8c8", elinewidth=1, zorder=0)
    for index, cell in enumerate(settings):
        is_worth = index in front
        axes.scatter(
            x[index], y[index], s=60, zorder=3, color=looks.colour(cell), marker=looks.marker(cell),
            linewidth=1.6 if is_worth else 0.6, edgecolor=FRONT_COLOUR if is_worth else "white",
        )  # fmt: skip
        if is_worth or index == own:
            # Below and left of the front there is nothing.
            offset, ha, va = ((-5, -6), "right", "top") if is_worth else ((8, 0), "left", "center")
            axes.annotate(
                str(index + 1), (x[index], y[index]), offset, textcoords="offset points", fontsize=9, ha=ha,
                va=va, fontweight="bold" if index == 0 else "normal", zorder=4,
            )  # fmt: skip
    _scale(axes, x, y)
    axes.set(xlabel=f"seconds an image ({machine})", ylabel=f"{metric}\nlower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9e9e9", linewidth=0.6)
    axes.set_axisbelow(True)

    if handles := looks.handles():
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    lines = [f"{index + 1}  {describe(settings[index], names)}" for index in front]
    if front[-1] == 0:
        lines[-1] += "  (best)"
    if own is not None:
        lines.append(f"{own + 1}  the run's own settings")
    figure.legend(
        handles=[Line2D([], [], linestyle="", label=line) for line in lines], loc="outside lower left",
        frameon=False, fontsize=9, handlelength=0, alignment="left",
        title="Nothing that is as fast is better, the fastest first:", title_fontproperties={"size": 9},
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


class _Looks:
    """Colours that stand for one setting, and markers that stand for another."""

    def __init__(self, settings: Sequence[Mapping[str, Any]], names: Sequence[str]):
        levels = {name: sorted({cell[name] for cell in settings}) for name in names}
        # Steps are seen on the axis of time already.
        order = sorted(levels, key=lambda name: (name == "steps", -len(levels[name])))
        varying = [name for name in order if len(levels[name]) > 1]
        few = [name for name in varying[1:] if len(levels[name]) <= len(MARKERS)]
        self._coloured = {name: levels[name] for name in varying[:1]}
        self._marked = {name: levels[name] for name in few[:1]}

    def colour(self, cell: Mapping[str, Any]) -> Any:
        """Of a cell; grey where no colour is told."""
        for name, levels in self._coloured.items():
            if name in cell:
                return colormaps["viridis"](0.05 + 0.85 * levels.index(cell[name]) / (len(levels) - 1))
        return "#777777"

    def marker(self, cell: Mapping[str, Any]) -> str:
        """Of a cell; a circle where no marker is told."""
        for name, levels in self._marked.items():
            if name in cell:
                return MARKERS[levels.index(cell[name])]
        return "o"

    def handles(self) -> list[Line2D]:
        """For a legend."""
        parts = [
            {name: level} for looks in (self._coloured, self._marked) for name, levels in looks.items()
            for level in levels
        ]  # fmt: skip
        return [
            Line2D([], [], linestyle="", color=self.colour(part), marker=self.marker(part), label=label)
            for part in parts
            for label in [describe(part, part)]
        ]


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
