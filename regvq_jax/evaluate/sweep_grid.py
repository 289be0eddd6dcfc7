"""The settings of a sampler that a sweep goes through, every one checked before anything is drawn."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.evaluate.samples import SampleSettings
from regvq_jax.settings import did_you_mean
from regvq_jax.trainers import build_sampling
from regvq_jax.trainers.diffusion import DiffusionPrior
from regvq_jax.trainers.masked import MaskedPrior
from regvq_jax.trainers.prior import TokenPrior

Grid = Mapping[str, Sequence[Any]]
MAX_CELLS = 200
# Of the sample sheet, not of how is drawn.
_NOT_SWEPT = "captions"
# What is tried beside a run's own value, where that does not say what.
_GUIDANCES, _CHOICE_TEMPERATURE = (1.0, 2.0, 4.0), 4.5
_TEMPERATURE, _TOP_P, _TRUNCATION = 0.8, 0.9, 0.86


def parse_grid(entries: Sequence[str]) -> dict[str, list[str]]:
    """["temperature=0.7,1.0", "steps=8"] as a dict; names and values are checked by `make_cells`.

    Raises:
        UserError: an entry without values, or a name given twice.
    """
    grid: dict[str, list[str]] = {}
    for entry in entries:
        name, _, text = (part.strip() for part in entry.partition("="))
        values = [value.strip() for value in text.split(",")]
        if not name or not all(values):
            raise UserError(f'--grid "{entry}" lacks a value: write NAME=VALUE,VALUE, such as steps=8,16.')
        if name in grid:
            raise UserError(f"--grid {name} is given twice: write all of its values in one.")
        grid[name] = values
    return grid


def default_grid(own: SampleSettings, prior: TokenPrior, guided: bool) -> Grid:
    """At most twelve cells around a run's own settings, which are among them.

    Args:
        own: of the run's config.
        prior: its prior.
        guided: it has a null condition to be guided away from.
    """
    if isinstance(prior, MaskedPrior):
        # An order that is given has no choice.
        names = ("steps", "choice_temperature" if own.order == "confidence" else "temperature")
    elif isinstance(prior, DiffusionPrior):
        names = ("steps", "truncation" if prior.process == "mask_replace" else "temperature")
    else:
        names = ("temperature", "top_p")
    around = {
        "steps": lambda x: (max(1, x // 2), x),
        "choice_temperature": lambda x: (x / 2 or _CHOICE_TEMPERATURE, x),
        "temperature": lambda x: (_TEMPERATURE if x == 1 else 1.0, x),
        "top_p": lambda x: (_TOP_P if x == 1 else 1.0, x),
        "truncation": lambda x: (_TRUNCATION if x == 1 else 1.0, x),
        "guidance": lambda x: _GUIDANCES if x == 1 else (1.0, x, 2 * x),
    }
    names += ("guidance",) * guided
    return {name: sorted(set(around[name](getattr(own, name)))) for name in names}


def make_cells(
    config: ConfigDict, prior: TokenPrior, num_codes: int, grid: Grid, guided: bool
) -> list[dict[str, Any]]:
    """The samplers' settings of all cells, each complete and checked.

    Args:
        config: of the run, for what the grid does not name.
        prior: its prior.
        num_codes: that it draws from.
        grid: values by name, as texts or as what they are.
        guided: as in `default_grid`.

    Returns:
        What `sampler_of` gives, equal ones once.

    Raises:
        UserError: an unknown name, too many cells, a value that the sampler does not take, or guidance where
            it does nothing.
    """
    valid = [field.name for field in dataclasses.fields(prior.sampling) if field.name != _NOT_SWEPT]
    for name in grid:
        if name not in valid:
            raise UserError(
                f'--grid {name}: prior.name="{config.prior.name}" has no such setting of its sampler.'
                f"{did_you_mean(name, valid)}"
            )
        if name.startswith("guidance") and not guided:
            raise UserError(
                f"--grid {name} does nothing here: the prior was trained without a condition, or always with "
                "it (prior.condition_drop=0), so there is nothing to be guided away from."
            )
    count = math.prod(len(values) for values in grid.values())
    if count > MAX_CELLS:
        raise UserError(
            f"--grid makes {count:,} cells, and at most {MAX_CELLS} are swept at once: begin with fewer "
            "values, then try more around the best; earlier cells stay in the table."
        )
    cells = []
    for values in itertools.product(*grid.values()):
        settings = build_sampling.sample_settings(config, **dict(zip(grid, values, strict=True)))
        build_sampling.check_sampling(settings, prior, num_codes)
        if (cell := sampler_of(settings)) not in cells:
            cells.append(cell)
    return cells


def sampler_of(settings: SampleSettings) -> dict[str, Any]:
    """All of a sampler's settings that decide what is drawn, by name."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name != _NOT_SWEPT}


def describe(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """Some of the settings as people write them: "steps=16 guidance=4"."""
    return " ".join(f"{name}={show(settings[name])}" for name in names)


def show(value: Any) -> str:
    """A setting's value in the fewest digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def config_lines(settings: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Some of the settings as lines of a config file."""
    return [f"config.sample.{name} = {settings[name]!r}" for name in names]


def config_flags(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """The same as flags of `python -m regvq_jax.main`."""
    return " ".join(f"--config.sample.{name}={settings[name]}" for name in names)
