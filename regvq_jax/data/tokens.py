"""The token cache: what a frozen tokenizer made of every image, in array_record shards.

    tokens-00000-of-00003.array_record ...   one msgpack record per view of an image
    meta.json                                written last: a cache without it is unfinished

A record is {"codes": bytes, "texts": [str, ...]}, codes row by row, little-endian, uint16 where the
codebook has at most 65,536 entries, else uint32. As `meta.json` says there are also "labels" (the
label map's bytes row by row, zlib), "map_codes" (as "codes", of the label map) and "class" (int).
"""

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

from array_record.python import array_record_data_source

from regvq_jax.data.token_meta import TokenMeta, check_meta, is_finished, read_meta
from regvq_jax.data.token_records import TokenExample, unpack_record
from regvq_jax.data.token_shards import count_records, shard_length, shard_paths, write_tokens
from regvq_jax.errors import UserError

__all__ = [
    "TokenExample",
    "TokenMeta",
    "TokenSource",
    "check_meta",
    "is_finished",
    "read_meta",
    "write_tokens",
]


class TokenSource:
    """A finished token cache as a data source: as `sources.Source`, with tokens for images.

    Attributes:
        meta: the cache's `TokenMeta`.
        name: "tokens:DIRECTORY".
        fingerprint: 16 hex digits, of `meta`.
        has_text: elements have "text" and "texts".
        has_labels: elements have "labels", with ids in [0, num_label_classes).
        num_label_classes: 0 without labels.
        has_map_tokens: elements have "map_tokens".
        num_classes: elements have a "class" in [0, num_classes); 0 = they have none.
        class_names: their names in order, as far as the images' source had any.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens a cache.

        Raises:
            UserError: it is unfinished, or a shard is missing or damaged.
        """
        self.meta = read_meta(directory)
        self.name = f"tokens:{os.fspath(directory)}"
        self.fingerprint = hashlib.sha256(self.meta.to_json().encode()).hexdigest()[:16]
        self.has_text = self.meta.has_text
        self.has_labels = self.meta.num_label_classes > 0
        self.num_label_classes = self.meta.num_label_classes
        self.has_map_tokens = self.meta.has_map_tokens
        self.num_classes = self.meta.num_classes
        self.class_names = self.meta.class_names
        paths = shard_paths(Path(directory), self.meta)
        for i, path in enumerate(paths):
            expected, found = shard_length(self.meta, i), count_records(path)
            if found != expected:
                problem = "damaged" if path.is_file() else "missing"
                raise UserError(
                    f"Token shard {path} is {problem} ({found} of {expected} records): delete "
                    f"{Path(directory)} and run the token stage again."
                )
        # Opens a shard when it is first read, and again where it was unpickled.
        self._records = array_record_data_source.ArrayRecordDataSource([str(p) for p in paths])

    def __len__(self) -> int:
        return self.meta.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one record.

        Args:
            index: in [0, len).

        Returns:
            {"tokens": int32 [N]} and, where the cache has them, "text": str and "texts": tuple of str,
            "labels": uint8 [S, S], "map_tokens": int32 [Nm], "class": int32 [].

        Raises:
            UserError: the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return unpack_record(self._records[index], self.meta, index)
        except (RuntimeError, ValueError, TypeError, KeyError, zlib.error) as error:
            raise UserError(
                f"Record {index} of {self.name} is damaged ({error}): delete the directory and run "
                f"the token stage again."
            ) from error
