"""Any image file to uint8 RGB, or an `ImageError` that names the file."""

import io
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from regvq_jax.errors import UserError

# A path, the content of a file, or a file that is open.
ImageFile = str | os.PathLike | bytes | BinaryIO

# What Pillow's decoders raise on damaged bytes: UnidentifiedImageError is an OSError, the rest are
# the slips of single format parsers.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_DIRECT_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})


class ImageError(UserError):
    """One image that cannot be used; the message names the file and says why."""


def read_image(file: ImageFile, name: str | None = None, min_side: int | None = None) -> np.ndarray:
    """Decodes one image the way a viewer shows it, on white where it is transparent.

    EXIF rotation is applied; 16-bit grey is scaled (not clipped) to 8 bits; of an animation the
    first frame is taken.

    Args:
        file: see `ImageFile`.
        name: what messages call it, by default its path.
        min_side: a JPEG file may be decoded at the smallest of 1/8, 2/8, ... 8/8 of its size at which both
            sides are at least that long: much faster, and what is later shrunk to that length looks the same.
            None = decode all of it.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ImageError: the file is missing, not an image, truncated, above Pillow's pixel limit
            (`PIL.Image.MAX_IMAGE_PIXELS`) or in a colour mode without a known way to RGB.
    """
    name = name or _name_of(file)
    with _open(file, name) as image:
        if isinstance(file, bytes) and image.format == "JPEG" and image.mode in ("RGB", "L"):
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                pixels = _read_jpeg(file, min_side)
                if pixels is not None:
                    return pixels
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
        except DECODE_ERRORS as error:
            raise ImageError(f"Cannot decode image {name}: {_reason(error)}.") from error
        return _to_rgb(image, name)


def read_size(file: ImageFile, name: str | None = None) -> tuple[int, int]:
    """Reads width and height from the header alone, as stored (before any EXIF rotation).

    Args:
        file: see `ImageFile`.
        name: what messages call it, by default its path.

    Returns:
        (width, height) in pixels.

    Raises:
        ImageError: the file is missing, its header unreadable, or it is above Pillow's pixel limit.
    """
    with _open(file, name or _name_of(file)) as image:
        return image.size


def _read_jpeg(content: bytes, min_side: int | None) -> np.ndarray | None:
    """The pixels that Pillow gives, in less time; None where it takes Pillow to read, or to complain."""
    side = min_side or 0
    try:
        return simplejpeg.decode_jpeg(content, min_height=side, min_width=side)
    except ValueError:
        return None


def _name_of(file: ImageFile) -> str:
    if isinstance(file, bytes):
        return f"(of {len(file)} bytes in memory)"
    return os.fspath(file) if isinstance(file, str | os.PathLike) else "(an open file)"


def _open(file: ImageFile, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except Image.DecompressionBombError as error:
        raise ImageError(f"Image {name} is too large to decode: {_reason(error)}.") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"Cannot read image {name}: {_reason(error)}.") from error
    # Pillow only warns between its limit and twice its limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise ImageError(
            f"Image {name} is too large to decode: {image.width} x {image.height} pixels are more "
            f"than the limit of {limit}."
        )
    return image


def _reason(error: Exception) -> str:
    # Pillow and Python repeat the file's name, which the message has already.
    if isinstance(error, UnidentifiedImageError):
        return "not in a format that Pillow knows"
    text = getattr(error, "strerror", None) or str(error)
    return text.rstrip(".") or type(error).__name__


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):
        return _integers_to_rgb(image, name)
    if image.mode == "F":
        return _floats_to_rgb(image, name)
    if image.mode == "La":  # Premultiplied, as Pillow keeps it while resampling.
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, image).convert("RGB"))
    if image.mode not in _DIRECT_MODES:
        raise ImageError(f"Image {name} has colour mode {image.mode}: convert it to RGB.")
    return np.array(image.convert("RGB"))


def _integers_to_rgb(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"Image {name} has integers from {values.min()} to {values.max()}: convert it to 8 or 16 bits."
        )
    # 65535 / 255 = 257, and half of it rounds to nearest; Pillow's own convert would clip at 255.
    grey = ((values.astype(np.int32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return np.repeat(grey[..., None], 3, axis=-1)


def _floats_to_rgb(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if not (values.min() >= 0.0 and values.max() <= 1.0):  # Also catches NaN.
        raise ImageError(
            f"Image {name} has floats from {values.min()} to {values.max()}: scale them to [0, 1]."
        )
    grey = np.round(values * 255.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
