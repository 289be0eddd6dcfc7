"""One record of a token cache: what was made of one view of one image, as msgpack."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from regvq_jax.data.captions import caption_fields
from regvq_jax.data.token_meta import TokenMeta

Captions = str | Sequence[str] | None
# Of the label maps. On those of the emoji, level 1 is a seventh of PNG's time and no larger up to
# 64 px; level 6 saves a third of the space and takes twice to three times as long.
_ZLIB_LEVEL = 1


class TokenExample(NamedTuple):
    """What is stored of one view of one image; None = the cache has no such thing."""

    codes: np.ndarray  # int [h, w]
    captions: Captions = None  # one, several, or none
    labels: np.ndarray | None = None  # uint8 [S, S]
    map_codes: np.ndarray | None = None  # int [h, w], of the label map's own tokenizer
    class_id: int | None = None


def pack_record(example: TokenExample, meta: TokenMeta) -> bytes:
    """Writes one record.

    Args:
        example: with exactly what `meta` promises.
        meta: of the cache.

    Returns:
        The record: "codes", and with what `meta` promises "texts", "labels", "map_codes", "class".

    Raises:
        ValueError: something is missing, superfluous, of another shape or type, or out of range.
    """
    texts = [example.captions] if isinstance(example.captions, str) else list(example.captions or ())
    if bool(texts) != meta.has_text:
        raise ValueError(f"has_text is {meta.has_text}, but the captions are {example.captions!r}.")
    record = {"codes": _pack_codes(example.codes, meta.grid, meta.codebook_size), "texts": texts}
    _check_presence("label map", example.labels, meta.num_label_classes > 0)
    _check_presence("map codes", example.map_codes, meta.has_map_tokens)
    _check_presence("class", example.class_id, meta.num_classes > 0)
    if meta.num_label_classes:
        record["labels"] = _pack_labels(example.labels, meta)
    if meta.has_map_tokens:
        record["map_codes"] = _pack_codes(example.map_codes, meta.map_grid, meta.map_codebook_size)
    if meta.num_classes:
        if not 0 <= example.class_id < meta.num_classes:
            raise ValueError(f"Class {example.class_id} leaves [0, {meta.num_classes}).")
        record["class"] = int(example.class_id)
    return msgpack.packb(record)


def unpack_record(content: bytes, meta: TokenMeta, index: int) -> dict[str, Any]:
    """Reads one record as an element of a source.

    Args:
        content: as `pack_record` returns.
        meta: of the cache.
        index: of the record; chooses "text" among several captions.

    Returns:
        {"tokens": int32 [N]} and, where the cache has them, "text": str and "texts": tuple of str,
        "labels": uint8 [S, S], "map_tokens": int32 [Nm], "class": int32 [].

    Raises:
        ValueError: the record is damaged (also TypeError, KeyError, zlib.error).
    """
    record = msgpack.unpackb(content)
    element = {"tokens": _unpack_codes(record["codes"], meta.grid, meta.codebook_size)}
    element |= caption_fields(record["texts"], index)
    if meta.num_label_classes:
        labels = np.frombuffer(zlib.decompress(record["labels"]), np.uint8)
        element["labels"] = labels.reshape(meta.image_size, meta.image_size)
    if meta.has_map_tokens:
        element["map_tokens"] = _unpack_codes(record["map_codes"], meta.map_grid, meta.map_codebook_size)
    if meta.num_classes:
        element["class"] = np.int32(record["class"])
    return element


def _check_presence(what: str, value: Any, wanted: bool) -> None:
    if (value is not None) != wanted:
        raise ValueError(f"A record {'lacks its' if wanted else 'has an unwanted'} {what}.")


def _pack_codes(codes: np.ndarray, grid: tuple[int, int], codebook_size: int) -> bytes:
    codes = np.asarray(codes)
    if codes.shape != grid or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"Codes must be int {grid}, got {codes.dtype} {codes.shape}.")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(f"Codes {codes.min()}..{codes.max()} leave [0, {codebook_size}).")
    return codes.astype(_code_dtype(codebook_size)).tobytes()


def _unpack_codes(content: bytes, grid: tuple[int, int], codebook_size: int) -> np.ndarray:
    codes = np.frombuffer(content, _code_dtype(codebook_size))
    return codes.reshape(grid[0] * grid[1]).astype(np.int32)


def _pack_labels(labels: np.ndarray, meta: TokenMeta) -> bytes:
    labels, shape = np.asarray(labels), (meta.image_size, meta.image_size)
    if labels.shape != shape or labels.dtype != np.uint8:
        raise ValueError(f"A label map must be uint8 {shape}, got {labels.dtype} {labels.shape}.")
    if labels.max() >= meta.num_label_classes:
        raise ValueError(f"Label {labels.max()} leaves [0, {meta.num_label_classes}).")
    return zlib.compress(labels.tobytes(), _ZLIB_LEVEL)


def _code_dtype(codebook_size: int) -> np.dtype:
    return np.dtype("<u2" if codebook_size <= 65536 else "<u4")
