"""Reading pictures: JPEG files to cropped, flipped batches, here, in a plain Pillow loop and in torch.

    python -m regvq_jax.bench data
    python -m regvq_jax.bench data --images=512 --output=data.md
    python -m regvq_jax.bench data --sizes "640 x 480" --against=none --json=data.json

Files are written first, of the sizes of COCO, ADE20K, CelebA-HQ and of smaller photographs. Everybody makes
256-pixel random crops and flips of them, on one core, in batches of 32: `ours` is the path of a training on
a folder, the others open each file with Pillow, resize its short side bicubically, and cut. The plain loop is
what all are compared with and always runs; torch is its DataLoader over the same loop.
"""

import argparse
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regvq_jax.bench.flags import Rival, add_shared_flags, find_rival, make_limits, parse
from regvq_jax.bench.measure import Measurement, Program, describe_machine, measure_in_turns, warn_if_busy
from regvq_jax.bench.table import mebibytes, milliseconds, publish, spread
from regvq_jax.command_line import Parser, positive
from regvq_jax.data.folder import FolderSource
from regvq_jax.data.images import read_image
from regvq_jax.data.pipeline import iterate, make_batches
from regvq_jax.data.transforms import keep, resize_and_crop

CROP, SCALE, BATCH = 256, 1.1, 32
NAMES = 4096
SIZES = {
    "500 x 375": (375, 500),
    "640 x 480": (480, 640),
    "683 x 512": (512, 683),
    "1024 x 1024": (1024, 1024),
}
PILLOW, OURS, TORCH = "Pillow loop", "ours, one thread", "torch DataLoader"
CASE = ("images", "reader")
TINY = dict(sizes=["500 x 375"], images=BATCH, files=4, repeats=2)


def write_files(folder: Path, height: int, width: int, count: int, seed: int = 0) -> None:
    """Writes JPEG files of quality 90 with structure at every scale, as photographs have.

    Each has many names: shuffling is slow where there is little to shuffle, which no training set is.

    Args:
        folder: that is made for them.
        height, width: of each, pixels.
        count: how many different ones.
        seed: of what they show.
    """
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        picture = np.zeros((height, width, 3), np.float32)
        for cells, share in ((4, 0.5), (16, 0.25), (64, 0.15), (256, 0.1)):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
            picture += share * np.asarray(smooth, np.float32)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
        for j in range(i + count, NAMES, count):
            os.link(folder / f"{i:05d}.jpg", folder / f"{j:05d}.jpg")


def read_with_pillow(path: Path, rng: np.random.Generator) -> np.ndarray:
    """What a plain loop does: uint8 [256, 256, 3]."""
    image = Image.open(path).convert("RGB")
    scale = CROP / min(image.size)
    width, height = (max(CROP, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = rng.integers(width - CROP + 1), rng.integers(height - CROP + 1)
    image = image.crop((left, top, left + CROP, top + CROP))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


class PillowFiles:
    """The files as torch's DataLoader takes them."""

    def __init__(self, folder: Path, seed: int):
        """Lists them; `seed` is that of the crops."""
        self._seed = seed
        self._paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [256, 256, 3]."""
        return read_with_pillow(self._paths[index], np.random.default_rng((self._seed, index)))


def run_batches(batches: Callable[[], Any], count: int) -> Callable[[], Program]:
    """A program that reads `count` batches, others every time."""

    def build() -> Program:
        endless = batches()

        def run() -> dict[str, Any]:
            return {"last": [np.asarray(batch) for batch in itertools.islice(endless, count)][-1]}

        return Program(run)

    return build


def ours(folder: Path, count: int, seed: int, threads: int) -> Callable[[], Program]:
    """The path of a training on a folder of images: `count` batches, in an order and with crops of `seed`."""
    source = FolderSource(folder, "train", CROP, decode_side=int(np.ceil(CROP * SCALE)))
    crop = functools.partial(resize_and_crop, size=CROP, crop="random", flip=True, max_scale=SCALE)
    transforms = [crop, functools.partial(keep, names=("image",))]
    made = make_batches(source, transforms, batch_size=BATCH, seed=seed)
    return run_batches(lambda: (batch["image"] for batch in iterate(made, num_threads=threads)), count)


def pillow(folder: Path, count: int, seed: int) -> Callable[[], Program]:
    """A loop over the files; args as of `ours`."""

    def batches():
        files, rng = sorted(folder.glob("*.jpg")), np.random.default_rng(seed)
        while True:
            chosen = rng.choice(len(files), BATCH)
            yield np.stack([read_with_pillow(files[i], rng) for i in chosen])

    return run_batches(batches, count)


def torch_loader(folder: Path, count: int, seed: int) -> Callable[[], Program]:
    """torch's DataLoader over the same loop, in this process: one core, as the others; args as of `ours`."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)

    def batches():
        loader = torch.utils.data.DataLoader(
            PillowFiles(folder, seed),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
        )
        while True:
            yield from loader

    return run_batches(batches, count)


def quality(folder: Path) -> float:
    """PSNR, dB, of centre crops of files decoded at a fraction of their size against whole ones."""
    errors = []
    for path in sorted(folder.glob("*.jpg"))[:16]:
        content = path.read_bytes()
        sides = (None, int(np.ceil(CROP * SCALE)))
        elements = [{"image": read_image(content, min_side=side)} for side in sides]
        whole, part = (resize_and_crop(element, size=CROP)["image"] for element in elements)
        errors.append(np.mean((whole.astype(np.float64) - part) ** 2))
    error = float(np.mean(errors))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


COLUMNS = {
    "file size": ("size", str),
    "ms": ("seconds", milliseconds),
    "least..most": ("all_seconds", spread),
    "images/s": ("per_second", lambda x: f"{x:,.0f}"),
    "x Pillow": ("ratio", lambda x: f"{x:.2f}"),
    "RSS MiB": ("rss_bytes", mebibytes),
    "PSNR, dB": ("psnr", lambda x: f"{x:.1f}"),
    "n": ("repeats", str),
}


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes it where the flags say."""
    args = parse(make_parser(), argv, TINY)
    readers = {PILLOW: pillow, OURS: functools.partial(ours, threads=0)}
    # Everybody reads on a CPU, whatever trains.
    rival = find_rival(args, backend="cpu")
    if rival.device is not None:
        readers[TORCH] = torch_loader
    load, limits = warn_if_busy(), make_limits(args)
    batches = max(1, args.images // BATCH)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in args.sizes:
            folder = Path(scratch) / size.replace(" ", "")
            write_files(folder, *SIZES[size], args.files, args.seed)
            programs = {
                name: functools.partial(reader, folder, batches, args.seed)
                for name, reader in readers.items()
            }
            measured = measure_in_turns(programs, limits)
            rows += [make_row(size, folder, name, BATCH * batches, measured) for name in programs]
    publish(args, rows, COLUMNS, describe(args, rival, load), CASE)


def make_row(
    size: str, folder: Path, name: str, images: int, measured: Mapping[str, Measurement]
) -> dict[str, Any]:
    """The figures of one reader by field; fields without a figure are left out."""
    own, baseline = measured[name], measured[PILLOW]
    row = {"images": images, "reader": name, "size": size, "failure": own.failure}
    if own.failure:
        return row
    row |= dict(seconds=own.median, all_seconds=own.seconds, repeats=len(own.seconds))
    row |= dict(per_second=images / own.median, rss_bytes=own.peak_bytes)
    if not baseline.failure:
        row["ratio"] = baseline.median / own.median
    if name == OURS:
        row["psnr"] = quality(folder)
    return row


def describe(args: argparse.Namespace, rival: Rival, load: float) -> str:
    """What the columns are, and where they come from."""
    return (
        f"Decoded {CROP}-pixel random crops of JPEG files of quality 90, medians of up to {args.repeats} "
        f"repeats in turns, seed {args.seed}; ms: for all images of a repeat; x Pillow: images a second over "
        f"those of the {PILLOW!r}; RSS: growth of the process, its batches included; PSNR: of centre crops, "
        "against those of files decoded whole, which held-out images always are; n: repeats. "
        f"{describe_machine()}, {rival.about}, load {load:.1f} before."
    )


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench data", __doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    add("--images", type=positive, default=256, help="read in each repeat (default 256)")
    add("--files", type=positive, default=64, help="different ones of each size (default 64)")
    add_shared_flags(parser, repeats=5, time_limit=120, memory_limit=8)
    return parser
