import dataclasses
import json
import pickle

import numpy as np
import pytest

from regvq_jax.data.pipeline import make_batches
from regvq_jax.data.sources import Source
from regvq_jax.data.tokens import TokenMeta, TokenSource, check_meta, is_finished, read_meta, write_tokens
from regvq_jax.errors import UserError

META = TokenMeta(
    codebook_size=256,
    grid=(2, 3),
    tokenizer_hash="t0",
    data_fingerprint="d0",
    split="train",
    num_examples=10,
    has_text=True,
)


def codes_of(index, meta=META):
    return np.random.default_rng(index).integers(0, meta.codebook_size, meta.grid, dtype=np.int32)


class Encoder:
    """Gives examples, remembers for which shards, and may be interrupted."""

    def __init__(self, meta=META, stop_before=None):
        self.meta, self.stop_before, self.calls = meta, stop_before, []

    def __call__(self, start, stop):
        self.calls.append((start, stop))
        for i in range(start, stop):
            if i == self.stop_before:
                raise KeyboardInterrupt
            yield codes_of(i, self.meta), f"picture {i}" if self.meta.has_text else None


def contents(directory):
    source = TokenSource(directory)
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("shard_size", [4, 5, 10, 4096])
def test_round_trip(tmp_path, shard_size):
    write_tokens(tmp_path / "tokens", META, Encoder(), shard_size)
    source = TokenSource(tmp_path / "tokens")
    assert isinstance(source, Source) and len(source) == 10 and source.has_text
    assert source.meta == dataclasses.replace(META, shard_size=shard_size)
    for i in range(10):
        element = source[i]
        assert element["tokens"].dtype == np.int32 and element["tokens"].shape == (6,)
        np.testing.assert_array_equal(element["tokens"], codes_of(i).ravel())
        assert element["text"] == f"picture {i}" and element["texts"] == (f"picture {i}",)
    with pytest.raises(IndexError):
        source[10]
    names = sorted(path.name for path in (tmp_path / "tokens").iterdir())
    assert names[0] == "meta.json" and len(names) == 1 + -(-10 // shard_size)


@pytest.mark.parametrize("codebook_size", [65536, 65537, 1 << 20])
def test_large_codebooks_keep_every_bit(tmp_path, codebook_size):
    meta = dataclasses.replace(META, codebook_size=codebook_size, num_examples=1, has_text=False)
    codes = np.array([[0, 1, 255], [256, 65535, codebook_size - 1]], np.int64)
    write_tokens(tmp_path, meta, lambda start, stop: [(codes, None)])
    source = TokenSource(tmp_path)
    assert not source.has_text and source[0].keys() == {"tokens"}
    np.testing.assert_array_equal(source[0]["tokens"], codes.ravel())


def test_several_captions_and_any_unicode(tmp_path):
    texts = ("ein Herz", "赤いハート ❤️")
    meta = dataclasses.replace(META, num_examples=2)
    write_tokens(tmp_path, meta, lambda start, stop: [(codes_of(0), texts)] * 2)
    first, second = contents(tmp_path)
    assert first["texts"] == second["texts"] == texts
    assert (first["text"], second["text"]) == texts


def test_interrupted_run_keeps_its_complete_shards(tmp_path):
    encoder = Encoder(stop_before=6)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path, META, encoder, 4)
    assert encoder.calls == [(0, 4), (4, 8)]
    with pytest.raises(UserError, match="no finished token cache"):
        TokenSource(tmp_path)
    again = Encoder()
    write_tokens(tmp_path, META, again, 4)
    assert again.calls == [(4, 8), (8, 10)]
    unbroken = tmp_path / "unbroken"
    write_tokens(unbroken, META, Encoder(), 4)
    for left, right in zip(contents(tmp_path), contents(unbroken), strict=True):
        np.testing.assert_array_equal(left["tokens"], right["tokens"])
        assert left["text"] == right["text"]
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*unfinished*"))


def test_shards_of_something_else_are_encoded_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path, META, Encoder(stop_before=9), 4)
    other = dataclasses.replace(META, tokenizer_hash="t1")
    encoder = Encoder(other)
    write_tokens(tmp_path, other, encoder, 4)
    assert encoder.calls == [(0, 4), (4, 8), (8, 10)]
    assert TokenSource(tmp_path).meta.tokenizer_hash == "t1"


def test_a_damaged_shard_is_encoded_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path, META, Encoder(stop_before=9), 4)
    shard = sorted(tmp_path.glob("*.array_record"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    encoder = Encoder()
    write_tokens(tmp_path, META, encoder, 4)
    assert encoder.calls == [(0, 4), (8, 10)] and len(contents(tmp_path)) == 10


def test_finished_cache_is_left_alone(tmp_path):
    write_tokens(tmp_path, META, Encoder(), 4)
    encoder = Encoder()
    write_tokens(tmp_path, META, encoder, 4)
    assert encoder.calls == []
    other = dataclasses.replace(META, tokenizer_hash="t1", grid=(4, 4))
    with pytest.raises(UserError, match=r"'t0' instead of 't1'") as caught:
        write_tokens(tmp_path, other, encoder, 4)
    assert "grid (2, 3) instead of (4, 4)" in str(caught.value)
    assert encoder.calls == [] and len(contents(tmp_path)) == 10


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (np.zeros((3, 2), int), "x"),
        (np.zeros((2, 3), float), "x"),
        (np.full((2, 3), 256), "x"),
        (np.full((2, 3), -1), "x"),
        (np.zeros((2, 3), int), None),
        (np.zeros((2, 3), int), ()),
    ],
)
def test_wrong_examples_are_bugs(tmp_path, codes, text):
    with pytest.raises(ValueError, match=r"Codes|captions"):
        write_tokens(tmp_path, META, lambda start, stop: [(codes, text)] * (stop - start))
    assert not (tmp_path / "meta.json").exists()


def test_wrong_number_of_examples(tmp_path):
    with pytest.raises(ValueError, match="gave 9 examples"):
        write_tokens(tmp_path, META, lambda start, stop: Encoder()(start, stop - 1))
    with pytest.raises(UserError, match="no train images"):
        write_tokens(tmp_path, dataclasses.replace(META, num_examples=0), Encoder())


def test_missing_and_damaged_shards(tmp_path):
    write_tokens(tmp_path, META, Encoder(), 4)
    shard = tmp_path / "tokens-00001-of-00003.array_record"
    content = shard.read_bytes()
    for damaged in (content[:-100], b"", content[:30000]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokens-00001-of-00003\.array_record is damaged"):
            TokenSource(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"tokens-00001-of-00003\.array_record is missing \(0 of 4"):
        TokenSource(tmp_path)
    flipped = bytearray(content)
    flipped[280:320] = bytes(40)
    shard.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"Record \d is damaged|Record \d of tokens"):
        contents(tmp_path)


def test_unreadable_meta(tmp_path):
    for missing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no finished token cache"):
            read_meta(missing)
    write_tokens(tmp_path, META, Encoder())
    path = tmp_path / "meta.json"
    values = json.loads(path.read_text())
    for text in ("{", "[]", "{}", json.dumps({**values, "unknown": 1})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"meta\.json cannot be read"):
            read_meta(tmp_path)
    path.write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(UserError, match="format 99, not 1"):
        read_meta(tmp_path)


def test_check_meta():
    check_meta(META, tokenizer_hash="t0", grid=[2, 3], codebook_size=256, data_fingerprint="d0")
    with pytest.raises(UserError) as caught:
        check_meta(
            META,
            directory="/cache",
            tokenizer_hash="t9",
            grid=(8, 8),
            codebook_size=512,
            data_fingerprint="d9",
            split="train",
        )
    message = str(caught.value)
    for part in ("/cache", "'t0'", "'t9'", "grid", "codebook size 256", "data fingerprint", "512"):
        assert part in message
    assert "split" not in message


def test_no_permission_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the token cache"):
        write_tokens(tmp_path / "file" / "tokens", META, Encoder())


def test_pickles_and_feeds_the_pipeline(tmp_path):
    write_tokens(tmp_path, META, Encoder(), 4)
    source = TokenSource(tmp_path)
    source[0]  # With a reader open.
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy.meta == read_meta(tmp_path)
    batch = make_batches(copy, (), batch_size=5, seed=0)[1]
    assert batch.keys() == {"tokens"} and batch["tokens"].shape == (5, 6)
    assert batch["tokens"].dtype == np.int32


def test_a_cache_is_finished_when_its_meta_is_written(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "tokens-00000-of-00001.array_record").write_bytes(b"")
    assert not is_finished(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    assert is_finished(tmp_path)
