import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import Prior, Tokenizer
from regvq_jax.errors import UserError
from regvq_jax.interop.tokenizer_file import load_tokenizer_file, param_shapes
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trained import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_run):
    return Tokenizer.load(tiny_run[0])


@pytest.fixture(scope="module")
def prior(tiny_run):
    return Prior.load(str(tiny_run[0]))


def test_images_to_codes_and_back(tokenizer):
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 8, 8) and codes.dtype == jnp.int32
    assert 0 <= codes.min() and codes.max() < tokenizer.codebook_size == 32
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and jnp.abs(decoded).max() <= 1.0
    assert tokenizer.encode(images[:, :, :16]).shape == (2, 8, 4)


def test_codes_are_those_of_the_token_cache(tiny_run, tokenizer):
    from regvq_jax.data.ranges import to_unit_range
    from regvq_jax.data.sources import make_source
    from regvq_jax.data.tokens import TokenSource

    cache = TokenSource(tiny_run[0] / "tokens" / "heldout")
    source = make_source("emoji-grounds", split="heldout", image_size=32)
    images = np.stack([source[i]["image"] for i in range(4)])
    codes = tokenizer.encode(to_unit_range(images))
    expected = np.stack([cache[i]["tokens"] for i in range(4)]).reshape(codes.shape)
    np.testing.assert_array_equal(codes, expected)
    assert cache[3]["text"] == source[3]["text"]


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((1, 32, 32, 3), np.uint8), "divide uint8 images by 127.5"),
        (np.zeros((32, 32, 3), np.float32), "float images"),
        (np.zeros((1, 30, 32, 3), np.float32), "multiples of 4"),
    ],
)
def test_wrong_images(tokenizer, images, words):
    with pytest.raises(UserError, match=words):
        tokenizer.encode(images)


@pytest.mark.parametrize("codes", [np.zeros((1, 2, 2)), np.full((1, 2, 2), 32), np.full((1, 2, 2), -1)])
def test_wrong_codes(tokenizer, codes):
    with pytest.raises(UserError, match="Tokenizer.decode"):
        tokenizer.decode(codes)


def test_sampling_is_a_function_of_key_and_text(prior):
    text = ["a red heart on a white background", ""]
    images = prior.sample(jax.random.key(0), text=text)
    assert images.shape == (2, 32, 32, 3) and images.dtype == jnp.float32
    np.testing.assert_array_equal(images, prior.sample(jax.random.key(0), text=text))
    other = prior.sample(jax.random.key(1), text=text)
    assert not np.array_equal(images, other)
    prior.sample(jax.random.key(0), text=text, guidance=1.0, steps=2)


def test_given_codes_are_kept(prior, monkeypatch):
    codes = np.arange(64).reshape(1, 8, 8) % 32
    codes[:, 4:] = -1
    drawn = []
    decode = prior.tokenizer.decode
    keep = lambda codes: drawn.append(np.asarray(codes)) or decode(codes)
    monkeypatch.setattr(prior.tokenizer, "decode", keep)
    prior.sample(jax.random.key(0), text=["a red heart"], codes=codes)
    np.testing.assert_array_equal(drawn[0][:, :4], codes[:, :4])
    assert (drawn[0] >= 0).all()


def test_log_likelihood_tells_codes_apart_from_no_codes(prior):
    codes = np.arange(128).reshape(2, 8, 8) % 32
    nats = prior.log_likelihood(codes, text=["a red heart", "a carrot"], num_draws=4)
    assert nats.shape == (2,) and (nats < 0).all()
    again = prior.log_likelihood(codes, text=["a red heart", "a carrot"], num_draws=4)
    np.testing.assert_array_equal(nats, again)
    with pytest.raises(UserError, match="codes go from -1"):
        prior.log_likelihood(codes - 1, text=["a", "b"])


def test_wrong_sampling(prior):
    with pytest.raises(UserError, match="draws from captions.*got labels"):
        prior.sample(jax.random.key(0), labels=np.zeros((1, 32, 32), np.int32))
    with pytest.raises(UserError, match=r"codes must be int \[1, 8, 8\]"):
        prior.sample(jax.random.key(0), text=["a"], codes=np.zeros((1, 4, 8), np.int32))
    with pytest.raises(UserError, match="top_k=33 is more than the 32 codes"):
        prior.sample(jax.random.key(0), text=["a"], top_k=33)
    with pytest.raises(UserError, match="draws from captions"):
        prior.sample(jax.random.key(0), num_images=4)
    with pytest.raises(UserError, match='"steps"'):
        prior.sample(jax.random.key(0), text=["a"], step=4)


def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer.save(path, {"note": "of a test"})
    loaded = Tokenizer.load(str(path))
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    codes = tokenizer.encode(images)
    np.testing.assert_array_equal(loaded.encode(images), codes)
    np.testing.assert_array_equal(loaded.decode(codes), tokenizer.decode(codes))
    assert load_tokenizer_file(path)[2] == {"note": "of a test"}


def test_a_residual_tokenizer_has_several_codes_a_token():
    model = ImageTokenizer(
        Quantizer("nearest", codebook_size=8, code_dim=4, depth=3),
        channels=4, multipliers=(1, 1), num_res_blocks=1, attention_levels=(), latent_channels=4,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 0.1 * np.ones(x.shape, x.dtype), param_shapes(model))
    tokenizer = Tokenizer(model, params)
    codes = tokenizer.encode(np.zeros((1, 4, 6, 3), np.float32))
    assert codes.shape == (1, 2, 3, 3) and tokenizer.depth == 3
    assert tokenizer.decode(codes).shape == (1, 4, 6, 3)
    for wrong in (codes[..., 0], codes[..., :2]):
        with pytest.raises(UserError, match=r"takes int codes \[B, h, w, 3\]"):
            tokenizer.decode(wrong)


def test_a_config_may_name_a_tokenizer_file(tiny_config, tokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer.save(path)
    tiny_config.tokenizer = str(path)
    model, _ = load_tokenizer(tiny_config, tmp_path / "no-run")
    assert model.quantizer.codebook_size == 32
    tiny_config.data.image_size = 30
    with pytest.raises(UserError, match="image_size=30 is not a multiple of 4"):
        load_tokenizer(tiny_config, tmp_path)
    tiny_config.tokenizer = str(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="Cannot read .*missing.safetensors"):
        load_tokenizer(tiny_config, tmp_path)


def test_loading_from_a_wrong_place(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="Cannot read .*missing"):
        Tokenizer.load(tmp_path / "missing")
