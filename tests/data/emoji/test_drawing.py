"""Pasting: alpha, resizing without colour from clear pixels, label maps by nearest."""

import numpy as np
from PIL import Image

from regvq_jax.data.emoji import drawing, load_pack


def test_paste_blends_without_colour_from_clear_pixels():
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[:, 0] = (255, 0, 0, 255)
    picture[:, 1] = (0, 255, 0, 0)  # clear green
    image = np.full((3, 3, 3), 255, np.uint8)
    labels = np.full((3, 3), 9, np.uint8)
    classes = np.array([[1, 0], [1, 0]], np.uint8)
    sprite = Image.fromarray(picture).convert("RGBa")
    drawing.paste(image, labels, sprite, classes, (0, 0, 2, 2), (1, 2, 1, 1))
    assert np.abs(image[2, 1].astype(int) - [255, 127, 127]).max() <= 1  # half red on white
    image[2, 1] = 255
    assert (image == 255).all()  # nothing else was touched
    assert (labels == 9).all()  # the nearest of the 2 x 2 labels is the lower right: background


def test_paste_takes_the_box_and_keeps_the_ground_under_background_labels():
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[2:, 2:] = (0, 0, 255, 255)
    classes = np.zeros((4, 4), np.uint8)
    classes[2:, 2:] = [[3, 4], [5, 0]]
    image = np.full((4, 4, 3), 10, np.uint8)
    labels = np.full((4, 4), 7, np.uint8)
    sprite = Image.fromarray(picture).convert("RGBa")
    drawing.paste(image, labels, sprite, classes, (2, 2, 4, 4), (0, 1, 2, 2))
    assert (image[1:3, :2] == (0, 0, 255)).all() and (image[0] == 10).all()
    np.testing.assert_array_equal(labels[1:3, :2], [[3, 4], [5, 7]])


def test_bounding_boxes_hold_all_that_is_visible():
    alpha = load_pack(64).pictures[..., 3]
    for index in (0, 700, 1569):
        left, top, right, bottom = drawing.bounding_boxes(64)[index]
        rows, columns = np.nonzero(alpha[index] >= 16)
        assert (left, right) == (columns.min(), columns.max() + 1)
        assert (top, bottom) == (rows.min(), rows.max() + 1)
