"""The stages of a run, each of which starts from what the one before left in the workdir."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from regvq_jax import loop, sharding
from regvq_jax.data.pipeline import stack_elements
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.data.tokens import TokenMeta, is_finished, write_tokens
from regvq_jax.data.transforms import resize_and_crop
from regvq_jax.errors import UserError
from regvq_jax.evaluate.report import write_report
from regvq_jax.models.quantizer import IMPLICIT_KINDS
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.progress import Progress
from regvq_jax.settings import choose
from regvq_jax.trained import load_tokenizer
from regvq_jax.trainers import build

PyTree = Any
log = logging.getLogger("regvq_jax")


def run(
    config: ConfigDict,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    chosen: tuple[str, ...],
    profile_steps: tuple[int, int] = (0, 0),
) -> None:
    """Runs the chosen stages in order; a finished one is not run again.

    Args:
        config: of the run.
        workdir: from `workdir.open_workdir`.
        mesh: of all devices.
        chosen: names in `STAGES`.
        profile_steps: see `loop.train`.

    Raises:
        UserError: an unknown stage, or one whose predecessor is missing.
    """
    stage_fns = [choose(STAGES, name, "stages") for name in chosen]
    for stage_fn in stage_fns:
        stage_fn(config, workdir, mesh, profile_steps)


def run_tokenizer(config, workdir, mesh, profile_steps) -> None:
    """Stage one: images to a tokenizer in workdir/tokenizer, unless the config brings one."""
    if config.tokenizer:
        log.info("tokenizer is that of %s", config.tokenizer)
        return

    def make_trainer():
        trainer = build.make_tokenizer_trainer(config)
        if trainer.model.quantizer.kind not in IMPLICIT_KINDS:
            sharding.check_codebook_size(trainer.model.quantizer.codebook_size, mesh)
        return trainer

    run_training(make_trainer, workdir / "tokenizer", mesh, profile_steps)


def run_tokens(config, workdir, mesh, profile_steps) -> None:
    """Encodes the train and held-out images once, with best-matching codes, into workdir/tokens."""
    del mesh, profile_steps
    require_tokenizer(config, workdir)
    model, params = load_tokenizer(config, workdir)
    if jax.process_index() == 0:
        for split, limit in (("train", config.tokens.max_train_examples), ("heldout", None)):
            cache_tokens(config, workdir / "tokens" / split, split, limit, model, params)
    multihost_utils.sync_global_devices("tokens")


def cache_tokens(
    config: ConfigDict,
    directory: Path,
    split: str,
    limit: int | None,
    model: ImageTokenizer,
    params: PyTree,
) -> None:
    """Writes the token cache of one split, on this process's devices; keeps the shards that are complete.

    Args:
        config: of the run.
        directory: of the cache.
        split: "train" or "heldout".
        limit: at most so many images, the first of the source; None = all.
        model: the tokenizer network.
        params: its parameters.
    """
    source = build.open_source(config, split)
    num_examples = len(source) if limit is None else min(limit, len(source))
    meta = TokenMeta(
        codebook_size=model.quantizer.codebook_size,
        grid=build.token_grid(config, model),
        tokenizer_hash=build.hash_params(params),
        data_fingerprint=source.fingerprint,
        split=split,
        num_examples=num_examples,
        has_text=source.has_text,
    )
    mesh = sharding.make_mesh(devices=jax.local_devices())
    batch_size = -(-config.tokens.batch_size // mesh.size) * mesh.size
    crop = partial(resize_and_crop, size=config.data.image_size)
    encode = jax.jit(partial(best_codes, model), out_shardings=sharding.replicated(mesh))
    params = jax.device_put(params, sharding.replicated(mesh))
    done_before = is_finished(directory)
    progress = Progress(f"tokens {split}", num_examples, unit="images", enabled=not done_before)

    def examples(start: int, stop: int):
        """(codes, captions) of the images start to stop - 1, in order."""
        images = grain.MapDataset.range(start, stop).map(lambda index: crop(source[index]))
        read = grain.ReadOptions(num_threads=config.data.num_threads)
        for elements in images.batch(batch_size, batch_fn=list).to_iter_dataset(read):
            padding = [elements[-1]] * (batch_size - len(elements))
            batch = sharding.put_batch(stack_elements(elements + padding), mesh)
            codes = np.asarray(encode(params, batch["image"]))
            for element, grid in zip(elements, codes, strict=False):
                yield grid, element.get("texts", (element["text"],) if source.has_text else ())
            start += len(elements)
            progress.update(start)

    # A finished cache is compared with what is wanted, and left alone.
    write_tokens(directory, meta, examples, config.tokens.shard_size)
    progress.close()
    if done_before:
        log.info("tokens %s is done already", split)


def best_codes(model: ImageTokenizer, params: PyTree, images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to the best-matching codes, int32 [B, h, w * depth]."""
    codes = model.apply({"params": params}, to_unit_range(images), method="encode")
    # A residual tokenizer's levels stand side by side: [B, h, w, R] becomes [B, h, w * R].
    return codes.reshape(*codes.shape[:2], -1)


def run_prior(config, workdir, mesh, profile_steps) -> None:
    """Stage two: tokens to a prior in workdir/prior."""
    make = choose(build.PRIORS, config.prior.name, "prior.name")
    require_tokenizer(config, workdir)
    model, params = load_tokenizer(config, workdir)
    run_training(
        lambda: make(config, workdir / "tokens", model, params), workdir / "prior", mesh, profile_steps
    )


def run_report(config, workdir, mesh, profile_steps) -> None:
    """Gathers what the other stages made: pictures, the table of figures, and where everything lies."""
    del config, mesh, profile_steps
    write_report(workdir)


STAGES: dict[str, Callable] = {
    "tokenizer": run_tokenizer,
    "tokens": run_tokens,
    "prior": run_prior,
    "report": run_report,
}


def run_training(make_trainer: Callable[[], Any], directory: Path, mesh, profile_steps) -> None:
    """Trains unless the directory holds a finished training."""
    if loop.read_result(directory) is not None:
        log.info("%s is done already", directory.name)
        return
    loop.train(make_trainer(), directory, mesh, profile_steps)


def require_tokenizer(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError unless stage one of this workdir is finished, or `config.tokenizer` replaces it."""
    if not config.tokenizer and loop.read_result(workdir / "tokenizer") is None:
        raise UserError(
            f'The stage "tokenizer" of {workdir} is not finished, and this stage starts from its result; '
            "run it first (--stage=tokenizer, or no --stage at all)."
        )
