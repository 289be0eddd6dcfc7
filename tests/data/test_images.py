import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.images import ImageError, read_image, read_size


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def random_rgb(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_file_and_bytes(tmp_path):
    pixels = random_rgb()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for given in (path, str(path), path.read_bytes()):
        array = read_image(given)
        assert array.dtype == np.uint8 and array.flags.writeable
        np.testing.assert_array_equal(array, pixels)
        assert read_size(given) == (9, 6)


def test_grey_and_bilevel_are_repeated():
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    array = read_image(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(array, np.stack([grey] * 3, -1))
    bilevel = encoded(Image.fromarray(grey).point(lambda v: 255 * (v > 150), "1"), "PNG")
    np.testing.assert_array_equal(read_image(bilevel)[..., 1], [[0, 0], [255, 255]])


def test_alpha_is_composited_on_white():
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    array = read_image(encoded(Image.fromarray(pixels), "PNG"))
    # 51 / 255 = 0.2 of black leaves 0.8 of white.
    np.testing.assert_array_equal(array, [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]])
    grey_alpha = np.array([[[10, 255], [10, 0]]], np.uint8)
    array = read_image(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"))
    np.testing.assert_array_equal(array, [[[10] * 3, [255] * 3]])


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_palette_with_and_without_transparency(image_format):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    np.testing.assert_array_equal(read_image(encoded(image, image_format)), [[red, green, blue]])
    clear = encoded(image, image_format, transparency=1)
    np.testing.assert_array_equal(read_image(clear), [[red, white, blue]])


@pytest.mark.parametrize(("image_format", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_is_scaled_not_clipped(image_format, dtype):
    values = np.array([[0, 128, 129, 257], [25700, 32896, 65406, 65535]], dtype)
    array = read_image(encoded(Image.fromarray(values), image_format))
    np.testing.assert_array_equal(array[..., 0], [[0, 0, 1, 1], [100, 128, 254, 255]])
    np.testing.assert_array_equal(array[..., 0], array[..., 2])


def test_16_bit_transparency():
    values = np.array([[0, 300, 65535]], np.uint16)
    array = read_image(encoded(Image.fromarray(values), "PNG", transparency=300))
    np.testing.assert_array_equal(array[..., 0], [[0, 255, 255]])


def test_32_bit_and_float_tiff():
    values = np.array([[0, 65535]], np.int32)
    array = read_image(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(array[..., 0], [[0, 255]])
    with pytest.raises(ImageError, match="70000"):
        read_image(encoded(Image.fromarray(values + 70000), "TIFF"))
    floats = np.array([[0.0, 0.2, 1.0]], np.float32)
    array = read_image(encoded(Image.fromarray(floats), "TIFF"))
    np.testing.assert_array_equal(array[..., 0], [[0, 51, 255]])
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        read_image(encoded(Image.fromarray(floats * 255), "TIFF"))


def test_cmyk_and_ycbcr():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0] = 255  # Cyan ink only: no red.
    array = read_image(encoded(Image.fromarray(pixels, "CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(array, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=3)
    orange = Image.new("RGB", (8, 8), (250, 120, 20)).convert("YCbCr")
    for image_format in ("JPEG", "TIFF"):
        array = read_image(encoded(orange, image_format))
        np.testing.assert_allclose(array, np.broadcast_to([250, 120, 20], (8, 8, 3)), atol=4)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(orientation, turns):
    pixels = random_rgb()
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(content), np.rot90(pixels, turns))
    assert read_size(content) == (9, 6)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for image_format in ("GIF", "WEBP"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        content = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(content)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
def test_truncated_file_is_named(tmp_path, image_format):
    content = encoded(Image.fromarray(random_rgb(64, 64)), image_format)
    path = tmp_path / "cut.img"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut\.img"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for image_format in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        content = encoded(Image.fromarray(random_rgb(32, 32)), image_format)
        for _ in range(60):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = rng.integers(0, min(len(damaged), 300), 6)
            damaged[places] = rng.integers(0, 256, 6)
            try:
                array = read_image(damaged.tobytes())
            except ImageError:
                continue
            assert array.ndim == 3 and array.dtype == np.uint8


def test_not_an_image_and_missing(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r"text\.png"):
            read(path)
        with pytest.raises(ImageError, match=r"absent\.png"):
            read(tmp_path / "absent.png")
        with pytest.raises(ImageError, match="3 bytes in memory"):
            read(b"abc")


@pytest.mark.parametrize("limit", [50, 10])  # Pillow itself would only warn at the first.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixel_limit_is_an_error(monkeypatch, limit):
    content = encoded(Image.new("RGB", (9, 6)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match="too large"):
            read(content)


def test_unknown_mode_says_what_to_do():
    with pytest.raises(ImageError, match="LAB: convert it to RGB"):
        read_image(encoded(Image.new("LAB", (4, 4)), "TIFF"))


def test_error_survives_pickling_and_files_are_closed(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(random_rgb()).save(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        read_image(path)
        read_size(path)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
    assert str(pickle.loads(pickle.dumps(ImageError("x.png is bad")))) == "x.png is bad"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_bytes_have_the_pixels_that_pillow_gives(mode, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).convert(mode)
    image.save(tmp_path / "a.jpg", quality=90)
    content = (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(read_image(content), read_image(tmp_path / "a.jpg"))
    assert read_image(content, min_side=60).shape == (60, 90, 3)
    # 4/8 of 60 x 90 is the smallest with both sides of at least 24.
    small = read_image(content, min_side=24)
    assert small.shape == (30, 45, 3)
    exact = np.asarray(image.convert("RGB").resize((45, 30), Image.Resampling.BOX), np.float32)
    assert np.abs(small - exact).mean() < 4


def test_jpeg_bytes_that_need_pillow():
    pixels = np.full((20, 30, 3), 100, np.uint8)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(turned, "jpeg", exif=exif)
    assert read_image(turned.getvalue(), min_side=5).shape == (30, 20, 3)
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "jpeg")
    assert read_image(cmyk.getvalue(), min_side=5).shape == (20, 30, 3)
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, "jpeg")
    with pytest.raises(ImageError, match=r"cut\.jpg.*[Tt]runcated"):
        read_image(whole.getvalue()[:-40], "cut.jpg")
