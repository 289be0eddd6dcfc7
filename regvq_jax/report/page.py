"""One page about a run, report.html: needs no network and no scripts, so it can be mailed and kept."""

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from regvq_jax.errors import UserError
from regvq_jax.files import read_json, write_bytes_atomic
from regvq_jax.report.cards import summarize
from regvq_jax.report.curves import draw_charts
from regvq_jax.report.facts import (
    STAGES,
    codebook_size,
    describe_environment,
    describe_stage,
    group_config,
    read_condition,
    read_if_there,
    read_stages,
)
from regvq_jax.report.tables import Group, evaluation_table, show, stage_table
from regvq_jax.workdir import flatten

NAME = "report.html"
# Where pictures lie; those of evaluations may stand beside their figures.
PICTURE_FOLDERS = {
    **{stage: (f"{stage}/images",) for stage in STAGES},
    "results": ("results/images", "results"),
}
PICTURES = {
    "reconstructions": ("Reconstructions", "Held-out images above what the tokenizer makes of their tokens"),
    "codebook": ("Codebook", "How often each code is used on held-out images, and where the codes lie"),
    "maps": ("Label maps", "Held-out label maps above what is read back from their tokens"),
    "map_codebook": ("Codebook of label maps", "How often each code is used, and where the codes lie"),
    "samples": ("Samples", "What the prior draws"),
    "memorisation": (
        "Memorisation",
        "The samples nearest to training images, above the nearest of these: equals are copies",
    ),
    "sweep": ("Sweep", "Quality of samples against the time that they take, one point a sampler"),
    "sweep_samples": ("Samples of the sweep", "The same conditions by the best, a middling and the worst"),
}
SAMPLES = {
    "none": "What the prior draws, told nothing",
    "class": "What the prior draws from classes",
    "text": "What the prior draws from the captions below the images",
    "map": "Label maps above what the prior draws from them",
    "map_tokens": "Label maps above what the prior draws from their tokens",
}
# Larger ones are compressed for the page; the files stay as they are.
MAX_PICTURE_BYTES, MAX_PICTURE_WIDTH = 2**20, 2200
# What stands first among the evaluations.
EVALUATIONS = ("reconstruction", "generation")
# So many figures of one evaluation are shown at once, the others can be unfolded.
MAX_FIGURES = 24


class Picture(NamedTuple):
    """A picture of an evaluation.

    Attributes:
        name: of its place on the page.
        title: for people.
        caption: what one sees.
        file: relative to the workdir.
        uri: its bytes as a data: URI.
        width: pixels.
        height: pixels.
    """

    name: str
    title: str
    caption: str
    file: str
    uri: str
    width: int
    height: int


def write_html(workdir: Path) -> Path:
    """Writes report.html: what was trained, its figures, pictures and curves, environment and config.

    Args:
        workdir: of a run; what it lacks has no section.

    Returns:
        The path of the page.

    Raises:
        UserError: no space, no permission, or a file of the run is damaged.
    """
    environment = jinja2.Environment(
        autoescape=True,  # Captions and configs are other people's texts.
        loader=jinja2.PackageLoader("regvq_jax", "report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.jinja").render(gather(workdir))
    path = workdir / NAME
    # A config may hold file names that are not UTF-8.
    write_bytes_atomic(path, text.encode(errors="replace"))
    return path


def gather(workdir: Path) -> dict[str, Any]:
    """The template's variables; what the run lacks is empty.

    Args:
        workdir: of the run.
    """
    config = flatten(read_if_there(workdir / "config.json"))
    condition = read_condition(workdir, config)
    stages, evaluations = read_stages(workdir), read_evaluations(workdir)
    measured = {tag: value for record in evaluations.values() for tag, value in record["metrics"].items()}
    trained = {tag: value for stage in stages for tag, value in stage.result.items()}
    tokenizers = [stage for stage in stages if stage.name == "tokenizer"]
    shown = {"step", "perf/images_per_sec", *measured}
    tables = [stage_table(stage.name, stage.title, stage.result, shown) for stage in stages]
    tables += [evaluation_table(name, record) for name, record in evaluations.items()]
    charts = {stage.name: draw_charts(stage.name, stage.rows) for stage in stages}
    captions = config.get("sample.captions") if condition == "text" else None
    page = {
        "name": workdir.name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cards": summarize(trained | measured, codebook_size(tokenizers[0], config) if tokenizers else None),
        "stages": [(stage, describe_stage(stage, config, condition)) for stage in stages],
        "tokenizer_file": Path(config.get("tokenizer") or "").name,
        "tables": [table for table in tables if table],
        "pictures": find_pictures(workdir, condition),
        "captions": captions if isinstance(captions, list) else [],
        "sampling": [
            (name.removeprefix("sample."), show(value))
            for name, value in config.items()
            if name.startswith("sample.") and name != "sample.captions"
        ],
        "charts": [(stage, charts[stage.name]) for stage in stages if charts[stage.name]],
        "environment": describe_environment(),
        "config": group_config(config),
    }
    tools = {"data_uri": data_uri, "place": place, "show": show, "split": split_groups}
    return page | tools | {"contents": list_contents(page)}


def list_contents(page: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The table of contents: (id, title, the same of its parts) of every section that there is.

    Args:
        page: the template's other variables.
    """
    sections = (
        ("trained", "What was trained", page["stages"], []),
        ("figures", "Figures", page["tables"], [(x.name, x.title) for x in page["tables"]]),
        ("pictures", "Pictures", page["pictures"], [(x.name, x.title) for x in page["pictures"]]),
        ("curves", "Curves", page["charts"], [(stage.name, stage.title) for stage, _ in page["charts"]]),
        ("environment", "Environment", page["environment"], []),
        ("config", "Config", page["config"], []),
    )
    return [
        (name, title, [(place(name, part), label) for part, label in parts])
        for name, title, content, parts in sections
        if content
    ]


def place(section: str, name: str) -> str:
    """The id of a part of a section; different names have different ones."""
    # What HTML or a URL would take amiss is written as its number.
    return f"{section}-" + re.sub(r"[^A-Za-z0-9_-]", lambda match: f".{ord(match[0]):x}.", name)


def split_groups(groups: Sequence[Group], most: int = MAX_FIGURES) -> tuple[list[Group], list[Group]]:
    """The first figures of a table, and the others.

    Args:
        groups: of the table.
        most: figures of the first part.
    """
    first, others = [], []
    for group in groups:
        head, tail = group.figures[:most], group.figures[most:]
        first += [group._replace(figures=head)] if head else []
        others += [group._replace(figures=tail)] if tail else []
        most -= len(head)
    return first, others


def read_evaluations(workdir: Path) -> dict[str, dict[str, Any]]:
    """The files of results/ by name, each with its "metrics"; a broken one has a warning in their place."""
    records = {}
    first = {name: index for index, name in enumerate(EVALUATIONS)}
    paths = (workdir / "results").glob("*.json")
    for path in sorted(paths, key=lambda path: (first.get(path.stem, len(first)), path.stem)):
        try:
            record = read_json(path)
        except UserError as error:
            record = {"warnings": [str(error)]}
        if not isinstance(record, Mapping) or not isinstance(record.get("metrics", {}), Mapping):
            record = {"warnings": [f"{path.name} holds no figures."]}
        # Where the run lies is nobody's business.
        records[path.stem] = _replace({"metrics": {}} | record, f"{workdir}{os.sep}", "")
    return records


def _replace(tree: Any, old: str, new: str) -> Any:
    """A JSON value with a part of its texts replaced, except for names."""
    if isinstance(tree, dict):
        return {name: _replace(value, old, new) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_replace(value, old, new) for value in tree]
    return tree.replace(old, new) if isinstance(tree, str) else tree


def find_pictures(workdir: Path, condition: str = "") -> list[Picture]:
    """The newest readable picture of every name in a run, stage by stage.

    Args:
        workdir: of the run; a stage's pictures are STAGE/images/NAME_STEP.png.
        condition: what the prior is told, for the caption of its samples; "" = not known.
    """
    order = {name: index for index, name in enumerate(PICTURES)}
    pictures = []
    for stage, folders in PICTURE_FOLDERS.items():
        versions: dict[str, list[tuple[int, Path]]] = {}
        for path in (path for folder in folders for path in (workdir / folder).glob("*.png")):
            name, step = re.fullmatch(r"(.*?)(?:_(\d+))?", path.stem, re.DOTALL).groups()
            versions.setdefault(name, []).append((int(step or 0), path))
        for name in sorted(versions, key=lambda name: (order.get(name, len(order)), name)):
            unknown = (name.replace("_", " ").capitalize(), "A picture of an evaluation")
            title, caption = PICTURES.get(name, unknown)
            if name == "samples":
                caption = SAMPLES.get(condition, caption)
            for step, path in sorted(versions[name], reverse=True):
                if embedded := embed(path):
                    caption += f". Step {step:,}." if step else "."
                    file = path.relative_to(workdir).as_posix()
                    pictures.append(Picture(f"{stage}-{name}", title, caption, file, *embedded))
                    break
    return pictures


def embed(path: Path) -> tuple[str, int, int] | None:
    """(data: URI, width, height) of a picture's file; None where a kill has cut it off."""
    try:
        content = path.read_bytes()
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    size = image.size
    if len(content) <= MAX_PICTURE_BYTES:
        return data_uri("png", content), *size
    image = image.convert("RGB")
    image.thumbnail((MAX_PICTURE_WIDTH, 16383))  # WebP's tallest.
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=90)
    return data_uri("webp", buffer.getvalue()), *image.size


def data_uri(kind: str, content: bytes) -> str:
    """A picture inside a page: `kind` is "png", "webp" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
