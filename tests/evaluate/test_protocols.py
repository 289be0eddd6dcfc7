"""Under each protocol a network sees what its namesake shows it, and no protocol is taken for another."""

import dataclasses
import hashlib
import types
from unittest import mock

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from regvq_jax import sharding
from regvq_jax.errors import UserError
from regvq_jax.evaluate.protocols import PROTOCOLS, Extractor, make_extractor
from regvq_jax.interop import inception_weights
from regvq_jax.models.inception import InceptionV3
from tests.evaluate import torch_fidelity_parts

# Enlarged, and made smaller along one axis more than along the other.
SHAPES = [(40, 56), (400, 350)]
INCEPTION = ["torch-fidelity", "pytorch-fid", "clean-fid", "adm"]


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """No network, and no weights of this machine's."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(inception_weights.ENVIRONMENT, raising=False)
    monkeypatch.setattr(inception_weights, "MIRRORS", ())


def draw(shape, count=2):
    """Black, white and coloured squares with noise: at their edges a bicubic filter leaves [0, 255]."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 2, (count, *(side // 8 + 1 for side in shape), 3), dtype=np.uint8)
    squares = 255 * squares.repeat(8, 1).repeat(8, 2)[:, : shape[0], : shape[1]]
    noise = rng.integers(0, 256, squares.shape, dtype=np.uint8)
    return np.where(rng.random(squares.shape) < 0.1, noise, squares)


def pillow(images, size):
    """Pillow's bicubic filter on each channel in float, clipped: float32 [B, size, size, 3]."""
    out = np.empty((len(images), size, size, 3), np.float32)
    for index in np.ndindex(len(images), 3):
        channel = Image.fromarray(images[index[0], :, :, index[1]].astype(np.float32))
        out[index[0], :, :, index[1]] = channel.resize((size, size), Image.Resampling.BICUBIC)
    assert out.min() < 0 and out.max() > 255
    return out.clip(0, 255)


def reference(name, images):
    """What the protocol's namesake gives its network, from other libraries."""
    if name in ("torch-fidelity", "adm", "pytorch-fid"):
        torch = pytest.importorskip("torch", reason="needs the extra [parity]")
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
        if name == "pytorch-fid":
            interpolate = torch.nn.functional.interpolate
            x = interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
        else:
            interpolate = torch_fidelity_parts.load().interpolate.interpolate_bilinear_2d_like_tensorflow1x
            x = (interpolate(x, size=(299, 299), align_corners=False) - 128) / 128
        return x.numpy().transpose(0, 2, 3, 1)
    if name == "clean-fid":
        return (pillow(images, 299) - 128) / 128
    if name == "efficientnet_lite0":
        return (pillow(images, 224) - 127) / 128
    if name == "clip_vitl14_336":
        # The published CMMD lets Pillow enlarge or shrink the bytes themselves.
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        return (pillow(images, 336) / 255 - mean) / std
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return (pillow(images, 224) / 255 - mean) / std


class Pixels:
    """A network that gives back what it sees."""

    def apply(self, variables, images):
        return {"features": images.reshape(len(images), -1)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_the_network_sees(name, shape):
    images = draw(shape)
    expected = reference(name, images)
    seen = Extractor(name, PROTOCOLS[name], Pixels(), {}, "")({}, images)["features"]
    assert seen.dtype == jnp.float32
    # A hundredth of a grey level is 1e-4 of these; torch has its places in float32.
    np.testing.assert_allclose(seen, expected.reshape(2, -1), rtol=0, atol=3e-4)


def test_no_two_of_them_show_the_same():
    """But ADM's, which is TensorFlow's as torch-fidelity's."""
    images = draw((64, 64), 1)
    seen = {
        name: np.asarray(Extractor(name, PROTOCOLS[name], Pixels(), {}, "")({}, images)["features"])
        for name in INCEPTION
    }
    np.testing.assert_array_equal(seen.pop("adm"), seen["torch-fidelity"])
    assert np.abs(seen["torch-fidelity"] - seen["pytorch-fid"]).max() > 0.1
    assert np.abs(seen["clean-fid"] - seen["pytorch-fid"]).max() > 0.1
    about = {name: PROTOCOLS[name].about for name in INCEPTION}
    assert len(set(about.values())) == 3


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """An extractor of random weights, loaded from a file, and the same network in torch."""
    network = torch_fidelity_parts.random_inception()
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    folder = tmp_path_factory.mktemp("inception")
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGVQ_JAX_CACHE", str(folder / "cache"))
        extractor = make_extractor(f"torch-fidelity@{path}#sha256={digest[:10]}")
    assert extractor.digest == digest and isinstance(extractor.module, InceptionV3)
    assert extractor.num_features == 2048
    # Compiled once for all that is shown to it.
    compiled = types.SimpleNamespace(apply=jax.jit(extractor.module.apply))
    return dataclasses.replace(extractor, module=compiled), network


@pytest.mark.parametrize("name", INCEPTION)
def test_features_under_each_protocol_of_fid(inception, name):
    import torch

    extractor, network = inception
    extractor = dataclasses.replace(extractor, name=name, protocol=PROTOCOLS[name])
    for shape in SHAPES:
        images = draw(shape, 1)
        out = extractor(extractor.params, images)
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        if name in ("torch-fidelity", "adm"):
            expected = network(tensor)
        else:
            # Shown what was resized elsewhere; its own scaling is undone.
            shown = torch.from_numpy(reference(name, images).transpose(0, 3, 1, 2).copy()) * 128 + 128
            inception = torch_fidelity_parts.load().inception
            resize = "interpolate_bilinear_2d_like_tensorflow1x"
            with mock.patch.object(inception, resize, return_value=shown):
                expected = network(tensor)
        for ours, theirs in zip((out["features"], out["logits"]), expected, strict=True):
            theirs = theirs.numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_what_a_result_file_is_told(inception):
    extractor, _ = inception
    assert extractor.is_inception and extractor.tag == "torch_fidelity"
    assert extractor.describe() == {
        "name": "torch-fidelity",
        "network": "inception",
        "weights_sha256": extractor.digest,
        "preprocessing": PROTOCOLS["torch-fidelity"].about,
        "features": 2048,
    }
    assert len(repr(extractor)) < 1000


class Sums:
    """A network whose features depend on parameters, traced as often as it is compiled."""

    def __init__(self):
        self.traced = []

    def apply(self, variables, images):
        self.traced.append(images.shape)
        sums = images.sum((1, 2)) * variables["params"]["scale"]
        return {"features": sums / jnp.where(sums[:, :1] > 0, 1, 0)}


def test_compiled_for_a_mesh():
    network = Sums()
    protocol = dataclasses.replace(PROTOCOLS["torch-fidelity"], network="sums", size=8)
    extractor = Extractor("sums", protocol, network, {"scale": np.float32(2)}, "")
    assert not extractor.is_inception and extractor.num_features == 3
    images = draw((8, 8), 16)
    images[:, :, :, 0] = 200
    images[5] = 0  # Its features are not finite.
    before = len(network.traced)
    for mesh in (sharding.make_mesh(4, 2), sharding.make_mesh(devices=jax.devices()[:1])):
        for _ in range(2):
            batch = sharding.put_batch({"image": images}, mesh)["image"]
            out = extractor.compiled(mesh)(batch)
            assert out["features"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
            np.testing.assert_array_equal(out["finite"], np.arange(16) != 5)
            expected = 2 * ((images.astype(np.float32) - 128) / 128).sum((1, 2))
            good = np.arange(16) != 5
            np.testing.assert_allclose(out["features"][good], expected[good], rtol=1e-5)
    assert network.traced[before:] == [(16, 8, 8, 3)] * 2


def test_unknown_protocols():
    with pytest.raises(UserError, match='no protocol "torch_fidelity". Did you mean "torch-fidelity".*adm'):
        make_extractor("torch_fidelity")
    with pytest.raises(UserError, match='no protocol "fid".*Valid: torch-fidelity, pytorch-fid, clean-fid'):
        make_extractor("fid@weights.pth")


@pytest.mark.parametrize("name", INCEPTION)
def test_fid_without_its_weights(name):
    with pytest.raises(UserError, match="could not be had.* fetch weights-inception-2015-12-05-6726825d.pth"):
        make_extractor(name)
    with pytest.raises(UserError, match="The weights nowhere.pth do not exist"):
        make_extractor(f"{name}@nowhere.pth")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dinov2_vitb14", "dinov2_vitb14_pretrain.pth"),
        ("dinov2_vitl14", "dinov2_vitl14_pretrain.pth"),
        ("clip_vitl14_336", "model.safetensors of openai/clip-vit-large-patch14-336"),
    ],
)
def test_protocols_that_need_a_file_say_which(name, file):
    with pytest.raises(UserError, match=f"{name} needs a file.*fetch {file}.*--weights=FILE.*'{name}@FILE'"):
        make_extractor(name)


def test_the_packaged_network():
    extractor = make_extractor("efficientnet_lite0")
    assert extractor.num_features == 1280 and extractor.tag == "efficientnet_lite0"
    assert not extractor.is_inception and len(extractor.digest) == 64
    with pytest.raises(UserError, match="efficientnet_lite0 has weights of its own: leave dino.pth away"):
        make_extractor("efficientnet_lite0@dino.pth")


def dinov2(width):
    """A DINOv2 of one layer, in facebook's names, for images of 518 pixels."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {
        **{"cls_token": (1, 1, width), "pos_embed": (1, 1 + 37**2, width)},
        **{"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)},
        **{"blocks.0.attn.qkv.weight": (3 * width, width), "blocks.0.attn.qkv.bias": (3 * width,)},
        **{"blocks.0.attn.proj.weight": (width, width), "blocks.0.attn.proj.bias": (width,)},
        **{"blocks.0.mlp.fc1.weight": (8, width), "blocks.0.mlp.fc1.bias": (8,)},
        **{"blocks.0.mlp.fc2.weight": (width, 8), "blocks.0.mlp.fc2.bias": (width,)},
        **{f"blocks.0.ls{i}.gamma": (width,) for i in (1, 2)},
    }  # fmt: skip
    for norm in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {name: 0.3 * draw(shape, np.float32) for name, shape in shapes.items()}


def clip(image_size, projection):
    """A CLIP of one layer, one head and a width of 64, in Hugging Face's names."""
    draw = np.random.default_rng(0).standard_normal
    layer = "vision_model.encoder.layers.0"
    shapes = {
        "vision_model.embeddings.class_embedding": (64,),
        "vision_model.embeddings.position_embedding.weight": (1 + (image_size // 14) ** 2, 64),
        "vision_model.embeddings.patch_embedding.weight": (64, 3, 14, 14),
        "visual_projection.weight": (projection, 64),
        **{f"{layer}.self_attn.{x}_proj.weight": (64, 64) for x in ("q", "k", "v", "out")},
        **{f"{layer}.self_attn.{x}_proj.bias": (64,) for x in ("q", "k", "v", "out")},
        **{f"{layer}.mlp.fc1.weight": (8, 64), f"{layer}.mlp.fc1.bias": (8,)},
        **{f"{layer}.mlp.fc2.weight": (64, 8), f"{layer}.mlp.fc2.bias": (64,)},
    }
    norms = (f"{layer}.layer_norm1", f"{layer}.layer_norm2", "vision_model.pre_layrnorm")
    for norm in (*norms, "vision_model.post_layernorm"):
        shapes |= {f"{norm}.weight": (64,), f"{norm}.bias": (64,)}
    return {name: 0.1 * draw(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "make", "sizes"), [("dinov2_vitb14", dinov2, (768,)), ("clip_vitl14_336", clip, (336, 768))]
)
def test_weights_that_the_user_brings(tmp_path, name, make, sizes):
    content = safetensors.numpy.save(make(*sizes))
    (tmp_path / "weights.safetensors").write_bytes(content)
    fsspec.filesystem("memory").pipe(f"/{name}/model.safetensors", content)
    for where in (tmp_path / "weights.safetensors", f"memory://{name}/model.safetensors"):
        extractor = make_extractor(f"{name}@{where}")
        assert extractor.num_features == 768
        assert extractor.digest == hashlib.sha256(content).hexdigest()
    features = extractor(extractor.params, draw((20, 30)))["features"]
    assert features.shape == (2, 768) and np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "make", "sizes", "message"),
    [
        ("dinov2_vitl14", dinov2, (768,), "gives 768 features, and dinov2_vitl14 has 1024"),
        ("clip_vitl14_336", clip, (336, 512), "gives 512 features, and clip_vitl14_336 has 768"),
        # CLIP ViT-L/14 of 224 pixels, which has as many features.
        ("clip_vitl14_336", clip, (224, 768), "takes images of 224 pixels, and clip_vitl14_336 has 336"),
        ("clip_vitl14_336", dinov2, (64,), "is not of a CLIP"),
        ("dinov2_vitb14", clip, (224, 768), "is not of DINOv2"),
    ],
)
def test_weights_of_another_network(tmp_path, name, make, sizes, message):
    safetensors.numpy.save_file(make(*sizes), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"weights.safetensors {message}"):
        make_extractor(f"{name}@{tmp_path / 'weights.safetensors'}")
