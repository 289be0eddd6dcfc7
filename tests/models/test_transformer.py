"""The transformer and the text encoder: what may influence what, and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models.attention import choose_implementation, grid_angles, rotate
from regvq_jax.models.text import TextEncoder
from regvq_jax.models.transformer import Transformer

GRID = (2, 3)
N = 6
DIM = 8
PAD = 20
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
    net = Transformer(grid=GRID, dim=DIM, depth=2, num_heads=2, **fields)
    x = jax.random.normal(jax.random.key(1), (2, N, DIM))
    memory = jax.random.normal(jax.random.key(2), (2, 3, DIM))
    mask = jnp.array([[True, True, False], [True, False, False]])
    params = random_params(net, x, memory, mask)
    return jax.jit(net.apply), params, x, memory, mask


@pytest.fixture(scope="module")
def bidirectional():
    return make_transformer()


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
        layers = jax.tree.map(lambda *x: jnp.stack(x), blocks["layers_0"], blocks["layers_1"])
        stacked = {"layers": layers, "last_norm": blocks["last_norm"]}
        scanned = Transformer(grid=GRID, dim=DIM, depth=2, num_heads=2, scan_layers=True, dropout=0.5)
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

    @pytest.mark.parametrize("remat", ["full", "dots"])
    def test_remat_is_the_same_gradient(self, remat):
        nets = [Transformer(grid=GRID, dim=DIM, depth=2, num_heads=2, remat=r) for r in ("none", remat)]
        x = jax.random.normal(jax.random.key(1), (2, N, DIM))
        params = random_params(nets[0], x)
        gradients = [jax.jit(jax.grad(lambda p, net=net: net.apply(p, x).var()))(params) for net in nets]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *gradients)

    def test_the_noise_level_matters_and_starts_at_the_identity(self):
        net = Transformer(grid=GRID, dim=DIM, depth=1, num_heads=2, modulated=True)
        x, time = jnp.ones((2, N, DIM)), jnp.stack([jnp.zeros(DIM), jnp.ones(DIM)])
        params = random_params(net, x, None, None, time)
        out = net.apply(params, x, None, None, time)
        assert (jnp.abs(out[0] - out[1]).max(-1) > 1e-3).all()
        fresh = net.init(jax.random.key(0), x, None, None, time)
        out = net.apply(fresh, x, None, None, time)
        np.testing.assert_array_equal(out[0], out[1])

    def test_cross_attention_reads_the_memory_and_nothing_masked(self):
        apply, params, x, memory, mask = make_transformer(cross=True)
        out = apply(params, x, memory, mask)
        hidden = jnp.where(mask[..., None], memory, 1e3)
        np.testing.assert_array_equal(apply(params, x, hidden, mask), out)
        seen = memory.at[:, 0].multiply(-1.0)
        assert (jnp.abs(apply(params, x, seen, mask) - out).max(-1) > 1e-4).all()

    def test_rotary_positions_depend_on_differences_alone(self):
        angles = grid_angles((3, 3), 8)
        query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

        def product(i, j):
            turned = (rotate(v, angles[k : k + 1]) for v, k in ((query, i), (key, j)))
            return float(jnp.sum(next(turned) * next(turned)))

        # One place right and one down, from three places.
        products = [product(i, i + 4) for i in (0, 1, 3)]
        np.testing.assert_allclose(products, products[0], rtol=1e-5)
        assert abs(product(0, 1) - product(0, 3)) > 1e-3  # Rows are no columns.

    def test_rotary_transformer_tells_places_apart(self):
        net = Transformer(grid=GRID, dim=8, depth=1, num_heads=2, positions="rotary")
        x = jax.random.normal(jax.random.key(1), (1, N, DIM))
        params = random_params(net, x)
        swapped = net.apply(params, x[:, ::-1])[:, ::-1]
        assert jnp.abs(net.apply(params, x) - swapped).max() > 1e-3
        assert "row_embedding" not in params["params"]

    def test_bad_shapes(self):
        x = jnp.zeros((1, N, DIM))
        with pytest.raises(ValueError, match="2x2 grid"):
            random_params(Transformer(grid=(2, 2), dim=DIM, depth=1, num_heads=2), x)
        with pytest.raises(ValueError, match="3 heads"):
            random_params(Transformer(grid=GRID, dim=DIM, depth=1, num_heads=3), x)


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


def test_fused_attention_only_where_it_can_be(monkeypatch):
    choose = choose_implementation
    assert choose("auto", jnp.bfloat16, 64, 64, 64) == "xla"  # On a CPU.
    assert choose("cudnn", jnp.float32, 1, 1, 4) == "cudnn"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose("auto", jnp.bfloat16, 64, 66, 64) == "cudnn"
    for dtype, queries, keys, size in (
        (jnp.float32, 64, 64, 64),
        (jnp.bfloat16, 1, 64, 64),
        (jnp.bfloat16, 64, 63, 64),
        (jnp.bfloat16, 64, 64, 12),
    ):
        assert choose("auto", dtype, queries, keys, size) == "xla"
