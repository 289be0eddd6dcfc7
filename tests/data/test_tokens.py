import dataclasses
import json
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from regvq_jax.data import token_shards
from regvq_jax.data.pipeline import make_batches
from regvq_jax.data.sources import Source
from regvq_jax.data.tokens import (
    TokenExample,
    TokenMeta,
    TokenSource,
    check_meta,
    is_finished,
    read_meta,
    write_tokens,
)
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
    with pytest.raises(UserError, match="format 99, not 2"):
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


RICH = dataclasses.replace(
    META,
    has_text=False,
    image_size=5,
    num_label_classes=7,
    num_classes=3,
    class_names=("a", "b", "c"),
    map_tokenizer_hash="m0",
    map_codebook_size=70000,
    map_grid=(1, 2),
)


def rich_example(index):
    rng = np.random.default_rng(index)
    labels = rng.integers(0, 7, (5, 5), dtype=np.uint8)
    return TokenExample(codes_of(index), None, labels, rng.integers(0, 70000, (1, 2)), index % 3)


def test_label_maps_map_tokens_and_classes(tmp_path):
    write_tokens(tmp_path, RICH, lambda start, stop: map(rich_example, range(start, stop)), 4)
    source = TokenSource(tmp_path)
    assert isinstance(source, Source) and source.has_labels and source.has_map_tokens
    assert (source.num_label_classes, source.num_classes, source.class_names) == (7, 3, ("a", "b", "c"))
    assert source.meta == dataclasses.replace(RICH, shard_size=4)
    for i in range(10):
        element, wanted = source[i], rich_example(i)
        assert element.keys() == {"tokens", "labels", "map_tokens", "class"}
        np.testing.assert_array_equal(element["labels"], wanted.labels)
        assert element["labels"].dtype == np.uint8
        np.testing.assert_array_equal(element["map_tokens"], wanted.map_codes.ravel())
        assert element["class"] == i % 3
    batch = make_batches(source, (), batch_size=5, seed=0)[0]
    assert {key: value.dtype for key, value in batch.items()} == {
        "tokens": np.int32,
        "labels": np.uint8,
        "map_tokens": np.int32,
        "class": np.int32,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "lacks its label map"),
        ({"labels": np.zeros((5, 4), np.uint8)}, r"uint8 \(5, 5\)"),
        ({"labels": np.zeros((5, 5), np.int32)}, "got int32"),
        ({"labels": np.full((5, 5), 7, np.uint8)}, r"Label 7 leaves \[0, 7\)"),
        ({"map_codes": None}, "lacks its map codes"),
        ({"map_codes": np.full((1, 2), 70000)}, "leave"),
        ({"class_id": None}, "lacks its class"),
        ({"class_id": 3}, r"Class 3 leaves \[0, 3\)"),
        ({"captions": "x"}, "captions"),
    ],
)
def test_wrong_conditions_are_bugs(tmp_path, changes, message):
    wrong = rich_example(0)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path, RICH, lambda start, stop: [wrong] * (stop - start))
    for name in ("labels", "map_codes", "class_id"):
        extra = TokenExample(codes_of(0), "x")._replace(**{name: getattr(rich_example(0), name)})
        with pytest.raises(ValueError, match="has an unwanted"):
            write_tokens(tmp_path, META, lambda start, stop, extra=extra: [extra] * (stop - start))
    assert not is_finished(tmp_path)


def test_caches_differ_in_every_new_fact(tmp_path):
    write_tokens(tmp_path, RICH, lambda start, stop: map(rich_example, range(start, stop)))
    changed = {
        "num_label_classes": 8,
        "num_classes": 4,
        "map_tokenizer_hash": "m1",
        "map_grid": [2, 1],
        "views": 2,
        "view_recipe": "more",
        "image_size": 6,
    }
    with pytest.raises(UserError) as caught:
        check_meta(read_meta(tmp_path), directory=tmp_path, **changed)
    for part in (
        "num label classes 7 instead of 8",
        "map tokenizer hash 'm0' instead of 'm1'",
        "map grid (1, 2) instead of (2, 1)",
        "views 1 instead of 2",
        "image size 5 instead of 6",
    ):
        assert part in str(caught.value)


def test_a_cache_of_the_first_format_is_refused_and_an_unfinished_one_replaced(tmp_path):
    old = {name: getattr(META, name) for name in ("codebook_size", "grid", "tokenizer_hash", "split")}
    (tmp_path / "meta.json").write_text(json.dumps({**old, "format_version": 1}))
    with pytest.raises(UserError, match="has format 1, not 2: delete it and run the token stage again"):
        TokenSource(tmp_path)
    (tmp_path / "meta.json").rename(tmp_path / "meta.unfinished.json")
    encoder = Encoder()
    write_tokens(tmp_path, META, encoder, 4)
    assert len(encoder.calls) == 3 and len(contents(tmp_path)) == 10


# Writes a share of META's cache; may die without a word before the record `die_before`.
WORKER = """
import os, sys
import numpy as np
from regvq_jax.data.tokens import TokenMeta, write_tokens

directory, index, count, die_before = sys.argv[1], *map(int, sys.argv[2:])
meta = TokenMeta(codebook_size=256, grid=(2, 3), tokenizer_hash="t0", data_fingerprint="d0", split="train",
    num_examples=10, has_text=True)

def examples(start, stop):
    for i in range(start, stop):
        if i == die_before:
            os._exit(9)
        yield np.random.default_rng(i).integers(0, 256, (2, 3), dtype=np.int32), f"picture {i}"

print(write_tokens(directory, meta, examples, 2, process_index=index, process_count=count))
"""


def start_worker(directory, index, count, die_before=-1):
    arguments = (str(x) for x in (directory, index, count, die_before))
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_one_killed_and_both_again(tmp_path):
    cache = tmp_path / "cache"
    lead, other = start_worker(cache, 0, 2), start_worker(cache, 1, 2, die_before=7)
    other.communicate(timeout=60)
    last = cache / "tokens-00004-of-00005.array_record"
    while not last.exists() and lead.poll() is None:
        time.sleep(0.05)
    assert other.returncode == 9 and lead.poll() is None and not is_finished(cache)  # It waits in vain.
    lead.kill()
    lead.communicate(timeout=60)
    # The second process wrote the records 2 and 3 and died at its next shard.
    assert sorted(path.name[:12] for path in cache.glob("*.array_record")) == [
        f"tokens-0000{i}" for i in (0, 1, 2, 4)
    ]
    workers = [start_worker(cache, 1, 2), start_worker(cache, 0, 2)]
    written = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert written == ["2", "0"] and [worker.returncode for worker in workers] == [0, 0]
    write_tokens(tmp_path / "alone", META, Encoder(), 2)
    for left, right in zip(contents(cache), contents(tmp_path / "alone"), strict=True):
        np.testing.assert_array_equal(left["tokens"], right["tokens"])
        assert left["text"] == right["text"]
    assert not list(cache.glob("*.tmp")) + list(cache.glob("*unfinished*"))


@pytest.mark.parametrize("first", [0, 1])
def test_processes_may_begin_in_any_order(tmp_path, monkeypatch, first):
    monkeypatch.setattr(token_shards, "POLL_SECONDS", 0.01)
    # Of something else, unfinished: the second process must not begin before the first has cleared it.
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path, dataclasses.replace(META, tokenizer_hash="t9"), Encoder(stop_before=9), 3)
    encoders, began = [Encoder(), Encoder()], threading.Event()

    def run(index):
        write_tokens(
            tmp_path,
            META,
            encoders[index],
            3,
            process_index=index,
            process_count=2,
            poll_fn=began.set,
            stall_seconds=30,
        )

    threads = [threading.Thread(target=run, args=(index,)) for index in (first, 1 - first)]
    threads[0].start()
    began.wait(timeout=30)  # It waits for the other.
    assert not is_finished(tmp_path)
    threads[1].start()
    for thread in threads:
        thread.join(timeout=30)
    assert [encoder.calls for encoder in encoders] == [[(0, 3), (6, 9)], [(3, 6), (9, 10)]]
    source = TokenSource(tmp_path)
    assert source.meta.tokenizer_hash == "t0"
    np.testing.assert_array_equal(source[9]["tokens"], codes_of(9).ravel())


def test_another_number_of_processes_keeps_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(token_shards, "POLL_SECONDS", 0.01)
    with pytest.raises(UserError, match="Waited 0 s for the shards of the other"):
        write_tokens(tmp_path, META, Encoder(), 3, process_count=2, stall_seconds=0)
    with pytest.raises(UserError, match="Waited 0 s for process 0 to finish"):
        write_tokens(tmp_path, META, Encoder(), 3, process_index=2, process_count=3, stall_seconds=0)
    encoder = Encoder()
    assert write_tokens(tmp_path, META, encoder, 3) == 4
    assert encoder.calls == [(3, 6), (9, 10)] and len(contents(tmp_path)) == 10


def test_waiting_can_be_ended(tmp_path):
    def poll():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path, META, Encoder(), 3, process_index=1, process_count=2, poll_fn=poll)
    assert not list(tmp_path.iterdir())
