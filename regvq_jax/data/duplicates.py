"""Pictures of the held-out split that are, but for small changes, pictures of the training split.

A picture is known by two difference hashes (is a place lighter than its left neighbour; than its upper one)
and by its colours in an 8 x 8 grid. The hashes find copies that were resized, saved anew or slightly cut;
the grid tells pictures apart that share an outline, as icons do. Two pictures are alike where

    bits that differ / places with a difference / 0.2  +  mean difference of the colours / 12  <=  1.

What is even has no differences: a small thing on a plain ground has few bits to be known by, so fewer of them
may differ. Pictures of one colour have none: they are left out of the search and counted.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from regvq_jax.data.sources import Source
from regvq_jax.data.statistics import spread
from regvq_jax.progress import Progress

# Either alone makes pictures unlike. A share of the bits at places with a difference in both pictures, at
# which unrelated photographs differ in half, give or take a tenth; and a mean of colours of 0..255.
MAX_BIT_SHARE = 0.2
MAX_COLOUR_DIFFERENCE = 12.0
# A picture with fewer differences than this, of 128, is none to know again.
MIN_DIFFERENCES = 8

_SIDE = 72  # has 8 and 9 equal parts
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # as Pillow's mode L
_DEAD_ZONE = 1.0  # grey levels: what saving as JPEG does to an even ground is no difference
_CHUNK = 256  # training pictures that are read and then compared together
_MAX_TABLE = 2**20  # distances that are held in memory at once
_MAX_PAIRS = 2**16  # likewise pairs of colours


class Signatures(NamedTuple):
    """What is known of N pictures.

    Attributes:
        hashes: uint64 [N, 2], lighter than left, lighter than above.
        colours: uint8 [N, 192], the colours of an 8 x 8 grid.
        differences: uint8 [N], at how many of the 128 places there is a difference, to either side.
    """

    hashes: np.ndarray
    colours: np.ndarray
    differences: np.ndarray

    @property
    def blank(self) -> np.ndarray:
        """bool [N], True = of one colour, or nearly."""
        return self.differences < MIN_DIFFERENCES


class Match(NamedTuple):
    """A held-out picture that training sees too.

    Attributes:
        heldout: its index.
        train: index of the training picture that is most like it.
        distance: bits of 128 in which their hashes differ.
        colour_difference: mean over an 8 x 8 grid, of 255.
        unlikeness: both together, from 0 to 1.
        mirrored: it is the mirrored held-out picture that is like the training picture.
        pairs: training pictures that are like it.
    """

    heldout: int
    train: int
    distance: int
    colour_difference: float
    unlikeness: float
    mirrored: bool
    pairs: int


class Duplicates(NamedTuple):
    """What a search found.

    Attributes:
        matches: one for each held-out picture with a likeness in training, the most alike first.
        train_compared, heldout_compared: indices of the pictures that were looked at.
        train_blank, heldout_blank: how many of these are of one colour.
    """

    matches: list[Match]
    train_compared: np.ndarray
    heldout_compared: np.ndarray
    train_blank: int
    heldout_blank: int

    @property
    def num_pairs(self) -> int:
        """Pairs of a held-out and a training picture that are alike."""
        return sum(match.pairs for match in self.matches)


def sign(images: Sequence[np.ndarray]) -> Signatures:
    """The signatures of pictures.

    Args:
        images: N pictures, uint8 [H, W, 3] of any size each.

    Returns:
        `Signatures` of N.
    """
    # Antialiased once for all; the rest are means over equal parts.
    small = np.empty((len(images), _SIDE, _SIDE, 3), np.uint8)
    for place, image in zip(small, images, strict=True):
        place[:] = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey = small.astype(np.float32) @ _GREY
    right = np.diff(_means(grey, 8, 9), axis=2).reshape(-1, 64)
    down = np.diff(_means(grey, 9, 8), axis=1).reshape(-1, 64)
    bits = np.stack([right, down], axis=1) > _DEAD_ZONE
    hashes = np.packbits(bits, axis=-1).view(np.uint64)[..., 0]
    differences = sum((np.abs(part) > _DEAD_ZONE).sum(1) for part in (right, down))
    colours = _means(small.astype(np.float32), 8, 8).round().astype(np.uint8)
    return Signatures(hashes, colours.reshape(len(small), 192), differences.astype(np.uint8))


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """In how many bits the hashes of pictures differ, each of `first` against each of `second`.

    Args:
        first: uint64 [M, 2].
        second: uint64 [N, 2].

    Returns:
        uint8 [M, N], from 0 to 128.
    """
    return sum(np.bitwise_count(first[:, None, i] ^ second[None, :, i]) for i in range(2))


def find_duplicates(
    train: Source,
    heldout: Source,
    *,
    limit: int = 0,
    num_threads: int = 2,
    enabled: bool = True,
) -> Duplicates:
    """Compares every held-out picture, as it is and mirrored, with every training picture.

    Args:
        train: the training split.
        heldout: the held-out split.
        limit: look at so many pictures of each split at most, evenly spread over it; 0 = at all.
        num_threads: that read pictures.
        enabled: show progress.

    Returns:
        `Duplicates`; a picture of one colour is a duplicate of none.
    """
    looked_at = [spread(len(source), limit or len(source)) for source in (train, heldout)]
    total = sum(map(len, looked_at))
    with (
        Progress("duplicates", total, unit="pictures", enabled=enabled) as progress,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        parts = list(_signed_chunks(heldout, looked_at[1], pool, progress, mirror=True))
        views = tuple(map(_concatenate, zip(*parts, strict=True)))
        search = _Search(looked_at[1], views)
        train_blank, start = 0, 0
        for (signed,) in _signed_chunks(train, looked_at[0], pool, progress, mirror=False):
            indices = looked_at[0][start : start + len(signed.blank)]
            search.add(indices, signed)
            start, train_blank = start + len(indices), train_blank + int(signed.blank.sum())
    return Duplicates(search.matches(), *looked_at, train_blank, int(views[0].blank.sum()))


class _Search:
    """Held-out pictures, and for each the training picture so far that is most like it."""

    def __init__(self, indices: np.ndarray, views: Sequence[Signatures]):
        """Begins with no training picture seen.

        Args:
            indices: int [H], of the held-out pictures.
            views: signatures of them, as they are and mirrored.
        """
        self._indices, self._views = indices, views
        self._score = np.full(len(indices), np.inf)
        self._pairs = np.zeros(len(indices), np.int64)
        self._train = np.zeros(len(indices), np.int64)
        self._facts = np.zeros((len(indices), 3))  # distance, colour difference, is mirrored

    def add(self, indices: np.ndarray, signed: Signatures) -> None:
        """Compares training pictures of these indices."""
        height = max(1, _MAX_TABLE // max(len(indices), 1))
        for start in range(0, len(self._indices), height):
            tables = [self._compare(view, slice(start, start + height), signed) for view in self._views]
            scores = np.stack([score for score, _, _ in tables])
            rows = np.arange(scores.shape[1])
            # A symmetrical picture is like its mirror image: one pair.
            self._pairs[start + rows] += np.isfinite(scores).any(0).sum(1)
            view = scores.argmin(0)
            score = scores.min(0)
            column = score.argmin(1)
            score, view = score[rows, column], view[rows, column]
            better = score < self._score[start + rows]
            places = start + rows[better]
            self._score[places], self._train[places] = score[better], indices[column[better]]
            facts = [np.stack([distance, colour], -1) for _, distance, colour in tables]
            chosen = np.stack(facts)[view, rows, column]
            self._facts[places] = np.concatenate([chosen, view[:, None]], 1)[better]

    def _compare(self, view: Signatures, part: slice, signed: Signatures) -> tuple[np.ndarray, ...]:
        """Score (infinite for pictures that are not alike), distance and colour difference, [H, T] each."""
        distance = distances(view.hashes[part], signed.hashes).astype(np.float32)
        colour = np.full_like(distance, np.inf)
        places = np.minimum(view.differences[part, None], signed.differences).astype(np.float32)
        share = distance / np.maximum(places, 1) / MAX_BIT_SHARE
        near = (share <= 1) & ~view.blank[part, None] & ~signed.blank
        rows, columns = np.nonzero(near)
        for start in range(0, len(rows), _MAX_PAIRS):
            row, column = rows[start : start + _MAX_PAIRS], columns[start : start + _MAX_PAIRS]
            pair = view.colours[part][row].astype(np.int16) - signed.colours[column]
            colour[row, column] = np.abs(pair).mean(1)
        score = share + colour / MAX_COLOUR_DIFFERENCE
        return np.where(score <= 1, score, np.inf), distance, colour

    def matches(self) -> list[Match]:
        """The most alike first."""
        found = np.flatnonzero(self._pairs)
        return [
            Match(
                heldout=int(self._indices[place]),
                train=int(self._train[place]),
                distance=int(self._facts[place, 0]),
                colour_difference=float(self._facts[place, 1]),
                unlikeness=float(self._score[place]),
                mirrored=bool(self._facts[place, 2]),
                pairs=int(self._pairs[place]),
            )
            for place in found[np.argsort(self._score[found], kind="stable")]
        ]


def _signed_chunks(
    source: Source, indices: np.ndarray, pool: ThreadPoolExecutor, progress: Progress, *, mirror: bool
) -> Iterator[tuple[Signatures, ...]]:
    """Signatures of so many pictures at a time; with `mirror` those of the mirrored pictures, too."""

    def read(index: int) -> list[Signatures]:
        image = source[int(index)]["image"]
        return [sign([view]) for view in ((image, image[:, ::-1]) if mirror else (image,))]

    done = progress.step
    for start in range(0, len(indices), _CHUNK):
        parts = []
        for count, signed in enumerate(pool.map(read, indices[start : start + _CHUNK]), start + 1):
            parts.append(signed)
            progress.update(done + count)
        yield tuple(map(_concatenate, zip(*parts, strict=True)))


def _concatenate(parts: Sequence[Signatures]) -> Signatures:
    return Signatures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _means(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[N, S, S, ...] to the means over equal parts, [N, rows, columns, ...]."""
    count, height, width, *rest = images.shape
    return images.reshape(count, rows, height // rows, columns, width // columns, *rest).mean((2, 4))
