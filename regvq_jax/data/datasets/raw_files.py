"""Raw files of a data set: where they lie, read so that nothing is written that nobody can read."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image

from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.listing import first_names
from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

_PLAIN_MODES = ("RGB", "L")


def find_root(tree: Tree, wanted: Sequence[str]) -> str:
    """Under which folder the files of a data set lie: archives often have one on top.

    Args:
        tree: of raw files.
        wanted: folders, as "images/training/", and files that must be there; each is a relative path.

    Returns:
        "" or a prefix that ends in "/", the same for all wanted.

    Raises:
        UserError: names what is missing, and what is there instead.
    """
    paths = [file.path for file in tree.files()]
    roots = None
    for name in wanted:
        found = set()
        for path in paths:
            place = f"/{path}".find(f"/{name}")
            if place >= 0 and (name.endswith("/") or f"/{path}"[place + 1 :] == name):
                found.add(f"/{path}"[1 : place + 1])
        roots = found if roots is None else roots & found
    if not roots:
        missing = [name for name in wanted if not any(f"/{name}" in f"/{path}" for path in paths)]
        there = sorted({"/".join(path.split("/")[:2]) for path in paths})
        raise UserError(
            f"{tree.name} lacks {', '.join(missing or wanted)}"
            f"{'' if missing else ' in one folder'}; expected {', '.join(wanted)}, found "
            f"{first_names(there, 6) or 'no files'}."
        )
    return min(roots, key=lambda root: (len(root), root))


def checked_image(tree: Tree, path: str) -> bytes:
    """Reads an image and decodes it once, so that nothing is written that nobody can read.

    Args:
        tree: of raw files.
        path: of the image in it.

    Returns:
        The file as it is, if it is JPEG or PNG in RGB or 8-bit grey and the right way up; otherwise a PNG of
        what `read_image` makes of it, so that every reader sees the same.

    Raises:
        ImageError: it is missing or cannot be decoded.
    """
    content, pixels = _read(tree, path)
    with Image.open(io.BytesIO(content)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if image.format in ("JPEG", "PNG") and image.mode in _PLAIN_MODES and upright:
            if not image.has_transparency_data:
                return content
    return png(pixels)


def checked_labels(tree: Tree, path: str, num_classes: int) -> np.ndarray:
    """Reads a label map, uint8 [H, W]: the ids, never the colours of a palette.

    Raises:
        ImageError: it is missing, damaged, or has not one byte a pixel.
        UserError: an id is not below `num_classes`.
    """
    labels = read_mask(tree, path)
    if labels.max(initial=0) >= num_classes:
        raise UserError(
            f"Label map {path} of {tree.name} has the id {labels.max()}, and the classes end at "
            f"{num_classes - 1}: this is another data set, or another form of its maps."
        )
    return labels


def read_mask(tree: Tree, path: str) -> np.ndarray:
    """Reads a one-channel picture, uint8 [H, W]; ImageError where it is none, damaged or missing."""
    content, _ = _read(tree, path)
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in ("L", "P"):
            raise ImageError(f"Label map {path} has colour mode {image.mode}, not one byte a pixel.")
        return np.array(image)


def png(array: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="png")
    return content.getvalue()


def labels_of_size(labels: np.ndarray, size: tuple[int, int], path: str) -> np.ndarray:
    """Raises ImageError unless a label map has (height, width) of its image; returns it."""
    if labels.shape != size:
        raise ImageError(
            f"Label map {path} is {labels.shape[1]} x {labels.shape[0]}, its image {size[1]} x {size[0]}."
        )
    return labels


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image."""
    with Image.open(io.BytesIO(content)) as image:
        return image.height, image.width


def read_text(tree: Tree, path: str) -> str:
    """A text file in UTF-8; what is not is read as Latin-1, as old caption files are."""
    content = tree.read(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _read(tree: Tree, path: str) -> tuple[bytes, np.ndarray]:
    try:
        content = tree.read(path)
    except OSError as error:
        raise ImageError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        return content, read_image(content)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
