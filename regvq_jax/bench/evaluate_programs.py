"""What `python -m regvq_jax.bench evaluate` runs: feature networks, and statistics of features."""

import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg

from regvq_jax import sharding
from regvq_jax.bench.measure import Program, num_cores
from regvq_jax.evaluate.feature_statistics import FeatureStatistics, empty_statistics, update
from regvq_jax.evaluate.frechet import frechet_distance
from regvq_jax.evaluate.protocols import make_extractor
from regvq_jax.models.inception import INPUT_SIZE, InceptionV3

SETS = 2
HIDDEN = 64  # Numbers that the features of an image depend on, but for a little noise.


@dataclasses.dataclass(frozen=True)
class Images:
    """What the networks are given.

    Attributes:
        count: how many, a multiple of `batch`.
        batch: B.
        size: H = W.
        seed: of the pixels.
    """

    count: int
    batch: int
    size: int
    seed: int

    def batches(self) -> list[np.ndarray]:
        """uint8 [B, H, W, 3] each: chequered in random colours, with 1 to 16 cells a side: none are alike."""
        rng = np.random.default_rng(self.seed)
        images = np.empty((self.count, self.size, self.size, 3), np.uint8)
        for image in images:
            cells = rng.integers(1, 17)
            place = np.arange(self.size) * cells // self.size
            image[:] = rng.integers(0, 256, (cells, cells, 3))[place[:, None], place]
        return np.split(images, self.count // self.batch)


@dataclasses.dataclass(frozen=True)
class FeatureSets:
    """Two sets of features, made as they are asked for: the same always.

    Attributes:
        count: N, of each.
        dimensions: D.
        batch: made at once.
        seed: of them.
    """

    count: int
    dimensions: int
    batch: int
    seed: int

    @functools.cached_property
    def _mixing(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        return rng.standard_normal((HIDDEN, self.dimensions), np.float32) / HIDDEN**0.5

    def batches(self, which: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Set 0 or 1: (float32 [batch, D], bool [batch], True = counts), the second wider than the first."""
        for first in range(0, self.count, self.batch):
            rng = np.random.default_rng((self.seed, which, first))
            hidden = rng.standard_normal((self.batch, HIDDEN), np.float32) * (1 + 0.1 * which)
            noise = rng.standard_normal((self.batch, self.dimensions), np.float32)
            yield hidden @ self._mixing + 0.1 * noise, np.arange(first, first + self.batch) < self.count


def random_weights(seed: int) -> dict[str, np.ndarray]:
    """Tensors for FID's network under the names of torch-fidelity, such that images keep being told apart."""
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), np.float32)
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    tensors = {}
    for name, layer in shapes.items():
        *window, inputs, outputs = layer["kernel"].shape
        shape = (outputs, inputs, *window)
        kernel = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        if name == "fc":
            tensors |= {"fc.weight": kernel, "fc.bias": np.zeros(outputs, np.float32)}
            continue
        tensors[f"{name}.conv.weight"] = kernel
        limits = dict(weight=(0.8, 1.2), bias=(-0.2, 0.2), running_mean=(-0.2, 0.2), running_var=(0.5, 1.5))
        for field, (low, high) in limits.items():
            tensors[f"{name}.bn.{field}"] = rng.uniform(low, high, outputs).astype(np.float32)
    return tensors


def our_features(spec: str, images: Images, cache: Path) -> Callable[[], Program]:
    """The features of a protocol, as an evaluation has them, on one device.

    Args:
        spec: as `make_extractor` takes it.
        images: to take them of.
        cache: folder for what reading weights leaves behind.
    """
    os.environ["REGVQ_JAX_CACHE"] = str(cache)
    mesh, made = sharding.make_mesh(devices=jax.devices()[:1]), images.batches()

    def build() -> Program:
        features_fn = make_extractor(spec).compiled(mesh)

        def run() -> dict[str, Any]:
            parts = [
                np.asarray(features_fn(sharding.put_batch({"image": x}, mesh)["image"])["features"])
                for x in made
            ]
            return {"features": np.concatenate(parts)}

        return Program(run)

    return build


def torch_features(weights: Path, device: str, images: Images) -> Callable[[], Program]:
    """Features and logits by torch-fidelity, whose batches are as its own data loader has them.

    Args:
        weights: file of `random_weights`, safetensors.
        device: "cpu" or "cuda".
        images: to take them of.
    """
    import safetensors.torch
    import torch

    torch.set_num_threads(num_cores())
    # Ours compute in full float32 as well; torch's default on GPUs is TF32.
    torch.backends.cudnn.allow_tf32 = False
    extractors = import_torch_fidelity("feature_extractor_inceptionv3")
    made = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images.batches()]

    def build() -> Program:
        # It would fetch them; given a file, it wants a pickle.
        extractors.load_state_dict_from_url = lambda *args, **kwargs: safetensors.torch.load_file(weights)
        network = extractors.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"]).to(device)

        def run() -> dict[str, Any]:
            with torch.no_grad():
                return {"features": np.concatenate([network(x.to(device))[0].cpu().numpy() for x in made])}

        return Program(run)

    return build


def import_torch_fidelity(module: str) -> types.ModuleType:
    """One module of torch-fidelity; the package itself would import torchvision, to read images."""
    name = "torch_fidelity"
    package = types.ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    known = sys.modules.get(name)
    sys.modules[name] = package
    try:
        return importlib.import_module(f"{name}.{module}")
    finally:
        # Nobody shall take the bare package for the whole one.
        del sys.modules[name]
        if known is not None:
            sys.modules[name] = known


def streamed_statistics(sets: FeatureSets) -> Callable[[], Program]:
    """Ours: a batch at a time."""

    def gather(which: int) -> FeatureStatistics:
        statistics = empty_statistics(sets.dimensions)
        for features, valid in sets.batches(which):
            statistics = update(statistics, features, valid)
        return jax.device_get(statistics)

    return _statistics_program(gather, frechet_distance)


def whole_statistics(sets: FeatureSets) -> Callable[[], Program]:
    """numpy's and scipy's: all features of a set first."""

    def gather(which: int) -> tuple[np.ndarray, np.ndarray]:
        features = np.empty((sets.count, sets.dimensions))
        filled = 0
        for batch, valid in sets.batches(which):
            batch = batch[valid]
            features[filled : filled + len(batch)] = batch
            filled += len(batch)
        return np.mean(features, 0), np.cov(features, rowvar=False)

    def distance(a, b) -> float:
        difference = a[0] - b[0]
        root = scipy.linalg.sqrtm(a[1] @ b[1]).real
        return difference @ difference + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root)

    return _statistics_program(gather, distance)


def only_made(sets: FeatureSets) -> Callable[[], Program]:
    """The features, of which nothing is made."""

    def gather(which: int) -> None:
        for _ in sets.batches(which):
            pass

    return _statistics_program(gather, None)


def _statistics_program(gather: Callable, distance: Callable | None) -> Callable[[], Program]:
    """Gathers both sets and takes their distance.

    Besides the distance each run adds its seconds of both parts to "seconds", float [runs, 2], the first run
    included.
    """

    def build() -> Program:
        parts = []

        def run() -> dict[str, Any]:
            began = time.perf_counter()
            both = [gather(which) for which in range(SETS)]
            gathered = time.perf_counter()
            result = {} if distance is None else {"distance": distance(*both)}
            parts.append((gathered - began, time.perf_counter() - gathered))
            return result | {"seconds": parts}

        return Program(run)

    return build
