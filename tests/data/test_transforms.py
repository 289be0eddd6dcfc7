import functools
import pickle

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.ranges import to_uint8, to_unit_range
from regvq_jax.data.transforms import encode_text, resize_and_crop


def coordinates(height, width):
    """An image whose pixels say where they are."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def generators(count):
    return [np.random.default_rng(i) for i in range(count)]


def test_centre_crop_without_resizing_is_exact():
    image = coordinates(6, 13)
    result = resize_and_crop({"image": image, "labels": image[..., 1]}, size=6)
    np.testing.assert_array_equal(result["image"], image[:, 3:9])  # (13 - 6) // 2 = 3
    np.testing.assert_array_equal(result["labels"], image[:, 3:9, 1])
    tall = coordinates(11, 6)
    np.testing.assert_array_equal(resize_and_crop({"image": tall}, size=6)["image"], tall[2:8])


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = resize_and_crop({"image": stripes}, size=16)["image"]
    assert result.shape == (16, 16, 3) and result.dtype == np.uint8
    # Without antialiasing this is all black or all white.
    np.testing.assert_allclose(result[:, 2:-2].astype(int), 127, atol=12)


def test_resize_agrees_with_pillow_on_a_square():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    result = resize_and_crop({"image": image}, size=20)["image"]
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_enlarging():
    result = resize_and_crop({"image": np.full((3, 5, 3), 9, np.uint8)}, size=8)
    np.testing.assert_array_equal(result["image"], np.full((8, 8, 3), 9))


def test_labels_are_not_mixed_and_stay_with_the_image():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:45] = 200
    image = np.repeat(labels[..., None], 3, -1)
    for rng in generators(20):
        result = resize_and_crop({"image": image, "labels": labels}, rng, size=16, crop="random", flip=True)
        assert result["labels"].shape == (16, 16) and result["labels"].dtype == np.uint8
        assert set(np.unique(result["labels"])) <= {0, 200}
        differs = (result["image"][..., 0] > 100) != (result["labels"] > 100)
        assert differs.mean() < 0.08  # At most a line along the edges.


def test_right_size_is_passed_on_untouched():
    image = coordinates(8, 8)
    for rng in (None, *generators(5)):
        result = resize_and_crop({"image": image, "text": "x"}, rng, size=8, crop="random")
        np.testing.assert_array_equal(result["image"], image)
        assert result["text"] == "x"


def test_random_crop_reaches_every_place():
    image = coordinates(6, 9)
    lefts = set()
    for rng in generators(60):
        result = resize_and_crop({"image": image}, rng, size=6, crop="random", max_scale=1.0)["image"]
        left = int(result[0, 0, 1])
        np.testing.assert_array_equal(result, image[:, left : left + 6])
        lefts.add(left)
    assert lefts == {0, 1, 2, 3}


def test_random_scale_stays_inside_and_never_enlarges():
    image = coordinates(40, 40)
    widths = [
        np.ptp(resize_and_crop({"image": image}, rng, size=20, crop="random")["image"][..., 1])
        for rng in generators(40)
    ]
    # Of 40 pixels, a crop of 20 at scale 1 to 1.1 shows 40 to 36.
    assert 33 <= min(widths) < max(widths) <= 39
    for rng in generators(20):  # The short side is 20 already: only the place is random.
        wide = coordinates(20, 30)
        result = resize_and_crop({"image": wide}, rng, size=20, crop="random")["image"]
        np.testing.assert_array_equal(result[..., 0], wide[:, :20, 0])


def is_flipped(rng, **element):
    image = coordinates(4, 4)
    labels = image[..., 1]
    result = resize_and_crop({"image": image, "labels": labels, **element}, rng, size=4, flip=True)
    np.testing.assert_array_equal(result["labels"], result["image"][..., 1])
    flipped = not np.array_equal(result["image"], image)
    if flipped:
        np.testing.assert_array_equal(result["image"], image[:, ::-1])
    return flipped


def test_near_center_keeps_to_the_middle_of_the_long_side():
    rng = np.random.default_rng(0)
    image = np.zeros((40, 120, 3), np.uint8)
    image[..., 0] = np.arange(120)  # where a column comes from
    image[..., 1] = np.arange(40)[:, None]
    lefts, tops, widths = [], [], []
    for _ in range(300):
        result = resize_and_crop({"image": image}, rng, size=32, crop="near_center", max_scale=1.125)["image"]
        lefts.append(int(result[0, 0, 0]))
        tops.append(int(result[0, 0, 1]))
        widths.append(int(result[0, -1, 0]) - int(result[0, 0, 0]))
    # The square of 40 begins at 30 to 49 of 120; a crop of 32 to 36 in the scaled square lies in it.
    assert min(lefts) >= 29 and max(lefts) <= 49 + 5
    assert min(lefts) <= 32 and max(lefts) >= 49
    assert 0 <= min(tops) and max(tops) <= 5 and max(widths) <= 40
    centre = resize_and_crop({"image": image}, None, size=32, crop="near_center")["image"]
    np.testing.assert_array_equal(centre, resize_and_crop({"image": image}, None, size=32)["image"])


def test_flip_is_half_of_the_time_and_random_only():
    assert 30 <= sum(is_flipped(rng) for rng in generators(100)) <= 70
    assert not is_flipped(None)
    image = coordinates(4, 4)
    for rng in generators(10):
        result = resize_and_crop({"image": image}, rng, size=4, crop="random", flip=False)
        np.testing.assert_array_equal(result["image"], image)


@pytest.mark.parametrize(
    ("text", "may_flip"),
    [
        ("a cat on the left", False),
        ("Right arrow", False),
        ("left-hand glove", False),
        ("the leftmost bird", False),
        ("two lefts", False),
        ("a frog on a pink to light blue background", False),
        ("bright lefty cleft", True),
        ("", True),
    ],
)
def test_no_flip_of_sides_in_a_caption(text, may_flip):
    assert any(is_flipped(rng, text=text) for rng in generators(20)) == may_flip
    texts = ("a bird", text)
    assert any(is_flipped(rng, text="a bird", texts=texts) for rng in generators(20)) == may_flip


def encode_lengths(texts, length):
    return np.stack([np.full(length, len(text), np.int64) for text in texts])


def test_encode_text():
    element = {"image": coordinates(2, 2), "text": "abc", "texts": ("abc", "de")}
    encode = functools.partial(encode_text, encode_fn=encode_lengths, length=4)
    result = encode(element)
    assert result.keys() == {"image", "text_tokens"} and "text" in element
    assert result["text_tokens"].dtype == np.int32
    np.testing.assert_array_equal(result["text_tokens"], [3, 3, 3, 3])
    drawn = [int(encode(element, rng)["text_tokens"][0]) for rng in generators(40)]
    assert 5 <= drawn.count(2) <= 35 and drawn.count(2) + drawn.count(3) == 40
    only = encode({"text": "abc"}, np.random.default_rng(0))
    np.testing.assert_array_equal(only["text_tokens"], [3, 3, 3, 3])
    pickle.loads(pickle.dumps(encode))


def test_ranges_round_trip_on_host_and_device():
    jnp = pytest.importorskip("jax.numpy")
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for array in (levels, jnp.asarray(levels)):
        unit = to_unit_range(array)
        assert unit.dtype == np.float32 and type(unit) is type(array)
        assert float(unit.min()) == -1.0 and float(unit.max()) == 1.0
        back = to_uint8(unit)
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, levels)
        np.testing.assert_array_equal(to_uint8(unit.astype(jnp.bfloat16)).shape, levels.shape)
    outside = np.array([-3.0, -1.0, 0.0, 0.999, 1.5], np.float32)
    np.testing.assert_array_equal(to_uint8(outside), [0, 0, 128, 255, 255])
