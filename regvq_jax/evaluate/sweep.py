"""A trained prior under many settings of its sampler: which draws the best images, and which the fastest."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from regvq_jax import sharding
from regvq_jax.command_line import Parser, positive
from regvq_jax.data.images import read_image
from regvq_jax.errors import UserError
from regvq_jax.evaluate.compare_images import add_protocol_arguments, fit_batch, protocol_spec
from regvq_jax.evaluate.distances import Judge, check_count
from regvq_jax.evaluate.drawn import digest_of, image_path
from regvq_jax.evaluate.generation import Generation
from regvq_jax.evaluate.protocols import Extractor
from regvq_jax.evaluate.result import Evaluation, versions, write_result
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
from regvq_jax.files import read_json, report_write_errors, to_jsonable
from regvq_jax.progress import Progress
from regvq_jax.trainers import build_prior, build_sampling

HELP = """Draws from a trained prior under many settings of its sampler, judges each, and names the best.

    python -m regvq_jax.evaluate sweep runs/quickstart --protocol=efficientnet_lite0
    python -m regvq_jax.evaluate sweep runs/coco --grid temperature=0.7,1.0 --grid guidance=1,2,4 --metric=fid

Every combination of the values is a cell; what no --grid names is as in the run's config, and without any
there are at most twelve cells around it. All cells draw from the same held-out conditions with the same
noise. Images lie in RUN/results/sweep, figures in RUN/results/sweep.json: a sweep that was stopped goes on,
and a later one with the same protocol, counts and seed adds its cells to the earlier ones. The best of many
looks better than it is: for a figure to publish, draw anew with another seed (`generation`)."""

METRICS = ("kid", "fd", "fid")
NUM_SHOWN = 8
PREFIX = "eval/generation/"
log = logging.getLogger("regvq_jax")


class Cell(NamedTuple):
    """One sampler, and what came of it.

    Attributes:
        settings: see `sweep_grid.sampler_of`.
        metrics: by tag, as of `evaluate generation`.
        seconds_per_image: to draw and decode.
        drawn: name of the folder of its images.
    """

    settings: dict[str, Any]
    metrics: dict[str, float]
    seconds_per_image: float
    drawn: str


class Results:
    """The cells that are known, the best first, in RUN/results/sweep.json.

    Attributes:
        path: of the file.
        drawn: folder of what is drawn, a folder in it for each cell.
        cells: with the same identity.
        metric: tag that decides which is the best.
    """

    def __init__(self, workdir: Path, metric: str, identity: dict[str, Any]):
        """Takes over the cells of earlier calls with the same identity whose images are still there.

        Args:
            workdir: of the run.
            metric: tag, smaller is better.
            identity: all that decides figures and times besides the samplers' settings.
        """
        self.path = workdir / "results" / "sweep.json"
        self.drawn = workdir / "results" / "sweep"
        self.metric, self._identity = metric, json.loads(json.dumps(to_jsonable(identity)))
        self.cells: list[Cell] = []
        self._about: dict[str, Any] = {}
        if not self.path.exists():
            return
        record = read_json(self.path)
        if record.get("settings") != self._identity:
            log.info("%s is of other parameters, images or machines than these: begun anew", self.path)
            return
        self._about = {name: record[name] for name in ("protocols", "warnings")}
        cells = [Cell(**cell) for cell in record["cells"]]
        self.cells = [cell for cell in cells if all(path.exists() for path in self.first_images(cell))]
        self._sort()

    @property
    def warnings(self) -> list[str]:
        """Of the cells' figures."""
        return self._about.get("warnings", [])

    def find(self, settings: dict[str, Any]) -> Cell | None:
        """The cell of these settings, if there is one."""
        return next((cell for cell in self.cells if cell.settings == settings), None)

    def add(self, settings: dict[str, Any], evaluation: Evaluation, seconds_per_image: float) -> None:
        """Takes a cell."""
        drawn = Path(evaluation.about["settings"]["drawn"]).name
        self.cells.append(Cell(settings, evaluation.metrics, seconds_per_image, drawn))
        self._about = {name: evaluation.about[name] for name in ("protocols", "warnings")}
        self._sort()

    def write(self, **more: Any) -> None:
        """Writes all cells, and the figures of the best as those of the file; **more as of `write_result`."""
        best = self.cells[0]
        about = self._about | {"settings": self._identity}
        cells = [cell._asdict() for cell in self.cells]
        evaluation = Evaluation(best.metrics, {}, about=about)
        write_result(
            self.path, evaluation, best=best.settings, ranked_by=self.metric, cells=cells, **more
        )

    def first_images(self, cell: Cell) -> list[Path]:
        """Files of its first images; those of all cells are drawn from the same conditions."""
        return [image_path(self.drawn / cell.drawn, index) for index in range(NUM_SHOWN)]

    def _sort(self) -> None:
        self.cells.sort(key=lambda cell: cell.metrics[self.metric])


def main(argv: Sequence[str]) -> None:
    """Draws and judges what is missing, prints the table, and writes figures and pictures."""
    args = _make_parser().parse_args(argv)
    grid = parse_grid(args.grid)
    check_count(args.num_images, f"--num_images={args.num_images}")
    began = time.perf_counter()
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

    def make_evaluator(settings: dict[str, Any]) -> Generation:
        return run.make_evaluator(
            settings, batch_size, directory=workdir / "results" / "sweep", num_images=args.num_images,
            seed=args.seed, judge=judge, memorisation=0, keep_others=True,
        )  # fmt: skip

    identity = _identity(run, make_evaluator(wanted[0]), mesh) | {"batch_size": batch_size}
    results = Results(workdir, metric, identity)
    missing = [settings for settings in wanted if results.find(settings) is None]
    if len(missing) < len(wanted):
        log.info("%d of %d cells are in %s", len(wanted) - len(missing), len(wanted), results.path)
    # Not shown itself: a terminal has one live bar, that of what is drawn.
    progress = Progress("sweep", len(missing), unit="cells", enabled=False)
    where = {"checkpoint": str(workdir / "prior" / "checkpoints"), "step": trained.step}
    for number, settings in enumerate(missing, 1):
        log.info("cell %d of %d: %s", number, len(missing), describe(settings, grid))
        evaluator = make_evaluator(settings)
        seconds = run(evaluator.seconds_per_image, mesh)
        evaluation = run(evaluator, mesh)
        results.add(settings, evaluation, seconds)
        if jax.process_index() == 0:
            results.write(**where, seconds=time.perf_counter() - began)
        progress.update(number, **{args.metric: evaluation.metrics[metric]})
        log.info("sweep       %s", progress.line())
    if jax.process_index() == 0:
        _report(results, sampler_of(own), list(grid), workdir, batch_size)


def _make_parser() -> Parser:
    parser = Parser("regvq_jax.evaluate sweep", HELP)
    parser.add_argument("path", type=Path, help="workdir of a run")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="NAME=VALUES", help="of a sampler's setting: steps=8,16"
    )
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
            f"--metric=fid is a distance in Inception's features, and --protocol={extractor.name} has others: "
            "take --metric=fd, the same distance in those, or another protocol."
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


def _report(
    results: Results, own: dict[str, Any], swept: list[str], workdir: Path, batch_size: int
) -> None:
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
            f"{len(equals)} more cell(s) are within one deviation of the best; the fastest of these is "
            f"{fastest + 1}. More images tell them apart."
        )

    figure, _, protocol = results.metric.removeprefix(PREFIX).partition("_")
    chart = quality_chart(
        [cell.settings for cell in cells], seconds, values, deviations, names=names, own=place,
        metric=f"{figure.upper()}, {protocol}", machine=f"{versions()['devices']}, {batch_size} at a time",
    )  # fmt: skip
    roles = {"best": 0, "median": len(cells) // 2, "worst": len(cells) - 1}
    shown = {
        f"{role}: {describe(cells[index].settings, names)}": np.stack(
            [read_image(path) for path in results.first_images(cells[index])]
        )
        for role, index in roles.items()
        if index not in [roles[other] for other in list(roles)[: list(roles).index(role)]]
    }
    paths = [results.path]
    for name, picture in (("sweep", chart), ("sweep_samples", labelled_sheet(shown, columns=NUM_SHOWN))):
        paths.append(results.path.with_name(f"{name}.png"))
        with report_write_errors(paths[-1]):
            picture.save(paths[-1])
    print("\nThe best, for a config file, for a training, and for this run:\n")
    print("\n".join(f"    {line}" for line in config_lines(best.settings, names)))
    print(f"\n    {config_flags(best.settings, names)}")
    changes = describe(best.settings, names).replace(" ", ",")
    print(f"\n    python -m regvq_jax.evaluate generation {workdir} --set {changes}\n")
    print(*paths, sep="\n")


def _print_table(
    cells: Sequence[Cell], metric: str, names: Sequence[str], front: Sequence[int], own: int | None
) -> None:
    """All cells, the best first."""
    protocol = metric.removeprefix(PREFIX).partition("_")[2]
    figures = [
        name for name in ("kid", "fid", "fd", "precision", "recall") if f"{PREFIX}{name}_{protocol}" in cells[0].metrics
    ]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", *names, *figures, "ms an image"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for index, cell in enumerate(cells):
        texts = [show(cell.settings[name]) for name in names]
        for name in figures:
            tag = f"{PREFIX}{name}_{protocol}"
            deviation = cell.metrics.get(f"{tag}_std")
            texts.append(f"{cell.metrics[tag]:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else ""))
        marks = {"best": index == 0, "worth its time": index in front, "the run's own": index == own}
        mark = ", ".join(text for text, is_so in marks.items() if is_so)
        texts.append(f"{1000 * cell.seconds_per_image:.3g}")
        table.add_row(str(index + 1), *texts, mark, style="" if index else "bold")
    # Rich cuts numbers to fit; a line that is too long is the lesser evil.
    console = Console()
    console.print(table, width=max(console.width, Console(width=400).measure(table).maximum))
