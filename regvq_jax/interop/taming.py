"""VQ-GAN and Gumbel-VQ checkpoints of CompVis taming-transformers (VQModel, GumbelVQ)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.interop.exportable import check_exportable, code_vectors, decision_rule, linear_logits
from regvq_jax.interop.torch_layout import Names, State, Tensor, infer_fields, tensors, to_params, to_state
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any
PROJECT = "taming-transformers"
NORM_GROUPS = 32
# Where the checkpoint of a taming transformer keeps the tokenizer it was trained on.
FIRST_STAGE = "first_stage_model."
NAMES = Names(
    encoder_residual="encoder.down.{level}.block.{i}",
    encoder_attention="encoder.down.{level}.attn.{i}",
    downsample="encoder.down.{level}.downsample.conv",
    decoder_residual="decoder.up.{level}.block.{i}",
    decoder_attention="decoder.up.{level}.attn.{i}",
    upsample="decoder.up.{level}.upsample.conv",
    middle=("{side}.mid.block_1", "{side}.mid.attn_1", "{side}.mid.block_2"),
    norm_out="norm_out",
    residual={
        "norm_1": "norm1",
        "conv_1": "conv1",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "skip": "nin_shortcut",
    },
    attention={"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"},
    attention_kind="pointwise",
)
NEAREST = (Tensor("quantizer/codebook", "quantize.embedding.weight", "same"),)
GUMBEL = (
    Tensor("quantizer/to_logits/kernel", "quantize.proj.weight", "pointwise"),
    Tensor("quantizer/to_logits/bias", "quantize.proj.bias", "same"),
    Tensor("quantizer/codebook", "quantize.embed.weight", "same"),
)


def import_state(state: Mapping[str, np.ndarray]) -> tuple[ImageTokenizer, PyTree]:
    """A tokenizer from a state dict of taming-transformers.

    The architecture is read off the names and shapes. VQModel becomes Quantizer(kind="nearest"), GumbelVQ
    becomes Quantizer(kind="gumbel", logits="projection"). Of a transformer's checkpoint the tokenizer of its
    first stage is taken; losses, discriminators and other parts are left alone.

    Args:
        state: names to arrays.

    Returns:
        (model, params float32).

    Raises:
        UserError: it is no such checkpoint, or a tensor does not fit; the first one is named.
    """
    if any(name.startswith(FIRST_STAGE) for name in state):
        state = {
            name.removeprefix(FIRST_STAGE): value
            for name, value in state.items()
            if name.startswith(FIRST_STAGE)
        }
    fields = infer_fields(state, NAMES)
    for kind, entries in (("nearest", NEAREST), ("gumbel", GUMBEL)):
        codebook = entries[-1].name
        if codebook in state:
            codebook_size, code_dim = state[codebook].shape
            quantizer = Quantizer(kind=kind, codebook_size=codebook_size, code_dim=code_dim)
            model = ImageTokenizer(quantizer, norm_groups=NORM_GROUPS, **fields)
            return model, to_params(model, state, tensors(model, NAMES, entries))
    raise UserError(
        f"The checkpoint has neither {NEAREST[-1].name} (a VQ-GAN) nor {GUMBEL[-1].name} (a Gumbel-VQ), so "
        "it holds no codebook that regvq_jax knows."
    )


def export_state(model: ImageTokenizer, params: PyTree) -> State:
    """A tokenizer as a state dict of taming-transformers.

    Quantizers that take the nearest code become a VQModel; those with logits that are linear in the
    features become a GumbelVQ, whose best code is the same.

    Args:
        model: the network.
        params: its parameters.

    Returns:
        Names to float32 arrays; `import_state` reads them back bit for bit.

    Raises:
        UserError: taming-transformers cannot build this network; the sentence says why.
    """
    check_exportable(model, PROJECT, NORM_GROUPS)
    vectors = code_vectors(model, params)
    if decision_rule(model.quantizer, PROJECT) == "nearest":
        quantizer, entries = {"codebook": vectors}, NEAREST
    elif model.quantizer.code_dim != model.latent_channels:
        raise UserError(
            f"A GumbelVQ of {PROJECT} needs config.quantizer.code_dim equal to config.model.latent_channels, "
            f"and they are {model.quantizer.code_dim} and {model.latent_channels}; --format=diffusers has no "
            "such limit."
        )
    else:
        kernel, bias = linear_logits(model, params)
        quantizer, entries = {"codebook": vectors, "to_logits": {"kernel": kernel, "bias": bias}}, GUMBEL
    return to_state({**params, "quantizer": quantizer}, tensors(model, NAMES, entries))
