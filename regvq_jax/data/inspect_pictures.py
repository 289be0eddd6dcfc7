"""Pictures of what a config feeds: sheets of examples, of duplicates, and how often each class occurs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from regvq_jax.data.duplicates import Match
from regvq_jax.data.labels import label_colours
from regvq_jax.data.sources import Element, Source
from regvq_jax.data.statistics import captions_of
from regvq_jax.data.transforms import Transform
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.codebook_chart import USED_COLOUR

GAP = 4  # pixels between two pictures that belong together
SHEET_WIDTH = 1100
MAX_NAME = 48  # letters below a pair
MAX_BARS = 200
BARS_A_COLUMN = 50
MAX_RATIO = 30  # of the largest bar to the median one, on a linear scale
TRAIN_COLOUR, HELDOUT_COLOUR = USED_COLOUR, "#1e1e1e"


def apply(transform_fns: Sequence[Transform], element: Element, rng: np.random.Generator | None) -> Element:
    """An element after all transforms."""
    for transform_fn in transform_fns:
        element = transform_fn(element, rng)
    return element


def example_sheet(
    source: Source, transform_fns: Sequence[Transform], indices: Sequence[int], seed: int | None
) -> Image.Image:
    """Pictures as they are fed, with their maps in colours beside them and index, class and caption below.

    Args:
        source: where they are.
        transform_fns: see `regvq_jax.data.transforms`.
        indices: which pictures.
        seed: of the transforms, and of which caption is shown; None = nothing is random.
    """
    pictures, lines = [], []
    for index in indices:
        rng = None if seed is None else np.random.default_rng((seed, int(index)))
        element = source[int(index)]
        fed = apply(transform_fns, element, rng)
        side = [fed["image"]]
        if "labels" in fed:
            side.append(label_colours(source.num_label_classes)[fed["labels"]])
        pictures.append(beside(side))
        texts = captions_of(element)
        caption = element.get("text", "") if rng is None else texts[rng.integers(len(texts))] if texts else ""
        words = " ".join([*class_name(source, element), caption]).strip()
        lines.append(f"{index}: {words}" if words else f"{index}")
    return _sheet(np.stack(pictures), lines)


def duplicate_sheet(
    train: Source, heldout: Source, transform_fns: Sequence[Transform], matches: Sequence[Match]
) -> Image.Image:
    """Pairs of a training picture (left) and a held-out picture (right), with what is known of both.

    Args:
        train, heldout: the splits.
        transform_fns: called without a generator: centre crops.
        matches: at least one.
    """
    pictures, lines = [], []
    for match in matches:
        pair = (train, match.train), (heldout, match.heldout)
        pictures.append(
            beside([apply(transform_fns, source[index], None)["image"] for source, index in pair])
        )
        left, right = (f"{index} {_short(element_name(source, index))}".rstrip() for source, index in pair)
        lines.append(
            f"unlike {match.unlikeness:.2f}{', mirrored' * match.mirrored}; "
            f"train {left}; held-out {right}"
        )
    return _sheet(np.stack(pictures), lines, least_height=128)


def class_name(source: Source, element: Element) -> list[str]:
    """["[NAME]"] of an element's class, [] where it has none."""
    if "class" not in element:
        return []
    index = int(element["class"])
    return [f"[{source.class_names[index] if index < len(source.class_names) else index}]"]


def element_name(source: Source, index: int) -> str:
    """What a source calls an element, its path or key; without one its caption; "" without either."""
    name_fn = getattr(source, "element_name", None)
    return name_fn(index) if name_fn else source[index].get("text", "")


def beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size side by side on white: uint8 [H, W', 3]."""
    height = pictures[0].shape[0]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def _short(name: str) -> str:
    """A path by its end, which tells most, a caption by its beginning."""
    if len(name) <= MAX_NAME:
        return name
    return f"…{name[-MAX_NAME:]}" if "/" in name else f"{name[:MAX_NAME]}…"


def _sheet(pictures: np.ndarray, lines: Sequence[str], least_height: int = 96) -> Image.Image:
    height, width = pictures.shape[1:3]
    scale = max(1, round(least_height / height))
    columns = max(1, SHEET_WIDTH // max(scale * width + sheets.MARGIN, sheets.MIN_CAPTION_WIDTH))
    return sheets.captioned_sheet(pictures, lines, columns=columns, scale=scale)


def share_chart(
    train: Mapping[str, Any], heldout: Mapping[str, Any], *, title: str, of: str, colours: np.ndarray | None
) -> Figure:
    """The share of each class as a bar for training and a mark for the held-out split, largest first.

    Args:
        train, heldout: "names" and "shares" of the classes, as of `statistics.describe_classes`.
        title: above the chart.
        of: what the shares are of.
        colours: uint8 [C, 3], of the bars; None = one colour.
    """
    shares, other = (100 * np.asarray(figures["shares"]) for figures in (train, heldout))
    order = np.argsort(-shares, kind="stable")[:MAX_BARS]
    columns = -(-len(order) // BARS_A_COLUMN)
    rows = -(-len(order) // columns)
    figure = Figure((1.5 + 4.5 * columns, 1.4 + 0.21 * rows), dpi=100, layout="constrained")
    left_out = len(shares) - len(order)
    figure.suptitle(title + (f" (without the {left_out} least frequent)" if left_out else ""), fontsize=11)
    both = np.concatenate([shares, other])
    most, least = both.max(), both[both > 0].min()
    # One ground may fill more than all else together.
    is_log = bool(most > MAX_RATIO * np.median(both[both > 0]))
    limits = (least / 2, 2 * most) if is_log else (0, 1.05 * most)
    for axes, start in zip(
        figure.subplots(1, columns, squeeze=False)[0], range(0, len(order), rows), strict=True
    ):
        part = order[start : start + rows]
        places = np.arange(len(part))
        bars = TRAIN_COLOUR if colours is None else [to_hex(colours[i] / 255) for i in part]
        axes.barh(places, shares[part], color=bars, edgecolor="#00000040", label="train")
        axes.scatter(
            other[part], places, marker="d", s=26, color=HELDOUT_COLOUR, edgecolors="white",
            linewidths=0.6, label="held-out", zorder=3,
        )  # fmt: skip
        axes.set_yticks(places, [train["names"][i] for i in part], fontsize=8)
        if is_log:
            axes.set_xscale("log")
        axes.set(xlim=limits, ylim=(rows - 0.4, -0.6), xlabel=f"% of {of}" + ", log scale" * is_log)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure
