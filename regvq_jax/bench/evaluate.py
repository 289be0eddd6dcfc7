"""What FID costs: features a second from its network, and statistics of many features; time and peak memory.

    python -m regvq_jax.bench evaluate
    python -m regvq_jax.bench evaluate --images=64 --statistics=10000 --output=evaluate.md
    python -m regvq_jax.bench evaluate --against=none --json=evaluate.json

  features      uint8 images of 256 pixels in batches of 32, by the path that an evaluation runs: resizing,
                scaling and InceptionV3 in one compiled program; torch-fidelity's own extractor has the same
                random weights, images and cores, and must give the same features. EfficientNet-Lite0, whose
                weights are at hand, has no rival.
  statistics    mean and covariance of two sets of features of 2,048 dimensions, and the Frechet distance of
                the sets. Ours take batches of 500 and keep nothing of them. numpy and scipy do as pytorch-fid
                does: all features of a set at once in float64, np.cov, and the root of a matrix. The features
                are made while they are taken; what that costs alone has a row of its own.

Every program has a process of its own; they take turns. RSS is the growth of the process, loading of weights
and compiling included. torch runs where JAX does; where it cannot, or without torch-fidelity, it is
left out; numpy's and scipy's statistics always run.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from regvq_jax.bench.differences import relative_error
from regvq_jax.bench.evaluate_programs import (
    SETS,
    FeatureSets,
    Images,
    only_made,
    our_features,
    random_weights,
    streamed_statistics,
    torch_features,
    whole_statistics,
)
from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.measure import Measurement, describe_machine, measure_in_turns, warn_if_busy
from regvq_jax.bench.table import mebibytes, milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive

INCEPTION, TORCH = "InceptionV3", "InceptionV3 of torch-fidelity"
EFFICIENTNET = "EfficientNet-Lite0"
STREAMED, WHOLE, MADE = "statistics, streamed", "statistics, numpy and scipy", "features made only"
BASELINES = {INCEPTION: TORCH, STREAMED: WHOLE}
CASE = ("inputs", "program")
TOLERANCE = 1e-4  # Of features, of the largest of them.
TINY = dict(images=2, statistics=1_000, batch=2, size=32, dimensions=64, repeats=2)


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
    off = relative_error(ours, theirs)
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
        # Of all runs but the first, also of those before the timed ones.
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
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "inputs/s": ("per_second", lambda x: f"{x:,.1f}"),
    "x rival": ("ratio", lambda x: f"{x:.2f}"),
    "RSS MiB": ("rss_bytes", mebibytes),
    "distance, ms": ("distance_seconds", milliseconds),
    "off": ("off", lambda x: f"{x:.1e}"),
    "n": ("repeats", lambda x: f"{x}"),
}


def main(argv: Sequence[str]) -> None:
    """Measures, compares the features, prints the table, and writes it where the flags say."""
    args = parse(make_parser(), argv, TINY)
    rival = find_rival(args, "torch_fidelity")
    load, limits = warn_if_busy(), make_limits(args)
    images = Images(-(-args.images // args.batch) * args.batch, args.batch, args.size, args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        weights, cache = Path(scratch) / "random.safetensors", Path(scratch) / "cache"
        weights.write_bytes(safetensors.numpy.save(random_weights(args.seed)))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        spec = f"torch-fidelity@{weights}#sha256={digest}"
        programs = {INCEPTION: functools.partial(our_features, spec, images, cache)}
        if rival.device is not None:
            programs[TORCH] = functools.partial(torch_features, weights, rival.device, images)
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

    publish(args, rows, COLUMNS, describe(args, rival, off, load), CASE)


def describe(args: argparse.Namespace, rival: Rival, off: float | None, load: float) -> str:
    """Sizes, machine and versions, and what the columns are."""
    packages = ("jax", "numpy", "scipy", *(("torch", "torch-fidelity") if rival.device else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    agreement = (
        f"our features are within {off:.1e} of the largest of torch-fidelity's"
        if off is not None
        else "no features were compared"
    )
    return (
        f"Images of {args.size} pixels in batches of {args.batch}, random weights of InceptionV3; "
        f"{agreement}. {SETS} sets of {args.statistics:,} features of {args.dimensions:,} dimensions, made "
        f"on the way. Medians of up to {args.repeats} runs in turns, seed {args.seed}; JAX on "
        f"{jax.devices()[0].device_kind}, {rival.about}; {describe_machine()}, load {load:.1f} before; "
        f"{versions}. inputs/s: images, or features gathered, without the distance; x rival: speed of the "
        "whole over the row below; RSS: growth of the process, loading and compiling included; off: "
        "features, of the largest, or the distance, relative; n: runs."
    )


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench evaluate", __doc__)
    add = parser.add_argument
    add("--images", type=positive, default=128, help="of each run of a network (default 128)")
    add("--statistics", type=positive, default=50_000, metavar="N", help="features a set (default 50000)")
    # Not flags: what an evaluation has.
    parser.set_defaults(batch=32, size=256, dimensions=2048)
    add_shared_flags(parser, repeats=5, time_limit=600, memory_limit=8)
    return parser
