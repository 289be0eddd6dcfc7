"""The cells of a sweep that are known, in a file that grows with each: a sweep that was stopped goes on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from regvq_jax.evaluate.drawn import image_path
from regvq_jax.evaluate.result import Evaluation, write_result
from regvq_jax.files import read_json, to_jsonable
from regvq_jax.progress import log

NAME = "sweep.json"
NUM_SHOWN = 8
PREFIX = "eval/generation/"
_CHOSEN = "The figures are the best cell's, which was chosen by one of them: drawn anew it may be less good."


class Cell(NamedTuple):
    """One sampler, and what came of it.

    Attributes:
        settings: see `sweep_grid.sampler_of`.
        metrics: by tag, as of `evaluate generation`.
        seconds_per_image: to draw and decode.
        drawn: name of the folder of its images.
        seconds: that all of it took, judging and compiling included.
    """

    settings: dict[str, Any]
    metrics: dict[str, float]
    seconds_per_image: float
    drawn: str
    seconds: float


class Results:
    """The cells that are known, the best first, and their file.

    Attributes:
        path: of the file, DIRECTORY/sweep.json.
        drawn: DIRECTORY/sweep, with a folder of images for each cell.
        metric: tag that decides which is the best; smaller is better.
        identity: what decides figures and times besides the samplers' settings, as JSON.
        cells: all of this identity.
    """

    def __init__(self, directory: Path, metric: str, identity: dict[str, Any]):
        """Takes over the cells of earlier calls with the same identity whose images are still there."""
        self.path, self.drawn = directory / NAME, directory / "sweep"
        self.metric, self.identity = metric, json.loads(json.dumps(to_jsonable(identity)))
        self.cells: list[Cell] = []
        self._about: dict[str, Any] = {}
        if not self.path.exists():
            return
        record = read_json(self.path)
        if record.get("settings") != self.identity:
            log.info("%s is of other parameters, images or machines than these: begun anew", self.path)
            return
        self._about = {name: record[name] for name in ("protocols", "warnings")}
        cells = [Cell(**cell) for cell in record["cells"]]
        self.cells = [cell for cell in cells if all(path.exists() for path in self.first_images(cell))]
        self._sort()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures has to know."""
        return [warning for warning in self._about["warnings"] if warning != _CHOSEN] + [_CHOSEN]

    def find(self, settings: dict[str, Any]) -> Cell | None:
        """The cell of these settings, if there is one."""
        return next((cell for cell in self.cells if cell.settings == settings), None)

    def add(
        self, settings: dict[str, Any], evaluation: Evaluation, seconds_per_image: float, seconds: float
    ) -> None:
        """Takes a cell; arguments as its attributes."""
        drawn = Path(evaluation.about["settings"]["drawn"]).name
        self.cells.append(Cell(settings, evaluation.metrics, seconds_per_image, drawn, seconds))
        self._about = {name: evaluation.about[name] for name in ("protocols", "warnings")}
        self._sort()

    def write(self, **more: Any) -> None:
        """Writes all cells, and the figures of the best as those of the file; **more as of `write_result`."""
        best = self.cells[0]
        about = self._about | {"settings": self.identity, "warnings": self.warnings}
        more |= {
            "ranked_by": self.metric, "best": best.settings, "cells": [cell._asdict() for cell in self.cells],
            "seconds": sum(cell.seconds for cell in self.cells),
        }  # fmt: skip
        write_result(self.path, Evaluation(best.metrics, {}, about=about), **more)

    def first_images(self, cell: Cell) -> list[Path]:
        """Files of its first images; those of all cells are drawn from the same conditions."""
        return [image_path(self.drawn / cell.drawn, index) for index in range(NUM_SHOWN)]

    def _sort(self) -> None:
        self.cells.sort(key=lambda cell: cell.metrics[self.metric])
