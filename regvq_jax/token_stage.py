"""The stage between the tokenizer and the prior: every image to its tokens, once, by a frozen tokenizer."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from regvq_jax import sharding
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.data.sources import Source
from regvq_jax.data.token_meta import TokenMeta, is_finished
from regvq_jax.data.token_shards import shard_length, shard_paths
from regvq_jax.data.tokens import TokenExample, write_tokens
from regvq_jax.data.transforms import Element
from regvq_jax.data.views import Views
from regvq_jax.errors import UserError
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.preemption import Preempted
from regvq_jax.progress import Progress, format_seconds

PyTree = Any
log = logging.getLogger("regvq_jax")


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """A config's `tokens` group.

    Attributes:
        batch_size: images encoded at once by each process, views counted one by one.
        shard_size: records in a file; processes share the files out among them.
        max_train_examples: at most so many training images, the first of the source; None = all.
        random_crops: of each training image, besides the centre crop; see `data.views.Views`.
        flip: each training view mirrored too; never where a caption says left or right.
    """

    batch_size: int = 64
    shard_size: int = 4096
    max_train_examples: int | None = None
    random_crops: int = 0
    flip: bool = False

    def __post_init__(self):
        for name in ("batch_size", "shard_size", "max_train_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"config.tokens.{name}={value} must be at least 1.")


class Encoder:
    """A frozen tokenizer at work on this process's devices; compiled once, for all splits.

    Attributes:
        codebook_size: K; codes are in [0, K).
        tokenizer_hash: of the parameters.
        mesh: of this process's devices.
    """

    def __init__(
        self,
        encode_fn: Callable[[PyTree, jax.Array], jax.Array],
        params: PyTree,
        *,
        codebook_size: int,
        tokenizer_hash: str,
    ):
        """Puts the parameters on the devices.

        Args:
            encode_fn: (parameters, uint8 [B, S, S, ...]) -> int32 [B, h, w] or [B, h, w, R]; pure, with no
                draw in it: `partial(best_codes, model)`, `partial(encode_maps, model)`.
            params: its first argument.
            codebook_size, tokenizer_hash: see above.
        """
        self.codebook_size, self.tokenizer_hash = codebook_size, tokenizer_hash
        self.mesh = sharding.make_mesh(devices=jax.local_devices())
        whole = sharding.replicated(self.mesh)
        self._params = jax.device_put(params, whole)
        self._encode = jax.jit(
            lambda params, batch: side_by_side(encode_fn(params, batch)), out_shardings=whole
        )

    def __call__(self, batch: np.ndarray) -> jax.Array:
        """Encodes a batch that the devices share; does not wait for them.

        Args:
            batch: uint8 [B, S, S, ...], B a multiple of the number of devices.

        Returns:
            int32 [B, h, w * R], the best-matching codes, R levels side by side.
        """
        return self._encode(self._params, jax.device_put(batch, sharding.batch_sharding(self.mesh)))

    def grid(self, *shape: int) -> tuple[int, int]:
        """(h, w * R) of the codes of one input of this shape; nothing is computed."""
        batch = jax.ShapeDtypeStruct((self.mesh.size, *shape), np.uint8)
        return jax.eval_shape(self._encode, self._params, batch).shape[1:]


def best_codes(model: ImageTokenizer, params: PyTree, images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to the best-matching codes, int32 [B, h, w * R]; pure, for `jit`."""
    return side_by_side(model.apply({"params": params}, to_unit_range(images), method="encode"))


def side_by_side(codes: jax.Array) -> jax.Array:
    """Puts a residual tokenizer's levels side by side: int32 [B, h, w] (, R) -> [B, h, w * R]."""
    return codes.reshape(*codes.shape[:2], -1)


def cache_tokens(
    directory: Path,
    source: Source,
    split: str,
    encoder: Encoder,
    settings: TokenSettings,
    *,
    image_size: int,
    map_encoder: Encoder | None = None,
    seed: int = 0,
    num_threads: int = 2,
    stop_requested: Callable[[], bool] = lambda: False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> None:
    """Writes the token cache of one split; keeps the shards that are complete, and a finished cache.

    A record has the best-matching codes of one view of an image and whatever else the source gives:
    captions, label map, class; and the codes of the label map where `map_encoder` is given. Every
    process calls it and encodes its share of the shards on its own devices; it returns when all are
    there. The directory must be on a disk that all processes share.

    Args:
        directory: of the cache.
        source: the images of the split.
        split: "train" or "heldout"; of the latter there is one view of every image.
        encoder: the tokenizer.
        settings: a config's `tokens` group.
        image_size: S.
        map_encoder: the tokenizer of label maps, which the source must have; None = none.
        seed: of random crops.
        num_threads: that read images ahead.
        stop_requested: asked between batches; True ends the stage.
        process_index, process_count: of this run by default.

    Raises:
        UserError: no images, no label maps for `map_encoder`, the directory holds a finished cache of
            something else or cannot be written, or another process has gone.
        Preempted: `stop_requested()`.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if map_encoder is not None and not source.has_labels:
        raise UserError(f"{source.name} has no label maps for the map tokenizer to encode.")
    views, num_images = Views(), len(source)
    if split == "train":
        views = Views(settings.random_crops, settings.flip, seed=seed)
        num_images = min(settings.max_train_examples or num_images, num_images)
    meta = TokenMeta(
        codebook_size=encoder.codebook_size,
        grid=encoder.grid(image_size, image_size, 3),
        tokenizer_hash=encoder.tokenizer_hash,
        data_fingerprint=source.fingerprint,
        split=split,
        num_examples=num_images * views.count,
        has_text=source.has_text,
        shard_size=settings.shard_size,
        image_size=image_size,
        views=views.count,
        view_recipe=views.recipe,
        num_label_classes=source.num_label_classes,
        num_classes=source.num_classes,
        class_names=source.class_names,
        map_tokenizer_hash=map_encoder.tokenizer_hash if map_encoder else "",
        map_codebook_size=map_encoder.codebook_size if map_encoder else 0,
        map_grid=map_encoder.grid(image_size, image_size) if map_encoder else None,
    )
    done_before = is_finished(directory)
    paths = shard_paths(directory, meta)
    own = range(process_index, len(paths), process_count)
    if not done_before and process_index == 0:
        _warn(source, views, image_size, len(paths), process_count, settings.shard_size)

    def poll() -> None:
        if stop_requested():
            raise Preempted(f"tokens {split}: the complete shards are saved")

    total = sum(shard_length(meta, i) for i in own)
    progress = Progress(
        f"tokens {split}",
        total,
        unit="images" if views.count == 1 else "views",
        enabled=not done_before and process_index == 0,
    )

    def examples(start: int, stop: int) -> Iterator[TokenExample]:
        """The records start to stop - 1, in order."""
        done = sum(shard_length(meta, i) for i in own if i < start // meta.shard_size)
        batches = _read(source, views, image_size, start, stop, settings.batch_size, num_threads)
        for elements, codes, map_codes in _encode(batches, encoder, map_encoder, settings.batch_size):
            poll()
            for i, element in enumerate(elements):
                yield TokenExample(
                    codes[i],
                    element.get("texts", (element["text"],)) if meta.has_text else None,
                    element["labels"] if meta.num_label_classes else None,
                    map_codes[i] if map_encoder else None,
                    element["class"] if meta.num_classes else None,
                )
            done += len(elements)
            progress.update(done)

    began = time.monotonic()
    with progress:
        # A finished cache is compared with what is wanted, and left alone.
        written = write_tokens(
            directory,
            meta,
            examples,
            meta.shard_size,
            process_index=process_index,
            process_count=process_count,
            poll_fn=poll,
        )
    if done_before:
        log.info("tokens %s is done already", split)
        return
    log.info(
        "tokens %s: %s records of %s images, %.1f MB in %s; this process encoded %s of them in %s",
        split,
        f"{meta.num_examples:,}",
        f"{num_images:,}",
        sum(path.stat().st_size for path in paths) / 1e6,
        directory,
        f"{written:,}",
        format_seconds(time.monotonic() - began),
    )


def _warn(
    source: Source, views: Views, image_size: int, num_shards: int, process_count: int, shard_size: int
) -> None:
    """Says what is allowed but hardly meant."""
    if num_shards < process_count:
        log.warning(
            f"only {num_shards} of {process_count} processes encode tokens, one for each shard; a "
            f"tokens.shard_size below {shard_size} would give all of them something to do."
        )
    if views.random_crops and source[0]["image"].shape[:2] == (image_size, image_size):
        log.warning(
            f"the first image of {source.name} has the size of the crop, of which all crops are the same: "
            "tokens.random_crops is for larger images."
        )


def _read(
    source: Source, views: Views, size: int, start: int, stop: int, batch_size: int, num_threads: int
) -> Iterator[list[Element]]:
    """Batches of the elements of the records start to stop - 1; every image is read once."""

    def cut(image: int) -> list[Element]:
        element, first = source[image], image * views.count
        wanted = range(max(start, first), min(stop, first + views.count))
        return [views.cut(element, image, record - first, size) for record in wanted]

    def join(images: list[list[Element]]) -> list[Element]:
        return [element for elements in images for element in elements]

    images = grain.MapDataset.range(start // views.count, -(-stop // views.count)).map(cut)
    parts = images.batch(-(-batch_size // views.count), batch_fn=join)
    # By default hundreds of batches would be held.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    waiting: list[Element] = []
    with contextlib.closing(iter(parts.to_iter_dataset(options))) as parts:
        for part in parts:
            waiting += part
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                del waiting[:batch_size]
    if waiting:
        yield waiting


def _encode(
    batches: Iterable[list[Element]], encoder: Encoder, map_encoder: Encoder | None, batch_size: int
) -> Iterator[tuple[list[Element], np.ndarray, np.ndarray | None]]:
    """(elements, codes, codes of their label maps), one batch behind: the devices work meanwhile."""
    # One shape, so that nothing is compiled twice: a batch is filled up with copies.
    rows = -(-batch_size // encoder.mesh.size) * encoder.mesh.size
    pending = None

    def fetch(elements: list[Element], codes: jax.Array, map_codes: jax.Array | None):
        return elements, np.asarray(codes), None if map_codes is None else np.asarray(map_codes)

    for elements in batches:
        padded = elements + [elements[-1]] * (rows - len(elements))
        codes = encoder(np.stack([element["image"] for element in padded]))
        map_codes = map_encoder(np.stack([element["labels"] for element in padded])) if map_encoder else None
        if pending:
            yield fetch(*pending)
        pending = elements, codes, map_codes
    if pending:
        yield fetch(*pending)
