"""Images to a token cache with a frozen tokenizer: what is stored, by how many processes, and how it ends."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.data.emoji.sources import EmojiGrounds, EmojiPictures, EmojiScenes
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.data.tokens import TokenSource, is_finished
from regvq_jax.errors import UserError
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.preemption import Preempted
from regvq_jax.token_stage import Encoder, TokenSettings, best_codes, cache_tokens
from regvq_jax.trainers import build

SIZE = 32


def toy_codes(params, images):
    """A 'tokenizer' to be worked out by hand: the brightness of each quarter, in `params` levels."""
    quarters = images.astype(jnp.float32).reshape(-1, 2, SIZE // 2, 2, SIZE // 2, 3).mean((2, 4, 5))
    return (quarters / 256.0 * params).astype(jnp.int32)


def toy_maps(params, labels):
    """The commonest label of the upper and of the lower half, and the same plus `params`."""
    counts = jax.nn.one_hot(labels.reshape(-1, 2, SIZE * SIZE // 2), 25).sum(2)
    best = counts.argmax(-1).astype(jnp.int32)
    return jnp.stack([best, best + params], -1)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(toy_codes, np.float32(16), codebook_size=16, tokenizer_hash="t0")


@pytest.fixture(scope="module")
def map_encoder():
    return Encoder(toy_maps, np.int32(5), codebook_size=30, tokenizer_hash="m0")


class FirstScenes(EmojiScenes):
    """Counts what is read."""

    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


class Wide:
    """Images twice as wide as high, with label maps that go with them; index 1 names a side."""

    name, fingerprint = "wide", "0" * 16
    has_text = has_labels = True
    num_label_classes, num_classes, class_names = 16, 0, ()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        labels = np.random.default_rng(index).integers(0, 16, (SIZE, 2 * SIZE), np.uint8)
        image = np.repeat(labels[..., None] * 16, 3, -1)
        return {"image": image, "labels": labels, "text": "on the left" if index == 1 else "x"}


def test_records_hold_what_the_source_gives(tmp_path, encoder, map_encoder, caplog):
    source = EmojiGrounds("heldout", SIZE)
    write = partial(
        cache_tokens,
        *(tmp_path / "heldout", source, "heldout", encoder, TokenSettings(batch_size=11, shard_size=700)),
        image_size=SIZE,
        map_encoder=map_encoder,
    )
    with caplog.at_level("INFO", "regvq_jax"):
        write()
    cache = TokenSource(tmp_path / "heldout")
    meta = cache.meta
    assert len(cache) == 1570 and (meta.grid, meta.map_grid) == ((2, 2), (2, 2))
    assert (meta.num_label_classes, meta.num_classes, meta.map_codebook_size) == (25, 9, 30)
    assert (meta.image_size, meta.views, meta.view_recipe, meta.map_tokenizer_hash) == (SIZE, 1, "", "m0")
    assert meta.class_names == cache.class_names == source.class_names
    for i in (0, 10, 11, 699, 700, 1569):
        wanted, record = source[i], cache[i]
        image = wanted["image"].astype(np.float32)
        quarters = image.reshape(2, 16, 2, 16, 3).mean((1, 3, 4)) / 16
        np.testing.assert_array_equal(record["tokens"], np.floor(quarters).ravel())
        np.testing.assert_array_equal(record["labels"], wanted["labels"])
        best = [np.bincount(half.ravel()).argmax() for half in np.split(wanted["labels"], 2)]
        np.testing.assert_array_equal(record["map_tokens"], [best[0], best[0] + 5, best[1], best[1] + 5])
        assert record["class"] == wanted["class"]
        assert record["text"] == wanted["text"] and record["texts"] == wanted["texts"]
    assert "1,570 records of 1,570 images" in caplog.text and "encoded 1,570" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "regvq_jax"):
        write()
    assert "done already" in caplog.text


def test_a_real_tokenizer_gives_its_best_codes(tmp_path, tiny_config):
    model = build.make_image_tokenizer(tiny_config)
    images = EmojiPictures("train", SIZE)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    params = jax.tree.map(np.asarray, params)
    real = Encoder(
        partial(best_codes, model),
        params,
        codebook_size=model.quantizer.codebook_size,
        tokenizer_hash=build.hash_params(params),
    )
    settings = TokenSettings(batch_size=4, max_train_examples=9)
    cache_tokens(tmp_path, images, "train", real, settings, image_size=SIZE)
    cache = TokenSource(tmp_path)
    assert len(cache) == 9 and cache.meta.grid == build.token_grid(tiny_config, model)
    batch = np.stack([images[i]["image"] for i in range(9)])
    encode = jax.jit(partial(model.apply, method=ImageTokenizer.encode))
    expected = encode({"params": params}, to_unit_range(batch))
    np.testing.assert_array_equal([cache[i]["tokens"] for i in range(9)], expected.reshape(9, -1))
    assert cache.meta.tokenizer_hash == build.hash_params(params) and not cache.has_map_tokens


def test_a_residual_tokenizers_levels_stand_side_by_side(tmp_path):
    def encode(params, images):
        pair = jnp.stack([jnp.full((2, 3), 7), jnp.arange(6).reshape(2, 3)], -1)  # [h, w, R]
        return jnp.broadcast_to(pair + params, (images.shape[0], *pair.shape))

    residual = Encoder(encode, np.int32(0), codebook_size=8, tokenizer_hash="t0")
    cache_tokens(
        tmp_path, EmojiPictures("heldout", 8), "heldout", residual, TokenSettings(200), image_size=8
    )
    cache = TokenSource(tmp_path)
    assert cache.meta.grid == (2, 6)
    np.testing.assert_array_equal(cache[3]["tokens"], [7, 0, 7, 1, 7, 2, 7, 3, 7, 4, 7, 5])


@pytest.mark.parametrize("shard_size", [5, 4096])
def test_views_are_next_to_each_other_and_only_of_training_images(tmp_path, encoder, shard_size):
    settings = TokenSettings(batch_size=4, shard_size=shard_size, random_crops=2, flip=True)
    cache_tokens(tmp_path / "train", Wide(), "train", encoder, settings, image_size=SIZE, seed=3)
    cache = TokenSource(tmp_path / "train")
    assert len(cache) == 18 and cache.meta.views == 6
    assert "2 random" in cache.meta.view_recipe and "seed 3" in cache.meta.view_recipe
    for image in range(3):
        whole = Wide()[image]["labels"]
        centre = whole[:, SIZE // 2 : SIZE + SIZE // 2]
        views = [cache[6 * image + view] for view in range(6)]
        np.testing.assert_array_equal(views[0]["labels"], centre)
        np.testing.assert_array_equal(views[1]["labels"], centre if image == 1 else centre[:, ::-1])
        for view, record in enumerate(views):
            mirrored = view % 2 == 1 and image != 1
            labels = record["labels"][:, ::-1] if mirrored else record["labels"]
            assert any(np.array_equal(labels, whole[:, x : x + SIZE]) for x in range(SIZE + 1))
            # The tokens are of the picture that goes with the label map.
            quarters = record["labels"].reshape(2, 16, 2, 16).mean((1, 3))
            np.testing.assert_array_equal(record["tokens"], np.floor(quarters).ravel())
        assert len({record["labels"].tobytes() for record in views[2:]}) >= 3
    cache_tokens(tmp_path / "heldout", Wide(), "heldout", encoder, settings, image_size=SIZE, seed=3)
    assert len(TokenSource(tmp_path / "heldout")) == 3


def test_processes_share_the_shards_and_agree(tmp_path, encoder):
    source = EmojiScenes("train", SIZE, num_scenes=50)
    settings = TokenSettings(batch_size=8, shard_size=16)

    def run(directory, index, count):
        cache_tokens(
            directory,
            source,
            "train",
            encoder,
            settings,
            image_size=SIZE,
            process_index=index,
            process_count=count,
        )

    run(tmp_path / "one", 0, 1)
    other = threading.Thread(target=run, args=(tmp_path / "two", 1, 2))
    other.start()
    run(tmp_path / "two", 0, 2)
    other.join(timeout=60)
    assert not other.is_alive()
    one, two = TokenSource(tmp_path / "one"), TokenSource(tmp_path / "two")
    assert one.fingerprint == two.fingerprint and len(two) == 50
    for i in range(50):
        left, right = one[i], two[i]
        assert left.keys() == right.keys() == {"tokens", "labels", "text", "texts"}
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_a_request_to_stop_keeps_the_complete_shards(tmp_path, encoder):
    source = FirstScenes("train", 32, num_scenes=40)
    settings = TokenSettings(batch_size=8, shard_size=16)
    calls = []

    def stop_requested():
        calls.append(None)
        return len(calls) > 3  # Two batches a shard: in the middle of the second.

    with pytest.raises(Preempted, match="tokens train"):
        cache_tokens(
            tmp_path, source, "train", encoder, settings, image_size=32, stop_requested=stop_requested
        )
    assert not is_finished(tmp_path)
    assert [path.name for path in tmp_path.glob("*.array_record*")] == [
        "tokens-00000-of-00003.array_record"
    ]
    FirstScenes.reads = 0
    cache_tokens(tmp_path, source, "train", encoder, settings, image_size=32)
    assert FirstScenes.reads == 24 and len(TokenSource(tmp_path)) == 40


def test_what_is_missing_is_said(tmp_path, encoder, map_encoder, caplog):
    source = Wide()
    source.has_labels = False
    with pytest.raises(UserError, match="wide has no label maps"):
        cache_tokens(
            tmp_path, source, "train", encoder, TokenSettings(), image_size=SIZE, map_encoder=map_encoder
        )
    for field in ("batch_size", "shard_size", "max_train_examples"):
        with pytest.raises(UserError, match=f"config.tokens.{field}=0"):
            TokenSettings(**{field: 0})
    cache_tokens(
        tmp_path,
        EmojiPictures("train", SIZE),
        "train",
        encoder,
        TokenSettings(max_train_examples=2, random_crops=1),
        image_size=SIZE,
    )
    assert "emoji has the size of the crop" in caplog.text
