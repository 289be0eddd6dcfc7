"""A picture and its label map belong together."""

import numpy as np
import pytest

from regvq_jax.data.decode import decode_element
from regvq_jax.data.images import ImageError
from regvq_jax.errors import UserError
from tests import miniatures


def test_a_picture_alone_may_be_decoded_small():
    content = miniatures.jpeg(miniatures.picture(0, 64, 96))
    assert decode_element(content, "x", decode_side=20)["image"].shape == (24, 36, 3)
    with pytest.raises(ImageError, match=r"x is smaller \(96 x 64\) than the crop \(65\)"):
        decode_element(content, "x", min_size=65)


def test_a_picture_with_a_map_is_decoded_whole():
    content, labels = miniatures.jpeg(miniatures.picture(0, 64, 96)), miniatures.labels(0, 5, 64, 96)
    options = {"labels": miniatures.png(labels), "decode_side": 20}
    element = decode_element(content, "x", num_label_classes=5, **options)
    assert element["image"].shape == (64, 96, 3)
    np.testing.assert_array_equal(element["labels"], labels)
    with pytest.raises(UserError, match="of x has the id 4"):
        decode_element(content, "x", num_label_classes=4, **options)
    options["labels"] = miniatures.png(labels[:, :-1])
    with pytest.raises(ImageError, match="not the size of its image"):
        decode_element(content, "x", num_label_classes=5, **options)
