"""Reading pictures: JPEG files to cropped, flipped batches, here, in a plain Pillow loop and in torch.

    python -m regvq_jax.bench data
    python -m regvq_jax.bench data --images=512 --output=data.md

Files are written first, of the sizes of COCO, ADE20K, CelebA-HQ and of smaller photographs. Everybody makes
256-pixel random crops and flips of them, on one core, in batches of 32: `ours` is the path of a training on
a folder, the others open each file with Pillow, resize its short side bicubically, and cut.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regvq_jax.bench.measure import Limits, Program, describe_machine, measure_in_turns, warn_if_busy
from regvq_jax.bench.table import output_path, show, write
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
PILLOW, OURS = "Pillow loop", "ours, one thread"
CASE = ("images", "reader")


def write_files(folder: Path, height: int, width: int, count: int) -> None:
    """Writes JPEG files of quality 90 with structure at every scale, as photographs have.

    Each has many names: shuffling is slow where there is little to shuffle, which no training set is.
    """
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
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

    def __init__(self, folder: Path):
        """Lists them."""
        self._paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [256, 256, 3]."""
        return read_with_pillow(self._paths[index], np.random.default_rng(index))


def run_batches(batches: Callable[[], Any], count: int) -> Callable[[], Program]:
    """A program that reads `count` batches, others every time."""

    def build() -> Program:
        endless = batches()

        def run() -> dict[str, Any]:
            return {"last": [np.asarray(batch) for batch in itertools.islice(endless, count)][-1]}

        return Program(run)

    return build


def ours(folder: Path, count: int, threads: int) -> Callable[[], Program]:
    """The path of a training on a folder of images."""
    source = FolderSource(folder, "train", CROP, decode_side=int(np.ceil(CROP * SCALE)))
    crop = functools.partial(resize_and_crop, size=CROP, crop="random", flip=True, max_scale=SCALE)
    transforms = [crop, functools.partial(keep, names=("image",))]
    made = make_batches(source, transforms, batch_size=BATCH, seed=0)
    return run_batches(lambda: (batch["image"] for batch in iterate(made, num_threads=threads)), count)


def pillow(folder: Path, count: int) -> Callable[[], Program]:
    """A loop over the files."""

    def batches():
        files, rng = sorted(folder.glob("*.jpg")), np.random.default_rng(0)
        while True:
            chosen = rng.choice(len(files), BATCH)
            yield np.stack([read_with_pillow(files[i], rng) for i in chosen])

    return run_batches(batches, count)


def torch_loader(folder: Path, count: int) -> Callable[[], Program]:
    """torch's DataLoader over the same loop, in this process: one core, as the others."""
    import torch

    torch.set_num_threads(1)

    def batches():
        loader = torch.utils.data.DataLoader(
            PillowFiles(folder),
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
    worst = float(np.mean(errors))
    return float(10 * np.log10(255**2 / worst)) if worst else float("inf")


COLUMNS = {
    "file size": ("size", str),
    "images/s": ("per_second", lambda x: f"{x:,.0f}"),
    "x Pillow": ("ratio", lambda x: f"{x:.2f}"),
    "PSNR, dB": ("psnr", lambda x: f"{x:.1f}"),
}


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes it where --output says."""
    args = make_parser().parse_args(argv)
    load = warn_if_busy()
    limits = Limits(args.repeats, args.time_limit, 8 * 2**30)
    batches = max(1, args.images // BATCH)
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print("Without a comparison with torch: pip install -e '.[parity]' brings it.")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in args.sizes:
            folder = Path(scratch) / size.replace(" ", "")
            write_files(folder, *SIZES[size], args.files)
            programs = {
                PILLOW: functools.partial(pillow, folder, batches),
                OURS: functools.partial(ours, folder, batches, 0),
            }
            if with_torch:
                programs["torch DataLoader"] = functools.partial(torch_loader, folder, batches)
            measured = measure_in_turns(programs, limits)
            rows += [make_row(size, folder, name, BATCH * batches, measured) for name in programs]
    caption = describe(args, load)
    show(rows, COLUMNS, caption, CASE)
    if args.output is not None:
        write(args.output.expanduser(), rows, COLUMNS, caption, CASE)


def make_row(size: str, folder: Path, name: str, images: int, measured: dict) -> dict[str, Any]:
    """The figures of one reader."""
    own, baseline = measured[name], measured[PILLOW]
    row = {"images": images, "reader": name, "size": size, "failure": own.failure}
    if own.failure:
        return row
    row |= {"per_second": images / own.median, "seconds": own.seconds}
    if not baseline.failure:
        row["ratio"] = baseline.median / own.median
    if name == OURS:
        row["psnr"] = quality(folder)
    return row


def describe(args: argparse.Namespace, load: float) -> str:
    """What the columns are, and where they come from."""
    return (
        f"Decoded {CROP}-pixel random crops of JPEG files of quality 90, medians of {args.repeats} repeats "
        f"in turns; x Pillow: images a second over those of the {PILLOW!r}; PSNR: of centre crops, against "
        "those of files decoded whole, which held-out images always are. "
        f"{describe_machine()}, load {load:.1f} before."
    )


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.bench data", __doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    add("--images", type=positive, default=256, help="read in each repeat (default 256)")
    add("--files", type=positive, default=64, help="different ones of each size (default 64)")
    add("--repeats", type=positive, default=5, help="timed runs of each reader (default 5)")
    add("--time-limit", type=positive, default=120, metavar="SECONDS", help="for one run (default 120)")
    add("--output", type=output_path, metavar="FILE", help=".md for the table, .json for all figures")
    return parser
