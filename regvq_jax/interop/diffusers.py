"""VQModel directories of diffusers: config.json and diffusion_pytorch_model.safetensors."""

from pathlib import Path
from typing import Any

import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.files import read_json, report_write_errors, write_json_atomic
from regvq_jax.interop.exportable import check_exportable, code_vectors, decision_rule, linear_logits
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.interop.torch_layout import (
    Names,
    Tensor,
    infer_fields,
    tensors,
    to_params,
    to_state,
    write_state,
)
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any
PROJECT = "diffusers"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
NAMES = Names(
    encoder_residual="encoder.down_blocks.{level}.resnets.{i}",
    encoder_attention="encoder.down_blocks.{level}.attentions.{i}",
    downsample="encoder.down_blocks.{level}.downsamplers.0.conv",
    decoder_residual="decoder.up_blocks.{step}.resnets.{i}",
    decoder_attention="decoder.up_blocks.{step}.attentions.{i}",
    upsample="decoder.up_blocks.{step}.upsamplers.0.conv",
    middle=(
        "{side}.mid_block.resnets.0",
        "{side}.mid_block.attentions.0",
        "{side}.mid_block.resnets.1",
    ),
    norm_out="conv_norm_out",
    residual={
        "norm_1": "norm1",
        "conv_1": "conv1",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "skip": "conv_shortcut",
    },
    attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    attention_kind="linear",
)
CODEBOOK = (Tensor("quantizer/codebook", "quantize.embedding.weight", "same"),)
# Names of the attention layers in directories written before diffusers 0.17.
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
# A config.json may leave these out.
DEFAULTS = {"act_fn": "silu", "norm_type": "group", "mid_block_add_attention": True, "norm_num_groups": 32}
# What it may say of parts that our network has in one form.
SUPPORTED = {
    "_class_name": ("VQModel",),
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "mid_block_add_attention": (True,),
}


def import_directory(path: Path) -> tuple[ImageTokenizer, PyTree]:
    """A tokenizer from a diffusers VQModel directory.

    The architecture is read off the names and shapes of the tensors, which config.json repeats; the number
    of groups of the normalisations stands in config.json alone. `scaling_factor`, `lookup_from_codebook`
    and `force_upcast` say how diffusers calls the network, not what it is, and are left alone.

    Args:
        path: of the directory.

    Returns:
        (model, params float32); the quantizer is of kind "nearest".

    Raises:
        UserError: the directory holds no VQModel that our network can be, or a tensor does not fit.
    """
    config = {"_class_name": "absent"} | DEFAULTS | read_json(path / CONFIG)
    for field, values in SUPPORTED.items():
        if config[field] not in values:
            raise UserError(
                f"The field {field} of {path / CONFIG} is {config[field]}, and only "
                f"{' or '.join(map(str, values))} can be imported."
            )
    state = {_current_name(name): value for name, value in read_torch_file(path / WEIGHTS).items()}
    fields = infer_fields(state, NAMES)
    codebook = CODEBOOK[0].name
    if codebook not in state:
        raise UserError(f"{path / WEIGHTS} has no tensor {codebook}: it holds no codebook.")
    codebook_size, code_dim = state[codebook].shape
    model = ImageTokenizer(
        Quantizer(kind="nearest", codebook_size=codebook_size, code_dim=code_dim),
        norm_groups=config["norm_num_groups"],
        **fields,
    )
    return model, to_params(model, state, tensors(model, NAMES, CODEBOOK))


def export_directory(path: Path, model: ImageTokenizer, params: PyTree) -> None:
    """Writes a tokenizer as a diffusers VQModel directory.

    VQModel takes the nearest code. A quantizer that takes the largest of logits linear in the features
    fits in all the same, in a space of 2D + 1 dimensions; see `nearest_equivalent`.

    Args:
        path: of the directory, made if it does not exist.
        model: the network.
        params: its parameters.

    Raises:
        UserError: diffusers cannot build this network, and the sentence says why; or it cannot be written.
    """
    groups = check_exportable(model, PROJECT)
    if model.multipliers[0] != 1:
        raise UserError(
            f"{PROJECT} has the same width in its first convolution and its first level, and here "
            f"config.model.multipliers begins with {model.multipliers[0]}; train with a 1 there to export."
        )
    if decision_rule(model.quantizer, PROJECT) == "nearest":
        params = {**params, "quantizer": {"codebook": code_vectors(model, params)}}
    else:
        params = nearest_equivalent(model, params)
    state = to_state(params, tensors(model, NAMES, CODEBOOK))
    codebook_size, code_dim = state[CODEBOOK[0].name].shape
    with_attention = [level in model.attention_levels for level in range(len(model.multipliers))]
    config = {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["AttnDownEncoderBlock2D" if x else "DownEncoderBlock2D" for x in with_attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if x else "UpDecoderBlock2D" for x in with_attention[::-1]],
        "block_out_channels": [model.channels * multiplier for multiplier in model.multipliers],
        "layers_per_block": model.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": model.latent_channels,
        "num_vq_embeddings": codebook_size,
        "norm_num_groups": groups,
        "vq_embed_dim": code_dim,
        "norm_type": "group",
        "mid_block_add_attention": True,
        "scaling_factor": 1.0,
        # So that VQModel.decode(codes, force_not_quantize=True, shape=...) takes codes.
        "lookup_from_codebook": True,
        "force_upcast": False,
    }
    with report_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_state(path / WEIGHTS, state)
    write_json_atomic(path / CONFIG, config)


def nearest_equivalent(model: ImageTokenizer, params: PyTree) -> PyTree:
    """Parameters with which taking the nearest code is taking the largest linear logit.

    For logits f.w_k + b_k and code vectors e_k, the feature becomes (0, f, 0) and the code (e_k, w_k, c_k).
    Their squared distance is ||f||^2 - 2 f.w_k + ||e_k||^2 + ||w_k||^2 + c_k^2, so that with
    c_k^2 = M - 2 b_k - ||e_k||^2 - ||w_k||^2 and an M that keeps all c_k real the nearest code is the one
    with the largest logit. The decoder reads e_k alone.

    Args:
        model: with a quantizer whose rule is "linear".
        params: its parameters.

    Returns:
        The parameters with quant_conv, quantizer {"codebook"} [K, 2D + 1] and post_quant_conv replaced.
    """
    (kernel, bias), vectors = linear_logits(model, params), code_vectors(model, params)
    lengths = 2 * bias + np.sum(vectors**2, 1) + np.sum(kernel**2, 0)
    last = np.sqrt(lengths.max() - lengths)
    dim = model.quantizer.code_dim

    def widen(array: np.ndarray, before: int, after: int) -> np.ndarray:
        # The last axis holds the features.
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(before, after)])

    quant_conv = {name: widen(np.asarray(x), dim, 1) for name, x in params["quant_conv"].items()}
    post = params["post_quant_conv"]
    return {
        **params,
        "quant_conv": quant_conv,
        "quantizer": {"codebook": np.concatenate([vectors, kernel.T, last[:, None]], 1)},
        "post_quant_conv": {
            "kernel": widen(np.asarray(post["kernel"]).T, 0, dim + 1).T,
            "bias": post["bias"],
        },
    }


def _current_name(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name
