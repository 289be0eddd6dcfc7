"""What a config would feed to training, in figures and pictures, before any training.

    python -m regvq_jax.data inspect configs/emoji.py:map-ar
    python -m regvq_jax.data inspect configs/folder.py --config.data.source=folder:photos --output=look

Shows what both splits hold, how long captions are, how often each class occurs, how fast images are made,
and which held-out pictures are near-duplicates of training pictures. Writes all figures to DIR/inspect.json,
and train.png and heldout.png (examples as they are fed), classes.png, labels.png, duplicates.csv and .png.
Figures are those of --examples pictures, evenly spread over each split.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from regvq_jax.command_line import Parser, positive
from regvq_jax.conditioning.frozen_text import MINILM_PACKAGE, minilm_directory
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.conditioning.text_wordpiece import make_wordpiece_tokenizer
from regvq_jax.config_file import load_config_file
from regvq_jax.data import inspect_pictures as pictures
from regvq_jax.data import inspect_tables as tables
from regvq_jax.data import statistics
from regvq_jax.data.duplicates import Duplicates, find_duplicates
from regvq_jax.data.labels import label_colours
from regvq_jax.data.sources import SPLITS, Source
from regvq_jax.data.throughput import images_per_second
from regvq_jax.errors import UserError
from regvq_jax.files import check_writable, report_write_errors, write_json_atomic, write_text_atomic
from regvq_jax.progress import track
from regvq_jax.settings import DataSettings, from_config
from regvq_jax.trainers import build_data
from regvq_jax.workdir import check_groups

NUM_SHOWN = 32
# Reading all of a large set would take hours.
MAX_COMPARED = 20_000
MAX_BATCH = 64  # of the measurement; larger ones take longer, not more or less an image


def caption_reader(config: ConfigDict) -> tuple[Callable[[Sequence[str]], np.ndarray], int | None]:
    """How a config's prior counts the ids of captions, and the number that it has room for.

    Args:
        config: with or without a `prior` group.

    Returns:
        (captions to int [B], as `RowTokenizer.lengths`; L, or None where no prior reads captions). CLIP's ids
        where no prior says otherwise.

    Raises:
        UserError: a frozen encoder's vocabulary is not to be had.
    """
    prior = config.get("prior")
    if prior is None or prior.condition not in ("auto", "text"):
        return make_tokenizer().lengths, None
    if prior.text.encoder != "minilm":
        return make_tokenizer().lengths, prior.text.length
    weights = prior.text.weights
    directory = minilm_directory() if weights == MINILM_PACKAGE else Path(weights).expanduser()
    return make_wordpiece_tokenizer(directory / "tokenizer.json").lengths, prior.text.length


def describe_split(config: ConfigDict, split: str, source: Source, num_examples: int) -> dict[str, Any]:
    """All figures of a split, as JSON.

    Args:
        config: says how pictures are cropped and how captions are read.
        split: "train" or "heldout".
        source: of that split.
        num_examples: look at so many, evenly spread over it.

    Returns:
        The entries of `statistics.describe_source` and `describe_images`, and "captions", "classes" and
        "labels" as of its other functions, None where there are none.
    """
    transform_fns = build_data.crop_transforms(config, split == "train")

    def look(index: int) -> statistics.Facts:
        element = source[int(index)]
        rng = np.random.default_rng((config.seed, int(index)))
        fed = pictures.apply(transform_fns, element, rng if split == "train" else None)
        return statistics.look_at(element, fed, source.num_label_classes)

    indices = statistics.spread(len(source), num_examples)
    with ThreadPoolExecutor(max(1, config.data.num_threads)) as pool:
        facts = list(track(pool.map(look, indices), f"look {split}", len(indices), unit="pictures"))
    figures = statistics.describe_source(source) | statistics.describe_images(facts)
    lengths_fn, length = caption_reader(config)
    figures["captions"] = statistics.describe_captions([fact.texts for fact in facts], lengths_fn, length)
    figures["classes"] = figures["labels"] = None
    if source.num_classes:
        ids = [fact.class_id for fact in facts]
        figures["classes"] = statistics.describe_classes(ids, source.class_names, source.num_classes)
    if source.has_labels:
        figures["labels"] = statistics.describe_labels(facts, getattr(source, "label_names", ()))
    return figures


def measure(config: ConfigDict, source: Source, seconds: float) -> list[dict[str, Any]]:
    """How fast training images are made by one thread, and by the config's threads and workers.

    Args:
        config: says how pictures are cropped.
        source: the training split.
        seconds: of each measurement.

    Returns:
        A dict for each: "threads", "workers", "images_per_second" and "each", the same of a thread or, with
        workers, of a worker.
    """
    data = config.data
    rows = []
    for threads, workers in dict.fromkeys(((0, 0), (data.num_threads, data.num_workers))):
        speed = images_per_second(
            source,
            build_data.image_transforms(config, True),
            batch_size=min(config.train.batch_size, MAX_BATCH),
            num_threads=threads,
            num_workers=workers,
            seconds=seconds,
            seed=config.seed,
        )
        threads = max(1, threads)
        each = speed / (workers or threads)
        rows.append(dict(threads=threads, workers=workers, images_per_second=speed, each=each))
    return rows


def describe_duplicates(found: Duplicates, train: Source, heldout: Source) -> dict[str, Any]:
    """What a search for duplicates found, as JSON: counts, and a row for each match."""
    rows = [
        {
            "heldout": match.heldout,
            "heldout_name": pictures.element_name(heldout, match.heldout),
            "train": match.train,
            "train_name": pictures.element_name(train, match.train),
            "distance": match.distance,
            "colour_difference": round(match.colour_difference, 2),
            "unlikeness": round(match.unlikeness, 3),
            "mirrored": match.mirrored,
            "pairs": match.pairs,
        }
        for match in found.matches
    ]
    return {
        "train_compared": len(found.train_compared),
        "heldout_compared": len(found.heldout_compared),
        "train_blank": found.train_blank,
        "heldout_blank": found.heldout_blank,
        "pairs": found.num_pairs,
        "matches": rows,
    }


def write_pictures(
    output: Path, config: ConfigDict, sources: Mapping[str, Source], figures: Mapping[str, Any]
) -> list[Path]:
    """Writes the sheets of examples and the histograms; returns their paths.

    Raises:
        UserError: `output` cannot be written to.
    """
    paths = []
    with report_write_errors(output):
        for split, source in sources.items():
            training = split == "train"
            indices = statistics.spread(len(source), NUM_SHOWN)
            transform_fns = build_data.crop_transforms(config, training)
            sheet = pictures.example_sheet(source, transform_fns, indices, config.seed if training else None)
            paths.append(output / f"{split}.png")
            sheet.save(paths[-1])
        train, heldout = (figures[split] for split in SPLITS)
        for kind, of in (("classes", "pictures"), ("labels", "pixels")):
            if not (train[kind] and heldout[kind]):
                continue
            number = len(train[kind]["names"])
            looked_at = f"{train['looked_at']:,} + {heldout['looked_at']:,}"
            chart = pictures.share_chart(
                train[kind],
                heldout[kind],
                title=f"{number} {kind} of {train['source']}, {looked_at} pictures",
                of=of,
                colours=label_colours(number) if kind == "labels" else None,
            )
            paths.append(output / f"{kind}.png")
            chart.savefig(paths[-1])
    return paths


def write_duplicates(
    output: Path,
    config: ConfigDict,
    sources: Mapping[str, Source],
    found: Duplicates,
    rows: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Writes the table of near-duplicates and a sheet of the worst, if there are any; returns their paths.

    Raises:
        UserError: `output` cannot be written to.
    """
    table, sheet = output / "duplicates.csv", output / "duplicates.png"
    with report_write_errors(output):
        for path in (table, sheet):  # An earlier call's must not pass for this one's.
            path.unlink(missing_ok=True)
    if not rows:
        return []
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(table, text.getvalue())
    worst = found.matches[:NUM_SHOWN]
    with report_write_errors(output):
        pictures.duplicate_sheet(
            sources["train"], sources["heldout"], build_data.crop_transforms(config, False), worst
        ).save(sheet)
    return [table, sheet]


def main(argv: Sequence[str]) -> None:
    """Inspects the data of the config that the arguments name, and prints the paths of what it wrote."""
    arguments, overrides = split_overrides(argv)
    args = make_parser().parse_args(arguments)
    config = load_config_file(args.config, overrides)
    check_groups(config, "The config file", ("seed", "data", "train"))
    from_config(DataSettings, config.data, "data")
    name = Path(args.config.partition(":")[0]).stem
    output = (args.output or Path("runs", f"inspect-{name}")).expanduser().absolute()
    check_writable(output)
    sources = {split: build_data.open_source(config, split) for split in SPLITS}
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"The {split} split of {source.name} has no pictures: there is nothing to see.")

    figures: dict[str, Any] = {"config": args.config, "overrides": overrides, "data": config.data.to_dict()}
    for split, source in sources.items():
        figures[split] = describe_split(config, split, source, args.examples)
    figures["throughput"] = measure(config, sources["train"], args.seconds)
    paths = write_pictures(output, config, sources, figures)
    if args.duplicates:
        found = find_duplicates(
            *sources.values(), limit=args.compare, num_threads=max(1, config.data.num_threads)
        )
        figures["duplicates"] = describe_duplicates(found, *sources.values())
        paths += write_duplicates(output, config, sources, found, figures["duplicates"]["matches"])
    write_json_atomic(output / "inspect.json", figures)

    tables.show(figures)
    for path in (*paths, output / "inspect.json"):
        print(path)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the changed fields of the config, --config.FIELD=VALUE or --config.FIELD VALUE, from the rest."""
    rest, overrides = [], []
    previous = ""
    for argument in argv:
        is_value = previous.startswith("--config.") and "=" not in previous and not argument.startswith("--")
        (overrides if is_value or argument.startswith("--config.") else rest).append(argument)
        previous = argument
    return rest, overrides


def make_parser() -> Parser:
    """The flags, without those of the config's fields."""
    parser = Parser("regvq_jax.data inspect", __doc__)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="FILE or FILE:CHOICES; --config.FIELD=VALUE changes a field")
    add("--output", type=Path, metavar="DIR", help="made if need be (default runs/inspect-NAME)")
    add("--examples", type=positive, default=512, help="pictures of each split to count (default 512)")
    add(
        "--compare",
        type=positive,
        default=MAX_COMPARED,
        metavar="N",
        help=f"pictures of each split to look for duplicates in, evenly spread (default {MAX_COMPARED:,})",
    )
    add("--no-duplicates", dest="duplicates", action="store_false", help="do not look for duplicates")
    add("--seconds", type=positive, default=3, help="to measure each speed for (default 3)")
    return parser
