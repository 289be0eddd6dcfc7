"""What a data source holds, in figures: sizes, colours, captions, classes and label maps of a sample."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from regvq_jax.data.sources import Element, Source

# JPEG's colours of a grey picture are off by a level or two.
_GREY_TOLERANCE = 4
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_MOST_FREQUENT = 30


class Facts(NamedTuple):
    """What is counted of one element.

    Attributes:
        height, width: of the picture in its source.
        shape, dtype: of the picture as training gets it.
        low, high: its least and its largest value.
        sums, squares: float64 [3], over its pixels by channel.
        grey: its channels are the same.
        texts: all its captions.
        class_id: None where it has none.
        label_counts: int [C], pixels of its map by class; None where it has none.
    """

    height: int
    width: int
    shape: tuple[int, ...]
    dtype: str
    low: int
    high: int
    sums: np.ndarray
    squares: np.ndarray
    grey: bool
    texts: tuple[str, ...]
    class_id: int | None
    label_counts: np.ndarray | None


def spread(total: int, count: int) -> np.ndarray:
    """One whole number from each of `count` equal parts of 0 to `total`; all if they are fewer: int [n].

    At random within its part, the same in every call: even steps could fall in with an order in the data.
    """
    if count >= total:
        return np.arange(total)
    bounds = np.arange(count + 1) * total // count
    return np.random.default_rng(0).integers(bounds[:-1], bounds[1:])


def captions_of(element: Element) -> tuple[str, ...]:
    """All captions of an element, () where it has none."""
    return element.get("texts") or ((element["text"],) if "text" in element else ())


def look_at(element: Element, fed: Element, num_label_classes: int) -> Facts:
    """Counts one element.

    Args:
        element: as its source gives it.
        fed: the same after the transforms: "image" uint8 [S, S, 3] and, where there are maps, "labels".
        num_label_classes: C.
    """
    image = fed["image"]
    pixels = image.reshape(-1, 3)
    values = pixels.astype(np.float64)
    labels = fed.get("labels")
    counts = None
    if labels is not None:
        counts = np.bincount(labels.ravel(), minlength=num_label_classes)
    return Facts(
        *element["image"].shape[:2],
        shape=image.shape,
        dtype=str(image.dtype),
        low=int(pixels.min()),
        high=int(pixels.max()),
        sums=values.sum(0),
        squares=(values**2).sum(0),
        grey=int(np.ptp(pixels, axis=1).max()) <= _GREY_TOLERANCE,
        texts=captions_of(element),
        class_id=int(element["class"]) if "class" in element else None,
        label_counts=counts,
    )


def describe_source(source: Source) -> dict[str, Any]:
    """What a source says of itself, as JSON: name, fingerprint, examples, and what it has left out."""
    left_out = (*getattr(source, "skipped", ()), *getattr(source, "undecodable", ()))
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "examples": len(source),
        "skipped": [list(entry) for entry in left_out],
    }


def describe_images(facts: Sequence[Facts]) -> dict[str, Any]:
    """Sizes and colours of pictures, as JSON.

    Args:
        facts: of at least one element.

    Returns:
        "looked_at": their number; "height" and "width" in the source, of each the least, the median and the
        largest; "shapes" and "dtypes" as fed, "values": least and largest; "mean" and "std" of each
        channel, of 255; "grey": the share of grey pictures.
    """
    pixels = sum(np.prod(fact.shape[:2]) for fact in facts)
    mean = sum(fact.sums for fact in facts) / pixels
    variance = sum(fact.squares for fact in facts) / pixels - mean**2
    return {
        "looked_at": len(facts),
        "height": _range([fact.height for fact in facts]),
        "width": _range([fact.width for fact in facts]),
        "shapes": sorted({fact.shape for fact in facts}),
        "dtypes": sorted({fact.dtype for fact in facts}),
        "values": [min(fact.low for fact in facts), max(fact.high for fact in facts)],
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(variance, 0.0)).tolist(),
        "grey": float(np.mean([fact.grey for fact in facts])),
    }


def describe_captions(
    captions: Sequence[tuple[str, ...]], lengths_fn: Callable[[Sequence[str]], np.ndarray], length: int | None
) -> dict[str, Any] | None:
    """How many captions there are, how long they are, and of which words, as JSON.

    Args:
        captions: those of each picture.
        lengths_fn: captions to the numbers of ids int [B] that they need uncut, 0 for one without words.
        length: L, of the rows of ids that a prior reads; None = none reads any.

    Returns:
        "captions": their number; "per_image": the least, the median and the largest; "words" and "ids" of a
        caption: median, 95 % and the largest; "empty": captions without words; "longer": captions of more
        than L ids, "length": L, where there is one; "frequent": the most frequent words with their counts.
        None where no picture has a caption.
    """
    texts = [text for own in captions for text in own]
    if not texts:
        return None
    ids = np.asarray(lengths_fn(texts))
    words = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    figures = {
        "captions": len(texts),
        "per_image": _range([len(own) for own in captions]),
        "words": _tail([len(text.split()) for text in texts]),
        "ids": _tail(ids),
        "empty": int((ids == 0).sum()),
        "frequent": [list(entry) for entry in words.most_common(_MOST_FREQUENT)],
    }
    if length is not None:
        figures |= {"length": length, "longer": int((ids > length).sum())}
    return figures


def describe_classes(class_ids: Sequence[int], names: Sequence[str], num_classes: int) -> dict[str, Any]:
    """How often each class occurs, as JSON.

    Args:
        class_ids: of each picture, in [0, num_classes).
        names: of the classes in order; may be ().
        num_classes: how many there are.

    Returns:
        Lists with an entry a class: "names", and "shares" of the pictures; "never": names of those that do
        not occur.
    """
    counts = np.bincount(np.asarray(class_ids, np.int64), minlength=num_classes)
    return _histogram(counts / max(len(class_ids), 1), names)


def describe_labels(facts: Sequence[Facts], names: Sequence[str]) -> dict[str, Any]:
    """How much of the label maps each class fills, as JSON.

    Args:
        facts: of elements with label maps.
        names: of the classes in order; may be ().

    Returns:
        As of `describe_classes`, with shares of all pixels; and "pictures": the share of the pictures that
        have a pixel of the class.
    """
    counts = np.stack([fact.label_counts for fact in facts])
    figures = _histogram(counts.sum(0) / counts.sum(), names)
    return figures | {"pictures": (counts > 0).mean(0).tolist()}


def _histogram(shares: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    names = [names[i] if i < len(names) else str(i) for i in range(len(shares))]
    never = [names[i] for i in np.flatnonzero(shares == 0)]
    return {"names": names, "shares": shares.tolist(), "never": never}


def _range(values: Sequence[int]) -> list[float]:
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]


def _tail(values: Sequence[int]) -> list[float]:
    return [float(np.median(values)), float(np.percentile(values, 95)), float(np.max(values))]
