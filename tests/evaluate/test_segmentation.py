"""Maps that were asked for and maps that are seen: counts by hand, and the numbering of the classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.evaluate.maps import mean_iou
from regvq_jax.evaluate.segmentation import (
    MEAN,
    STD,
    check_numbering,
    confusion,
    pixel_accuracy,
    prepare_images,
    segment,
)
from regvq_jax.models.segformer import resize_bilinear


def test_counts_by_hand():
    labels = np.array([[[0, 1, 1], [2, 2, 2]], [[3, 3, 0], [1, 2, 255]], [[1, 1, 1], [1, 1, 1]]], np.uint8)
    seen = np.array([[[2, 0, 1], [1, 1, 2]], [[2, 0, 0], [0, 1, 0]], [[2, 2, 2], [2, 2, 2]]], np.int32)
    valid = np.array([True, True, False])
    # Rows are classes 1, 2, 3 of the maps: 0 is ignored, 255 is no class, the last map is padding.
    counts = jax.jit(confusion, static_argnums=(2, 4, 5))(labels, seen, 3, valid, 0, 1)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, [[2, 1, 0], [0, 3, 1], [1, 0, 1]])
    assert pixel_accuracy(counts) == pytest.approx(6 / 9)
    assert mean_iou(counts) == pytest.approx((2 / 4 + 3 / 5 + 1 / 3) / 3)


def test_nothing_is_ignored_and_nothing_shifted():
    labels = np.array([[[0, 1, 1, 2]]], np.uint8)
    seen = np.array([[[0, 0, 1, 2]]], np.int32)
    valid = np.array([True])
    np.testing.assert_array_equal(
        confusion(labels, seen, 3, valid, None, 0), [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    )
    # The last class of the maps unknown, as in sets that number so.
    np.testing.assert_array_equal(confusion(labels, seen, 2, valid, 2, 0), [[1, 0], [1, 1]])
    # Nor is one counted that is ignored but known.
    np.testing.assert_array_equal(
        confusion(labels, seen, 3, valid, 1, 0), [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    )


def test_many_classes_and_an_empty_set():
    labels = np.array([[[150, 150, 1, 0]]], np.uint8)
    seen = np.array([[[149, 148, 0, 7]]], np.int32)
    counts = np.asarray(confusion(labels, seen, 150, np.array([True]), 0, 1))
    assert counts.sum() == 3 and counts[149, 149] == counts[149, 148] == counts[0, 0] == 1
    empty = confusion(labels, seen, 150, np.array([False]), 0, 1)
    assert pixel_accuracy(empty) == 0 and mean_iou(empty) == 0
    # Sums of many batches.
    assert pixel_accuracy(np.array([[2**31 - 1, 2**31 - 1], [0, 0]], np.int32)) == 0.5


def test_numbering():
    check_numbering(151, 150, ignore=0, offset=1)  # ADE20K
    check_numbering(150, 150, ignore=None, offset=0)
    check_numbering(20, 19, ignore=19, offset=0)
    for ignore, offset in ((None, 0), (0, 0), (None, 1), (150, 1), (0, 2)):
        with pytest.raises(UserError, match="maps of 151 classes .* of 150: set offset=1 and ignore=0"):
            check_numbering(151, 150, ignore, offset)
    with pytest.raises(UserError, match="ignore=0, .* of 150 .* of 150: set offset=0 and ignore=None"):
        check_numbering(150, 150, 0, 1)
    with pytest.raises(UserError, match="of 183 classes do not fit a segmenter of 150: choose a segmenter"):
        check_numbering(183, 150, 0, 1)


@pytest.mark.parametrize(("ignore", "offset"), [(None, 1), (1, 1), (0, 2), (0, -1)])
def test_counting_with_a_class_that_is_lost(ignore, offset):
    one = np.zeros((1, 1, 1), np.uint8)
    with pytest.raises(UserError, match=f"offset={offset} leaves .* ignore={ignore} "):
        confusion(one, one.astype(np.int32), 3, np.array([True]), ignore, offset)


class GreyReader(nn.Module):
    """A segmenter of images whose grey is ten times the class of the maps; at a quarter of the size."""

    @nn.compact
    def __call__(self, images):
        grey = (images * jnp.array(STD) + jnp.array(MEAN)) * 25.5
        classes = jnp.round(grey[:, ::4, ::4, 0]).astype(jnp.int32) - 1
        return 9.0 * jax.nn.one_hot(classes, 5)


def test_a_segmenter_that_is_always_right():
    # Stripes, 4 pixels wide: where corners of several classes meet, a quarter of the size is not enough.
    stripes = np.array([[1, 2, 3, 4, 5, 0], [5, 5, 1, 3, 2, 4]], np.uint8).repeat(4, axis=1)
    labels = np.broadcast_to(stripes[:, None], (2, 16, 24))
    images = np.broadcast_to(10 * labels[..., None], (2, 16, 24, 3))
    valid = np.array([True, True])
    seen = jax.jit(segment, static_argnums=0)(GreyReader(), {}, images)
    assert seen.shape == labels.shape and seen.dtype == jnp.int32
    counts = confusion(labels, seen, 5, valid, 0, 1)
    assert counts.sum() == np.sum(labels > 0) and mean_iou(counts) == pixel_accuracy(counts) == 1
    # Other images than were asked for.
    counts = confusion(labels, seen[::-1], 5, valid, 0, 1)
    assert mean_iou(counts) < 0.3
    # Had the classes been numbered as if they were the segmenter's.
    assert mean_iou(confusion(labels, seen, 5, valid, None, 0)) < 0.05


def test_images_as_the_segmenter_wants_them():
    images = np.array([[[[0, 255, 51]]]], np.uint8)
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(prepare_images(images)[0, 0, 0], expected, rtol=1e-5)
    for size, shape in ((None, (20, 30)), (40, (40, 60)), (9, (9, 14)), (20, (20, 30))):
        assert prepare_images(np.zeros((1, 20, 30, 3), np.uint8), size).shape == (1, *shape, 3)


def test_resizing_equals_torch():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    rng = np.random.default_rng(0)

    def resize(x, height, width, antialias):
        x = torch.nn.functional.interpolate(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            (height, width),
            mode="bilinear",
            align_corners=False,
            antialias=antialias,
        )
        return x.permute(0, 2, 3, 1).numpy()

    logits = rng.normal(size=(2, 8, 11, 5)).astype(np.float32)
    for height, width in ((32, 44), (30, 7), (8, 11)):
        found = resize_bilinear(logits, height, width)
        np.testing.assert_allclose(found, resize(logits, height, width, False), atol=1e-5)

    images = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
    for size, (height, width) in ((33, (33, 50)), (9, (9, 14))):
        expected = (resize(images.astype(np.float32) / 255, height, width, True) - MEAN) / STD
        np.testing.assert_allclose(prepare_images(images, size), expected, atol=1e-5)
