"""CLIP's text encoder: what sees what, and the same features as transformers gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.interop.text_weights import load_clip_text
from regvq_jax.models.clip_text import CLIPTextEncoder

START, END, PAD = 40, 41, 42
SMALL = dict(vocab_size=42, width=16, depth=2, num_heads=2, hidden=24, context=9)
ROWS = np.array(
    [
        [START, 5, 7, END, PAD, PAD, PAD],
        [PAD] * 7,
        [START, 1, 2, 3, 4, 6, END],
        [START, END, PAD, PAD, PAD, PAD, PAD],
    ],
    np.int32,
)


@pytest.fixture(scope="module")
def small():
    """(module, params, encode) of a small encoder with random weights."""
    module = CLIPTextEncoder(**SMALL, start_id=START, end_id=END, pad_id=PAD)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ROWS)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    return module, params, jax.jit(lambda ids: module.apply({"params": params}, ids))


def test_masks_and_empty_captions(small):
    _, _, encode = small
    features, mask = encode(ROWS)
    assert features.shape == (4, 7, 16) and features.dtype == jnp.float32 and mask.dtype == bool
    assert mask.sum(1).tolist() == [4, 0, 7, 2] and mask[0].tolist() == [True] * 4 + [False] * 3
    # An empty caption has no token, but the features of start and end.
    np.testing.assert_array_equal(features[1], features[3])
    assert np.isfinite(features).all()


def test_tokens_see_only_what_is_before_them(small):
    module, params, encode = small
    features, _ = encode(ROWS)
    changed, _ = encode(np.where(np.arange(7) == 3, 9, ROWS))
    np.testing.assert_array_equal(changed[2, :3], features[2, :3])
    assert np.abs(changed[2, 3:] - features[2, 3:]).min(1).all()
    # Neither the amount of padding nor other rows change a caption.
    short, _ = module.apply({"params": params}, ROWS[:1, :4])
    np.testing.assert_allclose(short[0], features[0, :4], atol=1e-5)


def test_half_precision_is_near(small):
    module, params, encode = small
    features, _ = module.clone(dtype=jnp.bfloat16).apply({"params": params}, ROWS)
    assert features.dtype == jnp.float32
    exact = encode(ROWS)[0]
    assert 0 < np.abs(features - exact).max() < 0.1 * np.abs(exact).max()


def test_longer_than_the_context():
    module = CLIPTextEncoder(**SMALL, start_id=START, end_id=END, pad_id=PAD)
    with pytest.raises(ValueError, match="length 10 .* context of 9"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 10), jnp.int32))


def make_reference(noise, **config):
    """(torch, a CLIPTextModel without a parameter that does nothing)."""
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.2 if parameter.ndim == 1 else noise) * torch.randn_like(parameter)
    return torch, model


def compare(torch, model, directory, rows, tolerance, **ids):
    module, params = load_clip_text(directory)
    module = module.clone(**ids)
    features, mask = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, rows)
    # Theirs has no id for padding and takes the end's; start and end are an empty caption.
    theirs = np.where(rows == module.pad_id, module.end_id, rows)
    theirs[~np.asarray(mask).any(1), 0] = module.start_id
    with torch.no_grad():
        expected = model(torch.from_numpy(theirs)).last_hidden_state.numpy()
    assert 0.1 < expected.std() < 10
    np.testing.assert_allclose(features, expected, atol=tolerance)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_equals_transformers(tmp_path, activation):
    torch, model = make_reference(
        noise=0.2,
        vocab_size=42,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=9,
        hidden_act=activation,
        **dict(bos_token_id=START, eos_token_id=END),
    )
    model.save_pretrained(tmp_path)
    for length in (2, 7):
        rows = ROWS[:, :length]
        compare(torch, model, tmp_path, rows, 2e-5, start_id=START, end_id=END, pad_id=PAD)


def test_full_size_equals_transformers(tmp_path):
    # With more noise attention is so sharp that torch's float32 differs from its float64 by 1e-3.
    torch, model = make_reference(noise=0.02)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    start, end, pad = 49406, 49407, 49408
    rows = np.full((3, 77), pad, np.int32)
    rows[0, :5] = [start, 320, 1125, 2368, end]
    rows[1] = [start, *range(1000, 1075), end]
    compare(torch, model, tmp_path, rows, 1e-4)
