"""Trained networks from a workdir: the module, and its averaged parameters as numpy arrays."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from regvq_jax.checkpoint import Checkpoints
from regvq_jax.data.tokens import read_meta
from regvq_jax.errors import UserError
from regvq_jax.models.prior import PriorNet
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trainers import build

PyTree = Any


def load_tokenizer(config: ConfigDict, workdir: Path) -> tuple[ImageTokenizer, PyTree]:
    """The tokenizer of the newest checkpoint of stage one.

    Args:
        config: of the run.
        workdir: of the run.

    Raises:
        UserError: stage one has no checkpoint in this workdir.
    """
    model = build.make_image_tokenizer(config)
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return model, _load_params(model, (image,), workdir / "tokenizer", "tokenizer", None)


def load_prior(config: ConfigDict, workdir: Path) -> tuple[PriorNet, PyTree]:
    """The prior with the lowest held-out loss of stage two; the newest where none was evaluated.

    Priors on few images overfit: the last checkpoint is then not the best one.

    Args:
        config: of the run.
        workdir: of the run.

    Raises:
        UserError: stage two has no checkpoint in this workdir.
    """
    model = build.make_prior_net(config, read_meta(workdir / "tokens" / "train").has_text)
    height, width = model.grid
    inputs = [jax.ShapeDtypeStruct((1, height * width), np.int32)]
    if model.text_length:
        inputs.append(jax.ShapeDtypeStruct((1, model.text_length), np.int32))
    return model, _load_params(model, inputs, workdir / "prior", "prior", "eval/prior/loss")


def _load_params(model, inputs, directory: Path, network: str, best_metric: str | None) -> PyTree:
    if not (directory / "checkpoints").exists():
        raise UserError(
            f"{directory} holds no trained {network}; run that stage first "
            f"(--stage={network}, or no --stage at all)."
        )
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    with Checkpoints(
        directory / "checkpoints", best_metric=best_metric, best_mode="min", read_only=True
    ) as checkpoints:
        step = checkpoints.best_step() if best_metric else None
        return checkpoints.restore_params(shapes, key=("ema", network), step=step)
