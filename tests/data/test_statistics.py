"""Figures of a few elements, worked out by hand."""

import numpy as np
import pytest

from regvq_jax.data import statistics


def lengths(texts):
    """A word is an id, and so are start and end."""
    return np.array([len(text.split()) + 2 if text.split() else 0 for text in texts])


def element(value, size=(2, 2), **rest):
    return {"image": np.full((*size, 3), value, np.uint8), **rest}


@pytest.mark.parametrize(("total", "count"), [(10, 4), (1000, 7), (2**20, 512)])
def test_a_sample_has_one_of_each_equal_part(total, count):
    sample = statistics.spread(total, count)
    bounds = np.arange(count + 1) * total // count
    assert len(sample) == count and (bounds[:-1] <= sample).all() and (sample < bounds[1:]).all()
    np.testing.assert_array_equal(sample, statistics.spread(total, count))


def test_a_sample_of_few_is_all_of_them_and_a_large_one_has_no_period():
    np.testing.assert_array_equal(statistics.spread(3, 3), [0, 1, 2])
    np.testing.assert_array_equal(statistics.spread(3, 9), [0, 1, 2])
    assert len(statistics.spread(0, 5)) == 0
    # Ten grounds of 1,413 drawings: even steps of 32 would show each of 16 drawings twice.
    drawings = statistics.spread(14130, 32) % 1413
    assert len(set(drawings.tolist())) > 28


def test_sizes_and_colours():
    first = element((10, 20, 30), size=(4, 6))
    second = element((30, 20, 10), size=(2, 2))
    cut = element((10, 20, 30))
    figures = statistics.describe_images(
        [statistics.look_at(first, cut, 0), statistics.look_at(second, second, 0)]
    )
    assert figures["looked_at"] == 2
    assert figures["height"] == [2, 3, 4] and figures["width"] == [2, 4, 6]
    assert figures["shapes"] == [(2, 2, 3)] and figures["dtypes"] == ["uint8"]
    assert figures["values"] == [10, 30]
    np.testing.assert_allclose(figures["mean"], [20, 20, 20])
    np.testing.assert_allclose(figures["std"], [10, 0, 10], atol=1e-6)


def test_grey_pictures_are_those_whose_channels_are_alike_everywhere():
    nearly = element((100, 102, 98))
    coloured = element((100, 100, 100))
    coloured["image"][0, 0] = (200, 100, 100)
    facts = [statistics.look_at(x, x, 0) for x in (element(7), nearly, coloured)]
    assert [fact.grey for fact in facts] == [True, True, False]
    assert statistics.describe_images(facts)["grey"] == pytest.approx(2 / 3)


def test_captions():
    captions = [("a red heart", "A heart, red"), ("",), ("one two three four five",)]
    figures = statistics.describe_captions(captions, lengths, 6)
    assert figures["captions"] == 4 and figures["per_image"] == [1, 1, 2]
    assert figures["words"][0] == 3 and figures["words"][2] == 5
    assert figures["ids"][2] == 7
    assert figures["empty"] == 1
    assert (figures["length"], figures["longer"]) == (6, 1)  # 5 words and two ends; 4 of them would fit
    assert figures["frequent"][:3] == [["a", 2], ["red", 2], ["heart", 2]]
    assert "longer" not in statistics.describe_captions(captions, lengths, None)
    assert statistics.describe_captions([(), ()], lengths, 6) is None


def test_words_keep_their_letters():
    figures = statistics.describe_captions([("Das Kind’s Äpfel, T-shirt: 7 o'clock",)], lengths, None)
    assert [word for word, _ in figures["frequent"]] == [
        "das",
        "kind’s",
        "äpfel",
        "t-shirt",
        "7",
        "o'clock",
    ]


def test_all_captions_of_an_element():
    assert statistics.captions_of({"text": "b", "texts": ("a", "b")}) == ("a", "b")
    assert statistics.captions_of({"text": "b"}) == ("b",)
    assert statistics.captions_of({}) == ()


def test_classes_and_label_maps():
    classes = statistics.describe_classes([2, 0, 2, 2], ("cat", "dog", "owl", "fox"), 4)
    assert classes["shares"] == [0.25, 0, 0.75, 0]
    assert classes["never"] == ["dog", "fox"]

    maps = [np.array([[0, 0], [1, 3]], np.uint8), np.array([[0, 0], [0, 0]], np.uint8)]
    facts = []
    for labels in maps:
        one = element(0, labels=labels)
        facts.append(statistics.look_at(one, one, 5))
    labels = statistics.describe_labels(facts, ("ground", "sky"))
    assert labels["names"] == ["ground", "sky", "2", "3", "4"]
    assert labels["shares"] == [6 / 8, 1 / 8, 0, 1 / 8, 0]
    assert labels["pictures"] == [1, 0.5, 0, 0.5, 0]
    assert labels["never"] == ["2", "4"]


def test_what_a_source_left_out():
    class Source:
        name, fingerprint = "some", "0" * 16
        skipped, undecodable = (("a.png", "small"),), (("b.png", "cut off"),)

        def __len__(self):
            return 3

    figures = statistics.describe_source(Source())
    assert figures["examples"] == 3
    assert figures["skipped"] == [["a.png", "small"], ["b.png", "cut off"]]
