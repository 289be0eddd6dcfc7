"""FID's network equals torch-fidelity's, and rounds nowhere."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.interop.inception_weights import load_inception
from regvq_jax.models.inception import INPUT_SIZE, InceptionV3, _average
from tests.evaluate import torch_fidelity_parts

IMAGE = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)


@pytest.fixture(scope="module")
def abstract_params():
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), IMAGE)["params"]


def test_layers(abstract_params):
    assert len(abstract_params) == 95 and set(abstract_params["fc"]) == {"kernel"}
    # As in torchvision, which has a scale and a bias for each norm: one number more a channel.
    convolutions = [layer for name, layer in abstract_params.items() if name != "fc"]
    channels = sum(layer["bias"].size for layer in convolutions)
    assert sum(layer["kernel"].size for layer in convolutions) + 2 * channels == 21_785_568


def test_no_product_is_rounded(abstract_params):
    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", None)
                if inner is not None:
                    yield from walk(getattr(inner, "jaxpr", inner))

    apply = lambda params, images: InceptionV3().apply({"params": params}, images)
    products = [
        equation.params["precision"]
        for equation in walk(jax.make_jaxpr(apply)(abstract_params, IMAGE).jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) == 95
    assert set(products) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_an_average_leaves_padding_out():
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    expected = [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]
    np.testing.assert_allclose(_average(x)[0, :, :, 0], expected)


def test_equals_torch_fidelity(tmp_path, monkeypatch):
    """From a file of torch.save, by way of folded norms, to features and logits."""
    network = torch_fidelity_parts.random_inception()
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module, params, found = load_inception(f"{path}#sha256={digest[:8]}")
    assert found == digest
    # Read again, from the copy: the same numbers.
    again = load_inception(f"{path}#sha256={digest}")[1]
    jax.tree.map(np.testing.assert_array_equal, again, params)

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:INPUT_SIZE, 0:INPUT_SIZE]
    images[1] = np.stack([rows * 255 // 298, columns * 255 // 298, (rows * columns) % 256], -1)
    images[2] = 255 * (rows // 30 % 2)[..., None]  # Not like its transpose.
    images[3] = 0
    scaled = (images.astype(np.float32) - 128) / 128
    out = jax.jit(lambda params, x: module.apply({"params": params}, x))(params, scaled)
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for ours, theirs in zip((out["features"], out["logits"]), expected, strict=True):
        theirs = theirs.numpy()
        # The images are told apart by much more than the difference.
        assert np.ptp(theirs, axis=0).max() > 0.3 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
