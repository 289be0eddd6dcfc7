"""The end of a run: a page about it, one table of figures, the pictures, the paths of all that was made."""

import shutil
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from regvq_jax.files import read_json
from regvq_jax.metric_writers import read_jsonl
from regvq_jax.report.page import read_evaluations, write_html
from regvq_jax.report.tables import NAMES, ROWS, evaluation_table, styled

PICTURES = (
    ("tokenizer", "reconstructions", "originals above reconstructions"),
    ("tokenizer", "codebook", "how often each code is used, and where it lies"),
    ("map_tokenizer", "maps", "label maps above what their tokens say"),
    ("prior", "samples", "what the prior draws, with its conditions"),
)
# Of the evaluations' figures what is asked for first; the page has all of them.
SHOWN = {NAMES[name] for name in ("fid", "fd", "kid", "inception_score", "cmmd", "miou", "closer_to_train")}
MAX_HISTORY_ROWS = 8


def write_report(workdir: Path, console: Console | None = None) -> list[Path]:
    """Writes report.html, copies the last pictures to the top of the workdir, prints the table and all paths.

    Args:
        workdir: of a run with at least one finished training.
        console: to print on; standard output by default.

    Returns:
        The paths that it printed, all of which exist.
    """
    console = console or Console(soft_wrap=True)
    results = {
        stage: read_json(workdir / stage / "result.json")
        for stage in ("tokenizer", "map_tokenizer", "prior")
        if (workdir / stage / "result.json").exists()
    }
    table = Table("stage", "figure", "value", title=f"What {workdir.name} has learned")
    for stage, label, tag, style in ROWS:
        # Shares are read more easily in percent.
        plain = tag.removesuffix("_percent")
        if plain in results.get(stage, {}):
            value = styled(results[stage][plain], style, 100.0 if plain != tag else 1.0)
            table.add_row(stage, label, value)
    for name, record in read_evaluations(workdir).items():
        for group in evaluation_table(name, record).groups:
            for figure in group.figures:
                if group.protocol and figure.label in SHOWN:
                    table.add_row(name, f"{figure.label}, {group.protocol}", figure.value)
    console.print(table)
    if (workdir / "tokenizer" / "metrics.jsonl").exists():
        console.print(codebook_history(workdir / "tokenizer" / "metrics.jsonl"))

    paths: dict[Path, str] = {}
    for stage, name, meaning in PICTURES:
        pictures = sorted((workdir / stage / "images").glob(f"{name}_*.png"))
        if stage in results and pictures:
            path = workdir / f"{name}.png"
            shutil.copyfile(pictures[-1], path)
            paths[path] = meaning
    if (workdir / "tokenizer" / "codebook.json").exists():
        paths[workdir / "tokenizer" / "codebook.json"] = "how often each code is used, and the dead ones"
    for stage in results:
        paths[workdir / stage / "metrics.jsonl"] = f"every figure of the {stage} training"
        paths[workdir / stage / "checkpoints"] = f"checkpoints of the {stage}"
        paths[workdir / stage] = f"TensorBoard: tensorboard --logdir={workdir / stage}"
    if (workdir / "tokens").exists():
        paths[workdir / "tokens"] = "token cache"
    paths = {write_html(workdir): "all of this on one page"} | paths
    for path, meaning in paths.items():
        console.print(f"{path}  ({meaning})", highlight=False)
    return list(paths)


def codebook_history(metrics: Path) -> Table:
    """How the codebook opened or collapsed over a training, from first to last evaluation.

    Args:
        metrics: the training's metrics.jsonl.

    Returns:
        A table of at most `MAX_HISTORY_ROWS` evaluations, evenly chosen.
    """
    evaluations = [line for line in read_jsonl(metrics) if "codebook/usage" in line]
    count = min(MAX_HISTORY_ROWS, len(evaluations))
    table = Table("step", "usage, %", "perplexity", title="The codebook over the training")
    for index in np.linspace(0, len(evaluations) - 1, count).round().astype(int):
        line = evaluations[index]
        usage, perplexity = 100 * line["codebook/usage"], line["codebook/perplexity"]
        table.add_row(f"{line['step']:,}", f"{usage:.1f}", f"{perplexity:.1f}")
    return table
