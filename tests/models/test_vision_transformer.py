"""DINOv2 and CLIP's image encoder: the same features as transformers gives, from each layout of files."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop.vision_weights import load_clip_vision, load_dinov2
from regvq_jax.models.vision_transformer import VisionTransformer, resize_positions

SIZES = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
IMAGES = np.random.default_rng(0).normal(size=(3, 28, 28, 3)).astype(np.float32)
# Of a file for the errors: one head of 64, MLPs of 96, patches of 2, a grid of 3.
WIDTH, HIDDEN, PATCH, PLACES = 64, 96, 2, 10


def make_reference(name, config):
    """(torch, a model of transformers without a parameter that does nothing)."""
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config[0])(**config[1])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.2 if parameter.ndim == 1 else 0.1) * torch.randn_like(parameter)
    return torch, model


def check_shapes(module, params):
    image = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


def check_features(module, params, expected):
    out = jax.jit(lambda params, images: module.apply({"params": params}, images))(params, IMAGES)
    assert 0.1 < expected.std() < 10 and np.abs(expected[0] - expected[1]).mean() > 0.05
    np.testing.assert_allclose(out["features"], expected, atol=2e-5)


def to_facebook(weights):
    """Hugging Face's tensors of a DINOv2 in facebook's layout."""
    renamed = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    out = {}
    for name, array in weights.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        out[name] = array
    for name in [name for name in out if "attention.attention.query" in name]:
        parts = [out.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        out[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    return out


def test_dinov2_equals_transformers_in_every_layout(tmp_path):
    torch, model = make_reference("Dinov2Model", ("Dinov2Config", SIZES | {"mlp_ratio": 3}))
    with torch.no_grad():
        out = model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).last_hidden_state
    model.save_pretrained(tmp_path)
    module, params = load_dinov2(tmp_path / "model.safetensors", image_size=28)
    assert module == VisionTransformer(28, 7, 128, 2, 2, 384, "gelu", 1e-6)
    check_shapes(module, params)
    check_features(module, params, out[:, 0].numpy())

    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    others = {
        "facebook.pth": to_facebook(weights),
        "memory.pth": {name: array.numpy() for name, array in model.state_dict().items()},
        "classifier.pth": {f"dinov2.{name}": array for name, array in weights.items()},
    }
    for name, tensors in others.items():
        torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, tmp_path / name)
        other, again = load_dinov2(tmp_path / name, image_size=28)
        assert other == module
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_dinov2_positions_are_resized_as_facebook_does():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    positions = np.random.default_rng(0).normal(size=(1 + 37**2, 5))
    square = torch.from_numpy(positions[1:]).reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    for grid in (16, 40):
        scale = float((grid + 0.1) / math.sqrt(37**2))
        expected = torch.nn.functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        assert expected.shape == (1, 5, grid, grid)
        resized = resize_positions(positions, grid)
        assert resized.dtype == np.float32
        np.testing.assert_array_equal(resized[0], positions[0].astype(np.float32))
        np.testing.assert_allclose(
            resized[1:], expected.permute(0, 2, 3, 1).reshape(-1, 5).numpy(), atol=1e-6
        )


def test_a_resized_position_by_hand():
    # The centre of one place lies at 2 / 2.2 - 1 / 2 = 0.40909 between two; beyond the edges they repeat.
    x = 0.5 * 2 / 1.1 - 0.5
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * ((x + 1) ** 3 - 5 * (x + 1) ** 2 + 8 * (x + 1) - 4)
    second = 1 - near - far
    assert second == pytest.approx(0.398103, abs=1e-6)
    resized = resize_positions(np.array([[7], [0], [1], [2], [3]]), 1)
    np.testing.assert_allclose(resized, [[7], [second + 2 * second]], rtol=1e-6)
    np.testing.assert_array_equal(resize_positions(np.arange(5.0)[:, None], 2)[:, 0], np.arange(5))
    # Weights sum to 1.
    np.testing.assert_allclose(resize_positions(np.full((1 + 37**2, 1), 3.0), 16), 3, rtol=1e-6)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_equals_transformers(tmp_path, activation):
    config = SIZES | {"intermediate_size": 96, "projection_dim": 10, "hidden_act": activation}
    torch, model = make_reference("CLIPVisionModelWithProjection", ("CLIPVisionConfig", config))
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).image_embeds.numpy()
    model.save_pretrained(tmp_path)
    module, params = load_clip_vision(tmp_path / "model.safetensors")
    assert module == VisionTransformer(28, 7, 128, 2, 2, 96, activation, 1e-5, False, True, 10)
    check_shapes(module, params)
    check_features(module, params, expected)

    # The file of a whole CLIP has more; without a config.json the activation is OpenAI's.
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    weights |= {"logit_scale": np.array(4.0), "text_projection.weight": np.zeros((10, 4))}
    weights["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    (tmp_path / "whole").mkdir()
    safetensors.numpy.save_file(weights, tmp_path / "whole" / "model.safetensors")
    other, again = load_clip_vision(tmp_path / "whole" / "model.safetensors")
    assert other == module.clone(activation="quick_gelu")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def make_file(path, shapes, **changes):
    """A file of random tensors; a change to None leaves a tensor out. Returns its path."""
    shapes = {name: shape for name, shape in (shapes | changes).items() if shape is not None}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, path)
    return path


def layer_shapes(prefix, names, scales=()):
    shapes = {f"{prefix}{name}": (WIDTH,) for name in scales}
    for name, outputs, inputs in names:
        shapes |= {f"{prefix}{name}.weight": (outputs, inputs)[: 2 if inputs else 1]}
        shapes |= {f"{prefix}{name}.bias": (outputs,)}
    return shapes


FACEBOOK = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, PLACES, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": (WIDTH,),
    **layer_shapes("", [("norm", WIDTH, 0)]),
    **layer_shapes(
        "blocks.0.",
        [
            *[("norm1", WIDTH, 0), ("norm2", WIDTH, 0), ("attn.qkv", 3 * WIDTH, WIDTH)],
            *[("attn.proj", WIDTH, WIDTH), ("mlp.fc1", HIDDEN, WIDTH), ("mlp.fc2", WIDTH, HIDDEN)],
        ],
        ["ls1.gamma", "ls2.gamma"],
    ),
}
CLIP = {
    "vision_model.embeddings.class_embedding": (WIDTH,),
    "vision_model.embeddings.position_embedding.weight": (PLACES, WIDTH),
    "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
    "visual_projection.weight": (5, WIDTH),
    **layer_shapes("vision_model.", [("pre_layrnorm", WIDTH, 0), ("post_layernorm", WIDTH, 0)]),
    **layer_shapes(
        "vision_model.encoder.layers.0.",
        [
            *[("layer_norm1", WIDTH, 0), ("layer_norm2", WIDTH, 0)],
            *[(f"self_attn.{name}_proj", WIDTH, WIDTH) for name in ("q", "k", "v", "out")],
            *[("mlp.fc1", HIDDEN, WIDTH), ("mlp.fc2", WIDTH, HIDDEN)],
        ],
    ),
}


def test_files_of_half_precision(tmp_path):
    path = make_file(tmp_path / "model.safetensors", FACEBOOK)
    module, params = load_dinov2(path, image_size=8)
    assert (module.image_size, module.num_heads, module.depth) == (8, 1, 1)
    check_shapes(module, params)
    assert params["position_embedding"].shape == (17, WIDTH)
    tensors = safetensors.numpy.load_file(path)
    out, scale = params["layers"]["attention"]["out"], tensors["blocks.0.ls1.gamma"].astype(np.float64)
    kernel = tensors["blocks.0.attn.proj.weight"].astype(np.float64)
    assert out["kernel"][0, 0, 3, 7] == np.float32(kernel[7, 3] * scale[7])
    value = params["layers"]["attention"]["value"]["kernel"]
    assert value[0, 5, 0, 9] == tensors["blocks.0.attn.qkv.weight"][2 * WIDTH + 9, 5]
    check_shapes(*load_clip_vision(make_file(tmp_path / "clip.safetensors", CLIP)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None}, r"cls_token is missing, expected \(64\)"),
        ({"pos_embed": (1, 10, 32)}, r"pos_embed is \(10, 32\), expected \(any, 64\)"),
        ({"blocks.0.attn.qkv.bias": (WIDTH,)}, r"blocks\.0\.attn\.qkv\.bias is \(64,\), expected \(192\)"),
        ({"blocks.0.ls2.gamma": None}, r"blocks\.0\.ls2\.gamma is missing"),
        # The largest has another kind of MLP.
        ({"blocks.0.mlp.fc1.weight": None, "blocks.0.mlp.w12.weight": (9, 9)}, r"blocks\.0\.mlp\.fc1\.weig"),
        # A layer lost of several.
        ({"blocks.2.norm1.weight": (WIDTH,)}, r"blocks\.1\.attn\.qkv\.weight is missing"),
        ({"register_tokens": (1, 4, WIDTH)}, "it has register_tokens"),
        ({"embeddings.register_tokens": (1, 4, WIDTH)}, "it has embeddings.register_tokens"),
        ({"pos_embed": (1, 9, WIDTH)}, r"patches of \(2, 2\), 9 positions and a width of 64"),
        ({"patch_embed.proj.weight": (WIDTH, 3, 2, 4)}, r"patches of \(2, 4\)"),
        ({"patch_embed.proj.weight": (WIDTH, 1, 2, 2)}, r"is \(64, 1, 2, 2\), expected \(any, 3, any, any\)"),
    ],
)
def test_files_that_are_no_dinov2(tmp_path, changes, message):
    path = make_file(tmp_path / "other.safetensors", FACEBOOK, **changes)
    with pytest.raises(UserError, match=f"other.safetensors is not of DINOv2 without registers: .*{message}"):
        load_dinov2(path, image_size=6)


def test_files_of_another_network(tmp_path):
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight is missing.*; name dinov2_vitb14"):
        load_dinov2(make_file(tmp_path / "clip.safetensors", CLIP))
    with pytest.raises(UserError, match=r"patch_embedding\.weight is missing.* openai/clip-vit-large"):
        load_clip_vision(make_file(tmp_path / "dinov2.safetensors", FACEBOOK))
    bare = make_file(tmp_path / "bare.safetensors", CLIP, **{"visual_projection.weight": None})
    with pytest.raises(UserError, match=r"bare.safetensors is not of a CLIP .*visual_projection\.weight"):
        load_clip_vision(bare)
    with pytest.raises(UserError, match="Cannot read the weights in .*absent.pth"):
        load_dinov2(tmp_path / "absent.pth")


def test_sizes_that_cannot_be(tmp_path):
    path = make_file(tmp_path / "model.safetensors", FACEBOOK)
    for size in (7, 0):
        with pytest.raises(UserError, match=f"{size} pixels cannot be cut into patches of 2; choose a mult"):
            load_dinov2(path, image_size=size)
    module, _ = load_dinov2(path, image_size=6)
    with pytest.raises(ValueError, match=r"images of \(8, 8, 3\) for a network of 6 pixels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_config_beside_a_clip(tmp_path):
    path = make_file(tmp_path / "model.safetensors", CLIP)
    config = {"model_type": "clip", "vision_config": {"hidden_act": "gelu", "num_attention_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, params = load_clip_vision(path)
    assert (module.activation, module.num_heads) == ("gelu", 4)
    check_shapes(module, params)
    for content in ({"model_type": "vit", "hidden_act": "silu"}, ["clip"]):
        (tmp_path / "config.json").write_text(json.dumps(content))
        module, _ = load_clip_vision(path)
        assert (module.activation, module.num_heads) == ("quick_gelu", 1)
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model", "hidden_act": "silu"}')
    with pytest.raises(UserError, match="asks for hidden_act='silu'.*one of quick_gelu, gelu"):
        load_clip_vision(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        load_clip_vision(path)


def test_every_product_has_the_precision_of_float32():
    module = VisionTransformer(6, 2, 64, 2, 1, 96, embedding_norm=True, projection=5)
    jaxpr = str(jax.make_jaxpr(module.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 3))))
    # Patches and projection; queries, keys, values, two of attention, its output and the MLP.
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") >= 10
    assert "precision=None" not in jaxpr
