"""A trained prior under many settings of its sampler: which draws the best images, and which the fastest."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from regvq_jax import sharding
from regvq_jax.command_line import Parser, positive
from regvq_jax.data.images import read_image
from regvq_jax.errors import UserError
from regvq_jax.evaluate.compare_images import add_protocol_arguments, fit_batch, protocol_spec
from regvq_jax.evaluate.distances import Judge, check_count
from regvq_jax.evaluate.drawn import digest_of
from regvq_jax.evaluate.generation import Generation
from regvq_jax.evaluate.protocols import Extractor
from regvq_jax.evaluate.result import versions
from regvq_jax.evaluate.runs import LoadedRun
from regvq_jax.evaluate.sheets import labelled_sheet
from regvq_jax.evaluate.sweep_chart import pareto_front, quality_chart
from regvq_jax.evaluate.sweep_grid import (
    config_flags,
    config_lines,
    default_grid,
    describe,
    make_cells,
    parse_grid,
    sampler_of,
    show,
)
from regvq_jax.evaluate.sweep_results import NUM_SHOWN, PREFIX, Cell, Results
from regvq_jax.files import report_write_errors
from regvq_jax.progress import Progress, log
from regvq_jax.trainers import build_prior, build_sampling

HELP = """Draws from a trained prior under many settings of its sampler, judges each, and names the best.

    python -m regvq_jax.evaluate sweep runs/quickstart --protocol=efficientnet_lite0
    python -m regvq_jax.evaluate sweep runs/coco --grid temperature=0.7,1.0 --grid guidance=1,2,4 --metric=fid

Every combination of the values is a cell; what no --grid names is as in the run's config, and without any
there are at most twelve cells around it. All cells draw from the same held-out conditions with the same
noise. Images lie in RUN/results/sweep, figures in RUN/results/sweep.json: a sweep that was stopped goes on,
and a later one with the same protocol, counts and seed adds its cells to the earlier ones.

No figure sees whether images fit what they were drawn from: look at RUN/results/sweep_samples.png, too. The
best of many looks better than it is: for a figure to publish, draw anew with another seed (`generation`)."""

METRICS = ("kid", "fd", "fid")
LONGEST = 400


def main(argv: Sequence[str]) -> None:
    """Draws and judges what is missing, prints the table, and writes figures and pictures."""
    args = _make_parser().parse_args(argv)
    grid = parse_grid(args.grid)
    check_count(args.num_images, f"--num_images={args.num_images}")
    mesh = sharding.make_mesh()
    batch_size = fit_batch(args.batch_size, mesh)
    workdir = args.path.expanduser().absolute()
    run = LoadedRun(workdir)
    trained = run.trained
    own = build_sampling.sample_settings(run.config)
    guided = trained.condition.kind != "none" and run.config.prior.condition_drop > 0
    grid = grid or default_grid(own, trained.prior, guided)
    wanted = make_cells(run.config, trained.prior, trained.model.codebook_size, grid, guided)
    judge = Judge((protocol_spec(args),), build_prior.reference_images(run.config, batch_size, "heldout", 0))
    metric = metric_tag(args.metric, judge.extractors[0])

    drawing = dict(
        directory=workdir / "results" / "sweep", num_images=args.num_images, seed=args.seed, judge=judge,
        memorisation=0, keep_others=True,
    )  # fmt: skip
    evaluator = run.make_evaluator(wanted[0], batch_size, **drawing)
    identity = _identity(run, evaluator, mesh) | {"batch_size": batch_size}
    results = Results(workdir / "results", metric, identity)
    missing = [settings for settings in wanted if results.find(settings) is None]
    if len(missing) < len(wanted):
        log.info("%d of %d cells are in %s", len(wanted) - len(missing), len(wanted), results.path)
    # Not shown itself: a terminal has one live bar, that of what is drawn.
    progress = Progress("sweep", len(missing), unit="cells", enabled=False)
    where = {"checkpoint": str(workdir / "prior" / "checkpoints"), "step": trained.step}
    for number, settings in enumerate(missing, 1):
        log.info("cell %d of %d: %s", number, len(missing), describe(settings, grid))
        began = time.perf_counter()
        evaluator = run.make_evaluator(settings, batch_size, **drawing)
        seconds_per_image = run(evaluator.seconds_per_image, mesh)
        evaluation = run(evaluator, mesh)
        results.add(settings, evaluation, seconds_per_image, time.perf_counter() - began)
        if jax.process_index() == 0:
            results.write(**where)
        progress.update(number, **{args.metric: evaluation.metrics[metric]})
        log.info("sweep       %s", progress.line())
    if jax.process_index() == 0:
        results.write(**where)  # They may be ranked by another figure than before.
        _report(results, sampler_of(own), list(grid), args)


def _make_parser() -> Parser:
    parser = Parser("regvq_jax.evaluate sweep", HELP)
    parser.add_argument("path", type=Path, help="workdir of a run")
    parser.add_argument("--grid", action="append", default=[], metavar="NAME=VALUES", help="as steps=8,16")
    add_protocol_arguments(parser)
    parser.add_argument("--metric", choices=METRICS, default="kid", help="ranks the cells; kid by default")
    parser.add_argument("--num_images", type=positive, default=1000, help="of each cell; 1000 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    return parser


def metric_tag(metric: str, extractor: Extractor) -> str:
    """The tag of a figure that cells are ranked by: "fd" is the Frechet distance in any network.

    Raises:
        UserError: "fid" in another network than its own.
    """
    if metric == "fid" and not extractor.is_inception:
        raise UserError(
            f"--metric=fid is a distance in Inception's features, and --protocol={extractor.name} has "
            "others: take --metric=fd, the same distance in those, or another protocol."
        )
    name = "fid" if metric == "fd" and extractor.is_inception else metric
    return f"{PREFIX}{name}_{extractor.tag}"


def _identity(run: LoadedRun, evaluator: Generation, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    reference = evaluator.judge.reference
    return {
        "images": evaluator.count, "seed": evaluator.seed, "devices": versions()["devices"],
        "parameters": run(lambda ema, frozen, mesh: digest_of((ema, frozen)), mesh),
        "protocol": evaluator.judge.extractors[0].describe(),
        "reference": {"images": reference.name, **reference.identity},
        "conditions": f"those of {evaluator.num_conditions:,} held-out images",
        "sampler": {name: value for name, value in evaluator.sampler.items() if name != "sampling"},
    }  # fmt: skip


def _report(results: Results, own: dict[str, Any], swept: list[str], args: Namespace) -> None:
    """The table, the pictures, and the best cell's settings."""
    cells, best = results.cells, results.cells[0]
    names = [name for name in own if name in swept or any(cell.settings[name] != own[name] for cell in cells)]
    seconds = [cell.seconds_per_image for cell in cells]
    values = [cell.metrics[results.metric] for cell in cells]
    deviations = [cell.metrics.get(f"{results.metric}_std", 0.0) for cell in cells]
    front = pareto_front(seconds, values)
    place = next((index for index, cell in enumerate(cells) if cell.settings == own), None)
    _print_table(cells, results.metric, names, front, place)
    for warning in results.warnings:
        log.warning("%s", warning)
    equals = [index for index, value in enumerate(values) if 0 < value - values[0] < deviations[0]]
    if equals:
        fastest = min([0, *equals], key=lambda index: seconds[index])
        print(
            f"within one deviation of the best: {', '.join(str(index + 1) for index in equals)}; the fastest "
            f"of these and the best is {fastest + 1}; more images tell them apart"
        )

    figure, _, protocol = results.metric.removeprefix(PREFIX).partition("_")
    identity = results.identity
    chart = quality_chart(
        [cell.settings for cell in cells], seconds, values, deviations, names=names, own=place,
        metric=f"{figure.upper()} of {identity['images']:,} images, {protocol}",
        machine=f"{identity['devices']}, {identity['batch_size']} at a time",
    )  # fmt: skip
    paths = [results.path]
    for name, picture in (("sweep", chart), ("sweep_samples", _samples(results, names))):
        paths.append(results.path.with_name(f"{name}.png"))
        with report_write_errors(paths[-1]):
            picture.save(paths[-1])
    print("\nThe best, for a config file, for a training, and to be judged anew:\n")
    print("\n".join(f"    {line}" for line in config_lines(best.settings, names)))
    print(f"\n    {config_flags(best.settings, names)}")
    changes = ",".join(f"{name}={best.settings[name]}" for name in names)
    weights = f" --weights={args.weights}" if args.weights else ""
    print(
        f"\n    python -m regvq_jax.evaluate generation {args.path} --protocol={args.protocol}{weights} "
        f"--seed={args.seed + 1} --set {changes}\n"
    )
    print(*paths, sep="\n")


def _samples(results: Results, names: Sequence[str]) -> Image.Image:
    """The first images of the best, the median and the worst cell: a column has one condition."""
    last, lines = len(results.cells) - 1, {}
    for index, role in {last: "worst", last // 2: "median", 0: "best"}.items():
        cell = results.cells[index]
        label = f"{role}: {describe(cell.settings, names)}"
        lines[label] = np.stack([read_image(path) for path in results.first_images(cell)])
    return labelled_sheet(dict(reversed(lines.items())), columns=NUM_SHOWN)


def _print_table(
    cells: Sequence[Cell], metric: str, names: Sequence[str], front: Sequence[int], own: int | None
) -> None:
    """All cells, the best first."""
    protocol = metric.removeprefix(PREFIX).partition("_")[2]
    tags = {name: f"{PREFIX}{name}_{protocol}" for name in ("kid", "fid", "fd", "precision", "recall")}
    tags = {name: tag for name, tag in tags.items() if tag in cells[0].metrics}
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", *names, *tags, "ms an image"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for index, cell in enumerate(cells):
        texts = [str(index + 1), *(show(cell.settings[name]) for name in names)]
        for tag in tags.values():
            deviation = cell.metrics.get(f"{tag}_std")
            texts.append(f"{cell.metrics[tag]:.4g}")
            texts[-1] += f" ± {deviation:.2g}" if deviation is not None else ""
        texts.append(f"{1000 * cell.seconds_per_image:.3g}")
        marks = {"best": index == 0, "front": index in front, "own": index == own}
        texts.append(", ".join(text for text, is_so in marks.items() if is_so))
        table.add_row(*texts, style="" if index else "bold")
    # Rich cuts numbers to fit; a line that is too long is the lesser evil.
    console = Console(width=LONGEST)
    console.print(table, width=max(Console().width, console.measure(table).maximum))
    print("front: nothing that is as fast is better; own: as in the run's config")
