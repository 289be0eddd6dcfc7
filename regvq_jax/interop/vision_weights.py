"""Trained networks whose features compare sets of images: module and parameters."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.files import local_copy
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.clip_text import ACTIVATIONS
from regvq_jax.models.vision_transformer import VisionTransformer, resize_positions

Params = dict[str, Any]


class _Names(NamedTuple):
    """What the tensors of a vision transformer are called; from `attention_norm` on, in each layer."""

    class_token: str
    positions: str
    patch: str
    last_norm: str
    layer: str  # What names of a layer begin with, before its number.
    attention_norm: str
    qkv: tuple[str, ...]  # One name where queries, keys and values lie in one tensor.
    out: str
    mlp_norm: str
    mlp_in: str = "mlp.fc1"
    mlp_out: str = "mlp.fc2"
    attention_scale: str = ""  # Of what attention adds.
    mlp_scale: str = ""
    embedding_norm: str = ""
    projection: str = ""
    patch_bias: bool = True


_FACEBOOK_DINOV2 = _Names(
    class_token="cls_token",
    positions="pos_embed",
    patch="patch_embed.proj",
    last_norm="norm",
    layer="blocks.",
    attention_norm="norm1",
    qkv=("attn.qkv",),
    out="attn.proj",
    mlp_norm="norm2",
    attention_scale="ls1.gamma",
    mlp_scale="ls2.gamma",
)
_HUGGING_FACE_DINOV2 = _Names(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection",
    last_norm="layernorm",
    layer="encoder.layer.",
    attention_norm="norm1",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    mlp_norm="norm2",
    attention_scale="layer_scale1.lambda1",
    mlp_scale="layer_scale2.lambda1",
)
_DINOV2_LAYOUTS = (
    _FACEBOOK_DINOV2,
    _HUGGING_FACE_DINOV2,
    # The names of transformers 5 in memory; its files keep the old ones.
    _HUGGING_FACE_DINOV2._replace(
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"), out="attention.o_proj"
    ),
)
_CLIP = _Names(
    class_token="vision_model.embeddings.class_embedding",
    positions="vision_model.embeddings.position_embedding.weight",
    patch="vision_model.embeddings.patch_embedding",
    embedding_norm="vision_model.pre_layrnorm",  # Their spelling.
    last_norm="vision_model.post_layernorm",
    projection="visual_projection",
    layer="vision_model.encoder.layers.",
    attention_norm="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp_norm="layer_norm2",
    patch_bias=False,
)
_DINOV2_FILES = (
    "dinov2_vitb14_pretrain.pth or dinov2_vitl14_pretrain.pth from facebook, or model.safetensors of "
    "facebook/dinov2-base or facebook/dinov2-large from Hugging Face"
)
_CLIP_FILES = (
    "model.safetensors or pytorch_model.bin of openai/clip-vit-large-patch14-336 from Hugging Face, or of "
    "another CLIPModel or CLIPVisionModelWithProjection"
)


def load_dinov2(weights: str | os.PathLike, image_size: int = 224) -> tuple[VisionTransformer, Params]:
    """DINOv2 without registers, ViT-S/14, ViT-B/14 or ViT-L/14 by the sizes of its tensors.

    Args:
        weights: the file or URL of facebook's `dinov2_vit?14_pretrain.pth`, or of Hugging Face's weights of a
            Dinov2Model.
        image_size: height and width of the images, in pixels. The position embeddings of the training's 518
            are resized as facebook's code does; transformers' gives somewhat other features.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, images)`,
        for images that have ImageNet's mean and deviation. The feature is facebook's `x_norm_clstoken`.

    Raises:
        UserError: there is no such file, it cannot be read, it is of another network, or no number of its
            patches fills the images.
    """
    file = _read(weights, "DINOv2 without registers", _DINOV2_FILES, prefix="dinov2.")
    for name in ("register_tokens", "embeddings.register_tokens"):
        if name in file.tensors:
            raise file.error(f"it has {name}")

    def missing(names: _Names) -> int:
        told = [names.class_token, *(f"{names.layer}0.{part}.weight" for part in (*names.qkv, names.out))]
        return sum(name not in file.tensors for name in told)

    return _load(file, min(_DINOV2_LAYOUTS, key=missing), "gelu", 1e-6, image_size=image_size)


def load_clip_vision(weights: str | os.PathLike) -> tuple[VisionTransformer, Params]:
    """CLIP's image encoder and its projection, with the sizes of its tensors.

    Args:
        weights: the file or URL of Hugging Face's weights of a CLIPVisionModelWithProjection or of a whole
            CLIPModel. Where a CLIP's config.json lies beside it, the activation and the number of heads are
            those in it; else they are OpenAI's, quick_gelu and one for each 64 of the width.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, images)`,
        for images that have CLIP's mean and deviation. The feature is transformers' `image_embeds`.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of another network.
    """
    file = _read(weights, "a CLIP with an image projection", _CLIP_FILES)
    config = _clip_config(file.path.parent / "config.json")
    activation, epsilon = config.get("hidden_act", "quick_gelu"), config.get("layer_norm_eps", 1e-5)
    return _load(file, _CLIP, activation, epsilon, num_heads=config.get("num_attention_heads"))


class _File(NamedTuple):
    """The tensors of a file by name, of what network they should be, and which files are."""

    path: Path
    tensors: dict[str, np.ndarray]
    kind: str
    files: str

    def get(self, name: str, *shape: int | None) -> np.ndarray:
        """A tensor as float32 of this shape, None = any length; axes of 1 in front of it are dropped."""
        array = self.tensors.get(name)
        while array is not None and array.ndim > len(shape) and array.shape[0] == 1:
            array = array[0]
        found = "missing" if array is None else array.shape
        if array is None or len(found) != len(shape) or any(
            want not in (None, length) for want, length in zip(shape, found, strict=True)
        ):
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise self.error(f"{name} is {found}, expected ({wanted})")
        return array.astype(np.float32, copy=False)

    def depth(self, layer: str) -> int:
        """The number of layers, each network having one; `layer` is what their names begin with."""
        rests = (name.removeprefix(layer) for name in self.tensors if name.startswith(layer))
        numbers = (rest.split(".")[0] for rest in rests)
        return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)

    def error(self, what: str) -> UserError:
        """A UserError that says what does not fit."""
        return UserError(f"{self.path} is not of {self.kind}: {what}; name {self.files}.")


def _read(weights: str | os.PathLike, kind: str, files: str, prefix: str = "") -> _File:
    path = local_copy(weights)
    tensors = {name.removeprefix(prefix): array for name, array in read_torch_file(path).items()}
    return _File(path, tensors, kind, files)


def _load(
    file: _File,
    names: _Names,
    activation: str,
    epsilon: float,
    num_heads: int | None = None,
    image_size: int | None = None,
) -> tuple[VisionTransformer, Params]:
    kernel = file.get(f"{names.patch}.weight", None, 3, None, None)
    width, _, height, patch_size = kernel.shape
    positions = file.get(names.positions, None, width)
    trained = math.isqrt(len(positions) - 1)
    num_heads = num_heads or max(width // 64, 1)
    if height != patch_size or trained**2 != len(positions) - 1 or width % num_heads:
        raise file.error(
            f"it has patches of {kernel.shape[2:]}, {len(positions)} positions and a width of {width}"
        )
    grid = trained if image_size is None else image_size // patch_size
    if image_size not in (None, grid * patch_size) or grid < 1:
        raise UserError(
            f"Images of {image_size} pixels cannot be cut into patches of {patch_size}; "
            f"choose a multiple of {patch_size}."
        )
    params = {
        "patch_embedding": {"kernel": kernel.transpose(2, 3, 1, 0)},
        "class_token": file.get(names.class_token, width),
        "position_embedding": resize_positions(positions, grid),
        "last_norm": _norm(file, names.last_norm, width),
    }
    if names.patch_bias:
        params["patch_embedding"]["bias"] = file.get(f"{names.patch}.bias", width)
    if names.embedding_norm:
        params["embedding_norm"] = _norm(file, names.embedding_norm, width)
    if names.projection:
        params["projection"] = {"kernel": file.get(f"{names.projection}.weight", None, width).T}
    module = VisionTransformer(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        depth=file.depth(names.layer),
        num_heads=num_heads,
        hidden=len(file.get(f"{names.layer}0.{names.mlp_in}.weight", None, width)),
        activation=activation,
        epsilon=epsilon,
        patch_bias=names.patch_bias,
        embedding_norm=bool(names.embedding_norm),
        projection=params["projection"]["kernel"].shape[1] if names.projection else 0,
    )
    layers = [_layer(file, names, f"{names.layer}{index}.", module) for index in range(module.depth)]
    params["layers"] = jax.tree.map(lambda *arrays: np.stack(arrays), *layers)
    return module, params


def _layer(file: _File, names: _Names, prefix: str, module: VisionTransformer) -> Params:
    width, hidden, heads = module.width, module.hidden, (module.num_heads, -1)

    def dense(name: str, inputs: int, outputs: int, scale: str = "") -> Params:
        kernel = file.get(f"{prefix}{name}.weight", outputs, inputs).T
        bias = file.get(f"{prefix}{name}.bias", outputs)
        if scale:
            # In float64: folding must not cost digits.
            factor = file.get(f"{prefix}{scale}", outputs).astype(np.float64)
            kernel, bias = (kernel * factor).astype(np.float32), (bias * factor).astype(np.float32)
        return {"kernel": kernel, "bias": bias}

    fused = [dense(name, width, 3 * width // len(names.qkv)) for name in names.qkv]
    kernel, bias = (np.concatenate([part[kind] for part in fused], -1) for kind in ("kernel", "bias"))
    kernel, bias = kernel.reshape(width, 3, width), bias.reshape(3, width)
    attention = {
        name: {"kernel": kernel[:, i].reshape(width, *heads), "bias": bias[i].reshape(heads)}
        for i, name in enumerate(("query", "key", "value"))
    }
    out = dense(names.out, width, width, names.attention_scale)
    attention["out"] = out | {"kernel": out["kernel"].reshape(*heads, width)}
    return {
        "attention_norm": _norm(file, prefix + names.attention_norm, width),
        "attention": attention,
        "mlp_norm": _norm(file, prefix + names.mlp_norm, width),
        "mlp_in": dense(names.mlp_in, width, hidden),
        "mlp_out": dense(names.mlp_out, hidden, width, names.mlp_scale),
    }


def _norm(file: _File, name: str, width: int) -> Params:
    return {"scale": file.get(f"{name}.weight", width), "bias": file.get(f"{name}.bias", width)}


def _clip_config(path: Path) -> dict[str, Any]:
    """The part on images of the config.json of a CLIP; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again.") from error
    # Any config.json may lie beside a file.
    if not isinstance(config, dict) or config.get("model_type") not in ("clip", "clip_vision_model"):
        return {}
    config = config.get("vision_config") or config
    if config.get("hidden_act", "quick_gelu") not in ACTIVATIONS:
        raise UserError(
            f"{path} asks for hidden_act={config['hidden_act']!r}, which the vision transformer does not "
            f"have; choose a CLIP with one of {', '.join(ACTIVATIONS)}."
        )
    return config
