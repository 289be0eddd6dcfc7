"""Label maps: reading them from PNG files, and colours to show them in."""

import functools
import io
import os
import struct

import numpy as np
from PIL import Image

from regvq_jax.data import emoji
from regvq_jax.data.emoji.palette import oklab, squared_distance
from regvq_jax.data.images import DECODE_ERRORS, ImageError, ImageFile
from regvq_jax.errors import UserError

MAX_CLASSES = 256  # a class is one byte
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3  # PNG's colour types with one number a pixel
# Class 0 is the background of most data sets: light grey, which no other colour is near to.
_BACKGROUND = (214, 214, 214)
_LEVELS = np.linspace(0, 255, 11).astype(np.uint8)  # of each channel of the colours to choose from


def read_map_size(file: ImageFile, name: str | None = None) -> tuple[int, int]:
    """Reads width and height of a label map from its header, and makes sure that it is one.

    Args:
        file: a PNG file, see `images.ImageFile`.
        name: what messages call it, by default its path.

    Returns:
        (width, height) in pixels.

    Raises:
        ImageError: there is no such file, or it is no PNG of 8-bit grey or of palette indices.
    """
    name = name or _name_of(file)
    try:
        if isinstance(file, bytes):
            header = file[:26]
        elif isinstance(file, str | os.PathLike):
            with open(file, "rb") as opened:
                header = opened.read(26)
        else:
            header = file.read(26)
    except OSError as error:
        raise ImageError(f"Cannot read label map {name}: {error.strerror}.") from error
    if len(header) < 26 or not header.startswith(_PNG_SIGNATURE):
        raise ImageError(f"Label map {name} is not a PNG file.")
    width, height, bits, colour_type = struct.unpack(">IIBB", header[16:26])
    # Grey of fewer bits is scaled to 0..255 by every reader: the ids would be gone.
    if colour_type != _PALETTE and (colour_type, bits) != (_GREY, 8):
        raise ImageError(
            f"Label map {name} has not one byte a pixel (PNG colour type {colour_type}, "
            f"{bits} bits a channel): save it as 8-bit grey, or as palette indices."
        )
    return width, height


def read_label_map(file: str | os.PathLike | bytes, num_classes: int, name: str | None = None) -> np.ndarray:
    """Reads the ids of a label map, never the colours that its palette gives them.

    Args:
        file: a PNG file of 8-bit grey or of palette indices, or its content.
        num_classes: ids must be below.
        name: what messages call it, by default its path.

    Returns:
        uint8 [H, W].

    Raises:
        ImageError: the file is missing, damaged, or no such PNG.
        UserError: an id is not below `num_classes`.
    """
    name = name or _name_of(file)
    read_map_size(file, name)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            labels = np.array(image)
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise ImageError(f"Cannot decode label map {name}: {error}.") from error
    if labels.size and labels.max() >= num_classes:
        raise UserError(
            f"Label map {name} has the id {labels.max()}, but data.num_label_classes="
            f"{num_classes} allows 0 to {num_classes - 1}: raise it (to {MAX_CLASSES} at most), or change "
            "the map."
        )
    return labels


def _name_of(file: ImageFile) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else "(in memory)"


@functools.lru_cache(maxsize=8)
def label_colours(num_classes: int) -> np.ndarray:
    """Colours to show label maps in: `label_colours(C)[labels]` is a picture.

    For the 25 classes of the emoji these are their own colours. Otherwise a colour depends on its class
    alone, not on the number of classes: each is the one of a fixed set that is farthest, as the eye
    sees it, from all before it. Class 0 is light grey.

    Args:
        num_classes: C, from 1 to 256.

    Returns:
        uint8 [C, 3], RGB, read-only.

    Raises:
        UserError: C is out of range.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"There can be 1 to {MAX_CLASSES} label classes, got {num_classes}.")
    if num_classes == emoji.NUM_CLASSES:
        palette = emoji.load_pack(emoji.SIZES[0]).palette
        colours = np.array([_BACKGROUND, *(tuple(bytes.fromhex(c.colour[1:])) for c in palette)], np.uint8)
    else:
        colours = _spread_colours(num_classes)
    colours.flags.writeable = False
    return colours


def _spread_colours(count: int) -> np.ndarray:
    """The first `count` of a fixed sequence of colours, each far from all before it: uint8 [count, 3]."""
    candidates = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    points = oklab(candidates)
    colours = [np.array(_BACKGROUND, np.uint8)]
    distance = squared_distance(points, oklab(colours[0][None]))[:, 0]
    while len(colours) < count:
        farthest = int(distance.argmax())
        colours.append(candidates[farthest])
        distance = np.minimum(distance, squared_distance(points, points[farthest][None])[:, 0])
    return np.stack(colours)
