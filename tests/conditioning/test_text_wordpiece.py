"""BERT's word pieces from a tokenizer.json: the row format, and what no caption can write."""

import json
import pickle

import numpy as np
import pytest

from regvq_jax.conditioning.text_wordpiece import make_wordpiece_tokenizer
from regvq_jax.errors import UserError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "heart", "##s", "[", "]", "pad", "cafe"]
PAD, UNK, CLS, SEP = range(4)


def write_file(directory, vocabulary=VOCABULARY):
    """A tokenizer.json as in a BERT's directory, with a length of its own."""
    content = {
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 4},
            "direction": "Right",
            "pad_id": PAD,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {"id": i, "content": token, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, token in enumerate(vocabulary[:4])
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
        },
    }
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_wordpiece_tokenizer(write_file(tmp_path_factory.mktemp("words")))


def test_rows(tokenizer):
    captions = ["a red heart", "  Café \n hearts", "", " \x00\t", "xyz", "[PAD]"]
    assert tokenizer.encode(captions, 5).tolist() == [
        [CLS, 4, 5, 6, SEP],
        [CLS, 11, 6, 7, SEP],
        [PAD] * 5,
        [PAD] * 5,
        [CLS, UNK, SEP, PAD, PAD],
        [CLS, 8, 10, 9, SEP],
    ]
    assert tokenizer.encode(captions, 5).dtype == np.int32
    assert tokenizer.lengths(captions).tolist() == [5, 5, 0, 0, 3, 5]


def test_long_captions_are_cut_before_their_end_and_counted(tokenizer):
    captions = ["a red red heart", "a heart", "", "a red"]
    assert tokenizer.encode(captions, 4).tolist()[0] == [CLS, 4, 5, SEP]
    assert tokenizer.lengths(captions).tolist() == [6, 4, 0, 4]


def test_ids_and_size(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (CLS, SEP, PAD)
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_pickles_small_and_equal(tokenizer):
    data = pickle.dumps(tokenizer.encode)
    assert len(data) < 400
    assert pickle.loads(data)(["a red heart"], 5).tolist() == [[CLS, 4, 5, 6, SEP]]


def test_user_errors(tokenizer, tmp_path):
    with pytest.raises(UserError, match="list of strings"):
        tokenizer.encode("a", 4)
    with pytest.raises(UserError, match="tokenizer.json is missing or no tokenizer.json"):
        make_wordpiece_tokenizer(tmp_path / "tokenizer.json")
    file = write_file(tmp_path, ["[PAD]", "[UNK]", "[BOS]", "[SEP]"])
    with pytest.raises(UserError, match=r"has no token \[CLS\]"):
        make_wordpiece_tokenizer(file)
