"""How well a tokenizer of label maps rebuilds a whole data set, and how much of its codebook that takes."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import sharding
from regvq_jax.data.labels import label_colours
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.codebook import codebook_report, count_codes, perplexity, usage
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer, one_hot_maps
from regvq_jax.preemption import stop_if_requested

PyTree = Any


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class that occurs.

    Args:
        confusion: int [C, C], pixels by true class (row) and predicted class (column).

    Returns:
        float64 [C]: true and predicted over true or predicted; NaN where no pixel is truly of the class.
    """
    confusion = np.asarray(confusion, np.float64)
    true, both = confusion.sum(1), np.diag(confusion)
    union = true + confusion.sum(0) - both
    return np.where(true > 0, both / np.maximum(union, 1.0), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean of `class_iou` over the classes that occur; 0 where none does.

    A class that is only predicted has no term of its own: its pixels are missing from the true classes'.
    """
    ious = class_iou(confusion)
    occurs = ~np.isnan(ious)
    return float(ious[occurs].mean()) if occurs.any() else 0.0


@dataclasses.dataclass(frozen=True)
class MapReconstruction:
    """Evaluator: encode label maps with best-matching codes, decode, take the likeliest class; over the set.

    Attributes:
        model: a tokenizer of label maps.
        batches: starts one pass over the set: {"labels": uint8 [B, H, W], "valid": bool [B]}.
        every_steps: how often.
        num_shown: maps on the sheet.
    """

    model: ImageTokenizer
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    every_steps: int = 1000
    num_shown: int = 16
    name: str = dataclasses.field(default="map_reconstruction", init=False)

    @cached_property
    def _evaluate_batch(self):
        return jax.jit(partial(evaluate_batch, self.model))

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """Metrics `eval/map_reconstruction/{accuracy,miou,maps}`, `map_codebook/{usage,perplexity,tokens}`.

        Accuracy is the share of right pixels. The record `map_codebook` lists how often each code occurs,
        `map_classes` the pixels and the IoU of each class.
        """
        del frozen
        totals, shown = None, []
        for batch in self.batches():
            stop_if_requested("the evaluation will begin again")
            sums, rebuilt = self._evaluate_batch(ema["tokenizer"], sharding.put_batch(batch, mesh))
            # A batch fits int32; a whole set of large maps may not.
            sums = jax.tree.map(lambda x: np.asarray(x, np.int64), jax.device_get(sums))
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
            if sum(map(len, shown)) < self.num_shown:
                local = sharding.local_rows(rebuilt, mesh)
                shown.append(np.stack([batch["labels"], local], axis=1)[batch["valid"]])

        confusion, counts = totals["confusion"], totals["code_counts"]
        metrics = {
            "eval/map_reconstruction/accuracy": float(np.trace(confusion) / confusion.sum()),
            "eval/map_reconstruction/miou": mean_iou(confusion),
            "eval/map_reconstruction/maps": float(totals["maps"]),
            "map_codebook/usage": usage(counts),
            "map_codebook/perplexity": perplexity(counts),
            "map_codebook/tokens": float(counts.sum()),
        }
        # Imported here: no training's first step should wait for matplotlib.
        from regvq_jax.evaluate.codebook_chart import codebook_chart

        pairs = np.concatenate(shown)[: self.num_shown]
        pictures = {
            "maps": draw_maps(pairs[:, 0], pairs[:, 1], self.model.out_channels),
            "map_codebook": np.asarray(codebook_chart(counts, self._drawn_codebook(ema, mesh))),
        }
        records = {"map_codebook": codebook_report(counts), "map_classes": class_report(confusion)}
        return Evaluation(metrics, pictures, records)

    def _drawn_codebook(self, ema: dict[str, PyTree], mesh: jax.sharding.Mesh) -> np.ndarray | None:
        """The code vectors, where they are learned; gathered, as fsdp may have split them."""
        if self.model.quantizer.kind in IMPLICIT_KINDS:
            return None
        vectors = partial(self.model.apply, method="code_vectors")
        return np.asarray(
            jax.jit(vectors, out_shardings=sharding.replicated(mesh))({"params": ema["tokenizer"]})
        )


def evaluate_batch(
    model: ImageTokenizer, params: PyTree, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Counts over the valid maps of one batch, and the rebuilt maps; whole numbers, so exact in any split.

    Args:
        model: a tokenizer of label maps.
        params: its parameters.
        batch: {"labels": uint8 [B, H, W] in [0, C), "valid": bool [B]}.

    Returns:
        ({"confusion": int32 [C, C] by true and predicted class, "code_counts": int32 [K], "maps": int32 []},
        uint8 [B, H, W]).
    """
    labels, valid = batch["labels"], batch["valid"]
    num_classes = model.out_channels

    def rebuild(module, maps):
        out = module.quantize(module.encode_features(maps))
        return module.decode(out.quantized), out.codes

    logits, codes = model.apply({"params": params}, one_hot_maps(model, labels), method=rebuild)
    rebuilt = jnp.argmax(logits, -1)
    # Not in uint8, where the product would wrap around.
    pairs = count_codes(labels.astype(jnp.int32) * num_classes + rebuilt, num_classes**2, valid)
    sums = {
        "confusion": pairs.reshape(num_classes, num_classes),
        "code_counts": count_codes(codes, model.quantizer.codebook_size, valid),
        "maps": jnp.sum(valid, dtype=jnp.int32),
    }
    return sums, rebuilt.astype(jnp.uint8)


def class_report(confusion: np.ndarray) -> dict[str, list]:
    """Each class that occurs as JSON.

    Args:
        confusion: int [C, C] by true and predicted class.

    Returns:
        Lists with an entry a class: {"classes": ids, "pixels": counts, "iou": numbers}.
    """
    ious = class_iou(confusion)
    occurs = np.flatnonzero(~np.isnan(ious))
    return {
        "classes": occurs.tolist(),
        "pixels": np.asarray(confusion).sum(1)[occurs].tolist(),
        "iou": ious[occurs].tolist(),
    }


def draw_maps(labels: np.ndarray, rebuilt: np.ndarray, num_classes: int) -> np.ndarray:
    """True label maps in colours, the rebuilt ones right below.

    Args:
        labels: uint8 [B, H, W] in [0, C).
        rebuilt: uint8 [B, H, W].
        num_classes: C.

    Returns:
        uint8 [height, width, 3].
    """
    colours = label_colours(num_classes)
    return np.asarray(sheets.labelled_sheet({"true map": colours[labels], "rebuilt": colours[rebuilt]}))
