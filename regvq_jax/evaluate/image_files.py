"""Anybody's images, a folder or an .npz, as a set to compare."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.listing import EXTENSIONS
from regvq_jax.data.pipeline import evaluation_batches
from regvq_jax.data.transforms import keep, resize_and_crop
from regvq_jax.data.tree import File, Tree, is_remote, open_tree
from regvq_jax.errors import UserError
from regvq_jax.evaluate.features import ImageSet

log = logging.getLogger("regvq_jax")


class FolderImages:
    """All images below a folder or in an archive, in the order of their paths, as a `Source` of "image"."""

    def __init__(self, name: str, tree: Tree, files: Sequence[File], size: int):
        """Reads nothing yet; `size` > 0 crops to squares of that side, 0 wants images of one size."""
        self.name, self._tree, self._files, self._size = name, tree, files, size
        self._shape = self._read(0).shape if not size and files else None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [H, W, 3]}.

        Raises:
            UserError: it cannot be read, or has another size than the first.
        """
        image = self._read(index)
        if self._size:
            return keep(resize_and_crop({"image": image}, size=self._size), names=("image",))
        if image.shape != self._shape:
            first, this = (f"{shape[1]}x{shape[0]}" for shape in (self._shape, image.shape))
            raise UserError(
                f"{self.path(0)} has {first} pixels, {self.path(index)} {this}: the images of a set must "
                "have one size, since resizing is part of a protocol; --size=N cuts all of them to N x N."
            )
        return {"image": image}

    def path(self, index: int) -> str:
        """What an image is called."""
        return f"{self.name}/{self._files[index].path}"

    def _read(self, index: int) -> np.ndarray:
        try:
            return read_image(self._tree.read(self._files[index].path), self.path(index))
        except OSError as error:
            raise ImageError(f"Cannot read {self.path(index)}: {error.strerror or error}.") from error


class ArrayImages:
    """The images of an .npz, uint8 [N, H, W, 3] under `arr_0`, as ADM's evaluator has them."""

    def __init__(self, path: str, images: np.ndarray, size: int):
        """`size` as of `FolderImages`."""
        self.name, self._images, self._size = path, images, size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [H, W, 3]}."""
        element = {"image": self._images[index]}
        return keep(resize_and_crop(element, size=self._size), names=("image",)) if self._size else element

    def path(self, index: int) -> str:
        """What an image is called."""
        return f"{self.name}[{index}]"


def has_images(path: str) -> bool:
    """Whether an .npz file holds images (else statistics).

    Raises:
        UserError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return "arr_0" in content.files and "mu" not in content.files
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} as .npz: {error}.") from error


def open_images(path: str, *, batch_size: int, size: int = 0, limit: int = 0) -> ImageSet:
    """Images to compare.

    Args:
        path: a folder that is searched recursively, a .zip or .tar of it, either also at a URL; or an .npz
            with uint8 [N, H, W, 3] under `arr_0`.
        batch_size: of all processes together.
        size: cut the centre of each image to squares of that side; 0 takes them as they are.
        limit: take the first so many only; 0 = all.

    Raises:
        UserError: there is no such path, no image, or images of several sizes.
    """
    source = _open_array(path, size) if path.endswith(".npz") else _open_folder(path, size)
    total = len(source)
    count = min(limit or total, total)
    if count < total:
        source = _First(source, count)
    identity = {}
    if (fingerprint := _fingerprint(path)) is not None:
        crop = f"centre, {size} px" if size else "none"
        identity = {"source": path, "fingerprint": fingerprint, "crop": crop, "first": count}
    return ImageSet(
        name=f"{count:,} images of {path}",
        count=count,
        batches=lambda: evaluation_batches(source, [], batch_size, jax.process_index(), jax.process_count()),
        identity=identity,
        image_at=lambda index: source[index]["image"],
        element_name=source.path,
    )


class _First:
    """The first elements of a source."""

    def __init__(self, source, count: int):
        self._source, self._count = source, count
        self.name, self.path = source.name, source.path

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index]


def _open_folder(path: str, size: int) -> FolderImages:
    if not is_remote(path) and not Path(path).expanduser().exists():
        raise UserError(f"{path} does not exist: give a folder of images, an archive of one, or an .npz.")
    tree = open_tree(path)
    files = [file for file in tree.files() if file.path.lower().endswith(EXTENSIONS)]
    if not files:
        raise UserError(f"{path} has no images ({', '.join(EXTENSIONS)}): give the folder that they lie in.")
    endings = Counter(file.path.lower().rsplit(".")[-1].replace("jpeg", "jpg") for file in files)
    if len(endings) > 1:
        shares = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())
        log.warning(
            "%s mixes file formats (%s): lossy compression changes FID; save all images in one lossless "
            "format.",
            path,
            shares,
        )
    return FolderImages(path, tree, sorted(files, key=lambda file: file.path), size)


def _open_array(path: str, size: int) -> ArrayImages:
    if not has_images(path):
        raise UserError(f"{path} holds no images, uint8 [N, H, W, 3] under arr_0; statistics are for --real.")
    with np.load(path, allow_pickle=False) as content:
        images = content["arr_0"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3].")
    return ArrayImages(path, images, size)


def _fingerprint(path: str) -> str | None:
    """Of paths, sizes and times of local files; None where a change could go unseen."""
    if is_remote(path):
        return None
    root = Path(path).expanduser()
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        digest.update(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
