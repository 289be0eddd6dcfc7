"""The prior network and its conditioners: what may influence what, caches, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models import conditioners
from regvq_jax.models.prior import PriorNet, make_room
from regvq_jax.priors.autoregressive import shift_right

GRID, N, DIM, PAD = (2, 3), 6, 8, 20
TOKENS = jnp.array([[0, 1, 2, 5, 5, 3], [5, 5, 5, 5, 5, 5]])
TEXT = jnp.array([[1, 7, 8, 2, PAD], [1, 9, 2, PAD, PAD]])
MAPS = jnp.arange(2 * 4 * 6).reshape(2, 4, 6) ** 2 % 7 % 3
# (conditioner, one row of another condition than the first) by kind.
CONDITIONS = {
    "text": (
        conditioners.TextConditioner(
            length=6, dim=DIM, depth=1, num_heads=2, embed_dim=4, vocab_size=PAD + 1, pad_id=PAD
        ),
        TEXT,
    ),
    "features": (
        conditioners.FeatureConditioner(DIM),
        (jax.random.normal(jax.random.key(3), (2, 4, 5)), jnp.array([[True] * 3 + [False]] * 2)),
    ),
    "class": (conditioners.ClassConditioner(4, DIM), jnp.array([1, 3])),
    "map": (conditioners.MapConditioner(3, GRID, DIM), MAPS),
    "map_tokens": (conditioners.MapTokenConditioner(7, (2, 2), DIM), jnp.array([[0, 1, 2, 3], [6, 5, 4, 3]])),
}


def random_params(net, *args):
    """Makes parameters without compiling `init`, biases and scales random so that none hides."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + 0.4 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def make_prior(kind="text", **fields):
    conditioner, condition = CONDITIONS.get(kind, (None, None))
    net = PriorNet(5, GRID, conditioner, dim=DIM, depth=2, num_heads=2, **fields)
    time = jnp.array([0.2, 0.7]) if net.timed else None
    params = random_params(net, TOKENS, condition, None, time)
    return net, jax.jit(net.apply, static_argnames=("deterministic", "method")), params, condition


@pytest.mark.parametrize("kind", CONDITIONS)
def test_every_condition_matters_and_has_a_learned_null(kind):
    net, apply, params, condition = make_prior(kind)
    logits = apply(params, TOKENS, condition)
    assert logits.shape == (2, N, 5) and logits.dtype == jnp.float32
    swapped = jax.tree.map(lambda x: x[::-1], condition)
    assert (jnp.abs(apply(params, TOKENS, swapped) - logits).max(-1) > 1e-4).all()
    # A dropped condition is the same whatever it was; the other row stays.
    drop = jnp.array([True, False])
    some = apply(params, TOKENS, condition, drop)
    other = jax.tree.map(lambda x: x.at[0].set(x[1]), condition)
    np.testing.assert_array_equal(apply(params, TOKENS, other, drop), some)
    np.testing.assert_array_equal(some[1], logits[1])
    null = params["params"]["conditioner"]["null"]
    moved = {**params["params"], "conditioner": {**params["params"]["conditioner"], "null": null[::-1]}}
    changed = apply({"params": moved}, TOKENS, condition, drop)
    assert (jnp.abs(changed[0] - some[0]).max(-1) > 1e-4).all()
    np.testing.assert_array_equal(changed[1], some[1])


def test_empty_conditions_are_the_null():
    for kind, empty in (
        ("text", TEXT.at[0].set(PAD)),
        ("class", jnp.array([-1, 3])),
        ("features", (CONDITIONS["features"][1][0], CONDITIONS["features"][1][1].at[0].set(False))),
    ):
        _, apply, params, condition = make_prior(kind)
        dropped = apply(params, TOKENS, condition, jnp.array([True, False]))
        np.testing.assert_array_equal(apply(params, TOKENS, empty), dropped)


def test_padding_never_matters():
    _, apply, params, _ = make_prior()
    longer = jnp.pad(TEXT, ((0, 0), (0, 1)), constant_values=PAD)
    logits = apply(params, TOKENS, TEXT)
    np.testing.assert_allclose(apply(params, TOKENS, longer), logits, atol=1e-5)


def test_a_map_cell_is_told_to_its_own_token():
    net, _, params, _ = make_prior("map")
    added = lambda maps: net.apply(params, maps, method="encode_condition").added
    moved = MAPS.at[:, 2, 3].set((MAPS[:, 2, 3] + 1) % 3)  # In the cell of row 1, column 1.
    changed = jnp.abs(added(moved) - added(MAPS)).max(-1) > 1e-4
    assert changed[0].tolist() == [False, False, False, False, True, False]
    with pytest.raises(ValueError, match="cannot be cut"):
        net.apply(params, MAPS[:, :3], method="encode_condition")


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize(
    ("kind", "by"), [("text", "prefix"), ("text", "cross"), ("map", "prefix"), ("none", "prefix")]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_steps_with_a_cache_are_the_whole_pass(rows, kind, by, positions, scan_layers):
    net, apply, params, condition = make_prior(
        kind, condition_by=by, positions=positions, causal=True, qk_norm=True, scan_layers=scan_layers
    )
    inputs = shift_right(jnp.array([[0, 1, 2, 4, 4, 3], [3, 2, 2, 1, 0, 1]])[:rows], net.special_id)
    condition = jax.tree.map(lambda x: x[:rows], condition)
    encoded = net.apply(params, condition, method="encode_condition")
    state, logits = net.apply(params, rows, encoded, method="start"), []
    for position in range(N):
        if position % 4 == 0:
            state = make_room(state, min(4, N - position))
        state, row = apply(params, state, inputs[:, position], jnp.int32(position), method="step")
        logits.append(row)
    np.testing.assert_allclose(jnp.stack(logits, 1), apply(params, inputs, condition), atol=2e-5)


def test_every_level_of_a_residual_token_is_told_its_whole_cell():
    plain = conditioners.MapConditioner(3, GRID, DIM)
    params = random_params(plain, MAPS)
    added = plain.apply(params, MAPS).added
    levels = conditioners.MapConditioner(3, GRID, DIM, depth=2).apply(params, MAPS).added
    np.testing.assert_array_equal(levels.reshape(2, N, 2, DIM), jnp.stack([added, added], 2))


@pytest.mark.parametrize(("kind", "by"), [("text", "prefix"), ("text", "cross"), ("map_tokens", "prefix")])
def test_fused_attention_gets_whole_masks(kind, by, monkeypatch):
    seen, attend = [], jax.nn.dot_product_attention

    def check(query, key, value, mask=None, implementation=None):
        assert implementation == "cudnn"
        seen.append(mask)
        assert mask is None or mask.shape[2:] == (query.shape[1], key.shape[1])
        return attend(query, key, value, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", check)
    conditioner, condition = CONDITIONS[kind]
    sizes = dict(dim=DIM, depth=1, num_heads=2, causal=True, condition_by=by, attention="cudnn")
    net = PriorNet(5, GRID, conditioner, **sizes)
    if kind == "text":
        net = net.clone(conditioner=conditioners.FeatureConditioner(DIM))
        condition = CONDITIONS["features"][1]
    params = random_params(net, TOKENS, condition)
    net.apply(params, TOKENS, condition)
    assert any(mask is not None for mask in seen)


def test_a_timed_network_is_told_the_noise_level():
    net, apply, params, condition = make_prior(timed=True)
    logits = [apply(params, TOKENS, condition, None, jnp.full(2, time)) for time in (0.1, 0.11, 1.0)]
    assert jnp.abs(logits[0] - logits[1]).max() > 1e-4 and jnp.abs(logits[0] - logits[2]).max() > 1e-2


def test_condition_then_predict_is_the_call():
    net, apply, params, condition = make_prior()
    drop = jnp.array([False, True])
    encoded = apply(params, condition, drop, method="encode_condition")
    logits = apply(params, TOKENS, encoded, method="predict")
    np.testing.assert_allclose(logits, apply(params, TOKENS, condition, drop), atol=1e-6)
    assert encoded.memory_mask.sum(-1).tolist() == [4, 1]


@pytest.mark.parametrize("kind", CONDITIONS)
def test_bfloat16_is_near_float32_with_finite_gradients_everywhere(kind):
    _, apply, params, condition = make_prior(kind)
    net, *_ = make_prior(kind, dtype=jnp.bfloat16)
    drop = jnp.array([False, True])

    @jax.jit
    def gradient_fn(params):
        def loss(params):
            logits = net.apply(params, TOKENS, condition, drop)
            return jax.nn.log_softmax(logits)[..., 0].mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = gradient_fn(params)
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(gradient)):
        assert leaf.dtype == np.float32, path
        assert np.isfinite(leaf).all() and np.any(leaf), path
    expected = apply(params, TOKENS, condition, drop)
    assert logits.dtype == expected.dtype == jnp.float32
    assert 0 < jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


def test_unconditional():
    net, apply, params, _ = make_prior("none")
    assert params["params"].keys() == {"token_embedding", "transformer", "to_logits"}
    with pytest.raises(ValueError, match="takes no condition"):
        net.apply(params, TOKENS, TEXT)
    net, _, params, _ = make_prior()
    with pytest.raises(ValueError, match="needs a condition"):
        net.apply(params, TOKENS)
