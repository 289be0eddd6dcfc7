"""BERT's encoder: what sees what, and the same features as transformers gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.errors import UserError
from regvq_jax.interop.text_weights import load_bert, minilm_directory
from regvq_jax.models.bert import BertEncoder

START, END, PAD = 40, 41, 0
SMALL = dict(vocab_size=42, width=16, depth=2, num_heads=2, hidden=24, context=9, start_id=START, end_id=END)
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
    module = BertEncoder(**SMALL)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ROWS)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    return module, params, jax.jit(lambda params, ids: module.apply({"params": params}, ids))


def test_masks_and_empty_captions(small):
    _, params, encode = small
    features, mask = encode(params, ROWS)
    assert features.shape == (4, 7, 16) and features.dtype == jnp.float32 and mask.dtype == bool
    assert mask.sum(1).tolist() == [4, 0, 7, 2] and mask[0].tolist() == [True] * 4 + [False] * 3
    # An empty caption has no token, but the features of start and end.
    np.testing.assert_array_equal(features[1, :2], features[3, :2])
    assert np.isfinite(features).all()


def test_tokens_see_every_token_and_no_padding(small):
    module, params, encode = small
    features, _ = encode(params, ROWS)
    changed, _ = encode(params, np.where(ROWS == 7, 9, ROWS))
    assert np.abs(changed[0, :4] - features[0, :4]).max(1).min() > 1e-3
    np.testing.assert_array_equal(changed[1:], features[1:])
    # Another embedding of padding, or less of it, changes no token.
    table = params["token_embedding"]["embedding"].copy()
    table[PAD] += 1
    other, _ = encode({**params, "token_embedding": {"embedding": table}}, ROWS)
    np.testing.assert_array_equal(other[[0, 2], :4], features[[0, 2], :4])
    short, _ = module.apply({"params": params}, ROWS[:1, :4])
    np.testing.assert_allclose(short[0], features[0, :4], atol=1e-5)


def test_longer_than_the_context():
    with pytest.raises(ValueError, match="length 10 .* context of 9"):
        jax.eval_shape(BertEncoder(**SMALL).init, jax.random.key(0), jnp.zeros((1, 10), jnp.int32))


def import_parity():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def compare(torch, model, directory, rows, tolerance, **ids):
    module, params = load_bert(directory)
    module = module.clone(**ids)
    features, mask = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, rows)
    with torch.no_grad():
        rows = torch.from_numpy(rows)
        expected = model(rows, attention_mask=(rows != PAD).int()).last_hidden_state.numpy()
    mask = np.asarray(mask)
    assert 0.1 < expected[mask].std() < 10
    np.testing.assert_allclose(features[mask], expected[mask], atol=tolerance)


def test_equals_transformers(tmp_path):
    torch, transformers = import_parity()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=42,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=9,
        layer_norm_eps=1e-5,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    for length in (2, 7):
        compare(torch, model, tmp_path, ROWS[[0, 2], :length], 2e-5, start_id=START, end_id=END)


def test_minilm_equals_transformers():
    torch, transformers = import_parity()
    try:
        directory = minilm_directory()
    except UserError as error:
        pytest.skip(str(error))
    model = transformers.BertModel.from_pretrained(directory, local_files_only=True).eval()
    rows = np.zeros((2, 12), np.int32)
    rows[0, :5] = [101, 1037, 2417, 2540, 102]
    rows[1] = [101, *range(2000, 2010), 102]
    compare(torch, model, directory, rows, 1e-4)
