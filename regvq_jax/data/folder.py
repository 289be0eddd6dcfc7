"""A folder of the user's own images, with or without captions, as a data source."""

import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from absl import logging

from regvq_jax.data import listing
from regvq_jax.data.captions import METADATA_NAMES, caption_fields, read_metadata, read_text_file
from regvq_jax.data.images import ImageError, read_image
from regvq_jax.data.listing import File, first_names
from regvq_jax.errors import UserError


class FolderSource:
    """The images below a folder, in the order of their relative paths.

    Splits: with a sub-folder `train/` and one of `heldout/ validation/ valid/ val/ test/` these are
    the splits; otherwise a stable hash of the relative path holds out 10 %, at least one image.

    Captions: the rows of a `metadata.jsonl` or `metadata.csv` (`file_name`, `text`) at the root or
    in the split's sub-folder; for images that these do not name, the lines of the `.txt` file of
    the same name. "texts" are all captions of an image, "text" is number `index` modulo their
    count, in both splits; training draws from "texts" (see `transforms.encode_text`).

    Images with an unreadable header and those smaller than the crop are skipped and named in the
    log. One that only fails when it is decoded is replaced by the next readable one, in every
    process alike, and named in the log.
    """

    has_labels = False

    def __init__(self, path: str | os.PathLike, split: str, image_size: int, upscale: bool = False):
        """Lists the folder and reads every image header.

        Args:
            path: the folder.
            split: "train" or "heldout".
            image_size: images with a shorter short side are skipped.
            upscale: keep those images too.

        Raises:
            UserError: no such folder, fewer than 2 images, more than 1 % of them unusable, or
                captions for some only.
        """
        self.name = f"folder:{os.fspath(path)}"
        self._root = os.path.abspath(path)
        self._split = split
        folder = listing.split_folder(self._root, split)
        files = listing.list_files(self._root, folder)
        images = listing.select_images(self._root, folder, files)
        minimum = 1 if upscale else image_size
        skipped = listing.scan_headers(self._root, tuple(images), minimum)
        images = [image for image in images if image.path not in skipped]
        captions = _read_captions(self._root, folder, files, images)
        if not folder:
            heldout = listing.heldout_paths([image.path for image in images])
            images = [image for image in images if (image.path in heldout) == (split == "heldout")]
        self._paths = [image.path for image in images]
        self._captions = [captions[path] for path in self._paths] if captions else None
        self.has_text = captions is not None
        self.fingerprint = _fingerprint(images, self._captions)
        self._undecodable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decodes one image.

        Args:
            index: in [0, len).

        Returns:
            {"image": uint8 [H, W, 3]} and, with captions, "text": str and "texts": tuple of str.

        Raises:
            UserError: more than 1 % of the images cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        # Ends at the latest where the share of undecodable images passes the limit.
        while True:
            if index in self._undecodable:
                self._check_undecodable()
            else:
                try:
                    image = read_image(os.path.join(self._root, self._paths[index]))
                except ImageError as error:
                    self._note_undecodable(index, error)
                else:
                    texts = self._captions[index] if self._captions else ()
                    return {"image": image, **caption_fields(texts, index)}
            index = (index + 1) % len(self)

    def _note_undecodable(self, index: int, error: ImageError) -> None:
        with self._lock:
            is_new = index not in self._undecodable
            self._undecodable.add(index)
            count = len(self._undecodable)
        if is_new:
            logging.warning("%s The next one is used in its place (%d so far).", error, count)
        self._check_undecodable()

    def _check_undecodable(self) -> None:
        with self._lock:
            bad = sorted(self._undecodable)
        if len(bad) > listing.MAX_SKIPPED_SHARE * len(self):
            names = first_names([self._paths[i] for i in bad])
            raise UserError(
                f"More than 1 % of the {len(self)} {self._split} images of {self._root} cannot be "
                f"decoded, so far {len(bad)} ({names}): repair or remove them."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _read_captions(
    root: str, folder: str, files: Sequence[File], images: Sequence[File]
) -> dict[str, tuple[str, ...]] | None:
    """Captions by relative path for all images, or None where none has any."""
    named = read_metadata(root)
    if folder:
        inner = read_metadata(os.path.join(root, folder))
        named |= {f"{folder}/{name}": texts for name, texts in inner.items()}
    absent = [name for name in named if not os.path.isfile(os.path.join(root, name))]
    if absent:
        raise UserError(
            f"{' or '.join(METADATA_NAMES)} in {root} names {len(absent)} images that do not exist "
            f"({first_names(absent)}): file_name is relative to the folder of that file."
        )
    present = {file.path for file in files}
    captions = {}
    for image in images:
        text_path = f"{os.path.splitext(image.path)[0]}.txt"
        if named.get(image.path):
            captions[image.path] = named[image.path]
        elif text_path in present:
            captions[image.path] = read_text_file(os.path.join(root, text_path))
    missing = [image.path for image in images if not captions.get(image.path)]
    if len(missing) == len(images):
        return None
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {os.path.join(root, folder)} have no "
            f"caption, the others have one ({first_names(missing)}): give one to all, or to none."
        )
    return captions


def _fingerprint(images: Sequence[File], captions: Sequence[tuple[str, ...]] | None) -> str:
    # No times and no root: a copy of the folder is the same data.
    digest = hashlib.sha256()
    for i, image in enumerate(images):
        digest.update(ascii((*image, captions[i] if captions else ())).encode())
    return digest.hexdigest()[:16]
