import jax
import numpy as np
import pytest

from regvq_jax import losses, sharding
from regvq_jax.data.ranges import to_uint8, to_unit_range
from regvq_jax.evaluate import reconstruction
from regvq_jax.evaluate.features import ImageSet
from regvq_jax.evaluate.reconstruction import Reconstruction
from regvq_jax.models.imagenet import ImageNetFeatures
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer

MODEL = ImageTokenizer(
    quantizer=Quantizer(codebook_size=16, code_dim=4),
    channels=8,
    multipliers=(1, 1),
    num_res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    latent_channels=8,
)


@pytest.fixture(scope="module")
def ema():
    return {"tokenizer": MODEL.init(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))["params"]}


def image_set(images, size):
    def batches():
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            index = np.minimum(start + np.arange(size), len(images) - 1)
            yield {
                "image": np.concatenate([part, padding]),
                "valid": np.arange(size) < len(part),
                "index": index,
            }

    return ImageSet("test images", len(images), batches)


def test_padding_batch_size_and_devices_change_nothing(ema, one_device_mesh):
    images = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)
    results = []
    for size, mesh in ((8, one_device_mesh), (16, one_device_mesh), (8, sharding.make_mesh(2, 2, 2))):
        evaluator = Reconstruction(MODEL, image_set(images, size), num_shown=6)
        results.append(evaluator(ema, {}, mesh))
    first = results[0].metrics
    assert first["eval/reconstruction/images"] == 11 and first["codebook/tokens"] == 11 * 36
    assert 0 < first["codebook/usage"] <= 1 and 1 <= first["codebook/perplexity"] <= 16
    record = results[0].records["codebook"]
    assert sum(record["counts"]) == 11 * 36 and len(record["dead_codes"]) == record["counts"].count(0)
    for other in results[1:]:
        assert other.metrics == pytest.approx(first, rel=1e-4)
        assert set(other.images) == {"reconstructions", "codebook"}
        np.testing.assert_allclose(
            other.images["reconstructions"].astype(int),
            results[0].images["reconstructions"],
            atol=2,
        )


@pytest.fixture
def lpips(monkeypatch):
    """(network, parameters) of an LPIPS that knows nothing, in the place of the one in its package."""
    network = ImageNetFeatures("alexnet")
    params = jax.jit(network.init)(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))["params"]
    heads = [np.linspace(0, 1, width, dtype=np.float32) for width in (64, 192, 384, 256, 256)]
    found = network, jax.device_get({"features": params, "heads": heads})
    monkeypatch.setattr(reconstruction, "load_lpips", lambda name: {"alexnet": found}[name])
    return found


def test_lpips_is_the_mean_over_valid_images_and_sent_to_the_devices_once(
    ema, lpips, one_device_mesh, monkeypatch
):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    decoded = to_uint8(jax.jit(MODEL.apply)({"params": ema["tokenizer"]}, to_unit_range(images)))
    network, params = lpips
    taps = [network.apply({"params": params["features"]}, to_unit_range(x)) for x in (images, decoded)]
    expected = np.mean(losses.lpips(*taps, params["heads"]))

    sent = []
    device_put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *where: sent.append(x) or device_put(x, *where))
    evaluator = Reconstruction(MODEL, image_set(images, 8), num_shown=1, lpips="alexnet")
    for _ in range(2):
        metrics = evaluator(ema, {}, one_device_mesh).metrics
        assert metrics["eval/reconstruction/lpips_alexnet"] == pytest.approx(float(expected), rel=1e-3)
    assert len([x for x in sent if isinstance(x, dict) and "heads" in x]) == 1
