"""How well a tokenizer rebuilds a whole data set, and how much of its codebook that takes."""

import dataclasses
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import losses, sharding
from regvq_jax.data.ranges import to_uint8, to_unit_range
from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.codebook import codebook_report, count_codes, perplexity, usage
from regvq_jax.evaluate.distances import Judge
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.paired import psnr, ssim
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.interop.perceptual_weights import load_lpips
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.preemption import stop_if_requested

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Evaluator: encode with best-matching codes, decode, round to uint8, compare; over the whole set.

    Attributes:
        model: the tokenizer network.
        images: the set; what is rebuilt is compared with the same crops.
        every_steps: how often.
        num_shown: images on the sheet.
        lpips: also measure LPIPS with this network, "vgg16" or "alexnet"; "" = do not.
        protocols: also measure rFID and its like under these, see `protocols.make_extractor`.
    """

    model: ImageTokenizer
    images: ImageSet
    every_steps: int = 1000
    num_shown: int = 16
    lpips: str = ""
    protocols: tuple[str, ...] = ()
    name: str = dataclasses.field(default="reconstruction", init=False)

    def __post_init__(self):
        # Weights that are missing are missed before the training, not after it.
        self._lpips, self._judge  # noqa: B018

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.protocols, self.images)

    @cached_property
    def _lpips(self) -> tuple[Any, PyTree]:
        """(network, parameters), or (None, {})."""
        return load_lpips(self.lpips) if self.lpips else (None, {})

    @cached_property
    def _uploaded(self) -> dict[jax.sharding.Mesh, PyTree]:
        """LPIPS's parameters by the mesh that they lie on: sent there once, not at every evaluation."""
        return {}

    def _lpips_params(self, mesh: jax.sharding.Mesh) -> PyTree:
        if mesh not in self._uploaded:
            self._uploaded[mesh] = jax.device_put(self._lpips[1], sharding.replicated(mesh))
        return self._uploaded[mesh]

    @cached_property
    def _evaluate_batch(self):
        return jax.jit(partial(evaluate_batch, self.model, self._lpips[0]))

    def _code_vectors(self, params: PyTree) -> jax.Array:
        return self.model.apply({"params": params}, method="code_vectors")

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """Metrics `eval/reconstruction/{l1,psnr,ssim,lpips,images}`, `codebook/{usage,perplexity,tokens}`.

        L1 is in units of images in [-1, 1], PSNR in dB, perplexity in codes. With `protocols` there are
        `eval/reconstruction/` figures of `distances.compare`, too. The record `codebook` lists how often each
        code occurs, and the dead ones.
        """
        whole = sharding.replicated(mesh)
        lpips_params = self._lpips_params(mesh)
        totals, shown = None, []
        name_fn = lambda index: f"(the reconstruction of {self.images.element_name(index)})"
        judging = self._judge.start(mesh, self.images.count, name_fn)
        for batch in self.images.batches():
            stop_if_requested("the evaluation will begin again")
            images = batch["image"]
            device_batch = sharding.put_batch({name: batch[name] for name in ("image", "valid")}, mesh)
            sums, reconstructions = self._evaluate_batch(ema["tokenizer"], lpips_params, device_batch)
            judging.add(reconstructions, batch["valid"], batch["index"])
            sums = jax.device_get(sums)
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
            if sum(map(len, shown)) < self.num_shown:
                local = sharding.local_rows(reconstructions, mesh)
                shown.append(np.stack([images, local], axis=1)[batch["valid"]])

        counts = totals["code_counts"]
        means = {name: float(totals[name] / totals["images"]) for name in ("l1", "psnr", "ssim")}
        if self.lpips:
            means[f"lpips_{self.lpips}"] = float(totals["lpips"] / totals["images"])
        verdict = judging.finish()
        metrics = {f"eval/reconstruction/{name}": x for name, x in (means | verdict.metrics).items()} | {
            "eval/reconstruction/images": float(totals["images"]),
            "codebook/usage": usage(counts),
            "codebook/perplexity": perplexity(counts),
            "codebook/tokens": float(counts.sum()),
        }
        # Imported here: no training's first step should wait for matplotlib.
        from regvq_jax.evaluate.codebook_chart import codebook_chart

        pairs = np.concatenate(shown)[: self.num_shown]
        pictures = {
            "reconstructions": np.asarray(sheets.reconstruction_sheet(pairs[:, 0], pairs[:, 1])),
            "codebook": np.asarray(codebook_chart(counts, self._drawn_codebook(ema["tokenizer"], whole))),
        }
        settings = {"images": self.images.name, **self.images.identity, "rounding": "uint8 before comparing"}
        about = verdict.about(settings)
        return Evaluation(metrics, pictures, {"codebook": codebook_report(counts)}, about)

    def _drawn_codebook(self, params: PyTree, whole: jax.sharding.Sharding) -> np.ndarray | None:
        """The code vectors, where they are learned; gathered, as fsdp may have split them."""
        if self.model.quantizer.kind in IMPLICIT_KINDS:
            return None
        return np.asarray(jax.jit(self._code_vectors, out_shardings=whole)(params))


def evaluate_batch(
    model: ImageTokenizer,
    lpips: nn.Module | None,
    params: PyTree,
    lpips_params: PyTree,
    batch: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over the valid images of one batch, and the reconstructions.

    Args:
        model: the tokenizer network.
        lpips: the LPIPS network, or None.
        params: of the tokenizer.
        lpips_params: of the LPIPS network, with its heads.
        batch: {"image": uint8 [B, H, W, 3], "valid": bool [B]}.

    Returns:
        ({"l1", "psnr", "ssim", "images", "lpips" if measured: float32 [], "code_counts": int32 [K]},
        uint8 [B, H, W, 3]).
    """
    images, valid = batch["image"], batch["valid"]

    def reconstruct(module, images):
        out = module.quantize(module.encode_features(images))
        return module.decode(out.quantized), out.codes

    decoded, codes = model.apply({"params": params}, to_unit_range(images), method=reconstruct)
    reconstructions = to_uint8(decoded)
    originals, rounded = to_unit_range(images), to_unit_range(reconstructions)
    distances = {
        "l1": jnp.mean(jnp.abs(originals - rounded), axis=(1, 2, 3)),
        "psnr": psnr(images, reconstructions),
        "ssim": ssim(images, reconstructions),
        "images": jnp.ones(valid.shape, jnp.float32),
    }
    if lpips is not None:
        taps = [lpips.apply({"params": lpips_params["features"]}, x) for x in (originals, rounded)]
        distances["lpips"] = losses.lpips(*taps, lpips_params["heads"])
    sums = {name: jnp.sum(jnp.where(valid, x, 0.0)) for name, x in distances.items()}
    sums["code_counts"] = count_codes(codes, model.quantizer.codebook_size, valid)
    return sums, reconstructions
