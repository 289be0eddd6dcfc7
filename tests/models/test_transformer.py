"""The transformer, the text encoder and the prior network: what may influence what, and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.prior import PriorNet
from regvq_jax.models.text import TextEncoder
from regvq_jax.models.transformer import Transformer

GRID = (2, 3)
N = 6
DIM = 8
PAD = 20
TOKENS = jnp.array([[0, 1, 2, 5, 5, 3], [5, 5, 5, 5, 5, 5]])
TEXT = jnp.array([[1, 7, 8, 2, PAD], [1, 9, 2, PAD, PAD]])


def random_params(net, *args):
    """Makes parameters without compiling `init`, biases and scales random so that none hides."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + 0.4 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def make_transformer(**fields):
    net = Transformer(grid=GRID, depth=2, num_heads=2, **fields)
    x = jax.random.normal(jax.random.key(1), (2, N, DIM))
    memory = jax.random.normal(jax.random.key(2), (2, 3, DIM))
    mask = jnp.array([[True, True, False], [True, False, False]])
    params = random_params(net, x, memory, mask)
    return jax.jit(net.apply), params, x, memory, mask


@pytest.fixture(scope="module")
def bidirectional():
    return make_transformer()


def make_prior(**fields):
    net = PriorNet(
        codebook_size=5,
        grid=GRID,
        dim=DIM,
        depth=1,
        num_heads=2,
        text_length=6,
        text_depth=1,
        text_embed_dim=4,
        text_vocab_size=PAD + 1,
        text_pad_id=PAD,
        **fields,
    )
    params = random_params(net, TOKENS, TEXT)
    return net, params


@pytest.fixture(scope="module")
def prior():
    net, params = make_prior()
    return net, jax.jit(net.apply, static_argnames=("deterministic", "method")), params


class TestTransformer:
    def test_masked_memory_never_matters(self, bidirectional):
        apply, params, x, memory, mask = bidirectional
        out = apply(params, x, memory, mask)
        assert out.shape == x.shape
        hidden = jnp.where(mask[..., None], memory, 1e3)
        np.testing.assert_array_equal(apply(params, x, hidden, mask), out)
        seen = memory.at[:, 0].multiply(-1.0)
        assert (jnp.abs(apply(params, x, seen, mask) - out).max(-1) > 1e-4).all()

    def test_everything_sees_everything(self, bidirectional):
        apply, params, x, memory, mask = bidirectional
        out = apply(params, x, memory, mask)
        changed = apply(params, x.at[0, N - 1].multiply(-1.0), memory, mask)
        assert (jnp.abs(changed - out).max(-1)[0] > 1e-4).all()
        np.testing.assert_array_equal(changed[1], out[1])

    def test_positions_are_row_plus_column(self, bidirectional):
        apply, params, _, memory, mask = bidirectional
        # Moving a constant from the tokens to all rows or all columns changes nothing.
        shift = jnp.arange(DIM) / 4.0
        x = jnp.zeros((2, N, DIM))
        out = apply(params, x + shift, memory, mask)
        for name in ("row_embedding", "column_embedding"):
            moved = {"params": {**params["params"], name: params["params"][name] + shift}}
            np.testing.assert_allclose(apply(moved, x, memory, mask), out, atol=1e-5)
        # Equal tokens differ by their place alone; zero embeddings take that away.
        assert jnp.abs(out[0, 0] - out[0, 1]).max() > 1e-3
        nowhere = {
            name: jnp.zeros_like(params["params"][name]) for name in ("row_embedding", "column_embedding")
        }
        out = apply({"params": {**params["params"], **nowhere}}, x, memory, mask)
        np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), atol=1e-5)

    def test_causal_never_sees_ahead(self):
        apply, params, x, memory, mask = make_transformer(causal=True)
        # d out[i] / d x[j] over all channels: zero exactly above the diagonal.
        jacobian = jax.jit(jax.jacobian(lambda x: apply(params, x, memory, mask).sum((0, 2))))(x)
        influence = np.asarray(jnp.abs(jacobian).sum((1, 3)))
        assert (influence[np.triu_indices(N, 1)] == 0).all()
        assert (influence[np.tril_indices(N)] > 0).all()
        out = apply(params, x, memory, mask)
        changed = apply(params, x, memory.at[:, 0].multiply(-1.0), mask)
        assert (jnp.abs(changed - out).max(-1) > 1e-4).all()

    def test_scan_over_layers_is_the_same_function(self, bidirectional):
        apply, params, x, memory, mask = bidirectional
        blocks = params["params"]["blocks"]
        layers = jax.tree.map(lambda *x: jnp.stack(x), blocks["layer_0"], blocks["layer_1"])
        stacked = {"layers": layers, "last_norm": blocks["last_norm"]}
        scanned = Transformer(grid=GRID, depth=2, num_heads=2, scan_layers=True, dropout=0.5)
        expected = jax.eval_shape(scanned.init, jax.random.key(0), x, memory, mask)
        stacked = {"params": {**params["params"], "blocks": stacked}}
        assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)

        out = jax.jit(scanned.apply)(stacked, x, memory, mask)
        np.testing.assert_allclose(out, apply(params, x, memory, mask), atol=1e-5)

        @jax.jit
        def drop_some(key):
            rngs = {"dropout": key}
            return scanned.apply(stacked, x, memory, mask, deterministic=False, rngs=rngs)

        first, second = drop_some(jax.random.key(0)), drop_some(jax.random.key(1))
        assert jnp.isfinite(first).all() and jnp.any(first != second) and jnp.any(first != out)

    def test_bad_shapes(self):
        x = jnp.zeros((1, N, DIM))
        with pytest.raises(ValueError, match="2x2 grid"):
            random_params(Transformer(grid=(2, 2), depth=1, num_heads=2), x)
        with pytest.raises(ValueError, match="3 heads"):
            random_params(Transformer(grid=GRID, depth=1, num_heads=3), x)


class TestTextEncoder:
    def test_padding_never_matters(self):
        net = TextEncoder(
            vocab_size=PAD + 1, pad_id=PAD, max_length=7, dim=DIM, depth=1, num_heads=2, embed_dim=4
        )
        params = random_params(net, TEXT)
        memory, mask = jax.jit(net.apply)(params, TEXT)
        assert mask.tolist() == [[True] * 4 + [False], [True] * 3 + [False] * 2]
        assert memory.shape == (2, 5, DIM)

        longer = jnp.pad(TEXT, ((0, 0), (0, 2)), constant_values=PAD)
        memory_of_longer, mask_of_longer = jax.jit(net.apply)(params, longer)
        assert not mask_of_longer[:, 5:].any()
        np.testing.assert_allclose(memory_of_longer[:, :5][mask], memory[mask], atol=1e-5)
        table = params["params"]["token_embedding"]["embedding"]
        params["params"]["token_embedding"]["embedding"] = table.at[PAD].set(1e3)
        changed, _ = jax.jit(net.apply)(params, TEXT)
        np.testing.assert_array_equal(changed[mask], memory[mask])

        with pytest.raises(ValueError, match="max_length 7"):
            net.apply(params, jnp.zeros((1, 8), jnp.int32))


class TestPriorNet:
    def test_logits(self, prior):
        net, apply, params = prior
        logits = apply(params, TOKENS, TEXT)
        assert logits.shape == (2, N, 5) and logits.dtype == jnp.float32
        assert net.mask_id == 5
        other = apply(params, TOKENS, TEXT.at[:, 1].set(11))
        assert (jnp.abs(other - logits).max(-1) > 1e-4).all()

    def test_padding_never_matters(self, prior):
        _, apply, params = prior
        longer = jnp.pad(TEXT, ((0, 0), (0, 1)), constant_values=PAD)
        logits = apply(params, TOKENS, TEXT)
        np.testing.assert_allclose(apply(params, TOKENS, longer), logits, atol=1e-5)

    def test_dropped_and_empty_conditions_are_the_null(self, prior):
        _, apply, params = prior
        drop = jnp.array([True, False])
        some = apply(params, TOKENS, TEXT, drop)
        other_text = jnp.full_like(TEXT, 4).at[1].set(TEXT[1])
        np.testing.assert_array_equal(apply(params, TOKENS, other_text, drop), some)
        np.testing.assert_array_equal(some[1], apply(params, TOKENS, TEXT)[1])
        empty = TEXT.at[0].set(PAD)
        np.testing.assert_array_equal(apply(params, TOKENS, empty), some)
        moved = {**params["params"], "null_memory": params["params"]["null_memory"][::-1]}
        changed = apply({"params": moved}, TOKENS, TEXT, drop)
        assert (jnp.abs(changed[0] - some[0]).max(-1) > 1e-4).all()
        np.testing.assert_array_equal(changed[1], some[1])

    def test_condition_then_predict_is_the_call(self, prior):
        net, apply, params = prior
        drop = jnp.array([False, True])
        condition = apply(params, TEXT, drop, method="condition")
        logits = apply(params, TOKENS, condition, method="predict")
        np.testing.assert_allclose(logits, apply(params, TOKENS, TEXT, drop), atol=1e-6)
        assert condition[1].sum(-1).tolist() == [4, 1]

    def test_bfloat16_is_near_float32_with_finite_gradients_everywhere(self, prior):
        _, apply, params = prior
        net, _ = make_prior(dtype=jnp.bfloat16)
        text = TEXT.at[1].set(PAD)

        @jax.jit
        def gradient_fn(params):
            def loss(params):
                logits = net.apply(params, TOKENS, text)
                return jax.nn.log_softmax(logits)[..., 0].mean(), logits

            return jax.grad(loss, has_aux=True)(params)

        gradient, logits = gradient_fn(params)
        for path, leaf in jax.tree.leaves_with_path(jax.device_get(gradient)):
            assert leaf.dtype == np.float32, path
            assert np.isfinite(leaf).all() and np.any(leaf), path
        expected = apply(params, TOKENS, text)
        assert logits.dtype == expected.dtype == jnp.float32
        assert 0 < jnp.abs(logits - expected).max() < 0.05 * jnp.abs(expected).max()

    def test_unconditional(self):
        net = PriorNet(codebook_size=5, grid=GRID, dim=DIM, depth=1, num_heads=2)
        params = jax.eval_shape(net.init, jax.random.key(0), TOKENS)
        assert params["params"].keys() == {"token_embedding", "transformer", "to_logits"}
        assert jax.eval_shape(net.apply, params, TOKENS).shape == (2, N, 5)
        with pytest.raises(ValueError, match="takes no text"):
            jax.eval_shape(net.apply, params, TOKENS, TEXT)

    def test_missing_text(self, prior):
        net, _, params = prior
        with pytest.raises(ValueError, match="needs text"):
            net.apply(params, TOKENS)
