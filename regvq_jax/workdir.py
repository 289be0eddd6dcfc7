"""A run's directory: whose it is, and where things lie in it."""

import contextlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.files import check_writable, read_json, write_json_atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger("regvq_jax")
MISSING = "(absent)"
# Where and how fast a run goes, not what it computes: these may differ when it goes on.
FREE_FIELDS = (
    "mesh.",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "stages",
    "train.hang_seconds",
    "prior.train.hang_seconds",
    "map_tokenizer.train.hang_seconds",
    "loss.discriminator_patience_steps",
    "prior.model.remat",
    "prior.model.attention",
    "tokens.batch_size",
)

# What every run needs; those of stage two are looked for where it begins.
GROUPS = (
    *("seed", "stages", "mesh", "tokenizer", "data", "model", "discriminator", "features"),
    *("quantizer", "loss", "optim", "train", "evals"),
)
PRIOR_GROUPS = ("tokens", "prior", "sample")
PRIOR_FIELDS = (
    *("name", "condition", "condition_drop", "from_images"),
    *("text", "model", "optim", "train", "evals"),
)


def check_groups(config: ConfigDict, where: str, names: tuple[str, ...] = GROUPS) -> None:
    """Raises UserError unless `config`, from `where`, has every group of `names`."""
    missing = [name for name in names if name not in config]
    if "prior" in names and "prior" in config:
        missing += [f"prior.{name}" for name in PRIOR_FIELDS if name not in config.prior]
    if missing:
        raise UserError(
            f"{where} has no config.{', config.'.join(missing)}: it was written for another version of "
            "regvq_jax; take the groups over from configs/quickstart.py, or use the version that it is for."
        )


def open_workdir(path: str, config: ConfigDict) -> Path:
    """Takes a directory for a run with `config`, new or the same as before.

    Args:
        path: made if it does not exist.
        config: written to config.json at the start, compared with it once the run has made anything.

    Returns:
        The absolute path.

    Raises:
        UserError: it belongs to a run with another config (nothing is touched), or cannot be written to.
    """
    directory = Path(path).expanduser().absolute()
    record = directory / "config.json"
    wanted = flatten(json.loads(config.to_json_best_effort()))
    # A first call that was refused (a misspelt folder, say) leaves its config alone: no run to protect.
    if record.exists() and any(path.name not in (record.name, ".lock") for path in directory.iterdir()):
        found = flatten(read_json(record))
        differing = [
            f"{name} ({found.get(name, MISSING)} there, {wanted.get(name, MISSING)} now)"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name, MISSING) != wanted.get(name, MISSING) and not name.startswith(FREE_FIELDS)
        ]
        if differing:
            shown = ", ".join(differing[:8]) + (", ..." if len(differing) > 8 else "")
            raise UserError(
                f"{directory} belongs to a run with another config, and nothing in it was touched; "
                f"{len(differing)} field(s) differ: {shown}; use another --workdir or the old config."
            )
        check_writable(directory)
    else:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The workdir {directory} cannot be made ({error.strerror}); choose another --workdir."
            ) from error
        check_writable(directory)
        write_json_atomic(record, json.loads(config.to_json_best_effort()))
    return directory


@contextlib.contextmanager
def lock_workdir(directory: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir; the system takes the lock back however this process ends.

    Raises:
        UserError: another process works in it.
    """
    if fcntl is None or jax.process_index() > 0:
        yield
        return
    path = directory / ".lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{directory} is in use by {file.read().strip() or 'another run'}: wait for it, end it, or "
                "use another --workdir."
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            log.warning("%s cannot be locked (%s): see to it that no second run uses it.", directory, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def load_config(directory: Path) -> ConfigDict:
    """The config of the run in `directory`.

    Raises:
        UserError: there is none, or one of another version.
    """
    record = directory / "config.json"
    if not record.exists():
        raise UserError(
            f"{directory} has no config.json: it is not the workdir of a run; give the directory that "
            "--workdir named."
        )
    config = ConfigDict(read_json(record))
    check_groups(config, str(record))
    return config


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
