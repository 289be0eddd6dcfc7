"""The tables of `regvq_jax.data.inspect` on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regvq_jax.data.sources import SPLITS

MIN_WIDTH = 100
LONGEST = 400
FREQUENT_SHOWN = 16
SKIPPED_SHOWN = 5
CLASSES_SHOWN = 12
MATCHES_SHOWN = 10
NAME_WIDTH = 44
# Beyond these a user should know.
CUT_SHARE, GREY_SHARE = 0.05, 0.2


def show(figures: Mapping[str, Any]) -> None:
    """Prints all tables, and what deserves a look.

    Args:
        figures: as of inspect.json.
    """
    console = Console(width=LONGEST)
    parts = [split_table(figures), speed_table(figures["throughput"])]
    if figures.get("duplicates", {}).get("matches"):
        parts.append(match_table(figures["duplicates"]["matches"]))
    width = max(MIN_WIDTH, Console().width)
    for part in parts:
        # Rich cuts numbers to fit; a line that is too long is the lesser evil.
        console.print(part, width=max(width, console.measure(part).maximum))
    for line in remarks(figures):
        # As it is: a name may have brackets.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def split_table(figures: Mapping[str, Any]) -> Table:
    """What both splits hold, a figure a row."""
    splits = [figures[split] for split in SPLITS]
    rows = {
        "source": lambda s: s["source"],
        "fingerprint": lambda s: s["fingerprint"],
        "examples": lambda s: f"{s['examples']:,}",
        "left out": lambda s: f"{len(s['skipped']):,}",
        "looked at": lambda s: f"{s['looked_at']:,}",
        "height as decoded (least, median, most)": lambda s: _numbers(s["height"]),
        "width": lambda s: _numbers(s["width"]),
        "as fed": lambda s: ", ".join(f"{t} {_shape(x)}" for x in s["shapes"] for t in s["dtypes"]),
        "values": lambda s: "{} to {}".format(*s["values"]),
        "mean of R, G, B": lambda s: _numbers(s["mean"], 1),
        "deviation": lambda s: _numbers(s["std"], 1),
        "grey pictures": lambda s: _percent(s["grey"]),
    }
    if any(split["captions"] for split in splits):
        rows |= {
            "captions": lambda s: _caption(s, lambda c: f"{c['captions']:,}"),
            "captions a picture (least, median, most)": lambda s: _caption(
                s, lambda c: _numbers(c["per_image"])
            ),
            "words (median, 95 %, most)": lambda s: _caption(s, lambda c: _numbers(c["words"])),
            "ids, start and end included": lambda s: _caption(s, lambda c: _numbers(c["ids"])),
            "without words": lambda s: _caption(s, lambda c: f"{c['empty']:,}"),
        }
        length = next((s["captions"]["length"] for s in splits if "length" in (s["captions"] or {})), None)
        if length is not None:
            rows[f"cut at {length} ids"] = lambda s: _caption(s, lambda c: f"{c['longer']:,}")
        rows["most frequent words"] = lambda s: _caption(
            s, lambda c: ", ".join(f"{word} {count}" for word, count in c["frequent"][:FREQUENT_SHOWN])
        )
    for kind, of in (("classes", "pictures"), ("labels", "pixels")):
        if any(split[kind] for split in splits):
            rows[f"{kind}, % of {of}"] = lambda s, kind=kind: _shares(s[kind])
            rows[f"{kind} that never occur"] = lambda s, kind=kind: _never(s[kind])
    table = Table("", "train", "held-out", box=box.SIMPLE_HEAD, title=Text(figures["config"]))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.max_width = 48
    for label, show_fn in rows.items():
        table.add_row(Text(label), *(Text(show_fn(split)) for split in splits))
    return table


def speed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Images a second of each way to read."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("threads", "workers", "images/s", "images/s each"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (row["threads"], row["workers"], row["images_per_second"], row["each"])
        table.add_row(*(f"{number:,.0f}" for number in numbers))
    return table


def match_table(matches: Sequence[Mapping[str, Any]]) -> Table:
    """The worst near-duplicates."""
    table = Table(box=box.SIMPLE_HEAD, title=Text("Held-out pictures that training sees, nearly: the worst"))
    for heading in ("held-out", "", "train", ""):
        table.add_column(heading, justify="left" if not heading else "right", max_width=NAME_WIDTH)
    for heading in ("bits of 128", "colours of 255", "unlike (limit 1)", "pairs"):
        table.add_column(heading, justify="right")
    for match in matches[:MATCHES_SHOWN]:
        table.add_row(
            str(match["heldout"]),
            Text(match["heldout_name"]),
            str(match["train"]),
            Text(match["train_name"] + (" (mirrored)" if match["mirrored"] else "")),
            str(match["distance"]),
            f"{match['colour_difference']:.1f}",
            f"{match['unlikeness']:.2f}",
            str(match["pairs"]),
        )
    return table


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """Sentences about what a user should know; one about duplicates wherever they were sought."""
    lines = []
    for split in SPLITS:
        lines += _split_remarks(split, figures[split])
    lines.append(
        "Speed: training images, decoded and augmented, as fast as they come; what was read a moment before "
        "may come from memory."
    )
    sought = figures.get("duplicates")
    if sought:
        lines.append(duplicate_remark(sought, *(figures[split]["examples"] for split in SPLITS)))
    return lines


def duplicate_remark(sought: Mapping[str, Any], num_train: int, num_heldout: int) -> str:
    """What a search for duplicates looked at, how, and what it found, in words."""
    matches, compared = len(sought["matches"]), sought["heldout_compared"]
    train_compared = sought["train_compared"]
    found = (
        f"{matches:,} of {compared:,} held-out pictures ({_percent(matches / max(compared, 1))}) have a "
        f"near-duplicate among {train_compared:,} training pictures, {sought['pairs']:,} pairs in all"
        if matches
        else f"none of {compared:,} held-out pictures has a near-duplicate among {train_compared:,} training "
        "pictures"
    )
    blank = (
        f"Pictures of one colour are never duplicates ({sought['train_blank']:,} in training, "
        f"{sought['heldout_blank']:,} held out)."
    )
    if (train_compared, compared) != (num_train, num_heldout):
        blank += f" Not all were compared: there are {num_train:,} + {num_heldout:,} (--compare)."
    return (
        f"Duplicates: {found}, by two 64-bit difference hashes and the colours of an 8 x 8 grid, as it is or "
        f"mirrored. {blank}"
    )


def _split_remarks(split: str, figures: Mapping[str, Any]) -> list[str]:
    lines, name = [], {"train": "training", "heldout": "held-out"}[split]
    for path, reason in figures["skipped"][:SKIPPED_SHOWN]:
        lines.append(f"Left out of the {name} data: {path}: {reason}")
    if len(figures["skipped"]) > SKIPPED_SHOWN:
        more = len(figures["skipped"]) - SKIPPED_SHOWN
        lines.append(f"... and {more:,} more, see inspect.json.")
    if figures["grey"] > GREY_SHARE:
        lines.append(f"{_percent(figures['grey'])} of the {name} pictures are grey.")
    captions = figures["captions"]
    if captions and captions["empty"]:
        lines.append(
            f"{captions['empty']:,} of {captions['captions']:,} {name} captions have no words: for a prior, "
            "such a picture has no condition."
        )
    if captions and captions.get("longer", 0) > CUT_SHARE * captions["captions"]:
        lines.append(
            f"{captions['longer']:,} of {captions['captions']:,} {name} captions lose words: they need more "
            f"than config.prior.text.length={captions['length']} ids (95 %: {captions['ids'][1]:.0f})."
        )
    return lines


def _caption(split: Mapping[str, Any], show_fn) -> str:
    return show_fn(split["captions"]) if split["captions"] else "-"


def _shares(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return "-"
    most = sorted(zip(figures["shares"], figures["names"], strict=True), key=lambda x: -x[0])
    shown = [f"{name} {100 * share:.1f}" for share, name in most[:CLASSES_SHOWN] if share]
    return ", ".join(shown) + (", ..." if len(most) - len(figures["never"]) > CLASSES_SHOWN else "")


def _never(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return "-"
    never, total = figures["never"], len(figures["names"])
    names = ", ".join(never[:CLASSES_SHOWN]) + (", ..." if len(never) > CLASSES_SHOWN else "")
    return f"{len(never)} of {total}" + (f": {names}" if never else "")


def _numbers(values: Sequence[float], digits: int | None = None) -> str:
    return ", ".join(f"{value:g}" if digits is None else f"{value:.{digits}f}" for value in values)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
