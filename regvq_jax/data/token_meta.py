"""What a token cache was made from: its `meta.json`, which is written last."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from regvq_jax.errors import UserError

FORMAT_VERSION = 2
META_NAME = "meta.json"


@dataclasses.dataclass(frozen=True)
class TokenMeta:
    """What a token cache was made from.

    Attributes:
        codebook_size: K; codes are in [0, K).
        grid: (h, w).
        tokenizer_hash: of the parameters that encoded.
        data_fingerprint: of the source that was encoded.
        split: of that source.
        num_examples: records in all shards: images times `views`.
        has_text: every record has a caption.
        shard_size: records in a shard, the last one excepted.
        image_size: S, the side of the pictures that were encoded, and of their label maps.
        views: records of each image, next to each other; record i is view i % views of image i // views.
        view_recipe: `Views.recipe`, how those were cut; "" where there is the centre crop alone.
        num_label_classes: every record has a label map with ids in [0, num_label_classes); 0 = none has.
        num_classes: every record has a class in [0, num_classes); 0 = none has.
        class_names: their names in order, as far as the source has any.
        map_tokenizer_hash: of the parameters that encoded the label maps; "" = nothing did.
        map_codebook_size: of that tokenizer; 0 = none.
        map_grid: (h, w) of its codes; None = none.
        format_version: of the files.
    """

    codebook_size: int
    grid: tuple[int, int]
    tokenizer_hash: str
    data_fingerprint: str
    split: str
    num_examples: int
    has_text: bool
    shard_size: int = 4096
    image_size: int = 0
    views: int = 1
    view_recipe: str = ""
    num_label_classes: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    map_tokenizer_hash: str = ""
    map_codebook_size: int = 0
    map_grid: tuple[int, int] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self):
        for name in ("grid", "class_names", "map_grid"):
            if getattr(self, name) is not None:  # JSON and configs bring lists.
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def has_map_tokens(self) -> bool:
        """Whether every record has the codes of a label map."""
        return self.map_grid is not None

    def to_json(self) -> str:
        """The content of `meta.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def is_finished(directory: str | os.PathLike) -> bool:
    """Whether a token cache has all of its shards: its meta file is written last."""
    return Path(directory, META_NAME).exists()


def read_meta(directory: str | os.PathLike) -> TokenMeta:
    """Reads what a finished cache was made from.

    Args:
        directory: of the cache.

    Returns:
        Its `TokenMeta`.

    Raises:
        UserError: there is no finished cache, or one of another format.
    """
    path = Path(directory, META_NAME)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format_version"] == FORMAT_VERSION:
            return TokenMeta(**values)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{directory} has no finished token cache ({META_NAME} is missing): run the token stage."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it and run the token stage again."
        ) from error
    raise UserError(
        f"The token cache in {directory} has format {values['format_version']}, not "
        f"{FORMAT_VERSION}: delete it and run the token stage again."
    )


def check_meta(meta: TokenMeta, *, directory: str | os.PathLike = "", **expected: Any) -> None:
    """Makes sure that a cache is the one that is wanted.

    Args:
        meta: of the cache.
        directory: of the cache, for the message.
        **expected: wanted values by field of `TokenMeta`: `tokenizer_hash=...`, `grid=(8, 8)`, ...

    Raises:
        UserError: names every field that differs, with both values.
    """
    wanted = dataclasses.replace(meta, **expected)
    differences = [
        f"{name.replace('_', ' ')} {getattr(meta, name)!r} instead of {getattr(wanted, name)!r}"
        for name in expected
        if getattr(meta, name) != getattr(wanted, name)
    ]
    if differences:
        where = f" in {os.fspath(directory)}" if directory else ""
        raise UserError(
            f"The token cache{where} was made from something else, {', '.join(differences)}: "
            f"delete it, or use another workdir."
        )
