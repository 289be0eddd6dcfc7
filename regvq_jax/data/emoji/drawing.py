"""Drawing one emoji onto an image and its label map."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from regvq_jax.data.emoji import SIZES, load_pack


@functools.lru_cache(maxsize=len(SIZES))
def bounding_boxes(pack_size: int) -> list[list[int]]:
    """What is visible of each picture: left, top, right, bottom."""
    visible = load_pack(pack_size).pictures[..., 3] >= 16
    columns, rows = visible.any(1), visible.any(2)
    left, top = columns.argmax(1), rows.argmax(1)
    right = pack_size - columns[:, ::-1].argmax(1)
    bottom = pack_size - rows[:, ::-1].argmax(1)
    return np.stack([left, top, right, bottom], 1).tolist()


@functools.lru_cache(maxsize=2048)
def sprite(pack_size: int, index: int) -> Image.Image:
    """A picture, colours times alpha, so that clear pixels lend no colour to their neighbours."""
    return Image.fromarray(load_pack(pack_size).pictures[index]).convert("RGBa")


def paste(
    image: np.ndarray,
    labels: np.ndarray,
    picture: Image.Image,
    classes: np.ndarray,
    box: Sequence[int],
    place: Sequence[int],
) -> None:
    """Draws a part of a picture, resized, onto an image and its label map, in place.

    Args:
        image: uint8 [H, W, 3].
        labels: uint8 [H, W].
        picture: S x S, premultiplied, as `sprite` gives it.
        classes: uint8 [S, S], its label map.
        box: the part of the picture (left, top, right, bottom).
        place: where it goes (left, top, width, height).
    """
    left, top, width, height = place
    area = np.s_[top : top + height, left : left + width]
    # A filter without negative lobes keeps colour <= alpha, so that the sum cannot overflow.
    drawn = np.asarray(picture.resize((width, height), Image.Resampling.HAMMING, box=box))
    ground = image[area] * (255 - drawn[..., 3:]).astype(np.uint16)
    image[area] = drawn[..., :3] + ((ground + 127) // 255).astype(np.uint8)
    rows = (np.arange(height) + 0.5) * ((box[3] - box[1]) / height) + box[1]
    columns = (np.arange(width) + 0.5) * ((box[2] - box[0]) / width) + box[0]
    nearest = classes[rows.astype(np.intp)[:, None], columns.astype(np.intp)]
    np.copyto(labels[area], nearest, where=nearest > 0)
