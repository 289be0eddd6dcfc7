import numpy as np
import pytest

from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.sheets import captioned_sheet, labelled_sheet, reconstruction_sheet, wrap


def plain_images(colours, size=4):
    colours = np.array(colours, np.uint8)
    return np.broadcast_to(colours[:, None, None], (len(colours), size, size, 3)).copy()


def find(sheet, colour):
    """(top, left, height, width) of the only rectangle of a colour."""
    hit = (np.asarray(sheet) == colour).all(-1)
    rows, columns = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
    assert hit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return rows[0], columns[0], len(rows), len(columns)


RED, GREEN, BLUE, CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255)


def test_reconstruction_lies_below_its_original():
    sheet = reconstruction_sheet(plain_images([RED, GREEN]), plain_images([BLUE, CYAN]), columns=8, scale=3)
    red, green, blue, cyan = (find(sheet, colour) for colour in (RED, GREEN, BLUE, CYAN))
    assert {place[2:] for place in (red, green, blue, cyan)} == {(12, 12)}  # 4 pixels, three times
    assert red[0] == green[0] and blue[0] == cyan[0] == red[0] + 12 + sheets.GAP
    assert red[1] == blue[1] and green[1] == cyan[1] == red[1] + 12 + sheets.GAP

    below = reconstruction_sheet(plain_images([RED, GREEN]), plain_images([BLUE, CYAN]), columns=1, scale=3)
    places = [find(below, colour)[0] for colour in (RED, BLUE, GREEN, CYAN)]
    assert places == sorted(places)
    assert find(below, GREEN)[1] == find(below, RED)[1]


def test_enlarging_does_not_smooth():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = RED
    image[0, 1, 1] = GREEN
    sheet = reconstruction_sheet(image, plain_images([BLUE], 2), scale=5)
    assert find(sheet, RED)[2:] == (5, 5)
    assert find(sheet, GREEN)[2:] == (5, 5)


def test_small_images_are_enlarged_by_default():
    assert find(captioned_sheet(plain_images([RED], 32), ["x"]), RED)[2:] == (96, 96)
    assert find(captioned_sheet(plain_images([RED], 256), ["x"]), RED)[2:] == (256, 256)


def test_captions_are_drawn_below_and_inside():
    images = plain_images([RED, GREEN, BLUE], 8)
    captions = ["a red square", "green " * 60, ""]
    sheet = captioned_sheet(images, captions, columns=2, scale=4)
    pixels = np.asarray(sheet.convert("L"))
    red, blue = find(sheet, RED), find(sheet, BLUE)
    middle = red[1] + red[3] // 2
    under_red = pixels[red[0] + red[2] : blue[0], middle - 60 : middle + 60]
    assert (under_red < 100).any()
    assert (pixels[blue[0] + blue[2] :] == 255).all()  # no caption, nothing drawn
    assert (pixels[:, : sheets.MARGIN] == 255).all() and (pixels[:, -sheets.MARGIN :] == 255).all()


def test_wrap():
    font = sheets._font()
    width = 100
    text = "a red heart and a very long tail of words"
    lines = wrap(text, font, width)
    assert " ".join(lines) == text and 1 < len(lines) <= sheets.MAX_CAPTION_LINES
    assert all(font.getlength(line) <= width for line in lines)
    assert wrap("", font, width) == []
    assert "".join(wrap("w" * 30, font, width)) == "w" * 30
    cut = wrap("word " * 200, font, width)
    assert len(cut) == sheets.MAX_CAPTION_LINES and cut[-1].endswith("…")
    assert all(font.getlength(line) <= width for line in cut)
    assert font.getmask("ä").getbbox() and bytes(font.getmask("ä")) != bytes(font.getmask("\uffff"))


def test_wrong_images_are_refused():
    good = plain_images([RED])
    with pytest.raises(ValueError, match="float64"):
        reconstruction_sheet(good / 255, good)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\)"):
        reconstruction_sheet(good, plain_images([RED, GREEN]))
    with pytest.raises(ValueError, match="1 images, 2 captions"):
        captioned_sheet(good, ["a", "b"])


def test_versions_of_an_image_lie_below_one_another():
    lines = {"original": plain_images([RED]), "a": plain_images([GREEN]), "b": plain_images([BLUE])}
    sheet = labelled_sheet(lines, scale=3)
    red, green, blue = (find(sheet, colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] == blue[1]
    assert green[0] - red[0] == blue[0] - green[0] == 12 + sheets.GAP
    with pytest.raises(ValueError, match=r"original \(1, 4, 4, 3\), a \(1, 5, 5, 3\)"):
        labelled_sheet(lines | {"a": plain_images([GREEN], 5)})
