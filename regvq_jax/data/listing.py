"""What lies in a folder of images: its files, its splits, and which headers can be used."""

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from absl import logging

from regvq_jax.data.images import ImageError, read_size
from regvq_jax.data.labels import read_map_size
from regvq_jax.data.tree import File, Tree
from regvq_jax.errors import UserError
from regvq_jax.progress import Progress

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Of each the first that exists.
TRAIN_FOLDERS = ("train", "training")
HELDOUT_FOLDERS = ("heldout", "validation", "valid", "val", "test")
IMAGE_FOLDER = "images"
MAP_FOLDERS = ("labels", "annotations")
MAX_SKIPPED_SHARE = 0.01
_HELDOUT_SHARE = 0.1
_SCAN_THREADS = 16
_PROGRESS_FROM = 2000


class Layout(NamedTuple):
    """Where a split lies in a data folder; all relative to its root, with "/"."""

    images: str  # the folder of the images, "" = the root
    maps: str  # the folder of their label maps, "" = there is none
    is_split: bool  # False: the folder holds all images, to be split by hash


def find_layout(paths: Collection[str], split: str) -> Layout:
    """Finds out how a data folder is laid out.

    With `images/` and one of `labels/ annotations/` the images are those below `images/`, each with
    its label map below the other folder: the same relative path, as .png. A split's sub-folder lies
    in the root or, in that layout, in both of these.

    Args:
        paths: of all files, relative to the root.
        split: "train" or "heldout".

    Returns:
        The `Layout`.
    """
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    name = _split_folder(folders, split)
    if name:
        return Layout(name, "", True)
    maps = _first(folders, MAP_FOLDERS)
    if not maps or IMAGE_FOLDER not in folders:
        return Layout("", "", False)
    inner = {parts[1] for path in paths if len(parts := path.split("/")) > 2 and parts[0] == IMAGE_FOLDER}
    name = _split_folder(inner, split)
    if name:
        return Layout(f"{IMAGE_FOLDER}/{name}", f"{maps}/{name}", True)
    return Layout(IMAGE_FOLDER, maps, False)


def map_path(layout: Layout, image: str) -> str:
    """Where the label map of an image should be, relative to the root as the image's path is."""
    return f"{layout.maps}/{os.path.splitext(image.removeprefix(f'{layout.images}/'))[0]}.png"


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


def select_images(name: str, layout: Layout, files: Sequence[File]) -> list[File]:
    """Keeps the files with an image's extension.

    Args:
        name: of the data, for messages.
        layout: of it; where it is to be split by hash, there must be enough images for two splits.
        files: all there are, sorted.

    Returns:
        The images, in the same order.

    Raises:
        UserError: there are too few; says what was looked for and what was found.
    """
    prefix = f"{layout.images}/" if layout.images else ""
    files = [file for file in files if file.path.startswith(prefix)]
    images = [file for file in files if _extension(file.path) in EXTENSIONS]
    at_least = 1 if layout.is_split else 2
    if len(images) < at_least:
        kinds = Counter(_extension(file.path) or "no extension" for file in files)
        found = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5))
        raise UserError(
            f"{name}/{layout.images} has {len(images)} images and needs at least {at_least}: "
            f"looked for {' '.join(EXTENSIONS)} in it and below, found {found or 'no files'}."
        )
    return images


@functools.lru_cache(maxsize=2)  # The train and held-out sources of one folder share a scan.
def scan_headers(
    tree: Tree, images: tuple[File, ...], minimum: int, maps: tuple[str, ...] | None = None
) -> Mapping[str, str]:
    """Reads the header of every image, without decoding, and logs by name those to skip.

    Args:
        tree: of the data.
        images: what to read.
        minimum: of width and height.
        maps: the label map of each image, to be read too; None = there are none.

    Returns:
        Why, by path, of the images that are unreadable or too small, or have no label map of their size.

    Raises:
        UserError: they are more than 1 % of all.
    """

    def find_problem(image: File, label_map: str | None) -> tuple[str, str] | None:
        try:
            with _open(tree, image.path, "image") as file:
                width, height = read_size(file, f"{tree.name}/{image.path}")
        except ImageError as error:
            return "unreadable", str(error)
        if min(width, height) < minimum:
            return (
                "small",
                f"Image {image.path} is smaller ({width} x {height}) than the crop ({minimum}).",
            )
        if label_map is None:
            return None
        try:
            with _open(tree, label_map, "label map") as file:
                map_size = read_map_size(file, f"{tree.name}/{label_map}")
        except ImageError as error:
            return "unmapped", str(error)
        # An image may be stored on its side; which way it is up is known when it is decoded.
        if map_size in ((width, height), (height, width)):
            return None
        return (
            "unmapped",
            f"Label map {label_map} is {map_size[0]} x {map_size[1]}, its image {width} x {height}.",
        )

    problems: dict[str, tuple[str, str]] = {}
    progress = Progress("headers", len(images), unit="images", enabled=len(images) > _PROGRESS_FROM)
    with progress, ThreadPoolExecutor(_SCAN_THREADS) as pool:
        results = zip(images, pool.map(find_problem, images, maps or (None,) * len(images)), strict=True)
        for done, (image, problem) in enumerate(results, start=1):
            if problem:
                problems[image.path] = problem
            progress.update(done)
    for _, text in problems.values():
        logging.warning("%s It is skipped.", text)
    if problems:
        logging.warning("%d of the %d images of %s are skipped.", len(problems), len(images), tree.name)
    if len(problems) > MAX_SKIPPED_SHARE * len(images):
        _raise_skipped(tree.name, len(images), minimum, problems)
    return MappingProxyType({path: text for path, (_, text) in problems.items()})


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Joins the first `count` names for a message, with an ellipsis for the rest."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


@contextlib.contextmanager
def _open(tree: Tree, path: str, what: str) -> Iterator[BinaryIO]:
    """A file of the tree, whose failures are those of the image."""
    try:
        file = tree.open(path)
    except OSError as error:
        raise ImageError(f"Cannot read {what} {tree.name}/{path}: {error.strerror or error}.") from error
    with file:
        yield file


def _split_folder(folders: Collection[str], split: str) -> str:
    """The folder of a split, or "" unless there is one for each split."""
    train, heldout = (_first(folders, names) for names in (TRAIN_FOLDERS, HELDOUT_FOLDERS))
    if not train or not heldout:
        return ""
    return train if split == "train" else heldout


def _first(folders: Collection[str], names: Sequence[str]) -> str:
    return next((name for name in names if name in folders), "")


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _raise_skipped(root: str, total: int, minimum: int, problems: dict[str, tuple[str, str]]) -> None:
    small, unreadable, unmapped = (
        [path for path, (kind, _) in problems.items() if kind == wanted]
        for wanted in ("small", "unreadable", "unmapped")
    )
    parts, remedies = [], []
    if small:
        parts.append(f"{len(small)} are smaller than the crop of {minimum} ({first_names(small)})")
        remedies.append("set data.upscale=True to enlarge small ones, or a lower data.image_size")
    if unreadable:
        parts.append(f"{len(unreadable)} are unreadable ({first_names(unreadable)})")
        remedies.append("repair or remove the unreadable ones")
    if unmapped:
        reason = problems[unmapped[0]][1].rstrip(".")
        parts.append(f"{len(unmapped)} have no label map of their size ({first_names(unmapped)}; {reason})")
        remedies.append("give each image one, or set data.num_label_classes=0")
    raise UserError(
        f"More than 1 % of the {total} images of {root} cannot be used, {' and '.join(parts)}: "
        f"{'; '.join(remedies)}."
    )
