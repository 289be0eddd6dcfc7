"""How like true images a prior's samples are, and how like its training images."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from regvq_jax import rng, sharding
from regvq_jax.data.images import read_image
from regvq_jax.data.ranges import to_uint8
from regvq_jax.errors import UserError
from regvq_jax.evaluate import segmentation, sheets
from regvq_jax.evaluate.distances import Judge
from regvq_jax.evaluate.drawn import digest_of, draw_all, image_path
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.maps import mean_iou
from regvq_jax.evaluate.memorisation import find_neighbours
from regvq_jax.evaluate.result import Evaluation
from regvq_jax.evaluate.samples import decode_codes, split_levels
from regvq_jax.interop.segmenter_weights import load_segformer
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any
REFERENCES = ("heldout", "train")


@dataclasses.dataclass(frozen=True)
class Generation:
    """Evaluator: draws images from held-out conditions and compares them with true ones.

    What was drawn is kept in `directory`, for a call that goes on after an interruption and for other
    programs (`python -m regvq_jax.evaluate --fake=DIRECTORY`).

    Attributes:
        draw_fn: (parameters, frozen, keys [B], inputs) -> int32 [B, h, w] tokens, pure.
        tokenizer: the tokenizer network, whose parameters are `frozen["tokenizer"]`.
        condition_batches: starts one pass over so many held-out conditions: {"condition": ...} where there is
            one, {"labels": uint8 [B, H, W]} where it is a map, "valid", "index".
        num_conditions: how many there are; more are asked for by going through them again.
        reference_images: a split's images, the first argument, at most so many, the second; 0 = all.
        directory: for what is drawn, in a folder for each parameters and settings.
        sampler: the prior, its sampler's settings and the like, for the result file.
        label_classes: of the maps; 0 = there are none.
        every_steps: how often.
        num_images: how many to draw; 0 = one for each held-out condition.
        protocols: figures to compute, see `protocols.make_extractor`.
        reference: "heldout", or "train", which CelebA-HQ's figures in the literature are compared with.
        memorisation: training images to look for copies of, under the first protocol; 0 = do not.
        num_shown: pairs on the sheet of nearest neighbours.
        segmenter: file or URL of a SegFormer (Hugging Face's layout) that reads what was drawn from maps.
        segmenter_size: shorter side that it wants.
        segmenter_offset, segmenter_ignore: see `segmentation.check_numbering`; -1 ignores no class.
        seed: of the noise.
        keep_others: do not delete what was drawn with other parameters or settings.
        judge: shared with other evaluators, so that networks are loaded and compiled once; it then decides
            instead of `protocols` and `reference`.
    """

    draw_fn: Callable[[PyTree, PyTree, jax.Array, Any], jax.Array]
    tokenizer: ImageTokenizer
    condition_batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    num_conditions: int
    reference_images: Callable[[str, int], ImageSet]
    directory: Path
    sampler: dict[str, Any] = dataclasses.field(default_factory=dict)
    label_classes: int = 0
    every_steps: int = 10_000
    num_images: int = 0
    protocols: tuple[str, ...] = ("efficientnet_lite0",)
    reference: str = "heldout"
    memorisation: int = 0
    num_shown: int = 16
    segmenter: str = ""
    segmenter_size: int = 512
    segmenter_offset: int = 1
    segmenter_ignore: int = 0
    seed: int = 0
    keep_others: bool = False
    judge: Judge | None = None
    name: str = dataclasses.field(default="generation", init=False)

    def __post_init__(self):
        if self.reference not in REFERENCES:
            raise UserError(
                f'config.prior.evals.generation.reference="{self.reference}" must be "heldout" or "train".'
            )
        if self.memorisation and not self.protocols:
            raise UserError(
                "config.prior.evals.generation.memorisation compares features: name a protocol, such as "
                "protocols=('efficientnet_lite0',)."
            )
        # What is missing is missed before the training, not after it.
        self._judge, self._segmenter  # noqa: B018

    @property
    def count(self) -> int:
        """Images to draw."""
        return self.num_images or self.num_conditions

    @cached_property
    def _judge(self) -> Judge:
        if self.judge:
            return self.judge
        # Without a protocol nothing is compared, and the true images may be gone by now.
        return Judge(self.protocols, self.reference_images(self.reference, 0) if self.protocols else None)

    @cached_property
    def _train_images(self) -> ImageSet:
        return self.reference_images("train", self.memorisation)

    @cached_property
    def _heldout_images(self) -> ImageSet:
        return self._judge.reference if self.reference == "heldout" else self.reference_images("heldout", 0)

    @cached_property
    def _segmenter(self):
        """(network, parameters), or None."""
        if not self.segmenter:
            return None
        if not self.label_classes:
            raise UserError(
                "config.prior.evals.generation.segmenter reads what was drawn from label maps, and this "
                'prior is not told any: set segmenter="", or prior.condition="map".'
            )
        network, params = load_segformer(self.segmenter)
        segmentation.check_numbering(
            self.label_classes, network.num_classes, self._ignored, self.segmenter_offset
        )
        return network, params

    @property
    def _ignored(self) -> int | None:
        return None if self.segmenter_ignore < 0 else self.segmenter_ignore

    @cached_property
    def _draw(self):
        def draw(params, frozen, batch):
            root = rng.step_key(self.seed, "generation", 0)
            # A key an image: it is the same in any batch, and after any interruption.
            keys = jax.vmap(partial(jax.random.fold_in, root))(batch["index"])
            tokens = self.draw_fn(params, frozen, keys, batch.get("condition"))
            codes = split_levels(self.tokenizer, tokens)
            return to_uint8(decode_codes(self.tokenizer, frozen["tokenizer"], codes))

        return jax.jit(draw)

    @cached_property
    def _confusion(self):
        network, params = self._segmenter

        def confusion(images, labels, valid):
            seen = segmentation.segment(network, params, images, self.segmenter_size)
            return segmentation.confusion(
                labels, seen, network.num_classes, valid, self._ignored, self.segmenter_offset
            )

        return jax.jit(confusion)

    def __call__(self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh) -> Evaluation:
        """`eval/generation/` figures of `distances.compare`, `memorisation` and, with a segmenter, `miou`."""
        judging = self._judge.start(mesh, self.count)
        directory = self.directory / digest_of((ema["prior"], frozen), self.sampler, self.seed, self.count)
        confusion = 0
        draw_fn = partial(self._draw_local, ema["prior"], frozen, mesh)
        for batch, images in draw_all(directory, self.condition_batches(self.count), draw_fn, self.count):
            device = sharding.put_batch({"image": images, "valid": batch["valid"]}, mesh)
            judging.add(device["image"], batch["valid"], batch["index"])
            if self._segmenter is not None:
                labels = sharding.put_batch({"labels": batch["labels"]}, mesh)["labels"]
                confusion += np.asarray(self._confusion(device["image"], labels, device["valid"]), np.int64)
        verdict = judging.finish()
        metrics, pictures = dict(verdict.metrics), {}
        settings = {
            "images": self.count, "drawn": str(directory), "encoding": "uint8, PNG", "seed": self.seed,
            "conditions": f"those of {self.num_conditions:,} held-out images",
            "sampler": self.sampler,
        }  # fmt: skip
        if (reference := self._judge.reference) is not None:
            settings["reference"] = {"images": reference.name, **reference.identity}
        if self._segmenter is not None:
            metrics |= {"miou": mean_iou(confusion), "pixel_accuracy": segmentation.pixel_accuracy(confusion)}
            settings["segmenter"] = {
                "weights": self.segmenter, "size": self.segmenter_size, "offset": self.segmenter_offset,
                "ignore": self.segmenter_ignore,
            }  # fmt: skip
        if self.memorisation:
            found, pictures = self._find_copies(verdict, directory, mesh)
            metrics |= found
            settings["memorisation"] = {"images": self._train_images.name, **self._train_images.identity}
        self._delete_others(directory)
        metrics = {f"eval/generation/{name}": value for name, value in metrics.items()}
        metrics["eval/generation/images"] = float(self.count)
        return Evaluation(metrics, pictures, {}, verdict.about(settings))

    def seconds_per_image(
        self, ema: dict[str, PyTree], frozen: PyTree, mesh: jax.sharding.Mesh, *, least_seconds: float = 1.0
    ) -> float:
        """Time to draw and decode one image in a whole batch, compiled: the median of at least 3 batches.

        Args:
            ema, frozen, mesh: as of a call.
            least_seconds: how long to repeat at least, so that short times are not those of chance.
        """
        batch = self._put(next(self.condition_batches(self.count)), mesh)
        seconds: list[float] = []
        while len(seconds) < 4 or sum(seconds[1:]) < least_seconds:
            began = time.perf_counter()
            images = jax.block_until_ready(self._draw(ema["prior"], frozen, batch))
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:]) / len(images)  # The first compiles.

    @staticmethod
    def _put(batch, mesh):
        """What is needed to draw a batch, on the devices."""
        return sharding.put_batch({k: batch[k] for k in ("condition", "index") if k in batch}, mesh)

    def _draw_local(self, params, frozen, mesh, batch) -> np.ndarray:
        images = self._draw(params, frozen, self._put(batch, mesh))
        return sharding.local_rows(images, mesh)

    def _find_copies(self, verdict, directory: Path, mesh) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Figures and a sheet of the samples that lie nearest to training images."""
        extractor = self._judge.extractors[0]
        samples = verdict.features[extractor.name]
        train, heldout = (
            self._judge.features(images, extractor, mesh)
            for images in (self._train_images, self._heldout_images)
        )
        found = find_neighbours(samples.kept, train.kept, heldout.kept)
        metrics = {f"{name}_{extractor.tag}": value for name, value in found.metrics.items()}
        if jax.process_index():
            return metrics, {}
        drawn = [
            read_image(image_path(directory, index))
            for index in samples.indices[found.samples[: self.num_shown]].tolist()
        ]
        known = [
            self._train_images.image_at(index)
            for index in train.indices[found.train[: self.num_shown]].tolist()
        ]
        lines = {"drawn": np.stack(drawn), "nearest in training": np.stack(known)}
        return metrics, {"memorisation": np.asarray(sheets.labelled_sheet(lines))}

    def _delete_others(self, directory: Path) -> None:
        if jax.process_index() == 0 and not self.keep_others:
            for other in self.directory.iterdir():
                if other != directory and other.is_dir():
                    shutil.rmtree(other)
