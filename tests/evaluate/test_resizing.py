"""Each resizing equals the library whose name the protocol bears, up and down."""

import jax
import numpy as np
import pytest
from PIL import Image

from regvq_jax.evaluate import resizing
from regvq_jax.evaluate.resizing import resize
from tests.evaluate import torch_fidelity_parts

MATRICES = [resizing.tf1_bilinear, resizing.half_pixel_bilinear, resizing.pillow_bicubic]
# (height, width) -> side; less, more, either, the same, and hardly anything.
SIZES = [
    ((32, 48), 299), ((64, 64), 299), ((256, 200), 299), ((400, 350), 299), ((298, 1025), 299),
    ((299, 299), 299), ((64, 300), 224), ((1, 2), 299), ((3, 512), 336),
]  # fmt: skip


def random_image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def as_torch(image):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))


def check(image, size, matrix_fn, expected, atol=1e-3):
    """Of images with values up to 255."""
    ours = resize(image[None], size, matrix_fn)[0]
    assert ours.shape == (size, size, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_by_hand():
    """Places 0, 1/2, 1, 3/2 without half pixels; -1/4, 1/4, 3/4, 5/4 with them; and by halves."""
    np.testing.assert_allclose(
        resizing.tf1_bilinear(2, 4), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]], atol=1e-12
    )
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(resizing.half_pixel_bilinear(2, 4), expected, atol=1e-12)
    # Bilinear forgets two of four pixels, or takes the mean of the two in the middle of each half.
    np.testing.assert_array_equal(resizing.tf1_bilinear(4, 2), [[1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(resizing.half_pixel_bilinear(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    # Keys' kernel, a = -1/2: places 1/4, 3/4, ... of a pixel apart, cut off and made a mean again at an edge.
    near, close, far, farthest = 0.8671875, 0.2265625, -0.0703125, -0.0234375
    rows = np.array([[near, far, 0], [near, close, 0], [close, near, far], [far, near, close]])
    rows = rows + [[0, 0, 0], [0, 0, farthest], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(
        resizing.pillow_bicubic(3, 6)[:4], rows / rows.sum(1, keepdims=True), atol=1e-12
    )


@pytest.mark.parametrize("matrix_fn", MATRICES)
def test_every_row_is_a_mean_and_no_change_is_none(matrix_fn):
    for before, after in ((1, 7), (2, 299), (7, 1), (32, 299), (299, 298), (1000, 299)):
        matrix = matrix_fn(before, after)
        assert matrix.shape == (after, before) and matrix.dtype == np.float64
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix_fn(299, 299), np.eye(299), atol=1e-12)


@pytest.mark.parametrize("matrix_fn", MATRICES)
def test_images_keep_their_order_and_axes(matrix_fn):
    images = np.stack([random_image((10, 17), seed) for seed in range(3)])
    together = jax.jit(lambda x: resize(x, 12, matrix_fn))(images)
    for image, expected in zip(images, together, strict=True):
        check(image, 12, matrix_fn, expected)
        check(image.transpose(1, 0, 2), 12, matrix_fn, expected.transpose(1, 0, 2))
        check(image[..., ::-1], 12, matrix_fn, expected[..., ::-1])


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_tensorflow_1_as_torch_fidelity_has_it(shape, size):
    interpolate = torch_fidelity_parts.load().interpolate.interpolate_bilinear_2d_like_tensorflow1x
    image = random_image(shape)
    expected = interpolate(as_torch(image), size=(size, size), align_corners=False)
    check(image, size, resizing.tf1_bilinear, expected[0].numpy().transpose(1, 2, 0))


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_torch(shape, size):
    interpolate = pytest.importorskip("torch", reason="needs the extra [parity]").nn.functional.interpolate
    image = random_image(shape)
    expected = interpolate(as_torch(image), (size, size), mode="bilinear", align_corners=False)
    # Torch has places in float32: up to 1e-4 of a pixel away, between neighbours of 0 and 255.
    check(image, size, resizing.half_pixel_bilinear, expected[0].numpy().transpose(1, 2, 0), atol=0.03)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_pillow_in_float(shape, size):
    image = random_image(shape)
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    assert channels[0].mode == "F"
    expected = [np.asarray(x.resize((size, size), Image.Resampling.BICUBIC)) for x in channels]
    check(image, size, resizing.pillow_bicubic, np.stack(expected, -1))
