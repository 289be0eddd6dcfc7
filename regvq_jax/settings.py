"""From groups of a config to typed settings, with every name checked."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from regvq_jax.data.transforms import CROPS
from regvq_jax.errors import UserError

T = TypeVar("T")


def did_you_mean(name: str, valid: list[str]) -> str:
    """' Did you mean "x"? Valid: x, y.', the nearest valid name first if one is near."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    question = f' Did you mean "{near[0]}"?' if near else ""
    return f"{question} Valid: {', '.join(valid)}."


def choose(table: Mapping[str, T], name: str, field: str) -> T:
    """`table[name]`, or a UserError that names the config's field and the nearest valid name."""
    if name not in table:
        raise UserError(f'config.{field}="{name}" is unknown.{did_you_mean(name, list(table))}')
    return table[name]


def from_config(cls: type[T], group: Mapping[str, Any], field: str) -> T:
    """A dataclass made from a config group with the same names.

    Args:
        cls: the dataclass; fields without a default are required.
        group: the group's values; lists become tuples.
        field: the group's name in the config, for messages.

    Raises:
        UserError: a name that `cls` does not have, or a required one that is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if "parent" in fields:  # Linen's own, not settings of a module.
        del fields["parent"], fields["name"]
    for name in group:
        if name not in fields:
            raise UserError(f"config.{field}.{name} is unknown.{did_you_mean(name, list(fields))}")
    for name, spec in fields.items():
        no_default = spec.default is spec.default_factory is dataclasses.MISSING
        if no_default and name not in group:
            raise UserError(f"config.{field}.{name} is missing; it has no default.")
    return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in group.items()})


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """A config's `data` group.

    Attributes:
        source: see `data.sources.make_source`.
        image_size: side of the square images in pixels.
        crop: in training, "center", "random" or "near_center"; see `transforms.resize_and_crop`.
        crop_scale: the short side is at most that many times `image_size` before a random crop.
        flip: random mirroring in training; never of pictures whose caption says left or right.
        num_label_classes: of a folder's label maps, with the unknown class 0; 0 = read no maps.
        class_folders: a folder's images lie in one sub-folder a class.
        upscale: accept images smaller than `image_size` and enlarge them.
        data_dir: where tensorflow-datasets keeps prepared sets; "" = TFDS_DATA_DIR or ~/tensorflow_datasets.
        heldout_split: of such a set; "" = the first of validation, val and test.
        num_threads: reading ahead in this process.
        num_workers: worker processes that read ahead; 0 = none. No choice changes what is read.
    """

    source: str
    image_size: int
    crop: str = "random"
    crop_scale: float = 1.1
    flip: bool = False
    upscale: bool = False
    num_label_classes: int = 0
    class_folders: bool = False
    data_dir: str = ""
    heldout_split: str = ""
    num_threads: int = 2
    num_workers: int = 0

    def __post_init__(self):
        choose(dict.fromkeys(CROPS), self.crop, "data.crop")
        if self.crop_scale < 1:
            raise UserError(f"config.data.crop_scale={self.crop_scale} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A config's `train` group, the same for every trainer.

    Attributes:
        batch_size: global, over all devices and processes.
        total_steps: updates in the whole training.
        log_every_steps: how often numbers leave the device; also how late a NaN is noticed.
        checkpoint_every_steps: at most this much is lost by a kill.
        accumulation_slices: gradients are averaged over this many parts of the batch, one after another.
        ema_decay: of the averaged parameters that are evaluated and kept.
        skip_nonfinite_steps: so many steps in a row are skipped where a loss or a gradient is not finite (the
            state is kept twice in memory for it); one more ends the training. 0 = the first one ends it.
        rollback_factor: a mean loss so many times the median of the last ones sends the training back to the
            last checkpoint, past the batches since, three times at most; 0 = never.
        hang_seconds: silence of a training after which it says where each thread stands; 0 = never.
    """

    batch_size: int
    total_steps: int
    log_every_steps: int = 50
    checkpoint_every_steps: int = 500
    accumulation_slices: int = 1
    ema_decay: float = 0.999
    skip_nonfinite_steps: int = 0
    rollback_factor: float = 0.0
    hang_seconds: int = 600

    def __post_init__(self):
        for name in ("total_steps", "log_every_steps", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
