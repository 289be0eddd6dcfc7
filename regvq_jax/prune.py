"""Writes a tokenizer with a smaller codebook that holds only the codes in use.

    python -m regvq_jax.prune --input=runs/quickstart --output=pruned.safetensors

Codes are counted over the train and held-out images of the run: in its token cache if there is one of this
tokenizer, otherwise by encoding. --counts takes those of an evaluation (WORKDIR/tokenizer/codebook.json)
instead. The output is for Tokenizer.load or a config's `tokenizer` field; a token cache and a prior of the
old codebook do not fit it, and are refused. Its metadata keep which old code each new one is.
"""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.command_line import Parser, positive, run_command
from regvq_jax.data.pipeline import evaluation_batches
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.data.tokens import TokenSource, is_finished
from regvq_jax.errors import UserError
from regvq_jax.evaluate.codebook import count_codes
from regvq_jax.files import check_writable, read_json
from regvq_jax.interop.tokenizer_file import save_tokenizer
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.progress import Progress
from regvq_jax.trained import open_tokenizer
from regvq_jax.trainers import build, build_data
from regvq_jax.workdir import load_config

PyTree = Any
SPLITS = ("train", "heldout")
log = logging.getLogger("regvq_jax")


def prune_params(params: PyTree, kept: np.ndarray) -> PyTree:
    """The parameters with only some codes of the codebook, which are renumbered in the order of `kept`.

    Where the best code of a feature is kept it stays the best one, and the reconstruction the same.

    Args:
        params: of a tokenizer with a codebook.
        kept: int [number of kept codes], ascending old codes.

    Returns:
        A new tree; what does not belong to the removed codes is shared with the old one.
    """
    quantizer = {**params["quantizer"], "codebook": params["quantizer"]["codebook"][kept]}
    if "to_logits" in quantizer:
        kernel, bias = quantizer["to_logits"]["kernel"], quantizer["to_logits"]["bias"]
        quantizer["to_logits"] = {"kernel": kernel[:, kept], "bias": bias[kept]}
    return {**params, "quantizer": quantizer}


def prune(
    model: ImageTokenizer, params: PyTree, counts: np.ndarray, min_count: int = 1
) -> tuple[ImageTokenizer, PyTree, np.ndarray]:
    """A tokenizer without the codes that occur less than `min_count` times.

    Args:
        model: the network.
        params: its parameters.
        counts: int [K], how often each code occurs.
        min_count: at least 1.

    Returns:
        (model, params, kept int64 [new K]): new code i is the old code kept[i].

    Raises:
        UserError: the tokenizer has no codebook, or the counts are of another one, or no code is left.
    """
    require_codebook(model)
    quantizer = model.quantizer
    if len(counts) != quantizer.codebook_size:
        raise UserError(
            f"The counts are of {len(counts)} codes, and the tokenizer has {quantizer.codebook_size}: take "
            "the counts of this tokenizer."
        )
    kept = np.flatnonzero(np.asarray(counts) >= min_count)
    if not len(kept):
        raise UserError(f"No code occurs {min_count} times or more: lower --min-count.")
    smaller = model.clone(quantizer=quantizer.clone(codebook_size=len(kept)))
    return smaller, prune_params(params, kept), kept


def require_codebook(model: ImageTokenizer) -> None:
    """Raises UserError where codes are the points of a fixed grid, of which none can be left out."""
    if model.quantizer.kind in IMPLICIT_KINDS:
        raise UserError(
            f'A tokenizer of kind "{model.quantizer.kind}" cannot be pruned: its codes are the points of a '
            "fixed grid, not rows of a codebook."
        )


def count_run_codes(
    config: ConfigDict, workdir: Path, model: ImageTokenizer, params: PyTree, max_images: int | None = None
) -> np.ndarray:
    """How often each code occurs in the train and held-out images of a run.

    Args:
        config: of the run.
        workdir: of the run; where its token cache is of this tokenizer and `max_images` is None, the codes
            that stage two learns from are counted there.
        model: the network.
        params: its parameters.
        max_images: of each split, rounded up to whole batches; None = all of them.

    Returns:
        int64 [K].

    Raises:
        UserError: the data are wrong.
    """
    size = model.quantizer.codebook_size
    caches = [workdir / "tokens" / split for split in SPLITS]
    if max_images is None and all(map(is_finished, caches)):
        tokens = [TokenSource(cache) for cache in caches]
        if all(source.meta.tokenizer_hash == build.hash_params(params) for source in tokens):
            log.info("counting the codes of the token cache in %s", workdir / "tokens")
            return sum(
                np.bincount(source[index]["tokens"], minlength=size)
                for source in tokens
                for index in range(len(source))
            )

    @jax.jit
    def count_batch(params, batch):
        codes = model.apply({"params": params}, to_unit_range(batch["image"]), method="encode")
        return count_codes(codes, size, batch["valid"])

    counts = np.zeros(size, np.int64)
    batch_size = config.tokens.batch_size
    for split in SPLITS:
        source = build_data.open_source(config, split)
        num_images = min(len(source), max_images or len(source))
        batches = evaluation_batches(source, build_data.image_transforms(config, False), batch_size)
        batches = itertools.islice(batches, -(-num_images // batch_size))
        with Progress(f"codes {split}", num_images, unit="images") as progress:
            for done, batch in enumerate(batches, 1):
                counts += np.asarray(count_batch(params, batch))
                progress.update(min(done * batch_size, num_images))
    return counts


def main(argv: Sequence[str]) -> None:
    """Prunes what the arguments name, and prints the path of the new file."""
    args = make_parser().parse_args(argv)
    source, output = args.input.expanduser(), args.output.expanduser()
    check_writable(output.absolute().parent)  # Before the images are encoded, not after.
    model, params = open_tokenizer(source)
    require_codebook(model)
    if args.counts:
        counts = read_counts(args.counts.expanduser())
    elif source.is_dir():
        counts = count_run_codes(load_config(source), source, model, params, args.max_images)
    else:
        raise UserError(
            f"{source} is a tokenizer without images to count its codes in: give "
            "--counts=WORKDIR/tokenizer/codebook.json, or a workdir as --input."
        )
    smaller, smaller_params, kept = prune(model, params, counts, args.min_count)
    pruning = {
        "kept": kept,
        "codebook_size": len(counts),
        "tokenizer_hash": build.hash_params(params),
        "min_count": args.min_count,
        "tokens": int(counts.sum()),
    }
    save_tokenizer(output, smaller, smaller_params, {"pruned_from": pruning})
    log.info("kept %d of %d codes, counted over %s tokens", len(kept), len(counts), f"{counts.sum():,}")
    print(output)


def read_counts(path: Path) -> np.ndarray:
    """The counts of a codebook.json, int64 [K].

    Raises:
        UserError: there is no such file, or it is none of an evaluation.
    """
    record = read_json(path)
    if not isinstance(record, dict) or "counts" not in record:
        raise UserError(f'{path} has no "counts": give the codebook.json of an evaluation.')
    return np.asarray(record["counts"], np.int64)


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("regvq_jax.prune", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="the workdir of a run, or a tokenizer file")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--counts", type=Path, help="the codebook.json of an evaluation")
    parser.add_argument("--min-count", type=positive, default=1, help="drop codes that are rarer (default 1)")
    parser.add_argument(
        "--max-images", type=positive, help="count in so many images of each split (default all)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
