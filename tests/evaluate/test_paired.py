"""PSNR by hand, SSIM by scipy's Gaussian filter in float64."""

import numpy as np
import pytest
import scipy.ndimage

from regvq_jax.evaluate.paired import psnr, ssim


def test_psnr_by_hand():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    others = images.copy()
    others[1] += 255
    others[2, 0, 0, 0] = 120  # Mean squared error 120^2 / 12 = 1200.
    others[3] += 1
    expected = [10 * np.log10(255**2 / 1e-4), 0.0, 10 * np.log10(255**2 / 1200), 20 * np.log10(255)]
    for a, b in ((images, others), (others, images)):
        np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5, atol=1e-5)


def by_scipy(x, y):
    """Of images [H, W, 3]: windows of 11 pixels, those that leave the image not counted."""

    def blur(z):
        sigma, cut = (1.5, 1.5, 0), 5 / 1.5
        return scipy.ndimage.gaussian_filter(z, sigma, truncate=cut)[5:-5, 5:-5]

    x, y = x.astype(np.float64), y.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, cxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    return np.mean((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


@pytest.fixture
def pairs():
    """Images of many kinds, not square, and others; uint8 [B, 24, 31, 3]."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:24, 0:31]
    ramp = np.stack([rows * 10, columns * 8, (rows + columns) * 4], -1).astype(np.uint8)
    flat = np.full_like(ramp, 250)
    slight = np.clip(ramp + rng.integers(-9, 10, ramp.shape), 0, 255).astype(np.uint8)
    images = np.stack([noise, ramp, ramp, flat, flat, noise, noise])
    others = np.stack([noise, slight, 255 - ramp, flat - 3, noise, noise[::-1], noise // 2])
    return images, others


def test_ssim(pairs):
    values = np.asarray(ssim(*pairs))
    expected = [by_scipy(a, b) for a, b in zip(*pairs, strict=True)]
    assert np.ptp(expected) > 0.9  # From unlike to equal.
    np.testing.assert_allclose(values, expected, atol=2e-5)
    assert values[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(ssim(*pairs[::-1]), values, atol=1e-6)


def test_flat_images_lose_no_digits():
    """Their variances are differences of large squares."""
    light = np.full((1, 16, 16, 3), 254, np.uint8)
    other = light.copy()
    other[:, ::2] += 1
    np.testing.assert_allclose(ssim(light, other), [by_scipy(light[0], other[0])], atol=1e-4)


def test_one_window():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 1, 11, 11, 3), dtype=np.uint8)
    np.testing.assert_allclose(ssim(a, b), [by_scipy(a[0], b[0])], atol=1e-5)
