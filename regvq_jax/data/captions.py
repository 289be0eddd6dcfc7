"""Captions that lie beside images: same-named .txt files, and `metadata.jsonl` / `metadata.csv`."""

import csv
import io
import json
import posixpath
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

import numpy as np

from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


class _Elements(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def caption_fields(texts: Sequence[str], index: int) -> dict[str, str | tuple[str, ...]]:
    """Puts an image's captions into the form of an element: one rule for every source.

    "text" is caption number `index` modulo their count: fixed for an element, yet all places in
    the list are used over a held-out set. "texts" are all of them, from which
    `transforms.encode_text` draws in training.

    Args:
        texts: the captions of one image, possibly none.
        index: the element's index in its source.

    Returns:
        {} without captions, else {"text": str, "texts": tuple of str}.
    """
    if not texts:
        return {}
    return {"text": texts[index % len(texts)], "texts": tuple(texts)}


def count_cut_captions(
    source: _Elements,
    lengths_fn: Callable[[Sequence[str]], np.ndarray],
    length: int,
    limit: int = 2000,
) -> tuple[int, int]:
    """Counts the captions that lose words when they are encoded to a fixed length.

    Args:
        source: its elements have "text", and "texts" where there may be several; a token cache, best,
            which has no picture to decode.
        lengths_fn: captions to the lengths int [B] that they need uncut, as `TextTokenizer.lengths`.
        length: L, the fixed length.
        limit: look at the captions of at most so many elements, evenly spread over the source.

    Returns:
        (captions that are cut, captions looked at).
    """
    looked_at = min(len(source), limit)
    elements = (source[i * len(source) // looked_at] for i in range(looked_at))
    captions = [text for element in elements for text in element.get("texts", (element["text"],))]
    return int((np.asarray(lengths_fn(captions)) > length).sum()), len(captions)


def read_text_file(tree: Tree, path: str) -> tuple[str, ...]:
    """Reads a caption file, one caption a line, blank lines left out.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    lines = (" ".join(line.split()) for line in _read_utf8(tree, path).split("\n"))
    return tuple(line for line in lines if line)


def read_metadata(tree: Tree, folder: str, paths: Container[str]) -> dict[str, tuple[str, ...]]:
    """Reads the `metadata.jsonl` or `metadata.csv` of a folder: columns `file_name` and `text`.

    Several rows with one `file_name`, or a list as `text`, are several captions of that image.

    The column of captions may be called `caption`, too; other columns say nothing here.

    Args:
        tree: of the data.
        folder: where the metadata file lies and what its file names are relative to; "" = the root.
        paths: all files of the tree.

    Returns:
        Captions by path in the tree; {} where the folder has no metadata file.

    Raises:
        UserError: both files exist, a row is no JSON, or it lacks a column.
    """
    prefix = f"{folder}/" if folder else ""
    found = [path for name in METADATA_NAMES if (path := f"{prefix}{name}") in paths]
    if not found:
        return {}
    if len(found) > 1:
        raise UserError(f"{tree.name}/{folder} has both {' and '.join(METADATA_NAMES)}: keep one of them.")
    read_rows = _jsonl_rows if found[0].endswith(".jsonl") else _csv_rows
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(tree, found[0]):
        file_name, text = row.get("file_name"), row.get("text", row.get("caption"))
        texts = text if isinstance(text, list) else [text]
        if not isinstance(file_name, str) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'{tree.name}/{found[0]}, line {line}: needs "file_name" and "text" as strings, has '
                f"{sorted(map(str, row))}."
            )
        cleaned = (" ".join(text.split()) for text in texts)
        key = posixpath.normpath(f"{prefix}{file_name}")
        captions.setdefault(key, []).extend(text for text in cleaned if text)
    return {name: tuple(texts) for name, texts in captions.items()}


def _jsonl_rows(tree: Tree, path: str):
    for number, line in enumerate(_read_utf8(tree, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{tree.name}/{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            where = f"{tree.name}/{path}, line {number}"
            raise UserError(f'{where}: needs an object with "file_name" and "text".')
        yield number, row


def _csv_rows(tree: Tree, path: str):
    reader = csv.DictReader(io.StringIO(_read_utf8(tree, path)))
    for row in reader:
        yield reader.line_num, row


def _read_utf8(tree: Tree, path: str) -> str:
    try:
        return tree.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{tree.name}/{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"Cannot read {tree.name}/{path}: {error.strerror or error}.") from error
