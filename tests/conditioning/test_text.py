"""The CLIP tokenizer: known ids, the row format, and the way back."""

import pickle

import numpy as np
import pytest

from regvq_jax.conditioning import text
from regvq_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return text.make_tokenizer()


# Ids as CLIP's own tokenizer gives them.
@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("  A  photo\nof a CAT ", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("it's 2024!", [585, 568, 273, 271, 273, 275, 256]),
    ],
)
def test_known_ids(tokenizer, caption, ids):
    row = tokenizer.encode([caption], 10)[0]
    expected = [text.BOS_ID, *ids, text.EOS_ID]
    assert row.tolist() == expected + [text.PAD_ID] * (10 - len(expected))


def test_the_vocabulary_is_whole_and_ids_stay_inside(tokenizer):
    assert len(tokenizer._symbols) == len(set(tokenizer._symbols)) == text.BOS_ID
    assert text.VOCAB_SIZE == text.PAD_ID + 1
    rows = tokenizer.encode(["cat", "𝔘nicode \x00\x7f ÿ"], 77)
    assert rows.dtype == np.int32
    assert 0 <= rows.min() and rows.max() < text.VOCAB_SIZE


def test_long_captions_are_cut_before_their_eos_and_counted(tokenizer):
    captions = ["a photo of a cat", "a cat", ""]
    rows = tokenizer.encode(captions, 5)
    assert rows.tolist() == [
        [text.BOS_ID, 320, 1125, 539, text.EOS_ID],
        [text.BOS_ID, 320, 2368, text.EOS_ID, text.PAD_ID],
        [text.PAD_ID] * 5,
    ]
    assert tokenizer.lengths(captions).tolist() == [7, 4, 0]
    assert (tokenizer.lengths(captions) > 5).sum() == 1


@pytest.mark.parametrize("caption", ["", "   ", "\n\t", "&nbsp;"])
def test_captions_without_words_are_all_padding(tokenizer, caption):
    assert (tokenizer.encode([caption], 4) == text.PAD_ID).all()


def test_no_captions(tokenizer):
    assert tokenizer.encode([], 6).shape == (0, 6)
    assert tokenizer.lengths([]).shape == (0,)


@pytest.mark.parametrize(
    "caption",
    [
        "🐱",
        "👩‍🚀 🏳️‍🌈",
        "naïve café",
        "日本語 テキスト",
        "привет мир",
        "नमस्ते",
        "مرحبا",
        "\x01 \x7f",
        "𝔘",
    ],
)
def test_any_unicode_comes_back(tokenizer, caption):
    row = tokenizer.encode([caption], 77)[0]
    # Spaces are not tokens: a word that holds symbols of two kinds comes back with a space between.
    assert tokenizer.decode(row).replace(" ", "") == caption.replace(" ", "")


def test_decode_restores_plain_captions(tokenizer):
    caption = "a rooster left of a red heart"
    assert tokenizer.decode(tokenizer.encode([caption], 16)[0]) == caption


def test_a_cut_character_decodes_to_the_replacement_character(tokenizer):
    ids = tokenizer.encode(["𝔘"], 8)[0]
    words = [i for i in ids if i < text.BOS_ID]
    assert len(words) > 1
    assert tokenizer.decode(words[:1]) == "\ufffd"


def test_special_tokens_cannot_be_written_in_a_caption(tokenizer):
    row = tokenizer.encode(["<|endoftext|> </w> <|startoftext|>"], 32)[0].tolist()
    assert row.count(text.EOS_ID) == row.count(text.BOS_ID) == 1
    assert "endoftext" in tokenizer.decode(row)


def test_clean():
    assert text.clean("A&amp;amp;B") == "a&b"
    assert text.clean("Woman’s “boot”") == 'woman\'s "boot"'
    assert text.clean("e\u0301\u00a0\u2003x") == "é x"


def test_rows_do_not_depend_on_their_neighbours(tokenizer):
    captions = ["a cat", "👩‍🚀", "a very long caption with many words in it"]
    alone = np.concatenate([tokenizer.encode([caption], 8) for caption in captions])
    assert np.array_equal(tokenizer.encode(captions, 8), alone)


def test_pickles_small_and_equal(tokenizer):
    data = pickle.dumps(tokenizer)
    assert len(data) < 200
    again = pickle.loads(data)
    assert np.array_equal(again.encode(["a cat"], 6), tokenizer.encode(["a cat"], 6))


def test_user_errors(tokenizer):
    with pytest.raises(UserError, match="at least 2"):
        tokenizer.encode(["a"], 1)
    with pytest.raises(UserError, match="list of strings"):
        tokenizer.encode("a cat", 8)
    with pytest.raises(UserError, match="list of strings"):
        tokenizer.lengths("a cat")
    with pytest.raises(UserError, match="49409"):
        tokenizer.decode([text.VOCAB_SIZE])
