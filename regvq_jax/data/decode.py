"""From the bytes of a picture, and of its label map, to an element."""

from typing import Any

from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.labels import read_label_map


def decode_element(
    image: bytes,
    name: str,
    *,
    min_size: int = 1,
    decode_side: int | None = None,
    labels: bytes | None = None,
    num_label_classes: int = 0,
) -> dict[str, Any]:
    """Decodes a picture and its label map, which belong together.

    Args:
        image: of any format that Pillow reads.
        name: for messages.
        min_size: the least height and width.
        decode_side: see `images.read_image`; not for pictures with a label map.
        labels: a PNG of 8-bit grey or palette indices; None = there is none.
        num_label_classes: ids must be below.

    Returns:
        {"image": uint8 [H, W, 3]} and, with `labels`, "labels": uint8 [H, W].

    Raises:
        ImageError: one of them cannot be decoded, the image is too small, or their sizes differ.
        UserError: an id is not below `num_label_classes`.
    """
    element = {"image": read_image(image, name, decode_side if labels is None else None)}
    height, width = element["image"].shape[:2]
    if min(height, width) < min_size:
        raise ImageError(f"{name} is smaller ({width} x {height}) than the crop ({min_size}).")
    if labels is not None:
        element["labels"] = read_label_map(labels, num_label_classes, f"of {name}")
        if element["labels"].shape != (height, width):
            raise ImageError(f"The label map of {name} has not the size of its image.")
    return element
