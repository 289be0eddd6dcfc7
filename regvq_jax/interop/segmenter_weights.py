"""A trained SegFormer from a file in the layout of Hugging Face's transformers: module and parameters."""

import os
import re
from typing import Any

import jax
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.files import local_copy
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.segformer import SegFormer

Params = dict[str, Any]

_ENCODER = "segformer.encoder"
_HEAD = "decode_head"
# No shape tells them: every MiT, from B0 to B5, has these.
_NUM_HEADS = (1, 2, 5, 8)
_NORM_EPSILON = 1e-5  # of the head's batch norm
_EXPECTED = (
    "the file of a SegformerForSemanticSegmentation, such as model.safetensors or pytorch_model.bin of "
    "nvidia/segformer-b5-finetuned-ade-640-640"
)

# Our layers of a stage to theirs; {stage} counts from 0, {layer} counts ours that are stacked.
_NAMES = {
    "patch": "patch_embeddings.{stage}.proj",
    "patch_norm": "patch_embeddings.{stage}.layer_norm",
    "layers/attention_norm": "block.{stage}.{layer}.layer_norm_1",
    "layers/reduce": "block.{stage}.{layer}.attention.self.sr",
    "layers/reduce_norm": "block.{stage}.{layer}.attention.self.layer_norm",
    "layers/attention/query": "block.{stage}.{layer}.attention.self.query",
    "layers/attention/key": "block.{stage}.{layer}.attention.self.key",
    "layers/attention/value": "block.{stage}.{layer}.attention.self.value",
    "layers/attention/out": "block.{stage}.{layer}.attention.output.dense",
    "layers/mlp_norm": "block.{stage}.{layer}.layer_norm_2",
    "layers/mlp_in": "block.{stage}.{layer}.mlp.dense1",
    "layers/mlp_mix": "block.{stage}.{layer}.mlp.dwconv.dwconv",
    "layers/mlp_out": "block.{stage}.{layer}.mlp.dense2",
    "norm": "layer_norm.{stage}",
}


def load_segformer(path: str | os.PathLike) -> tuple[SegFormer, Params]:
    """A SegFormer with the sizes and the weights of a file.

    Args:
        path: a file of transformers' `save_pretrained` for a SegformerForSemanticSegmentation, safetensors or
            of torch.save; local or at a URL.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, images)`.

    Raises:
        UserError: there is no such file, it cannot be read, or a weight is missing or of another shape.
    """
    weights = _Weights(path)
    module = _read_sizes(weights)
    side = module.smallest_image()
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = {}
    for stage, depth in enumerate(module.depths):
        params[f"stage_{stage}"] = _read_stage(weights, shapes[f"stage_{stage}"], stage, depth)
    return module, params | _read_head(weights, module)


class _Weights:
    """The tensors of a file, and one sentence about the first that does not fit."""

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        self.tensors = read_torch_file(local_copy(path))

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor with so many dimensions."""
        if name not in self.tensors:
            raise self.error(f"{name} is missing")
        shape = self.tensors[name].shape
        if len(shape) != dimensions:
            raise self.error(f"{name} is {shape}, expected {dimensions} dimensions")
        return shape

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor of this shape as float32."""
        if name not in self.tensors:
            raise self.error(f"{name} is missing, expected {shape}")
        if self.tensors[name].shape != shape:
            raise self.error(f"{name} is {self.tensors[name].shape}, expected {shape}")
        return self.tensors[name].astype(np.float32)

    def error(self, reason: str) -> UserError:
        """To be raised."""
        return UserError(f"{self._path} is not of a SegFormer: {reason}; name {_EXPECTED}.")


def _read_sizes(weights: _Weights) -> SegFormer:
    widths, depths, reductions, hidden = [], [], [], []
    for stage, heads in enumerate(_NUM_HEADS):
        name = f"{_ENCODER}.patch_embeddings.{stage}.proj.weight"
        widths.append(weights.shape(name, 4)[0])
        if widths[-1] % heads:
            raise weights.error(f"{name} makes features of width {widths[-1]}, expected {heads} heads in it")
        block = f"{_ENCODER}.block.{stage}"
        hidden.append(weights.shape(f"{block}.0.mlp.dense1.weight", 2)[0])
        found = (re.match(rf"{re.escape(block)}\.(\d+)\.", known) for known in weights.tensors)
        depths.append(1 + max(int(match[1]) for match in found if match))
        # Where nothing is reduced there is no such layer.
        reduce = f"{block}.0.attention.self.sr.weight"
        reductions.append(weights.shape(reduce, 4)[-1] if reduce in weights.tensors else 1)
    num_classes, head_width, _, _ = weights.shape(f"{_HEAD}.classifier.weight", 4)
    return SegFormer(
        num_classes=num_classes,
        widths=tuple(widths),
        depths=tuple(depths),
        num_heads=_NUM_HEADS,
        reductions=tuple(reductions),
        hidden=tuple(hidden),
        head_width=head_width,
    )


def _read_stage(weights: _Weights, shapes: Params, stage: int, depth: int) -> Params:
    def read(key_path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        *layers, kind = (key.key for key in key_path)
        theirs = _NAMES["/".join(layers)]
        template = f"{_ENCODER}.{theirs}.{'bias' if kind == 'bias' else 'weight'}"
        if layers[0] != "layers":
            return get(template.format(stage=stage), kind, layers[-1], leaf.shape)
        names = [template.format(stage=stage, layer=layer) for layer in range(depth)]
        return np.stack([get(name, kind, layers[-1], leaf.shape[1:]) for name in names])

    def get(name: str, kind: str, layer: str, shape: tuple[int, ...]) -> np.ndarray:
        if kind != "kernel":
            return weights.get(name, (int(np.prod(shape)),)).reshape(shape)
        if len(shape) == 4:
            height, width, inputs, outputs = shape
            return weights.get(name, (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
        # Heads have an axis of their own here.
        inputs = int(np.prod(shape[:-1])) if layer == "out" else shape[0]
        return weights.get(name, (int(np.prod(shape)) // inputs, inputs)).T.reshape(shape)

    return jax.tree.map_with_path(read, shapes)


def _read_head(weights: _Weights, module: SegFormer) -> Params:
    """The head with its batch norm and both of its linear maps in one a stage; see `SegFormer`."""
    stages, width = len(module.widths), module.head_width

    def get(name: str, *shape: int) -> np.ndarray:
        # Products of weights, rounded once, at the end.
        return weights.get(f"{_HEAD}.{name}", shape).astype(np.float64)

    mean, variance = get("batch_norm.running_mean", width), get("batch_norm.running_var", width)
    scale = get("batch_norm.weight", width) / np.sqrt(variance + _NORM_EPSILON)
    fuse = get("linear_fuse.weight", width, stages * width, 1, 1)[:, :, 0, 0].T * scale
    # There the coarsest stage comes first.
    fuse = fuse.reshape(stages, width, width)[::-1]
    bias = get("batch_norm.bias", width) - mean * scale
    head = {}
    for stage, inputs in enumerate(module.widths):
        project = get(f"linear_c.{stage}.proj.weight", width, inputs).T
        bias = bias + get(f"linear_c.{stage}.proj.bias", width) @ fuse[stage]
        head[f"head_{stage}"] = {"kernel": project @ fuse[stage]}
    head["head_0"]["bias"] = bias
    head["classifier"] = {
        "kernel": get("classifier.weight", module.num_classes, width, 1, 1)[:, :, 0, 0].T,
        "bias": get("classifier.bias", module.num_classes),
    }
    return jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), head)
