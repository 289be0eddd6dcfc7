"""What lies in a folder of images: its files, its splits, and which headers can be used."""

import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from absl import logging

from regvq_jax.data.images import ImageError, read_size
from regvq_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
HELDOUT_FOLDERS = ("heldout", "validation", "valid", "val", "test")  # The first that exists.
MAX_SKIPPED_SHARE = 0.01
_HELDOUT_SHARE = 0.1
_SCAN_THREADS = 16
_PROGRESS_FROM = 2000
_PROGRESS_SECONDS = 5.0


class File(NamedTuple):
    """One file: `path` relative to the root, with "/", and `size` in bytes."""

    path: str
    size: int


def split_folder(root: str, split: str) -> str:
    """Finds the sub-folder that holds a split.

    Args:
        root: the data folder.
        split: "train" or "heldout".

    Returns:
        Its name, or "" where the images are to be split by hash.

    Raises:
        UserError: `root` is no folder.
    """
    if not os.path.isdir(root):
        raise UserError(f"Data folder {root} does not exist or is no folder: give an existing one.")
    heldout = [name for name in HELDOUT_FOLDERS if os.path.isdir(os.path.join(root, name))]
    if not heldout or not os.path.isdir(os.path.join(root, "train")):
        return ""
    return "train" if split == "train" else heldout[0]


def heldout_paths(paths: Sequence[str]) -> frozenset[str]:
    """Picks a tenth, at least one and not all, by a hash of each path that no other path changes.

    Args:
        paths: at least 2, relative to the root.

    Returns:
        The held-out ones.
    """
    ranks = {path: int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big") for path in paths}
    count = sum(rank < _HELDOUT_SHARE * 2.0**64 for rank in ranks.values())
    count = min(max(count, 1), len(paths) - 1)
    return frozenset(sorted(paths, key=ranks.__getitem__)[:count])


def list_files(root: str, folder: str) -> list[File]:
    """Lists all files below root/folder.

    Links to folders are followed, each folder once; hidden names are left out.

    Args:
        root: the data folder.
        folder: a sub-folder, or "".

    Returns:
        The files by path.

    Raises:
        UserError: a folder cannot be listed.
    """
    files = []
    pending = [folder]
    seen = set()
    while pending:
        relative = pending.pop()
        real = os.path.realpath(os.path.join(root, relative))
        if real in seen:  # A link back up would never end.
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(real), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise UserError(f"Cannot list data folder {real}: {error.strerror}.") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                pending.append(path)
            elif entry.is_file():
                files.append(File(path, entry.stat().st_size))
    return sorted(files)


def select_images(root: str, folder: str, files: Sequence[File]) -> list[File]:
    """Keeps the files with an image's extension.

    Args:
        root: the data folder.
        folder: the split's sub-folder, or "", which needs enough images for two splits.
        files: as `list_files` returns.

    Returns:
        The images, in the same order.

    Raises:
        UserError: there are too few; says what was looked for and what was found.
    """
    images = [file for file in files if _extension(file.path) in EXTENSIONS]
    at_least = 1 if folder else 2
    if len(images) < at_least:
        kinds = Counter(_extension(file.path) or "no extension" for file in files)
        found = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5))
        raise UserError(
            f"{os.path.join(root, folder)} has {len(images)} images and needs at least {at_least}: "
            f"looked for {' '.join(EXTENSIONS)} in it and below, found {found or 'no files'}."
        )
    return images


@functools.lru_cache(maxsize=2)  # The train and held-out sources of one folder share a scan.
def scan_headers(root: str, images: tuple[File, ...], minimum: int) -> frozenset[str]:
    """Reads the header of every image, without decoding, and logs by name those to skip.

    Args:
        root: the data folder.
        images: what to read.
        minimum: of width and height.

    Returns:
        The paths of the images that are unreadable or too small.

    Raises:
        UserError: they are more than 1 % of all.
    """

    def find_problem(image: File) -> tuple[str, str] | None:
        try:
            width, height = read_size(os.path.join(root, image.path))
        except ImageError as error:
            return "unreadable", str(error)
        if min(width, height) >= minimum:
            return None
        return (
            "small",
            f"Image {image.path} is smaller ({width} x {height}) than the crop ({minimum}).",
        )

    problems: dict[str, tuple[str, str]] = {}
    last = time.monotonic()
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        results = zip(images, pool.map(find_problem, images), strict=True)
        for done, (image, problem) in enumerate(results, start=1):
            if problem:
                problems[image.path] = problem
            if len(images) > _PROGRESS_FROM and time.monotonic() - last > _PROGRESS_SECONDS:
                last = time.monotonic()
                logging.info("Read the image headers of %s: %d of %d", root, done, len(images))
    for _, text in problems.values():
        logging.warning("%s It is skipped.", text)
    if problems:
        logging.warning("%d of the %d images of %s are skipped.", len(problems), len(images), root)
    if len(problems) > MAX_SKIPPED_SHARE * len(images):
        _raise_skipped(root, len(images), minimum, problems)
    return frozenset(problems)


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Joins the first `count` names for a message, with an ellipsis for the rest."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _raise_skipped(root: str, total: int, minimum: int, problems: dict[str, tuple[str, str]]) -> None:
    small = [path for path, (kind, _) in problems.items() if kind == "small"]
    unreadable = [path for path, (kind, _) in problems.items() if kind == "unreadable"]
    parts, remedies = [], []
    if small:
        parts.append(f"{len(small)} are smaller than the crop of {minimum} ({first_names(small)})")
        remedies.append("set data.upscale=True to enlarge small ones, or a lower data.image_size")
    if unreadable:
        parts.append(f"{len(unreadable)} are unreadable ({first_names(unreadable)})")
        remedies.append("repair or remove the unreadable ones")
    raise UserError(
        f"More than 1 % of the {total} images of {root} cannot be used, {' and '.join(parts)}: "
        f"{'; '.join(remedies)}."
    )
