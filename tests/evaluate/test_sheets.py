import numpy as np
import pytest
from matplotlib.axes import Axes

from regvq_jax.evaluate import sheets
from regvq_jax.evaluate.sheets import (
    captioned_sheet,
    codebook_chart,
    codebook_comparison,
    labelled_sheet,
    reconstruction_sheet,
    wrap,
)


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


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures of the charts that a test makes."""
    figures = []
    render = sheets._render
    monkeypatch.setattr(sheets, "_render", lambda figure: figures.append(figure) or render(figure))
    return figures


def panels_with(figure, label):
    return [axes for axes in figure.findobj(Axes) if label in (axes.get_ylabel(), axes.get_xlabel())]


def test_codebook_chart(drawn):
    counts = np.array([0, 2500, 5000, 2500])
    # Along the first axis, with a little of the second: 94 % and 6 % of the variance.
    codebook = np.array([[-2.0, 0.0, 1.0], [0.0, 0.5, 1.0], [0.0, -0.5, 1.0], [2.0, 0.0, 1.0]])
    chart = codebook_chart(counts, codebook, title="a run")
    assert np.asarray(chart).shape[-1] == 3
    title = drawn[0]._suptitle.get_text()
    assert title == "a run\n3 of 4 codes used (75.0 %)\nperplexity 2.8, 10,000 tokens counted"
    (usage,) = panels_with(drawn[0], "codes, most frequent first")
    assert usage.get_yscale() == "log"
    np.testing.assert_array_equal(usage.patches[0].get_data().values, [5000, 2500, 2500, 0])
    (plane,) = panels_with(drawn[0], "component 1 (94 % of variance)")
    unused, used = (np.asarray(points.get_offsets()) for points in plane.collections)
    np.testing.assert_allclose(np.abs(unused), [[2, 0]], atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(used), 0), [[0, 0], [0, 0.5], [2, 0.5]], atol=1e-12)
    # The most frequent code is drawn last.
    np.testing.assert_array_equal(plane.collections[1].get_array(), [2500, 2500, 5000])


def test_codebook_chart_of_what_has_no_plane(drawn):
    codebook_chart(np.array([1, 2]))
    codebook_chart(np.zeros(4, np.int64), np.zeros((4, 1)))  # nothing counted yet
    assert not any(panels_with(figure, "times used")[1:] for figure in drawn)
    codebook_chart(np.zeros(4, np.int64), np.zeros((4, 3)))  # and all codes alike
    assert panels_with(drawn[-1], "component 1 (0 % of variance)")


def test_rivals_are_drawn_on_one_scale(drawn):
    codebook = np.random.default_rng(0).normal(size=(4, 3))
    rivals = [("few", np.array([9, 1, 0, 0]), codebook), ("many", np.array([1, 2, 3, 4]), codebook)]
    codebook_comparison([*rivals, ("grid", np.array([1, 1]), None)], columns=2)
    titles = [part._suptitle.get_text().split("\n")[:2] for part in drawn[0].subfigs[:3]]
    assert titles == [
        ["few", "2 of 4 codes used (50.0 %)"],
        ["many", "4 of 4 codes used (100.0 %)"],
        ["grid", "2 of 2 codes used (100.0 %)"],
    ]
    usages = panels_with(drawn[0], "codes, most frequent first")
    assert {axes.get_ylim() for axes in usages} == {(0.5, 27.0)}
    planes = [axes for axes in drawn[0].findobj(Axes) if axes.get_title()]
    assert len(usages) == 3 and len(planes) == 2
    assert {axes.collections[1].norm.vmax for axes in planes} == {9}
