"""Copies are found, whatever was done to them; unlike pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image

from regvq_jax.data.duplicates import distances, find_duplicates, sign
from tests import miniatures


class Pictures:
    """A source of given pictures."""

    name = "pictures"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index]}


def original(seed):
    return miniatures.picture(seed, 96, 128)


def saved_anew(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "jpeg", quality=60)
    return np.asarray(Image.open(content))


CHANGES = {
    "nothing": lambda image: image,
    "saved anew": saved_anew,
    "resized": lambda image: np.asarray(Image.fromarray(image).resize((70, 60))),
    "slightly cut": lambda image: image[1:-1, 1:-1],
    "lighter": lambda image: np.minimum(image.astype(int) + 4, 255).astype(np.uint8),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change):
    train = Pictures([original(i) for i in range(40)])
    heldout = Pictures([original(100), CHANGES[change](original(17)), original(101)])
    found = find_duplicates(train, heldout, enabled=False)
    (match,) = found.matches
    assert (match.heldout, match.train, match.pairs) == (1, 17, 1)
    assert match.mirrored == (change == "mirrored") and found.num_pairs == 1


def test_pictures_of_one_colour_are_no_duplicates():
    grey, white = (np.full((32, 32, 3), value, np.uint8) for value in (128, 255))
    found = find_duplicates(Pictures([grey, white, grey]), Pictures([grey]), enabled=False)
    assert found.matches == [] and (found.train_blank, found.heldout_blank) == (3, 1)


def test_one_outline_in_other_colours_is_another_picture():
    image = original(3)
    other = np.ascontiguousarray(image[..., ::-1])
    assert find_duplicates(Pictures([other]), Pictures([image]), enabled=False).matches == []


def test_a_limit_looks_at_some_of_all():
    train = Pictures([original(i) for i in range(50)])
    found = find_duplicates(train, Pictures([original(0)]), limit=10, enabled=False)
    assert len(found.train_compared) == 10 and len(found.heldout_compared) == 1


def test_distances_count_bits():
    signed = sign([original(0), original(1), original(0)])
    table = distances(signed.hashes, signed.hashes)
    assert table.shape == (3, 3) and table[0, 2] == 0 == table[1, 1] and table[0, 1] > 30
    bits = np.array([[0b1011, 0]], np.uint64), np.array([[0b0001, 0b1]], np.uint64)
    assert distances(*bits).tolist() == [[3]]
