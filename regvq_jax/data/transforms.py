"""What happens to an element between its source and its batch: pure functions of (element, rng).

A transform is called as `transform(element, rng)`. `rng` is a generator that depends only on the
seed and on the element's place in the global order, or None where nothing may be random
(evaluation). Settings are bound with `functools.partial`, which data workers can unpickle.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

Element = dict[str, Any]
CROPS = ("center", "random", "near_center")
Transform = Callable[[Element, np.random.Generator | None], Element]

# A ground that goes from one colour to another goes from left to right.
_SIDED_WORDS = re.compile(r"\b(left|right)(most|wards?|s)?\b|\bto \w+( \w+)? (back)?ground\b", re.IGNORECASE)
_FILTERS = {"image": Image.Resampling.BICUBIC, "labels": Image.Resampling.NEAREST}
_REDUCING_GAP = 3.0  # A larger image is box-reduced to 3 times the size first: faster.


def resize_and_crop(
    element: Element,
    rng: np.random.Generator | None = None,
    *,
    size: int,
    crop: str = "center",
    flip: bool = False,
    max_scale: float = 1.1,
) -> Element:
    """Brings the short side to `size` and cuts out a square: images antialiased, labels by nearest.

    An image that has the size already is kept as it is, but for the flip.

    Args:
        element: "image": uint8 [H, W, 3]; optional "labels": uint8 [H, W].
        rng: None means centre crop and no flip, whatever the settings.
        size: side of the result.
        crop: "center"; with `rng` also "random": at a random place and scale, the short side is first
            brought to between `size` and `max_scale * size`, but not enlarged for the sake of variety; or
            "near_center", as VQ-Diffusion and DALL-E: the same in a square of the short side, which lies
            between 3/8 and 5/8 of the way along the long side.
        flip: with `rng`, mirror half of the elements; never those with the word "left" or "right"
            in a caption.
        max_scale: at least 1.

    Returns:
        The element with "image": uint8 [size, size, 3] and "labels": uint8 [size, size].
    """
    height, width = element["image"].shape[:2]
    box = None
    if (height, width) != (size, size):
        box = _crop_box(height, width, size, None if crop == "center" else rng, max_scale, crop)
    mirrored = flip and rng is not None and rng.random() < 0.5 and not _names_a_side(element)
    return _cut(element, size, box, mirrored)


def cut_view(
    element: Element,
    rng: np.random.Generator | None,
    *,
    size: int,
    mirrored: bool,
    max_scale: float = 1.1,
) -> Element:
    """As `resize_and_crop`, but the caller says which crop it is and whether it is mirrored.

    Args:
        element: "image": uint8 [H, W, 3]; optional "labels": uint8 [H, W].
        rng: draws place and scale; None means the centre crop.
        size: side of the result.
        mirrored: mirror it, unless a caption has the word "left" or "right".
        max_scale: at least 1.

    Returns:
        The element with "image": uint8 [size, size, 3] and "labels": uint8 [size, size].
    """
    height, width = element["image"].shape[:2]
    box = None
    if (height, width) != (size, size):
        box = _crop_box(height, width, size, rng, max_scale, "random")
    return _cut(element, size, box, mirrored and not _names_a_side(element))


def encode_text(
    element: Element,
    rng: np.random.Generator | None = None,
    *,
    encode_fn: Callable[[Sequence[str], int], np.ndarray],
    length: int,
) -> Element:
    """Turns the caption into token ids and takes the strings out of the element.

    Args:
        element: "text": str; optional "texts": all captions of the image.
        rng: draws one of "texts"; None takes "text".
        encode_fn: `(captions, length) -> int [len(captions), length]`, as `TextTokenizer.encode`.
        length: L.

    Returns:
        The element without "text" and "texts", with "text_tokens": int32 [L].
    """
    text, texts = element["text"], element.get("texts", ())
    if rng is not None and len(texts) > 1:
        text = texts[rng.integers(len(texts))]
    result = {key: value for key, value in element.items() if key not in ("text", "texts")}
    result["text_tokens"] = np.asarray(encode_fn([text], length)[0], dtype=np.int32)
    return result


def keep(element: Element, rng: np.random.Generator | None = None, *, names: Sequence[str]) -> Element:
    """Leaves out every entry of the element that is not in `names`."""
    return {name: element[name] for name in names}


def _cut(
    element: Element, size: int, box: tuple[float, float, float, float] | None, mirrored: bool
) -> Element:
    """The part `box` of image and label map at size x size; None = all of it, as it is."""
    result = dict(element)
    for key in _FILTERS.keys() & element.keys():
        array = element[key] if box is None else _resample(element[key], size, box, _FILTERS[key])
        if mirrored:  # Pillow moves pixels, numpy bytes: a quarter of the time.
            array = np.asarray(Image.fromarray(array).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        result[key] = np.ascontiguousarray(array)
    return result


def _names_a_side(element: Element) -> bool:
    texts = (element.get("text", ""), *element.get("texts", ()))
    return any(_SIDED_WORDS.search(text) for text in texts)


def _crop_box(
    height: int, width: int, size: int, rng: np.random.Generator | None, max_scale: float, crop: str
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in pixels of the original, of what becomes size x size."""
    short = min(height, width)
    if rng is None:
        side = float(short)
        left, top = (width - short) // 2, (height - short) // 2
    elif crop == "near_center":
        # A square near the centre of the long side; what is cut out of it is as with any picture.
        spare = (height - short, width - short)
        y, x = (rng.integers(3 * d // 8, max(3 * d // 8 + 1, 5 * d // 8)) for d in spare)
        left, top, right, bottom = _crop_box(short, short, size, rng, max_scale, "random")
        return left + x, top + y, right + x, bottom + y
    else:
        largest = max(size, min(short, round(size * max_scale)))
        side = short * size / rng.integers(size, largest + 1)
        # Whole pixels: where nothing is resized, nothing is interpolated either.
        left = rng.integers(int(width - side) + 1)
        top = rng.integers(int(height - side) + 1)
    return float(left), float(top), min(left + side, float(width)), min(top + side, float(height))


def _resample(
    array: np.ndarray,
    size: int,
    box: tuple[float, float, float, float],
    resample: Image.Resampling,
) -> np.ndarray:
    left, top, right, bottom = box
    if right - left == size and bottom - top == size:
        return array[int(top) : int(bottom), int(left) : int(right)]
    image = Image.fromarray(array)
    return np.asarray(image.resize((size, size), resample, box=box, reducing_gap=_REDUCING_GAP))
