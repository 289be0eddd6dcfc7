import json

import jax
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.data.labels import label_colours
from regvq_jax.evaluate.maps import (
    MapReconstruction,
    class_iou,
    class_report,
    draw_maps,
    evaluate_batch,
    mean_iou,
)
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer, one_hot_maps

# More than 16 classes: true class times C plus predicted class does not fit one byte.
CLASSES = 20
MODEL = ImageTokenizer(
    quantizer=Quantizer(codebook_size=16, code_dim=4),
    channels=8,
    multipliers=(1, 1),
    num_res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    latent_channels=8,
    out_channels=CLASSES,
)
LABELS = np.random.default_rng(0).integers(0, CLASSES, (11, 8, 8), np.uint8)
# Rows are true classes. Class 2 never occurs, class 3 is never predicted.
CONFUSION = np.array([[6, 1, 1, 0], [0, 3, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])


@pytest.fixture(scope="module")
def ema():
    maps = one_hot_maps(MODEL, LABELS[:1])
    return {"tokenizer": jax.jit(MODEL.init)(jax.random.key(0), maps)["params"]}


def batches_of(labels, size):
    def batches():
        for start in range(0, len(labels), size):
            part = labels[start : start + size]
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            yield {"labels": np.concatenate([part, padding]), "valid": np.arange(size) < len(part)}

    return batches


def test_iou_by_hand():
    np.testing.assert_allclose(class_iou(CONFUSION), [6 / 10, 3 / 4, np.nan, 0])
    assert mean_iou(CONFUSION) == pytest.approx((6 / 10 + 3 / 4 + 0) / 3)
    assert mean_iou(np.diag([5, 0, 2])) == 1 and mean_iou(np.zeros((2, 2), int)) == 0
    report = class_report(CONFUSION)
    assert report["classes"] == [0, 1, 3] and report["pixels"] == [8, 3, 2]
    assert json.loads(json.dumps(report)) == report


def test_every_valid_pixel_is_counted_where_it_belongs(ema):
    valid = np.array([True, False, True, True])
    batch = {"labels": LABELS[:4], "valid": valid}
    sums, rebuilt = jax.jit(evaluate_batch, static_argnums=0)(MODEL, ema["tokenizer"], batch)
    assert rebuilt.dtype == np.uint8 and rebuilt.shape == (4, 8, 8)
    expected = np.zeros((CLASSES, CLASSES), int)
    np.add.at(expected, (LABELS[:4][valid].ravel(), np.asarray(rebuilt)[valid].ravel()), 1)
    np.testing.assert_array_equal(sums["confusion"], expected)
    assert sums["maps"] == 3 and sums["code_counts"].sum() == 3 * 16
    # What it is compared with is the tokenizer's own reconstruction.
    codes = MODEL.apply({"params": ema["tokenizer"]}, one_hot_maps(MODEL, LABELS[:4]), method="encode")
    vectors = MODEL.apply({"params": ema["tokenizer"]}, codes, method="lookup")
    logits = MODEL.apply({"params": ema["tokenizer"]}, vectors, method="decode")
    assert np.mean(rebuilt == np.argmax(logits, -1)) > 0.99


def test_padding_batch_size_and_devices_change_nothing(ema, one_device_mesh):
    meshes = (one_device_mesh, one_device_mesh, sharding.make_mesh(4, 2))
    evaluators = [
        MapReconstruction(MODEL, batches_of(LABELS, size), num_shown=6) for size in (8, 16, 8)
    ]
    results = [evaluate(ema, {}, mesh) for evaluate, mesh in zip(evaluators, meshes, strict=True)]
    first = results[0]
    assert set(first.metrics) == {
        *(f"eval/map_reconstruction/{name}" for name in ("accuracy", "miou", "maps")),
        *(f"map_codebook/{name}" for name in ("usage", "perplexity", "tokens")),
    }
    assert first.metrics["eval/map_reconstruction/maps"] == 11
    assert first.metrics["map_codebook/tokens"] == 11 * 16 == sum(first.records["map_codebook"]["counts"])
    assert sum(first.records["map_classes"]["pixels"]) == LABELS.size
    (whole,) = batches_of(LABELS, 16)()
    rebuilt = np.asarray(evaluators[1]._evaluate_batch(ema["tokenizer"], whole)[1])[:11]
    assert results[1].metrics["eval/map_reconstruction/accuracy"] == pytest.approx(np.mean(rebuilt == LABELS))
    masks = [(rebuilt == c, LABELS == c) for c in range(CLASSES)]
    ious = [np.sum(is_rebuilt & is_true) / np.sum(is_rebuilt | is_true) for is_rebuilt, is_true in masks]
    assert results[1].metrics["eval/map_reconstruction/miou"] == pytest.approx(np.mean(ious))
    np.testing.assert_array_equal(results[1].images["maps"], draw_maps(LABELS[:6], rebuilt[:6], CLASSES))
    for other in results[1:]:
        # Counts, so equal and not just near; rounding may decide a tie between two classes otherwise.
        for name in ("eval/map_reconstruction/maps", "map_codebook/tokens"):
            assert other.metrics[name] == first.metrics[name]
        assert other.metrics == pytest.approx(first.metrics, rel=1e-2)
        assert set(other.images) == {"maps", "map_codebook"}


def test_maps_are_drawn_in_the_colours_of_their_classes():
    labels = np.full((2, 8, 8), 3, np.uint8)
    picture = draw_maps(labels, np.full_like(labels, 7), CLASSES)
    seen = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {tuple(label_colours(CLASSES)[c].tolist()) for c in (3, 7)} <= seen
