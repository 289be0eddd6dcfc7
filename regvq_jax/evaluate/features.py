"""The features of a set of images under one protocol: statistics of all, the features themselves of some."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from regvq_jax import sharding
from regvq_jax.data.statistics import spread
from regvq_jax.errors import UserError
from regvq_jax.evaluate import inception_score
from regvq_jax.evaluate.feature_statistics import (
    NPZ_DAMAGE,
    FeatureStatistics,
    empty_statistics,
    update,
)
from regvq_jax.evaluate.protocols import Extractor
from regvq_jax.files import cache_dir, report_write_errors
from regvq_jax.preemption import stop_if_requested
from regvq_jax.progress import Progress, log

# So many features are kept for what needs pairs of them (KID, precision, neighbours), as by ADM's evaluator.
MAX_KEPT = 10_000
# Of what is kept on the disk; another number makes it anew.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images to compare with others.

    Attributes:
        name: what they are, for people.
        count: how many.
        batches: starts one pass over them, in order: {"image": uint8 [B, H, W, 3], "valid": bool [B],
            "index": int [B]}, this process's part.
        identity: all that decides their pixels; {} = their features are not kept for other runs.
        image_at: an image by index, uint8 [H, W, 3]; None = they come in batches only.
        element_name: what an image is called, by index.
    """

    name: str
    count: int
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    identity: dict[str, str | int] = dataclasses.field(default_factory=dict)
    image_at: Callable[[int], np.ndarray] | None = None
    element_name: Callable[[int], str] = str

    @property
    def shape(self) -> str:
        """Width x height of the first image; they are all of one size."""
        height, width, _ = self.image_at(0).shape
        return f"{width}x{height}"


class Features(NamedTuple):
    """What is known of a set of images under one protocol.

    Attributes:
        statistics: of all of them.
        kept: float32 [M, D], the features of some, spread over the set; [0, D] for imported statistics.
        indices: int64 [M], whose they are.
        class_sums: for Inception Score; None without logits.
    """

    statistics: FeatureStatistics
    kept: np.ndarray
    indices: np.ndarray
    class_sums: inception_score.ClassSums | None = None


class Collector:
    """Gathers `Features` batch by batch; compiled once for each shape of image."""

    def __init__(
        self,
        extractor: Extractor,
        mesh: jax.sharding.Mesh,
        count: int,
        *,
        max_kept: int = MAX_KEPT,
        name_fn: Callable[[int], str] = str,
    ):
        """Nothing is gathered yet.

        Args:
            extractor: of the protocol.
            mesh: of all devices.
            count: of the images that will come.
            max_kept: features to keep.
            name_fn: what an image is called, by index, for messages.
        """
        self._extractor, self._mesh, self._name_fn = extractor, mesh, name_fn
        self._is_kept = np.zeros(count, bool)
        self._is_kept[spread(count, max_kept)] = True
        self._split = inception_score.split_of_images(count)
        self._statistics = empty_statistics(self._extractor.num_features)
        self._kept: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self._sums: inception_score.ClassSums | None = None

    def add(self, images: jax.Array, valid: np.ndarray, index: np.ndarray) -> None:
        """Takes one batch.

        Args:
            images: uint8 [B, H, W, 3], global, split over all devices.
            valid: bool, of this process's rows, True = counts.
            index: int, of this process's rows, place in the set.

        Raises:
            UserError: features that are not finite; names the image.
        """
        out = self._extractor.compiled(self._mesh)(images)
        local = {name: sharding.local_rows(x, self._mesh) for name, x in out.items()}
        if not local["finite"][valid].all():
            bad = int(index[valid][~local["finite"][valid]][0])
            raise UserError(
                f"The features of image {self._name_fn(bad)} under {self._extractor.name} are not finite; "
                "look at the image, and at the weights."
            )
        valid_everywhere = sharding.put_batch({"valid": valid}, self._mesh)["valid"]
        self._statistics = update(self._statistics, out["features"], valid_everywhere)
        wanted = valid & self._is_kept[np.minimum(index, len(self._is_kept) - 1)]
        self._kept.append(local["features"][wanted])
        self._indices.append(index[wanted].astype(np.int64))
        if "logits" in local:
            if self._sums is None:
                self._sums = inception_score.empty_sums(10, local["logits"].shape[1])
            self._sums = inception_score.add(self._sums, local["logits"][valid], self._split[index[valid]])

    def finish(self) -> Features:
        """All that was gathered, by all processes."""
        kept, indices = np.concatenate(self._kept), np.concatenate(self._indices)
        sums = self._sums
        if jax.process_count() > 1:
            # Without x64, numbers are gathered in 32 bits.
            with jax.enable_x64(True):
                kept, indices = _gather_rows(kept), _gather_rows(indices)
                if sums is not None:
                    sums = jax.tree.map(lambda x: multihost_utils.process_allgather(x).sum(0), sums)
        order = np.argsort(indices)
        return Features(jax.device_get(self._statistics), kept[order], indices[order], sums)


def _gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, which may have different numbers of them."""
    counts = multihost_utils.process_allgather(np.array(len(rows)))
    padded = np.zeros((counts.max(), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    gathered = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])


def features_of(
    images: ImageSet,
    extractor: Extractor,
    mesh: jax.sharding.Mesh,
    *,
    max_kept: int = MAX_KEPT,
    keep: bool = True,
) -> Features:
    """The features of a whole set, from the cache directory where an earlier run has left them.

    Args:
        images: the set.
        extractor: of the protocol.
        mesh: of all devices.
        max_kept: see `Collector`.
        keep: look in the cache directory, and leave them there, if the set has an identity.

    Raises:
        UserError: as `Collector.add`.
    """
    path = None
    if keep and images.identity:
        about = {
            "images": images.identity, "count": images.count, "max_kept": max_kept, "format": _FORMAT,
            "protocol": extractor.describe(),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = cache_dir("features") / f"{extractor.name}-{key}.npz"
        # A file that only the first process sees would leave the others waiting for it.
        if _exists_everywhere(path):
            log.info("%s: features of %s are kept in %s", extractor.name, images.name, path)
            return _read(path)
    collector = Collector(extractor, mesh, images.count, max_kept=max_kept, name_fn=images.element_name)
    done = 0
    with Progress(
        extractor.name, images.count, unit="images", enabled=jax.process_index() == 0
    ) as progress:
        for batch in images.batches():
            stop_if_requested("the evaluation will begin again")
            device = sharding.put_batch({"image": batch["image"]}, mesh)
            collector.add(device["image"], batch["valid"], batch["index"])
            done += device["image"].shape[0]
            progress.update(min(done, images.count))
    features = collector.finish()
    if path is not None and jax.process_index() == 0:
        _write(path, features)
    return features


def _exists_everywhere(path) -> bool:
    exists = path.exists()
    if jax.process_count() == 1:
        return exists
    return bool(multihost_utils.process_allgather(np.array(exists)).all())


def _write(path, features: Features) -> None:
    arrays = features.statistics._asdict() | {"kept": features.kept, "indices": features.indices}
    if features.class_sums is not None:
        arrays |= {f"sums_{name}": x for name, x in features.class_sums._asdict().items()}
    partial = path.with_name(f"{path.stem}.partial.npz")
    with report_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)
        partial.replace(path)


def _read(path) -> Features:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, *NPZ_DAMAGE) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, it will be made again.") from error
    fields = inception_score.ClassSums._fields
    sums = {name: arrays[f"sums_{name}"] for name in fields if f"sums_{name}" in arrays}
    statistics = FeatureStatistics(arrays["count"], arrays["mean"], arrays["m2"])
    return Features(
        statistics, arrays["kept"], arrays["indices"], inception_score.ClassSums(**sums) if sums else None
    )
