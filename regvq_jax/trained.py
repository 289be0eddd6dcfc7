"""Trained networks from a workdir or a file: the module, and its averaged parameters as numpy arrays."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.tokens import check_meta, read_meta
from regvq_jax.errors import UserError
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trainers import build
from regvq_jax.workdir import load_config

PyTree = Any


def open_tokenizer(path: Path) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of a run's workdir or of a tokenizer file.

    Raises:
        UserError: there is no such path; the directory is not a workdir or holds no checkpoint; or the file
            is no tokenizer.
    """
    if path.is_dir():
        return load_tokenizer(load_config(path), path)
    return load_tokenizer_file(path)[:2]


def load_tokenizer(config: ConfigDict, workdir: Path) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of a run: the file that `config.tokenizer` names, or stage one's newest checkpoint.

    Args:
        config: of the run.
        workdir: of the run.

    Raises:
        UserError: stage one has no checkpoint in this workdir; or the file is missing, is no tokenizer, or
            does not fit `config.data.image_size`.
    """
    if not config.tokenizer:
        model = build.make_image_tokenizer(config)
        return model, _load_params(param_shapes(model), workdir / "tokenizer", "tokenizer", None)
    model, params, _ = load_tokenizer_file(Path(config.tokenizer).expanduser())
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"config.data.image_size={config.data.image_size} is not a multiple of {model.downsampling}, by "
            f"which the tokenizer {config.tokenizer} shrinks images; choose a size that is."
        )
    return model, params


def load_prior(
    config: ConfigDict, workdir: Path, tokenizer: ImageTokenizer, tokenizer_params: PyTree
) -> tuple[PriorNet, PyTree]:
    """The prior with the lowest held-out loss of stage two; the newest where none was evaluated.

    Priors on few images overfit: the last checkpoint is then not the best one.

    Args:
        config: of the run.
        workdir: of the run.
        tokenizer: whose tokens it draws.
        tokenizer_params: its parameters.

    Raises:
        UserError: stage two has no checkpoint in this workdir, or learned the tokens of another tokenizer.
    """
    meta = read_meta(workdir / "tokens" / "train")
    check_meta(
        meta, directory=workdir / "tokens" / "train", tokenizer_hash=build.hash_params(tokenizer_params)
    )
    model = build.make_prior_net(config, tokenizer, meta.has_text)
    height, width = model.grid
    inputs = [jax.ShapeDtypeStruct((1, height * width), np.int32)]
    if model.text_length:
        inputs.append(jax.ShapeDtypeStruct((1, model.text_length), np.int32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return model, _load_params(shapes, workdir / "prior", "prior", "eval/prior/loss")


def _load_params(shapes: PyTree, directory: Path, network: str, best_metric: str | None) -> PyTree:
    if not (directory / "checkpoints").exists():
        raise UserError(
            f"{directory} holds no trained {network}; run that stage first "
            f"(--stage={network}, or no --stage at all)."
        )
    with Checkpoints(
        directory / "checkpoints", best_metric=best_metric, best_mode="min", read_only=True
    ) as checkpoints:
        step = checkpoints.best_step() if best_metric else None
        return checkpoints.restore_params(shapes, key=("ema", network), step=step)
