"""The two emoji sources: contract, determinism, held-out rule, and captions that are true."""

import pickle

import numpy as np
import pytest

from regvq_jax.data.emoji import load_pack
from regvq_jax.data.emoji.captions import noun_phrase
from regvq_jax.data.emoji.sources import GROUNDS, EmojiGrounds, EmojiPictures, EmojiScenes
from regvq_jax.errors import UserError

RELATIONS = (" left of ", " right of ", " above ", " below ", " in a row ")


def by_phrase():
    return {noun_phrase(entry.caption): index for index, entry in enumerate(load_pack(64).entries)}


def split_ground(text):
    """'a rooster, bird, on a red to blue background' -> ('a rooster, bird,', 'red', 'blue')."""
    objects, _, ground = text.removesuffix(" background").rpartition(" on a")
    ground = ground.removeprefix("n").strip()
    first, _, second = ground.partition(" to ")
    return objects, first, second or first


def is_single(text):
    return not any(relation in text for relation in RELATIONS)


@pytest.mark.parametrize("source_class", [EmojiPictures, EmojiScenes])
@pytest.mark.parametrize("image_size", [8, 32, 50, 64, 100, 128])
def test_elements_keep_the_contract(source_class, image_size):
    source = source_class("heldout", image_size)
    assert source.has_text and source.has_labels and source.name.startswith("emoji")
    for element in (source[0], source[3], source[-1]):
        assert element["image"].shape == (image_size, image_size, 3)
        assert element["labels"].shape == (image_size, image_size)
        assert element["image"].dtype == element["labels"].dtype == np.uint8
        assert element["labels"].max() in range(1, 25) and source.num_label_classes == 25
        assert isinstance(element["text"], str) and element["text"].strip() == element["text"]


@pytest.mark.parametrize("source", [EmojiPictures("train", 32), EmojiScenes("train", 32)])
def test_elements_are_the_same_by_index_and_after_pickling(source):
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000  # the pack does not travel
    assert copy.fingerprint == source.fingerprint and len(copy) == len(source)
    for index in (5, np.int64(5), len(source) - 1, -1):
        first, second = source[index], copy[index]
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["labels"], second["labels"])
        assert first["text"] == second["text"]
    np.testing.assert_array_equal(source[-1]["image"], source[len(source) - 1]["image"])
    with pytest.raises(IndexError):
        source[len(source)]


def test_fingerprints_tell_all_parameters_apart():
    sources = [
        EmojiPictures("train", 32),
        EmojiPictures("heldout", 32),
        EmojiPictures("train", 64),
        EmojiPictures("train", 128),
        EmojiScenes("train", 32),
        EmojiScenes("heldout", 32),
        EmojiScenes("train", 32, 1),
        EmojiScenes("train", 32, 4, 10),
    ]
    fingerprints = {source.fingerprint for source in sources}
    assert len(fingerprints) == len(sources)
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)
    assert EmojiScenes("train", 32).fingerprint == EmojiScenes("train", 32, 4, 2**20).fingerprint


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: EmojiPictures("test", 32), "'test'"),
        (lambda: EmojiPictures("train", 256), "image_size 256"),
        (lambda: EmojiScenes("train", 0), "image_size 0"),
        (lambda: EmojiScenes("train", 32, 5), "max_objects 5"),
        (lambda: EmojiScenes("train", 32, 0), "max_objects 0"),
        (lambda: EmojiScenes("train", 32, 4, 0), "num_scenes 0"),
    ],
)
def test_bad_parameters_are_user_errors(make, word):
    with pytest.raises(UserError, match=word):
        make()


def test_pictures_cover_a_split_in_order_on_white():
    pack = load_pack(64)
    source = EmojiPictures("heldout", 64)
    assert len(source) == 157 and len(EmojiPictures("train", 64)) == 1413
    for index, picture in enumerate(pack.indices("heldout")[:20]):
        element, rgba = source[index], pack.pictures[picture].astype(float)
        alpha = rgba[..., 3:] / 255.0
        expected = rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)
        assert np.abs(element["image"] - expected).max() <= 2.0
        np.testing.assert_array_equal(element["labels"], pack.labels[picture])
    captions = [pack.entries[picture].caption for picture in pack.indices("train")]
    text = EmojiPictures("train", 64)[captions.index("artist palette")]["text"]
    assert text == "artist palette, art, artsy, arty, colorful, creative"


def test_lengths_and_share_of_single_objects():
    assert len(EmojiScenes("train", 32)) == 2**20 and len(EmojiScenes("heldout", 32)) == 512
    source = EmojiScenes("train", 8, num_scenes=400)
    singles = sum(is_single(source[index]["text"]) for index in range(400))
    assert 160 < singles < 240
    alone = EmojiScenes("train", 8, 1)
    assert all(is_single(alone[index]["text"]) for index in range(50))


def test_scene_is_the_same_at_every_size():
    for index in range(20):
        small, large = EmojiScenes("train", 32)[index], EmojiScenes("train", 64)[index]
        assert small["text"] == large["text"]
        reduced = large["image"].reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(reduced - small["image"]).mean() < 20.0


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_single_object_is_named_belongs_to_the_split_and_fills_the_frame(split):
    pack, phrases = load_pack(64), by_phrase()
    source = EmojiScenes(split, 64, 1)
    tagged = 0
    for index in range(60):
        element = source[index]
        objects, first, second = split_ground(element["text"])
        phrase = max((p for p in phrases if f"{objects},".startswith(f"{p},")), key=len)
        entry = pack.entries[phrases[phrase]]
        assert entry.split == split
        extra = [tag for tag in objects.removeprefix(phrase).split(", ") if tag]
        tagged += bool(extra)
        assert {tag.strip(",") for tag in extra} <= set(entry.tags)
        # The labels are those of the named picture; the corners show the named ground.
        classes = np.unique(pack.labels[phrases[phrase]])
        assert set(np.unique(element["labels"])) <= set(classes)
        assert tuple(element["image"][0, 0]) == GROUNDS[first]
        assert tuple(element["image"][-1, -1]) == GROUNDS[second]
        rows, columns = np.nonzero(element["labels"])
        extent = 1 + max(np.ptp(rows), np.ptp(columns))
        assert 0.5 * 64 <= extent <= 0.95 * 64
    assert 8 <= tagged <= 30


def test_left_right_above_and_below_are_true_so_no_scene_was_mirrored():
    pack, phrases = load_pack(64), by_phrase()
    classes = {phrase: set(np.unique(pack.labels[index])) | {0} for phrase, index in phrases.items()}
    # Where the first-named object is: rows, columns of the frame.
    low, high, whole = slice(0, 16), slice(16, 32), slice(0, 32)
    sides = {
        " left of ": ((whole, low), (whole, high)),
        " right of ": ((whole, high), (whole, low)),
        " above ": ((low, whole), (high, whole)),
        " below ": ((high, whole), (low, whole)),
    }
    seen = dict.fromkeys(sides, 0)
    told_apart = 0
    source = EmojiScenes("train", 32, 2)
    for index in range(200):
        element = source[index]
        objects, _, _ = split_ground(element["text"])
        for relation, (first_side, second_side) in sides.items():
            first, found, second = objects.partition(relation)
            if not found:
                continue
            seen[relation] += 1
            here = set(np.unique(element["labels"][first_side]))
            there = set(np.unique(element["labels"][second_side]))
            assert here <= classes[first] and there <= classes[second], element["text"]
            told_apart += not (here <= classes[second] and there <= classes[first])
    assert min(seen.values()) >= 10
    assert told_apart > 0.8 * sum(seen.values())  # the check would notice an exchange


def test_three_and_four_objects_stand_where_the_caption_says():
    pack, phrases = load_pack(64), by_phrase()
    classes = {phrase: set(np.unique(pack.labels[index])) | {0} for phrase, index in phrases.items()}
    source = EmojiScenes("train", 60)
    checked = {3: 0, 4: 0}
    for index in range(250):
        element = source[index]
        objects, _, _ = split_ground(element["text"])
        above, found, below = objects.partition(" above ")
        rows = [row.split(" and ") for row in (above, below)]
        names = [name for row in rows for name in row]
        if not found or len(names) < 3 or not set(names) <= set(phrases):
            continue  # other layouts, and labels that have an 'and' of their own
        checked[len(names)] += 1
        for row, part in zip(rows, (element["labels"][:30], element["labels"][30:]), strict=True):
            for name, cell in zip(row, np.split(part, len(row), axis=1), strict=True):
                assert set(np.unique(cell)) <= classes[name], element["text"]
                assert cell.any()
    assert min(checked.values()) >= 5


def test_every_picture_stands_on_every_ground():
    train, heldout = (EmojiGrounds(split, 32) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (14130, 1570)
    # The first picture's turns: the grounds in order.
    elements = [train[i * 1413] for i in range(10)]
    for element, (name, colour) in zip(elements, GROUNDS.items(), strict=True):
        assert element["image"].shape == (32, 32, 3) and element["image"].dtype == np.uint8
        np.testing.assert_array_equal(element["image"][0, 0], colour)
        assert element["labels"][0, 0] == 0 and element["labels"].max() > 0
        assert element["text"] in element["texts"] and len(element["texts"]) == 2
        assert all(text.endswith(f" {name} background") for text in element["texts"])
    # Ten grounds, one drawing.
    for element in elements[1:]:
        np.testing.assert_array_equal(element["labels"], elements[0]["labels"])
    assert len({element["text"] for element in elements}) == 10
    assert train.fingerprint != heldout.fingerprint
    assert len({heldout[i]["text"] for i in range(1570)}) == 1570


def test_classes_are_the_groups_of_single_pictures():
    pack = load_pack(64)
    for source_class in (EmojiPictures, EmojiGrounds):
        train, heldout = (source_class(split, 8) for split in ("train", "heldout"))
        assert train.class_names == heldout.class_names and train.num_classes == 9
        assert train.class_names[:3] == ("activities", "animals-nature", "flags")
        for source in (train, heldout):
            members = pack.indices(source.split)
            for index in range(0, 150, 7):
                element, entry = source[index], pack.entries[members[index]]
                assert element["class"].dtype == np.int32
                assert source.class_names[element["class"]] == entry.group
    scenes = EmojiScenes("train", 8, 1)
    assert scenes.num_classes == 0 and scenes.class_names == () and "class" not in scenes[0]
