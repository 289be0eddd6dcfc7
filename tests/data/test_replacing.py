"""An element that cannot be decoded is replaced, counted, and too many of them are an error."""

import pickle

import pytest

from regvq_jax.data.images import ImageError
from regvq_jax.data.replacing import Replacing
from regvq_jax.errors import UserError

BAD = {7, 8, 299}


def read(index):
    if index in BAD:
        raise ImageError(f"picture {index} is damaged.")
    return {"index": index}


def name_of(index):
    return f"{index}.png"


def test_the_next_one_takes_its_place():
    elements = Replacing(read, 300, name_of, "pictures")
    assert [elements[i]["index"] for i in (6, 7, 8, 9, 299)] == [6, 9, 9, 9, 0]
    assert [name for name, _ in elements.undecodable] == ["7.png", "8.png", "299.png"]
    again = pickle.loads(pickle.dumps(elements))
    assert again[7]["index"] == 9 and len(again) == 300
    with pytest.raises(IndexError):
        elements[300]


def test_more_than_one_percent_is_an_error():
    elements = Replacing(read, 150, name_of, "pictures of a folder")
    with pytest.raises(UserError, match=r"the 150 pictures .* 2 \(7.png, 8.png\).* The first: picture 7 is"):
        elements[7]
