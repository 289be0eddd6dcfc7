"""The figures of a run for people: what they are called, their digits, and how they were measured."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from regvq_jax.workdir import flatten

# Stage, label, tag in the stage's result, format.
ROWS = (
    ("tokenizer", "steps", "step", "{:,.0f}"),
    ("tokenizer", "training images/s", "perf/images_per_sec", "{:.1f}"),
    ("tokenizer", "held-out images", "eval/reconstruction/images", "{:,.0f}"),
    ("tokenizer", "reconstruction L1, images in [-1, 1]", "eval/reconstruction/l1", "{:.4f}"),
    ("tokenizer", "reconstruction PSNR, dB", "eval/reconstruction/psnr", "{:.2f}"),
    ("tokenizer", "reconstruction SSIM", "eval/reconstruction/ssim", "{:.4f}"),
    ("tokenizer", "reconstruction LPIPS, VGG16", "eval/reconstruction/lpips_vgg16", "{:.4f}"),
    ("tokenizer", "reconstruction LPIPS, AlexNet", "eval/reconstruction/lpips_alexnet", "{:.4f}"),
    ("tokenizer", "codebook usage, %", "codebook/usage_percent", "{:.1f}"),
    ("tokenizer", "codebook perplexity", "codebook/perplexity", "{:.1f}"),
    ("map_tokenizer", "steps", "step", "{:,.0f}"),
    ("map_tokenizer", "held-out pixel accuracy, %", "eval/map_reconstruction/accuracy_percent", "{:.1f}"),
    ("map_tokenizer", "held-out mean IoU", "eval/map_reconstruction/miou", "{:.3f}"),
    ("map_tokenizer", "codebook usage, %", "map_codebook/usage_percent", "{:.1f}"),
    ("map_tokenizer", "codebook perplexity", "map_codebook/perplexity", "{:.1f}"),
    ("prior", "steps", "step", "{:,.0f}"),
    ("prior", "training images/s", "perf/images_per_sec", "{:.1f}"),
    ("prior", "held-out bits a token", "eval/prior/bits_per_token", "{:.3f}"),
    ("prior", "held-out loss, nats a token", "eval/prior/loss", "{:.3f}"),
    ("prior", "the same, conditions shuffled", "eval/prior/loss_shuffled", "{:.3f}"),
)
# How the trainings' own evaluations come to a figure.
_BOUND = "exact for an autoregressive prior, an estimate of an upper bound for the others"
METHODS = {
    "eval/reconstruction/l1": "mean absolute difference, after rounding to 8 bits",
    "eval/reconstruction/psnr": "mean over images, after rounding to 8 bits",
    "eval/reconstruction/ssim": "Gaussian windows of 11 pixels, mean over images, after rounding to 8 bits",
    "eval/reconstruction/lpips_vgg16": "LPIPS v0.1, mean over images",
    "eval/reconstruction/lpips_alexnet": "LPIPS v0.1, mean over images",
    "codebook/usage": "share of the codes that occur at all",
    "codebook/perplexity": "exp of the entropy of the codes: their number where all are used evenly",
    "eval/map_reconstruction/accuracy": "share of right pixels",
    "eval/map_reconstruction/miou": "mean over the classes that occur",
    "map_codebook/usage": "share of the codes that occur at all",
    "map_codebook/perplexity": "exp of the entropy of the codes",
    "eval/prior/bits_per_token": f"-log2 p; {_BOUND}",
    "eval/prior/loss": f"-log p; {_BOUND}",
    "eval/prior/loss_shuffled": "each image judged with the condition of another: how much conditions tell",
}
# Distances in other features than FID's own must not be called FID.
NAMES = {
    "fid": "FID",
    "fd": "Fréchet distance (FD)",
    "kid": "KID",
    "is": "Inception Score",
    "inception_score": "Inception Score",
    "psnr": "PSNR, dB",
    "images": "images",
    "bits_per_token": "bits a token",
    "loss": "loss, nats a token",
    "loss_shuffled": "the same, conditions shuffled",
    "ssim": "SSIM",
    "l1": "L1, images in [-1, 1]",
    "miou": "mean IoU",
    "cmmd": "CMMD",
    "train_distance": "median distance to the nearest training image",
    "heldout_distance": "median distance to the nearest held-out image",
    "closer_to_train": "share closer to training than to held-out images",
}
_EXACT = {tag: (label, style) for _, label, tag, style in ROWS}


class Figure(NamedTuple):
    """One line of a table.

    Attributes:
        label: what it is.
        value: as text; "3.1 ± 0.2" where the deviation is known.
        tag: its name in files.
    """

    label: str
    value: str
    tag: str


class Group(NamedTuple):
    """Figures that were measured in one way.

    Attributes:
        protocol: its name, "" where it has none.
        about: the protocol, or the method, in a line.
        figures: at least one.
    """

    protocol: str
    about: str
    figures: list[Figure]


class Table(NamedTuple):
    """The figures of a training or of an evaluation.

    Attributes:
        name: of the stage or of the evaluation.
        title: of the table.
        about: when and how long, in a line.
        warnings: what a reader must know before comparing.
        groups: the figures.
        details: (name, value) of every setting, protocol and version, by part.
    """

    name: str
    title: str
    about: str
    warnings: list[str]
    groups: list[Group]
    details: dict[str, list[tuple[str, str]]]


def show(value: Any) -> str:
    """A value of a JSON file as people write it.

    Args:
        value: number, "nan", text, list, None.

    Returns:
        Four significant digits of a fraction, all digits of a whole number.
    """
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return str(value)
        if value == int(value) and abs(value) < 1e15:
            return f"{int(value):,}"
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)


def stage_table(
    stage: str, title: str, result: Mapping[str, Any], elsewhere: Iterable[str] = ()
) -> Table | None:
    """What a training's last evaluation said; None where that is nothing.

    Args:
        stage: its name.
        title: of the table.
        result: its result.json, numbers by tag.
        elsewhere: tags that another part of the page shows.
    """
    groups = []
    for of, label, tag, style in ROWS:
        # Shares are read more easily in percent.
        plain = tag.removesuffix("_percent")
        if of == stage and plain in result and plain not in elsewhere:
            text = styled(result[plain], style, 100.0 if tag != plain else 1.0)
            groups.append(Group("", METHODS.get(plain, ""), [Figure(label, text, plain)]))
    about = "The last evaluation of the training: held-out data, averaged parameters"
    if stage != "prior":
        about += ", best-matching codes"
    return Table(stage, title, f"{about}.", [], groups, {}) if groups else None


def styled(value: Any, style: str, factor: float = 1.0) -> str:
    """A figure, or "nan", in a format such as "{:.2f}"; what is no number as it is.

    Args:
        value: from a JSON file.
        style: the format.
        factor: the figure is shown times this.
    """
    try:
        return style.format(factor * float(value))  # float reads "nan", too.
    except (TypeError, ValueError):
        return show(value)


def evaluation_table(name: str, record: Mapping[str, Any]) -> Table:
    """An evaluation's file as a table.

    Args:
        name: of the file, without its ending.
        record: {"metrics": {tag: number}, "protocols": {name: {...}}, "settings": {...}, "step", "seconds",
            "versions": {...}, "warnings": [str]}, any of which may be missing.
    """
    metrics, protocols = _mapping(record, "metrics"), _mapping(record, "protocols")
    groups: dict[tuple[str, str], Group] = {}
    for tag, value in metrics.items():
        if tag.endswith("_std") and tag.removesuffix("_std") in metrics:
            continue
        protocol = protocol_of(tag, protocols)
        about = describe(protocols[protocol]) if protocol else METHODS.get(tag, "")
        group = groups.setdefault((protocol, about), Group(protocol, about, []))
        group.figures.append(_measured(tag, value, metrics.get(f"{tag}_std"), protocol))
    parts = []
    if "step" in record:
        parts.append(f"after {show(record['step'])} steps")
    if "seconds" in record:
        parts.append(f"took {duration(record['seconds'])}")
    about = ", ".join(parts).capitalize() + "." * bool(parts)
    warnings = record.get("warnings") or []
    warnings = warnings if isinstance(warnings, list) else [warnings]
    details = {part: list_values(record.get(part)) for part in ("settings", "protocols", "versions")}
    details = {part: values for part, values in details.items() if values}
    title = name.replace("_", " ").capitalize()
    return Table(name, title, about, [str(x) for x in warnings], list(groups.values()), details)


def _measured(tag: str, value: Any, deviation: Any, protocol: str) -> Figure:
    *path, last = tag.split("/")
    stem = f"_{_slug(last)}_".replace(f"_{_slug(protocol)}_", "_").strip("_") if protocol else last
    percent = f"{tag}_percent" in _EXACT
    label, style = _EXACT.get(f"{tag}_percent" if percent else tag, (stem.replace("_", " "), ""))
    text = styled(value, style, 100.0 if percent else 1.0) if style else show(value)
    if deviation is not None:
        text += f" ± {styled(deviation, '{:.2g}', 100.0 if percent else 1.0)}"
    # What stands between the evaluation and the figure tells the points of a sweep apart.
    label = ", ".join([*path[2:], NAMES.get(stem, label)])
    return Figure(label, text, tag)


def protocol_of(tag: str, protocols: Iterable[str]) -> str:
    """The protocol whose name is part of a tag's last word, the longest one; "" where none is.

    Args:
        tag: such as "eval/generation/kid_torch_fidelity".
        protocols: names, such as "torch-fidelity".
    """
    last = _slug(tag.rpartition("/")[2])
    named = [name for name in protocols if _slug(name) and f"_{_slug(name)}_" in f"_{last}_"]
    return max(named, key=len, default="")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def describe(protocol: Any) -> str:
    """A protocol in a line: digests and long texts are cut, since the whole of it stands below."""
    words = []
    for name, value in list_values(protocol):
        if name == "name":
            continue
        if re.fullmatch(r"[0-9a-f]{32,}", value):
            value = f"{value[:12]}…"
        words.append(f"{name.replace('_', ' ')} {value if len(value) <= 120 else f'{value[:119]}…'}".strip())
    return "; ".join(words)


def list_values(tree: Any) -> list[tuple[str, str]]:
    """(dotted name, text) of every leaf of nested mappings, in their order; of nothing, nothing."""
    if tree in (None, "", [], {}):
        return []
    return [(name, show(value)) for name, value in flatten(tree).items()]


def _mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def duration(seconds: Any) -> str:
    """Seconds in the unit that people would use: "74.2 s", "12.0 min", "5.2 h"."""
    try:
        seconds = float(seconds)
    except (TypeError, ValueError):
        return show(seconds)
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
