"""Colour space against published values; clustering and naming by hand-made cases."""

import numpy as np

from regvq_jax.data.emoji import palette


def test_rgb_packing_round_trip():
    colours = np.array([[0, 0, 0], [1, 2, 3], [255, 128, 0], [255, 255, 255]], np.uint8)
    assert palette.pack_rgb(colours).tolist() == [0, 0x010203, 0xFF8000, 0xFFFFFF]
    np.testing.assert_array_equal(palette.unpack_rgb(palette.pack_rgb(colours)), colours)


def test_oklab_of_white_black_and_red():
    lab = palette.oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8))
    expected = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585]]
    np.testing.assert_allclose(lab, expected, atol=1e-4)


def test_clusters_take_their_commonest_colour_and_go_from_dark_to_light():
    colours = np.array([[250, 250, 250], [255, 255, 255], [200, 0, 0], [210, 5, 5], [5, 5, 5]], np.uint8)
    counts = np.array([10, 30, 7, 5, 1])
    found = palette.cluster_colours(colours, counts, 3)
    np.testing.assert_array_equal(found, [[5, 5, 5], [200, 0, 0], [255, 255, 255]])
    order = [3, 1, 4, 0, 2]
    np.testing.assert_array_equal(palette.cluster_colours(colours[order], counts[order], 3), found)


def test_names_are_nearest_first_and_never_shared():
    colours = np.array([[250, 50, 50], [248, 49, 47], [255, 255, 255]], np.uint8)
    names = palette.name_colours(colours)
    assert names[1:] == ["red", "white"]  # the exact red takes the name before its neighbour
    assert len(set(names)) == 3
