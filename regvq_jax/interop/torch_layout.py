"""Where each parameter of a tokenizer lies in the state dict of a PyTorch VQ-GAN, and how its axes turn.

taming-transformers and diffusers build the same network and differ in names alone: a `Names` says them,
and the functions here do the rest for both.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.files import write_bytes_atomic
from regvq_jax.interop.tokenizer_file import param_shapes
from regvq_jax.models.tokenizer import ImageTokenizer

PyTree = Any
State = dict[str, np.ndarray]
# What else a checkpoint holds (losses, discriminator, LPIPS, moving averages) is no part of the tokenizer.
TOKENIZER_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
TO_TORCH = {
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "pointwise": lambda x: x.T[:, :, None, None],  # a 1x1 convolution there, a linear layer here
    "linear": lambda x: x.T,
    "same": lambda x: x,
}
FROM_TORCH = {
    "conv": lambda x: x.transpose(2, 3, 1, 0),
    "pointwise": lambda x: x[:, :, 0, 0].T,
    "linear": lambda x: x.T,
    "same": lambda x: x,
}


class Names(NamedTuple):
    """How a project names the layers.

    In the templates {side} is "encoder" or "decoder", {level} counts resolutions from the finest, {step}
    counts them as the decoder comes to them, {i} counts the blocks of one level.

    Attributes:
        encoder_residual, encoder_attention, downsample: templates.
        decoder_residual, decoder_attention, upsample: templates.
        middle: templates of the bottleneck's residual, attention and second residual block.
        norm_out: template.
        residual: our layers of a residual block to theirs.
        attention: our layers of an attention block to theirs.
        attention_kind: "pointwise" or "linear", what their attention is made of.
    """

    encoder_residual: str
    encoder_attention: str
    downsample: str
    decoder_residual: str
    decoder_attention: str
    upsample: str
    middle: tuple[str, str, str]
    norm_out: str
    residual: Mapping[str, str]
    attention: Mapping[str, str]
    attention_kind: str


class Tensor(NamedTuple):
    """One parameter: its path here ("encoder/conv_in/kernel"), its name there, a key of `TO_TORCH`."""

    path: str
    name: str
    kind: str


def infer_fields(state: Mapping[str, np.ndarray], names: Names) -> dict[str, Any]:
    """The fields of an `ImageTokenizer` that the names and shapes in a state dict tell.

    Args:
        state: of the whole checkpoint.
        names: of its project.

    Raises:
        UserError: this is not such a network, or the widths of its levels are no multiples of the first.
    """
    first_convolution = f"{names.encoder_residual}.{names.residual['conv_1']}.weight"
    for name in (
        "encoder.conv_in.weight",
        first_convolution.format(level=0, i=0),
        "encoder.conv_out.weight",
        "decoder.conv_out.weight",
    ):
        if name not in state:
            raise UserError(
                f"The checkpoint has no tensor {name}, so it is not a VQ-GAN of this format; it begins with "
                f"{', '.join(list(state)[:3]) or 'nothing'}."
            )
    channels = state["encoder.conv_in.weight"].shape[0]
    widths = [
        state[first_convolution.format(level=level, i=0)].shape[0]
        for level in range(_count(state, first_convolution.format(level="{n}", i=0)))
    ]
    for level, width in enumerate(widths):
        if width % channels:
            raise UserError(
                f"Level {level} of the encoder has {width} channels, which is no multiple of the {channels} "
                "of encoder.conv_in; regvq_jax builds multiples only."
            )
    attention = f"{names.encoder_attention}.{names.attention['norm']}.weight"
    return dict(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_res_blocks=_count(state, first_convolution.format(level=0, i="{n}")),
        attention_levels=tuple(
            level for level in range(len(widths)) if attention.format(level=level, i=0) in state
        ),
        latent_channels=state["encoder.conv_out.weight"].shape[0],
        out_channels=state["decoder.conv_out.weight"].shape[0],
    )


def tensors(model: ImageTokenizer, names: Names, quantizer: Iterable[Tensor]) -> list[Tensor]:
    """Every parameter of a tokenizer, in the order in which an image meets them.

    Args:
        model: with the architecture "taming".
        names: of the other project.
        quantizer: the entries of the quantizer, which the projects do not share.
    """
    shapes = {path: leaf.shape for path, leaf in _flat(param_shapes(model)).items()}

    def layers(path: str, prefix: str, table: Mapping[str, str], matrix: str = "pointwise"):
        for ours, theirs in table.items():
            for leaf, tensor in (("scale", "weight"), ("kernel", "weight"), ("bias", "bias")):
                full = f"{path}/{ours}/{leaf}" if path else f"{ours}/{leaf}"
                if full in shapes:
                    kind = {1: "same", 2: matrix, 4: "conv"}[len(shapes[full])]
                    yield Tensor(full, f"{prefix}{theirs}.{tensor}", kind)

    def blocks(side: str, places: Iterable[tuple[str, str]]):
        numbers = {
            kind: itertools.count() for kind in ("ResBlock", "AttentionBlock", "Downsample", "Upsample")
        }
        for block, name in places:
            path = f"{side}/{block}_{next(numbers[block])}"
            if block == "ResBlock":
                yield from layers(path, f"{name}.", names.residual)
            elif block == "AttentionBlock":
                yield from layers(path, f"{name}.", names.attention, names.attention_kind)
            else:
                yield from layers(path, name, {"Conv_0": ""})

    def ends(side: str, *ours: str):
        theirs = {"conv_in": "conv_in", "norm_out": names.norm_out, "conv_out": "conv_out"}
        yield from layers(side, f"{side}.", {name: theirs[name] for name in ours})

    return [
        *ends("encoder", "conv_in"),
        *blocks("encoder", _encoder_places(model, names)),
        *ends("encoder", "norm_out", "conv_out"),
        *layers("", "", {"quant_conv": "quant_conv"}),
        *quantizer,
        *layers("", "", {"post_quant_conv": "post_quant_conv"}),
        *ends("decoder", "conv_in"),
        *blocks("decoder", _decoder_places(model, names)),
        *ends("decoder", "norm_out"),
        *layers("", "decoder.", {"conv_out": "conv_out"}),
    ]


def to_params(model: ImageTokenizer, state: Mapping[str, np.ndarray], table: Iterable[Tensor]) -> PyTree:
    """The parameters of `model` from a state dict, float32.

    Args:
        model: the network.
        state: of the whole checkpoint.
        table: every parameter of `model`, from `tensors`.

    Raises:
        UserError: a tensor is missing, has another shape, or belongs to no layer; the first one is named.
    """
    shapes = param_shapes(model)
    wanted = _flat(shapes)
    values = {}
    for path, name, kind in table:
        # Only the shape of it: a broadcast zero takes no memory.
        shape = TO_TORCH[kind](np.broadcast_to(np.float32(0), wanted[path].shape)).shape
        found = list(state[name].shape) if name in state else "absent"
        if found != list(shape):
            raise UserError(
                f"The tensor {name} is {found} in the checkpoint and {list(shape)} in the network that the "
                "other tensors describe."
            )
        values[path] = np.ascontiguousarray(FROM_TORCH[kind](np.asarray(state[name], np.float32)))
    known = {name for _, name, _ in table}
    unknown = [name for name in state if name.startswith(TOKENIZER_PREFIXES) and name not in known]
    if unknown:
        raise UserError(
            f"The checkpoint has {len(unknown)} tensor(s) that this network has no layer for, the first is "
            f"{unknown[0]} {list(state[unknown[0]].shape)}: its architecture is another one."
        )
    return jax.tree.map_with_path(lambda path, _: values[_name(path)], shapes)


def to_state(params: PyTree, table: Iterable[Tensor]) -> State:
    """The parameters as a float32 state dict; the inverse of `to_params`."""
    values = _flat(params)
    return {
        name: np.ascontiguousarray(TO_TORCH[kind](np.asarray(values[path], np.float32)))
        for path, name, kind in table
    }


def write_state(path: Path, state: State) -> None:
    """Writes a state dict to a .safetensors file that PyTorch projects read.

    Raises:
        UserError: no space, no permission, or no such directory.
    """
    write_bytes_atomic(path, safetensors.numpy.save(state, {"format": "pt"}))


def _encoder_places(model: ImageTokenizer, names: Names) -> Iterator[tuple[str, str]]:
    """(our kind of block, its name there), in the order of computation, which numbers ours."""
    last = len(model.multipliers) - 1
    for level in range(last + 1):
        for i in range(model.num_res_blocks):
            yield "ResBlock", names.encoder_residual.format(level=level, i=i)
            if level in model.attention_levels:
                yield "AttentionBlock", names.encoder_attention.format(level=level, i=i)
        if level < last:
            yield "Downsample", names.downsample.format(level=level)
    yield from _middle_places("encoder", names)


def _decoder_places(model: ImageTokenizer, names: Names) -> Iterator[tuple[str, str]]:
    last = len(model.multipliers) - 1
    yield from _middle_places("decoder", names)
    for step in range(last + 1):
        place = {"level": last - step, "step": step}
        for i in range(model.num_res_blocks + 1):
            yield "ResBlock", names.decoder_residual.format(i=i, **place)
            if place["level"] in model.attention_levels:
                yield "AttentionBlock", names.decoder_attention.format(i=i, **place)
        if step < last:
            yield "Upsample", names.upsample.format(**place)


def _middle_places(side: str, names: Names) -> Iterator[tuple[str, str]]:
    for block, name in zip(("ResBlock", "AttentionBlock", "ResBlock"), names.middle, strict=True):
        yield block, name.format(side=side)


def _count(state: Mapping[str, np.ndarray], template: str) -> int:
    return next(n for n in itertools.count() if template.format(n=n) not in state)


def _flat(tree: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
