"""What every evaluator returns, and the file that lets others make the figures again."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from regvq_jax.files import report_write_errors, write_json_atomic

PACKAGES = ("regvq-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


class Evaluation(NamedTuple):
    """The result of one evaluation.

    Attributes:
        metrics: numbers by tag.
        images: pictures by file name without its ending, uint8 [H, W, 3].
        records: what else is worth keeping of the newest evaluation, by file name without its ending; JSON.
        about: what decides the metrics, for `write_result`: "protocols" by name, "settings", "warnings"; {} =
            there is nothing that an equal config would not say.
    """

    metrics: dict[str, float]
    images: dict[str, np.ndarray]
    records: dict[str, Any] = {}
    about: dict[str, Any] = {}


def write_result(path: Path, evaluation: Evaluation, **more: Any) -> None:
    """Writes metrics with all that is needed to make them again.

    Args:
        path: ends in .json; its directory is made.
        evaluation: its `metrics` and `about` are written.
        **more: "step", "checkpoint", "seconds", ...

    Raises:
        UserError: no space or no permission.
    """
    with report_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    about = {"protocols": {}, "settings": {}, "warnings": []} | evaluation.about
    write_json_atomic(path, {"metrics": evaluation.metrics} | about | more | {"versions": versions()})


def versions() -> dict[str, str]:
    """Of Python, the packages that compute, and the devices."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # Run from a copy of the source.
            found[name] = "not installed"
    devices = jax.devices()
    return found | {"devices": f"{len(devices)} x {devices[0].device_kind}"}
