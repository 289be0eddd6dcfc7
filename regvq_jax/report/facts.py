"""What a run trained, where it ran and how it was configured, in words for people."""

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax

import regvq_jax
from regvq_jax.files import read_json
from regvq_jax.metric_writers import read_jsonl
from regvq_jax.report.tables import duration, show

STAGES = {"tokenizer": "Tokenizer", "map_tokenizer": "Tokenizer of label maps", "prior": "Prior"}
CONDITIONS = {
    "none": "nothing",
    "class": "classes",
    "text": "captions",
    "map": "label maps",
    "map_tokens": "label maps, as tokens of their own",
}
# Their codes are places on a grid, which have no vectors to learn.
_GRIDS = ("fsq", "lfq")
_GIT_SECONDS = 5
Pairs = list[tuple[str, str]]


class Stage(NamedTuple):
    """What one training has left.

    Attributes:
        name: a key of `STAGES`.
        title: for people.
        directory: where it lies.
        result: its result.json; {} while it is not finished.
        rows: its metrics.jsonl.
    """

    name: str
    title: str
    directory: Path
    result: dict[str, Any]
    rows: list[dict[str, Any]]


def read_stages(workdir: Path) -> list[Stage]:
    """The trainings of a run that have begun, in their order."""
    stages = []
    for name, title in STAGES.items():
        result, metrics = workdir / name / "result.json", workdir / name / "metrics.jsonl"
        if result.exists() or metrics.exists():
            figures = read_json(result) if result.exists() else {}
            rows = read_jsonl(metrics) if metrics.exists() else []
            stages.append(Stage(name, title, workdir / name, figures, rows))
    return stages


def read_condition(workdir: Path, config: Mapping[str, Any]) -> str:
    """What the prior is told: a key of `CONDITIONS`, or "" where that is not known.

    Args:
        workdir: of the run.
        config: flat, of the run.
    """
    # The config may say "auto"; the prior wrote down what that came to.
    facts = read_if_there(workdir / "prior" / "facts.json")
    condition = facts.get("condition") or config.get("prior.condition")
    return condition if condition in CONDITIONS else ""


def read_if_there(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, {} where there is no such file."""
    return read_json(path) if path.exists() else {}


def codebook_size(stage: Stage, config: Mapping[str, Any]) -> int | None:
    """K of a tokenizer; None where it is not known.

    Args:
        stage: of the tokenizer.
        config: flat, of the run.
    """
    # What was counted goes before the config, which a grid of codes does not read.
    for name in ("codebook", "map_codebook"):
        if size := read_if_there(stage.directory / f"{name}.json").get("codebook_size"):
            return size
    return config.get(f"{_prefix(stage)}quantizer.codebook_size")


def describe_stage(stage: Stage, config: Mapping[str, Any], condition: str = "") -> Pairs:
    """(name, words) of what was trained, as far as it is known.

    Args:
        stage: the training.
        config: flat, of the run.
        condition: what a prior is told.
    """
    get = lambda name: config.get(f"{_prefix(stage)}{name}")
    data = _line("{} at {} px", config.get("data.source"), config.get("data.image_size"))
    training = [_line("{} steps of {} images", get("train.total_steps"), get("train.batch_size"))]
    if "seconds" in stage.result:
        training.append(duration(stage.result["seconds"]))
        training.append(_line("{} images/s", stage.result.get("perf/images_per_sec")))
    elif stage.rows and not stage.result:
        training.append(f"not finished, at step {stage.rows[-1]['step']:,}")
    optimizer = [
        _line("learning rate {}", get("optim.lr")),
        _line("{}", get("optim.schedule")),
        _line("{} steps of warm-up", get("optim.warmup_steps") or None),
    ]
    is_prior = stage.name == "prior"
    lines = {
        "data": data,
        **(_prior_lines(stage, get, condition) if is_prior else _tokenizer_lines(stage, config, get)),
        "parameters": _parameters(stage.directory / "parameters.txt"),
        "training": ", ".join(filter(None, training)),
        "optimizer": ", ".join(filter(None, optimizer)),
        "seed": _line("{}", config.get("seed")),
        "when": _when(stage.rows),
    }
    return [(name, words) for name, words in lines.items() if words]


def _prior_lines(stage: Stage, get, condition: str) -> dict[str, str]:
    meta = read_if_there(stage.directory.parent / "tokens" / "train" / "meta.json")
    grid = "x".join(str(side) for side in meta.get("grid") or ()) or None
    return {
        "tokens": _line(
            "{} images of {} tokens, {} codes", meta.get("num_examples"), grid, meta.get("codebook_size")
        ),
        "prior": _line("{}", get("name")),
        "told": CONDITIONS.get(condition, ""),
        "network": _line(
            "{} layers of width {}, {} heads", get("model.depth"), get("model.dim"), get("model.num_heads")
        ),
    }


def _tokenizer_lines(stage: Stage, config: Mapping[str, Any], get) -> dict[str, str]:
    kind = get("quantizer.name")
    quantizer = _line("{}, {} codes", kind, codebook_size(stage, config))
    if kind not in _GRIDS:
        quantizer += _line(" of {} dimensions", get("quantizer.code_dim"))
    if (get("quantizer.depth") or 1) > 1:
        quantizer += f", {get('quantizer.depth')} levels"
    if kind == "regularized":
        quantizer += _line(", {} logits, mask ratio {}", get("quantizer.logits"), get("quantizer.mask_ratio"))
    network = _line("{}, {} channels", get("model.architecture"), get("model.channels"))
    network += _line(" x {}", get("model.multipliers"))
    return {"network": network, "quantizer": quantizer, "loss weights": _loss_weights(stage, get, config)}


def _loss_weights(stage: Stage, get, config: Mapping[str, Any]) -> str:
    """The terms with a weight that the training did have: some weights mean nothing to some quantizers."""
    tags = {tag for row in stage.rows for tag in row}
    start = f"{_prefix(stage)}loss."
    words = []
    for name in config:
        term = name.removeprefix(start).removesuffix("_weight")
        if name == f"{start}{term}_weight" and config[name] and f"train/{term}" in tags:
            words.append(f"{term.replace('_', ' ')} {show(config[name])}")
            if term == "adversarial":
                words[-1] += _line(" from step {}", get("loss.adversarial_start_step"))
    return ", ".join(([get("loss.name").replace("_", " ")] if get("loss.name") else []) + words)


def _prefix(stage: Stage) -> str:
    return "" if stage.name == "tokenizer" else f"{stage.name}."


def _line(form: str, *values: Any) -> str:
    """The values in words, or "" where one of them is not known."""
    return "" if any(value is None for value in values) else form.format(*map(show, values))


def _parameters(path: Path) -> str:
    """How many parameters each network has, from the overview that the training wrote."""
    counts: Counter[str] = Counter()
    if path.exists():
        for name, size in re.findall(r"^\| (\w+)/\S* +\|.*\| ([\d,]+) +\|$", path.read_text(), re.MULTILINE):
            counts[name] += int(size.replace(",", ""))
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda x: -x[1]))


def _when(rows: Sequence[Mapping[str, Any]]) -> str:
    times = [row["time"] for row in rows if isinstance(row.get("time"), int | float)]
    if not times:
        return ""
    first, last = (datetime.fromtimestamp(time, UTC) for time in (min(times), max(times)))
    ending = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {ending} UTC"


def describe_environment() -> Pairs:
    """(name, words) of this process: versions, devices, system; nothing of whose machine it is."""
    pairs = [("regvq_jax", regvq_jax.__version__)]
    if commit := read_commit():
        pairs.append(("commit", commit))
    pairs.append(("Python", platform.python_version()))
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            pairs.append((package, version(package)))
        except PackageNotFoundError:
            continue
    devices = Counter((device.device_kind, device.platform) for device in jax.devices())
    named = (f"{n} x {kind}" + f" ({name})" * (name != kind) for (kind, name), n in devices.items())
    pairs += [("devices", ", ".join(named)), ("processes", f"{jax.process_count()}")]
    pairs += [("CPU cores", f"{os.cpu_count()}"), ("system", platform.platform())]
    return pairs


def read_commit() -> str:
    """The commit of the checkout that this package lies in, "-dirty" where it has been changed; else ""."""
    package = Path(regvq_jax.__file__).parent
    git = ["git", "-C", str(package)]
    options = {
        "capture_output": True,
        "text": True,
        "timeout": _GIT_SECONDS,
        "check": True,
        # Somebody else may be committing.
        "env": {**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    }
    try:
        # An environment may lie in a checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], **options)
        name = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(name, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def group_config(config: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """(group, its (name, value)) of a flat config, in the config's order; fields without a group in "".

    Args:
        config: flat.
    """
    groups: dict[str, Pairs] = {"": []}
    for name, value in config.items():
        group, dot, field = name.partition(".")
        # As one would write it in a config or on the command line.
        text = value if value and isinstance(value, str) else repr(value)
        groups.setdefault(group if dot else "", []).append((field if dot else name, text))
    return [(group, fields) for group, fields in groups.items() if fields]
