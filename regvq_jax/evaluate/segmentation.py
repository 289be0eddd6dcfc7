"""Whether images show what their label maps asked for, as a trained segmenter sees it.

The segmenter (`interop.segmenter_weights`) names the class of every pixel of images that were made from
label maps; mean IoU and the share of right pixels between what was asked and what is seen are the figures
of semantic synthesis. They measure the segmenter too: give those of true photographs beside them.

Segmenters number classes in their own way. Those of ADE20K on Hugging Face have 150, from 0, and none for
"unknown"; our maps of ADE20K have 151, where 0 is "unknown". So our class c is their class c - 1, and 0 is
no pixel of theirs: `offset=1, ignore=0`. Off by one, every figure would be near 0, or worse, not quite.
`check_numbering` finds that before anything is computed.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.evaluate.codebook import count_codes
from regvq_jax.models.segformer import resize_bilinear

# ImageNet's, of images in [0, 1], which segmenters are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

PyTree = Any


def check_numbering(label_classes: int, num_classes: int, ignore: int | None, offset: int) -> None:
    """Checks that the classes of label maps are those of a segmenter, one for one.

    Args:
        label_classes: of the maps, which hold [0, label_classes).
        num_classes: C, of the segmenter.
        ignore: a class of the maps that the segmenter does not know, first or last; None = there is none.
        offset: what is taken from a class of the maps to have the segmenter's.

    Raises:
        UserError: a class would have no counterpart.
    """
    asked = [label - offset for label in range(label_classes) if label != ignore]
    if asked == list(range(num_classes)):
        return
    if label_classes == num_classes:
        advice = "set offset=0 and ignore=None"
    elif label_classes == num_classes + 1:
        advice = (
            f"set offset=1 and ignore=0 where class 0 of the maps is unknown, as in ADE20K, or offset=0 and "
            f"ignore={num_classes} where the last one is"
        )
    else:
        advice = "choose a segmenter that was trained on the classes of these maps"
    raise UserError(
        f"With offset={offset} and ignore={ignore}, label maps of {label_classes} classes do not fit a "
        f"segmenter of {num_classes}: {advice}."
    )


def prepare_images(images: jax.Array, size: int | None = None) -> jax.Array:
    """Images as a segmenter was trained with them.

    Args:
        images: uint8 [B, H, W, 3].
        size: of the shorter side, where the longer follows; bilinear, antialiased where that is smaller, as
            PIL does. None = as they are.

    Returns:
        float32 [B, h, w, 3] with ImageNet's mean and standard deviation taken out.
    """
    x = images.astype(jnp.float32) / 255.0
    if size is not None:
        shorter = min(x.shape[1:3])
        x = resize_bilinear(x, *(round(side * size / shorter) for side in x.shape[1:3]), antialias=True)
    return (x - jnp.array(MEAN)) / jnp.array(STD)


def segment(module: nn.Module, params: PyTree, images: jax.Array, size: int | None = None) -> jax.Array:
    """The class that a segmenter sees at every pixel.

    Args:
        module: takes `prepare_images` to logits, float32 [B, h, w, C] in any resolution, such as SegFormer.
        params: its parameters.
        images: uint8 [B, H, W, 3].
        size: see `prepare_images`; best what the segmenter was trained with: 640 for SegFormer-B5 on ADE20K,
            512 for the smaller ones. The images' own is often less, and costs accuracy.

    Returns:
        int32 [B, H, W] in [0, C): of the logits, resized to the images.
    """
    logits = module.apply({"params": params}, prepare_images(images, size))
    return jnp.argmax(resize_bilinear(logits, *images.shape[1:3]), -1).astype(jnp.int32)


def confusion(
    labels: jax.Array,
    predicted: jax.Array,
    num_classes: int,
    valid: jax.Array,
    ignore: int | None,
    offset: int,
) -> jax.Array:
    """Counts the pixels of valid maps by class asked for and class seen, both in the segmenter's numbers.

    Args:
        labels: uint8 [B, H, W], that were asked for.
        predicted: int32 [B, H, W] in [0, C), of `segment`.
        num_classes: C, of the segmenter.
        valid: bool [B], True = counts.
        ignore: a class of `labels` whose pixels do not count, whatever is seen there; None = all count.
        offset: what is taken from `labels`: 0, or 1 with `ignore=0` for maps with "unknown" in front. See
            `check_numbering`, which finds a wrong one.

    Returns:
        int32 [C, C], asked (row) by seen (column). A label that is no class of the segmenter, such as 255 for
        no label, does not count.

    Raises:
        UserError: a class of the maps would be below the segmenter's first, and is not ignored.
    """
    if offset < 0 or any(label != ignore for label in range(offset)):
        raise UserError(
            f"offset={offset} leaves classes of the label maps out that ignore={ignore} does not name; set "
            f"offset=1 and ignore=0 where class 0 of the maps is unknown, as in ADE20K, else offset=0."
        )
    # Not in uint8, where both the difference and the product would wrap around.
    asked = labels.astype(jnp.int32) - offset
    counted = (asked >= 0) & (asked < num_classes) & valid[:, None, None]
    if ignore is not None:
        counted &= labels != ignore
    pairs = count_codes(asked * num_classes + predicted, num_classes**2, counted)
    return pairs.reshape(num_classes, num_classes)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """The share of counted pixels that are seen as asked; 0 where none was counted.

    Args:
        confusion: int [C, C]. Its mean IoU is `evaluate.maps.mean_iou`.

    Returns:
        A number in [0, 1].
    """
    # A batch fits int32; a whole set may not.
    confusion = np.asarray(confusion, np.int64)
    return float(np.trace(confusion) / max(confusion.sum(), 1))
