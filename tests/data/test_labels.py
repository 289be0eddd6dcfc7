import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.emoji import load_pack
from regvq_jax.data.emoji.palette import oklab, squared_distance
from regvq_jax.data.images import ImageError
from regvq_jax.data.labels import label_colours, read_label_map, read_map_size
from regvq_jax.errors import UserError

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_reads_ids_not_colours(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "grey.png")
    image = Image.fromarray(IDS)
    image.putpalette([255, 0, 0] * 128 + [0, 255, 0] * 128)  # Many ids of one colour.
    image.save(tmp_path / "palette.png")
    image.save(tmp_path / "clear.png", transparency=3)
    few = Image.fromarray(IDS % 4)
    few.putpalette([9, 9, 9] * 4)
    few.save(tmp_path / "two_bits.png", bits=2)
    for name in ("grey", "palette", "clear"):
        path = tmp_path / f"{name}.png"
        assert read_map_size(path) == (4, 3)
        labels = read_label_map(path, 12)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, IDS)
    np.testing.assert_array_equal(read_label_map(tmp_path / "two_bits.png", 4), IDS % 4)


def png(bits, colour_type, rows):
    """A PNG file by hand: of kinds that Pillow does not write."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_refuses_maps_whose_ids_a_reader_would_change(tmp_path):
    path = tmp_path / "map.png"
    # Two pixels of 4 bits, ids 1 and 2: every reader scales them, to 17 and 34.
    content = png(4, 0, [b"\x12"])
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == [[17, 34]]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"map\.png has not one byte a pixel.*type 0, 4 bits"):
        read_label_map(path, 256)
    for mode in ("RGB", "RGBA", "I;16", "1", "LA"):
        Image.new(mode, (4, 3)).save(path)
        with pytest.raises(ImageError, match="not one byte a pixel"):
            read_map_size(path)
    Image.fromarray(IDS).save(tmp_path / "map.bmp")
    for name, message in (("map.bmp", "is not a PNG"), ("absent.png", "No such file")):
        with pytest.raises(ImageError, match=message):
            read_map_size(tmp_path / name)
    Image.fromarray(IDS).save(path)
    path.write_bytes(path.read_bytes()[:45])
    assert read_map_size(path) == (4, 3)
    with pytest.raises(ImageError, match="Cannot decode label map"):
        read_label_map(path, 12)


def test_an_id_outside_of_the_classes_is_no_image_to_skip(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "map.png")
    with pytest.raises(UserError, match=r"map\.png has the id 11.*allows 0 to 10") as caught:
        read_label_map(tmp_path / "map.png", 11)
    assert not isinstance(caught.value, ImageError)


def test_emoji_have_their_own_colours():
    colours = label_colours(25)
    pack = load_pack(64)
    assert colours.shape == (25, 3) and colours.dtype == np.uint8
    assert ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours[1:]] == [
        colour.colour for colour in pack.palette
    ]
    picture = label_colours(25)[pack.labels[0]]
    assert picture.shape == (64, 64, 3) and (picture[0, 0] == 214).all()


def test_other_colours_are_fixed_and_far_apart():
    colours = label_colours(256)
    np.testing.assert_array_equal(label_colours(19), colours[:19])
    np.testing.assert_array_equal(label_colours(1), [[214, 214, 214]])

    def nearest(colours):
        distance = squared_distance(oklab(colours), oklab(colours))
        return np.sqrt((distance + np.eye(len(colours))).min())

    # For comparison: steps of one byte in grey are about 0.004 apart, black and white 1.
    assert nearest(colours[:19]) > 0.15 and nearest(colours) > 0.04
    with pytest.raises(ValueError, match="read-only"):
        colours[0] = 0
    for count in (0, 257):
        with pytest.raises(UserError, match=f"got {count}"):
            label_colours(count)
