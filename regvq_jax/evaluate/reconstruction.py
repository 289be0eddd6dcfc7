"""How well a tokenizer rebuilds a whole data set, and how much of its codebook that takes."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import quantize, sharding
from regvq_jax.data.ranges import to_uint8, to_unit_range
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.codebook import count_codes, perplexity, usage
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image.

    Args:
        images: uint8 [B, H, W, 3].
        reconstructions: uint8 [B, H, W, 3].

    Returns:
        float32 [B] in dB, for a peak of 255; an exact copy counts as an error of 0.01 grey levels.
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    squared_error = jnp.mean(difference**2, axis=(1, 2, 3))
    return 10.0 * jnp.log10(255.0**2 / jnp.maximum(squared_error, 1e-4))


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Evaluator: encode with best-matching codes, decode, round to uint8, compare; over the whole set.

    Attributes:
        model: the tokenizer network.
        batches: starts one pass over the set: {"image": uint8 [B, H, W, 3], "valid": bool [B]}.
        every_steps: how often.
        num_shown: images on the sheet.
    """

    model: ImageTokenizer
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    every_steps: int = 1000
    num_shown: int = 16
    name: str = "reconstruction"

    @cached_property
    def _evaluate_batch(self):
        return jax.jit(partial(evaluate_batch, self.model))

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """Metrics `eval/reconstruction/{l1,psnr,images}` and `codebook/{usage,perplexity,tokens}`.

        L1 is in units of images in [-1, 1], PSNR in dB, perplexity in codes.
        """
        totals, shown = None, []
        for batch in self.batches():
            images = batch["image"]
            sums, reconstructions = self._evaluate_batch(ema["tokenizer"], sharding.put_batch(batch, mesh))
            sums = jax.device_get(sums)
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
            if sum(map(len, shown)) < self.num_shown:
                local = np.concatenate([np.asarray(s.data) for s in reconstructions.addressable_shards])
                shown.append(np.stack([images, local], axis=1)[batch["valid"]])

        counts = totals["code_counts"]
        metrics = {
            "eval/reconstruction/l1": float(totals["l1"] / totals["images"]),
            "eval/reconstruction/psnr": float(totals["psnr"] / totals["images"]),
            "eval/reconstruction/images": float(totals["images"]),
            "codebook/usage": usage(counts),
            "codebook/perplexity": perplexity(counts),
            "codebook/tokens": float(counts.sum()),
        }
        pairs = np.concatenate(shown)[: self.num_shown]
        pictures = {
            "reconstructions": np.asarray(sheets.reconstruction_sheet(pairs[:, 0], pairs[:, 1])),
            "codebook": np.asarray(sheets.codebook_chart(counts)),
        }
        return Evaluation(metrics, pictures)


def evaluate_batch(
    model: ImageTokenizer, params: PyTree, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over the valid images of one batch, and the reconstructions.

    Args:
        model: the tokenizer network.
        params: its parameters.
        batch: {"image": uint8 [B, H, W, 3], "valid": bool [B]}.

    Returns:
        ({"l1", "psnr", "images": float32 [], "code_counts": int32 [K]}, uint8 [B, H, W, 3]).
    """
    images, valid = batch["image"], batch["valid"]
    logits = model.apply({"params": params}, to_unit_range(images), method="encode")
    out = quantize.deterministic(logits, params["codebook"])
    decoded = model.apply({"params": params}, out.quantized, method="decode")
    reconstructions = to_uint8(decoded)
    difference = to_unit_range(images) - to_unit_range(reconstructions)
    l1 = jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
    sums = {
        "l1": jnp.sum(jnp.where(valid, l1, 0.0)),
        "psnr": jnp.sum(jnp.where(valid, psnr(images, reconstructions), 0.0)),
        "images": jnp.sum(valid.astype(jnp.float32)),
        "code_counts": count_codes(out.codes, model.codebook_size, valid),
    }
    return sums, reconstructions
