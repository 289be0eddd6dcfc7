"""Which tokenizers other projects can hold, and what of the quantizer they need."""

import math
from typing import Any

import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.models.layers import num_groups
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any


def check_exportable(model: ImageTokenizer, project: str, wanted_groups: int | None = None) -> int:
    """The one number of groups of all normalisations of a network that `project` can build.

    Args:
        model: the network.
        project: for messages.
        wanted_groups: the number that `project` has always; None = it can have any.

    Raises:
        UserError: it cannot build the network; the sentence says why.
    """
    if model.architecture != "taming":
        raise UserError(
            f'{project} has no network like config.model.architecture="{model.architecture}"; only "taming" '
            "can be exported to it."
        )
    if not model.middle_attention:
        raise UserError(
            f"{project} has two residual blocks at the bottleneck, and this network has one; train with "
            "config.model.middle_attention=True to export there."
        )
    widths = {model.channels * multiplier for multiplier in (1, *model.multipliers)}
    if any(width % (wanted_groups or 1) for width in widths):
        raise UserError(
            f"{project} has {wanted_groups} groups in every normalisation, which cannot split the widths "
            f"{', '.join(map(str, sorted(widths)))} of this network; export it with --format=diffusers, or "
            f"train with config.model.channels a multiple of {wanted_groups}."
        )
    groups = {num_groups(width, model.norm_groups) for width in widths}
    if len(groups) > 1 or wanted_groups not in (None, *groups):
        raise UserError(
            f"{project} has {wanted_groups or 'the same number of'} groups in every normalisation, and this "
            f"network has {', '.join(map(str, sorted(groups)))}; train with config.model.norm_groups="
            f"{wanted_groups or math.gcd(*groups)} to export there."
        )
    return groups.pop()


def decision_rule(quantizer: Quantizer, project: str) -> str:
    """How a quantizer chooses: the "nearest" code vector, or the largest of "linear" logits.

    Raises:
        UserError: it does neither, so that `project` cannot hold it.
    """
    if quantizer.kind == "fsq" or quantizer.depth > 1:
        what = f"{quantizer.depth} codes a place" if quantizer.depth > 1 else "levels instead of a codebook"
        raise UserError(
            f"{project} holds one codebook with one code a place, and this quantizer has {what}; export it "
            "with --format=safetensors."
        )
    if quantizer.kind in ("nearest", "simvq", "lfq"):
        return "nearest"
    return "nearest" if quantizer.kind != "ibq" and quantizer.logits == "distance" else "linear"


def linear_logits(model: ImageTokenizer, params: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """Kernel float32 [D, K] and bias float32 [K] of the logits of a quantizer whose rule is "linear"."""
    if model.quantizer.kind != "ibq" and model.quantizer.logits == "projection":
        projection = params["quantizer"]["to_logits"]
        return np.asarray(projection["kernel"], np.float32), np.asarray(projection["bias"], np.float32)
    return code_vectors(model, params).T, np.zeros(model.quantizer.codebook_size, np.float32)


def code_vectors(model: ImageTokenizer, params: PyTree) -> np.ndarray:
    """All code vectors of a quantizer as the decoder gets them, float32 [K, D]."""
    return np.asarray(model.apply({"params": params}, method="code_vectors"), np.float32)
