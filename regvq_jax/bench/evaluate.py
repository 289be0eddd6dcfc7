"""What FID costs: features a second from its network, and statistics of many features; time and peak memory.

    python -m regvq_jax.bench evaluate
    python -m regvq_jax.bench evaluate --images=64 --statistics=10000 --output=evaluate.md

  features      uint8 images of 256 pixels in batches of 32, by the path that an evaluation runs: resizing,
                scaling and InceptionV3 in one compiled program; torch-fidelity's own extractor has the same
                random weights, images and cores, and must give the same features. EfficientNet-Lite0, whose
                weights are at hand, has no rival.
  statistics    mean and covariance of two sets of features of 2,048 dimensions, and the Frechet distance of
                the sets. Ours take batches of 500 and keep nothing of them. numpy and scipy do as pytorch-fid
                does: all features of a set at once in float64, np.cov, and the root of a matrix. The features
                are made while they are taken; what that costs alone has a row of its own.

Every program has a process of its own; they take turns. RSS is the growth of the process, loading of weights
and compiling included. All run on the CPU: elsewhere, and where torch or torch-fidelity is not installed,
ours are not compared with torch's.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import scipy.linalg

from regvq_jax import sharding
from regvq_jax.bench.measure import (
    Limits,
    Measurement,
    Program,
    describe_machine,
    measure_in_turns,
    num_cores,
    warn_if_busy,
)
from regvq_jax.bench.table import output_path, show, write
from regvq_jax.command_line import Parser, positive
from regvq_jax.evaluate.feature_statistics import FeatureStatistics, empty_statistics, update
from regvq_jax.evaluate.frechet import frechet_distance
from regvq_jax.evaluate.protocols import make_extractor
from regvq_jax.models.inception import INPUT_SIZE, InceptionV3

INCEPTION, TORCH = "InceptionV3", "InceptionV3 of torch-fidelity"
EFFICIENTNET = "EfficientNet-Lite0"
STREAMED, WHOLE, MADE = "statistics, streamed", "statistics, numpy and scipy", "features made only"
BASELINES = {INCEPTION: TORCH, STREAMED: WHOLE}
CASE = ("inputs", "program")
TOLERANCE = 1e-4  # Of features, of the largest of them.
SETS = 2
HIDDEN = 64  # What the features of an image depend on, but for a little noise.
TINY = dict(images=2, statistics=1_000, batch=2, size=32, dimensions=64, repeats=2)


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
        """uint8 [B, H, W, 3] each: noise on gradients that differ, so that the features do."""
        rng = np.random.default_rng(self.seed)
        height, width = np.mgrid[: self.size, : self.size] / self.size
        slopes = rng.uniform(-128, 128, (self.count, 2, 1, 1, 3))
        made = []
        for part in slopes.reshape(-1, self.batch, *slopes.shape[1:]):
            smooth = 128 + (part[:, 0] * (height[..., None] - 0.5) + part[:, 1] * (width[..., None] - 0.5))
            noise = rng.uniform(-64, 64, smooth.shape)
            made.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
        return made


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


def torch_features(weights: Path, images: Images) -> Callable[[], Program]:
    """Features and logits by torch-fidelity, whose batches are as its own data loader has them.

    Args:
        weights: file of `random_weights`, safetensors.
        images: to take them of.
    """
    import safetensors.torch
    import torch

    torch.set_num_threads(num_cores())
    extractors = import_torch_fidelity("feature_extractor_inceptionv3")
    made = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images.batches()]

    def build() -> Program:
        # It would fetch them; given a file, it wants a pickle.
        extractors.load_state_dict_from_url = lambda *args, **kwargs: safetensors.torch.load_file(weights)
        network = extractors.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])

        def run() -> dict[str, Any]:
            with torch.no_grad():
                return {"features": np.concatenate([network(x)[0].numpy() for x in made])}

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


def features_off(measured: Mapping[str, Measurement]) -> float | None:
    """How far our features are from torch's, of the largest of theirs; None where one has none.

    Raises:
        RuntimeError: too far for the same network on the same images: no figure means anything then.
    """
    ours, theirs = (measured[x].result.get("features") if x in measured else None for x in (INCEPTION, TORCH))
    if ours is None or theirs is None:
        return None
    # What no image changes would agree whatever the images were.
    if not np.ptp(theirs, axis=0).max() > 0.1 * np.abs(theirs).max():
        raise RuntimeError("torch-fidelity's features hardly differ from image to image")
    off = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not off < TOLERANCE:
        raise RuntimeError(f"our features are off torch-fidelity's by {off:.1e} of the largest")
    return off


def make_row(name: str, inputs: int, measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """The figures of a program by field; fields without a figure are left out."""
    own = measured[name]
    row = dict(inputs=inputs, program=name, failure=own.failure)
    if own.failure:
        return row
    row |= dict(all_seconds=own.seconds, repeats=len(own.seconds), rss_bytes=own.peak_bytes)
    row["seconds"] = own.median
    if "seconds" in own.result:
        parts = np.asarray(own.result["seconds"])[1:]
        row["gathering_seconds"], distance_seconds = np.median(parts, 0).tolist()
        if "distance" in own.result:
            row |= dict(distance=float(own.result["distance"]), distance_seconds=distance_seconds)
    row["per_second"] = inputs / row.get("gathering_seconds", own.median)
    rival = measured.get(BASELINES.get(name))
    if rival is not None and not rival.failure:
        row["ratio"] = rival.median / own.median
        if "distance" in row:
            theirs = float(rival.result["distance"])
            row["off"] = abs(row["distance"] - theirs) / abs(theirs)
    return row


COLUMNS = {
    "seconds": ("seconds", lambda x: f"{x:,.2f}"),
    "inputs/s": ("per_second", lambda x: f"{x:,.1f}"),
    "x rival": ("ratio", lambda x: f"{x:.2f}"),
    "RSS MiB": ("rss_bytes", lambda x: f"{x / 2**20:,.0f}"),
    "distance, s": ("distance_seconds", lambda x: f"{x:.2f}"),
    "off": ("off", lambda x: f"{x:.1e}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def torch_is_here() -> bool:
    """Whether torch's half can run."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torch_fidelity"))


def main(argv: Sequence[str]) -> None:
    """Measures, compares the features, prints the table, and writes it where --output says."""
    args = make_parser().parse_args(argv)
    vars(args).update(TINY if args.tiny else dict(batch=32, size=256, dimensions=2048))
    with_torch = not args.tiny and torch_is_here() and jax.default_backend() == "cpu"
    if not with_torch and not args.tiny:
        print(
            "Without a comparison with torch, which needs JAX on a CPU and: pip install -e '.[parity]' && "
            "pip install --no-deps torch-fidelity==0.4.0."
        )
    load = warn_if_busy()
    limits = Limits(args.repeats, args.time_limit, args.memory_limit * 2**30)
    images = Images(-(-args.images // args.batch) * args.batch, args.batch, args.size, args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        weights, cache = Path(scratch) / "random.safetensors", Path(scratch) / "cache"
        weights.write_bytes(safetensors.numpy.save(random_weights(args.seed)))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        spec = f"torch-fidelity@{weights}#sha256={digest}"
        programs = {INCEPTION: functools.partial(our_features, spec, images, cache)}
        if with_torch:
            programs[TORCH] = functools.partial(torch_features, weights, images)
        programs[EFFICIENTNET] = functools.partial(our_features, "efficientnet_lite0", images, cache)
        measured = measure_in_turns(programs, limits)
    off = features_off(measured)
    rows = [make_row(name, images.count, measured) for name in programs]
    if off is not None:
        rows[0]["off"] = off

    sets = FeatureSets(args.statistics, args.dimensions, 500, args.seed)
    makers = {STREAMED: streamed_statistics, WHOLE: whole_statistics, MADE: only_made}
    measured = measure_in_turns({name: functools.partial(x, sets) for name, x in makers.items()}, limits)
    rows += [make_row(name, SETS * sets.count, measured) for name in makers]

    caption = describe(args, off, load)
    show(rows, COLUMNS, caption, CASE)
    if args.output is not None:
        write(args.output.expanduser(), rows, COLUMNS, caption, CASE)


def describe(args: argparse.Namespace, off: float | None, load: float) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "numpy", "scipy", *(("torch", "torch-fidelity") if off is not None else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    agreement = (
        f"our features are within {off:.1e} of the largest of torch-fidelity's"
        if off is not None
        else "no features were compared"
    )
    return (
        f"Images of {args.size} pixels in batches of {args.batch}, random weights of InceptionV3; {agreement}. "
        f"{SETS} sets of {args.statistics:,} features of {args.dimensions:,} dimensions, made on the way. Medians "
        f"of up to {args.repeats} runs in turns, seed {args.seed}; JAX on {jax.devices()[0].device_kind}; "
        f"{describe_machine()}, load {load:.1f} before; {versions}. inputs/s: images, or features gathered, "
        "without the distance; x rival: speed of the whole over the row below; RSS: growth of the process, "
        "loading and compiling included; off: features, of the largest, or the distance, relative; n: runs."
    )


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench evaluate", __doc__)
    add = parser.add_argument
    add("--images", type=positive, default=128, help="of each run of a network (default 128)")
    add("--statistics", type=positive, default=50_000, metavar="N", help="features a set (default 50000)")
    add("--repeats", type=positive, default=5, help="timed runs of each program (default 5)")
    add("--seed", type=int, default=0)
    add("--time-limit", type=positive, default=600, metavar="SECONDS", help="for one program (default 600)")
    add("--memory-limit", type=positive, default=8, metavar="GIB", help="for one program (default 8)")
    add("--tiny", action="store_true", help="a trial of the benchmark itself in seconds, without torch")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")
    return parser
