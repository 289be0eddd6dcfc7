"""Features of a set are those of its images, in any batches, over any devices, and kept for the next run."""

import dataclasses

import jax
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.data.statistics import spread
from regvq_jax.errors import UserError
from regvq_jax.evaluate import features as features_module
from regvq_jax.evaluate import inception_score
from regvq_jax.evaluate.features import Collector, features_of
from tests.evaluate.toy_extractor import (
    NUM_CLASSES,
    NUM_FEATURES,
    Images,
    draw_images,
    expected_outputs,
    make_toy,
)

COUNT = 37


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of kept features."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def toy():
    return make_toy()


def check(found, outputs, max_kept):
    """Features and logits of each image, against what was gathered."""
    features, logits = outputs["features"].astype(np.float64), outputs["logits"]
    count = len(features)
    assert found.statistics.count == count
    np.testing.assert_allclose(found.statistics.mean, features.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(features.T), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.indices, spread(count, max_kept))
    np.testing.assert_allclose(found.kept, features[found.indices], atol=1e-6)
    assert found.kept.dtype == np.float32 and found.indices.dtype == np.int64
    sums = inception_score.add(
        inception_score.empty_sums(10, NUM_CLASSES), logits, inception_score.split_of_images(count)
    )
    for ours, expected in zip(found.class_sums, sums, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert inception_score.inception_score(found.class_sums)[0] > 1.05


@pytest.mark.parametrize("max_kept", [10, 100])
@pytest.mark.parametrize(
    ("batch_size", "devices"),
    [(8, slice(1)), (COUNT, slice(1)), (16, slice(None)), (8, slice(None, None, -1))],
    ids=["batches", "one batch", "8 devices", "8 devices the other way round"],
)
def test_splits_padding_and_devices_change_nothing(toy, batch_size, devices, max_kept):
    """What fills up a batch has no features here; it is not looked at."""
    images = draw_images(COUNT)
    devices = jax.devices()[devices]
    mesh = sharding.make_mesh(fsdp=min(2, len(devices)), devices=devices)
    found = features_of(Images(images, batch_size).set, toy, mesh, max_kept=max_kept)
    check(found, expected_outputs(toy, images), max_kept)


def test_images_in_another_order(toy, one_device_mesh):
    images = draw_images(COUNT)
    collector = Collector(toy, one_device_mesh, COUNT, max_kept=20)
    places = np.random.default_rng(1).permutation(40)  # Those beyond the set do not count.
    padded = np.concatenate([images, np.full((3, *images.shape[1:]), 255, np.uint8)])
    for part in places.reshape(5, 8):
        device = sharding.put_batch({"image": padded[part]}, one_device_mesh)["image"]
        collector.add(device, part < COUNT, part)
    check(collector.finish(), expected_outputs(toy, images), 20)


def test_a_network_is_compiled_once(one_device_mesh):
    toy = make_toy(logits=False)
    images = draw_images(24)
    for _ in range(2):
        found = features_of(Images(images, 8).set, toy, one_device_mesh)
        assert found.class_sums is None
    # For its shapes, and for the program.
    assert toy.module.calls == 2 and toy.num_features == NUM_FEATURES


def test_the_image_without_features_is_named(toy, one_device_mesh):
    images = draw_images(COUNT)
    images[29] = 255
    name_fn = lambda index: f"photographs/{index:04}.png"
    with pytest.raises(UserError, match="features of image photographs/0029.png under toy are not finite"):
        features_of(Images(images, 8, element_name=name_fn).set, toy, one_device_mesh)
    with pytest.raises(UserError, match="features of image 29 under toy"):
        features_of(Images(images, 8, identity={"seed": 0}).set, toy, one_device_mesh)


def test_kept_for_the_next_run(toy, one_device_mesh, kept):
    images = Images(draw_images(COUNT), 8, identity={"source": "toys", "size": 6})
    first = features_of(images.set, toy, one_device_mesh, max_kept=10)
    (file,) = kept.iterdir()
    assert file.name.startswith("toy-") and file.suffix == ".npz"
    again = features_of(images.set, toy, one_device_mesh, max_kept=10)
    assert images.passes == 1
    jax.tree.map(np.testing.assert_array_equal, again, first)
    check(again, expected_outputs(toy, draw_images(COUNT)), 10)
    # The same images for other people, in other batches.
    other = Images(draw_images(COUNT), 16, name="dolls", identity={"size": 6, "source": "toys"})
    features_of(other.set, toy, one_device_mesh, max_kept=10)
    assert other.passes == 0


def test_what_differs_is_computed(toy, one_device_mesh, kept):
    images = Images(draw_images(COUNT), 8, identity={"source": "toys"})
    features_of(images.set, toy, one_device_mesh)
    other = Images(draw_images(COUNT), 8, identity={"source": "dolls"})
    features_of(other.set, toy, one_device_mesh)
    assert other.passes == 1
    fewer = Images(draw_images(COUNT - 1), 8, identity={"source": "toys"})
    assert features_of(fewer.set, toy, one_device_mesh).statistics.count == COUNT - 1
    assert features_of(images.set, toy, one_device_mesh, max_kept=5).kept.shape == (5, NUM_FEATURES)
    differing = (
        make_toy(name="toy-2"),
        make_toy(network="doll"),
        make_toy(digest="1" * 64),
        dataclasses.replace(toy, protocol=dataclasses.replace(toy.protocol, about="bicubic to 4")),
    )
    for extractor in differing:
        features_of(images.set, extractor, one_device_mesh)
    assert images.passes == 2 + len(differing)
    assert len(list(kept.iterdir())) == 4 + len(differing)


def test_what_has_no_identity_is_not_kept(toy, one_device_mesh, kept):
    nameless = Images(draw_images(COUNT), 8)
    unwanted = Images(draw_images(COUNT), 8, identity={"source": "toys"})
    for _ in range(2):
        features_of(nameless.set, toy, one_device_mesh)
        features_of(unwanted.set, toy, one_device_mesh, keep=False)
    assert nameless.passes == unwanted.passes == 2 and not kept.exists()


def test_a_new_format_is_made_anew(toy, one_device_mesh, monkeypatch):
    images = Images(draw_images(COUNT), 8, identity={"source": "toys"})
    features_of(images.set, toy, one_device_mesh)
    monkeypatch.setattr(features_module, "_FORMAT", features_module._FORMAT + 1)
    features_of(images.set, toy, one_device_mesh)
    assert images.passes == 2


@pytest.mark.parametrize("size", [0, 100, -100], ids=["empty", "cut", "without an end"])
def test_a_damaged_file_is_named(toy, one_device_mesh, kept, size):
    images = Images(draw_images(COUNT), 8, identity={"source": "toys"})
    features_of(images.set, toy, one_device_mesh)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=f"{file.name} cannot be read .*; delete it, it will be made again"):
        features_of(images.set, toy, one_device_mesh)


def test_a_cache_that_cannot_be_written(toy, one_device_mesh, kept):
    kept.parent.write_text("a file in the way")
    with pytest.raises(UserError, match="Cannot write .*toy-.*npz"):
        features_of(Images(draw_images(COUNT), 8, identity={"a": 1}).set, toy, one_device_mesh)
