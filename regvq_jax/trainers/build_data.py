"""From a config to its data: sources, transforms, batches."""

import math
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.data.pipeline import evaluation_batches, make_batches
from regvq_jax.data.sources import Picked, Source, make_source
from regvq_jax.data.statistics import spread
from regvq_jax.data.transforms import Transform, keep, resize_and_crop
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.settings import DataSettings, from_config


def open_source(config: ConfigDict, split: str) -> Source:
    """The data source of a config, "train" or "heldout"."""
    data = from_config(DataSettings, config.data, "data")
    return make_source(
        data.source,
        split=split,
        image_size=data.image_size,
        upscale=data.upscale,
        num_label_classes=data.num_label_classes,
        class_folders=data.class_folders,
        data_dir=data.data_dir,
        heldout_split=data.heldout_split,
        # No crop has more pixels than that. What is judged is decoded whole, as by everybody else.
        decode_side=math.ceil(data.image_size * data.crop_scale) if split == "train" else None,
    )


def crop_transforms(config: ConfigDict, training: bool) -> list[Transform]:
    """Elements to square ones: cropped, at random in training; image and label map together."""
    data = from_config(DataSettings, config.data, "data")
    crop = partial(
        resize_and_crop,
        size=data.image_size,
        crop=data.crop if training else "center",
        flip=training and data.flip,
        max_scale=data.crop_scale,
    )
    return [crop]


def image_transforms(config: ConfigDict, training: bool, name: str = "image") -> list[Transform]:
    """Elements to {"image": uint8 [S, S, 3]} or {"labels": uint8 [S, S]}, as in `crop_transforms`."""
    return [*crop_transforms(config, training), partial(keep, names=(name,))]


def training_batches(source: Source, transforms: list[Transform], config: ConfigDict, batch_size: int):
    """A function that makes this process's training batches, for `loop.Trainer.make_batches`."""
    return partial(
        make_batches,
        source,
        transforms,
        batch_size=batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def heldout_batches(source: Source, transforms: list[Transform], batch_size: int):
    """A function that starts one pass of this process over a held-out source."""
    return partial(
        evaluation_batches,
        source,
        transforms,
        batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def image_set(config: ConfigDict, split: str, batch_size: int, limit: int = 0) -> ImageSet:
    """The images of a split, cut from the centre, for evaluators to compare with.

    Args:
        config: of the run.
        split: "train" or "heldout".
        batch_size: of all processes together.
        limit: so many at most, spread over the split; 0 = all.
    """
    source = open_source(config, split)
    count = len(source)
    # Files have names; pictures that are drawn have numbers.
    element_name = getattr(source, "element_name", str)
    identity = {"source": config.data.source, "fingerprint": source.fingerprint, "split": split}
    identity |= {"image_size": config.data.image_size, "crop": "short side to image_size, centre"}
    if 0 < limit < count:
        indices, whole_name = spread(count, limit), element_name
        source = Picked(source, indices)
        element_name = lambda index: whole_name(int(indices[index]))
        identity["limit"] = count = limit
    transforms = image_transforms(config, False)

    def image_at(index: int) -> np.ndarray:
        element = source[index]
        for transform in transforms:
            element = transform(element, None)
        return element["image"]

    return ImageSet(
        name=f"{count:,} {split} images of {config.data.source} at {config.data.image_size} px",
        count=count,
        batches=heldout_batches(source, transforms, batch_size),
        identity=identity,
        image_at=image_at,
        element_name=element_name,
    )
