"""Attention in blocks of heads is plain attention, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.models import attention as attention_module
from regvq_jax.models import attention_by_heads as by_heads
from regvq_jax.models.attention import choose_implementation
from regvq_jax.models.transformer import Transformer, visibility

B, Q, S, HEADS, SIZE = 2, 5, 7, 4, 3
ROWS = jnp.array([[True] * 3 + [False] * 4, [True] * 7])
MASKS = {
    "none": None,
    "causal": jnp.tril(jnp.ones((Q, S), bool))[None, None],
    "of rows": ROWS[:, None, None],
    "of heads": (jnp.arange(S) <= jnp.arange(HEADS)[:, None])[None, :, None],
    "nothing seen": (ROWS & jnp.array([[False], [True]]))[:, None, None],
}


# Heads in a block, and blocks in a round of the loop: of one row, of both rows, all at once.
@pytest.mark.parametrize("heads, at_once", [(1, 2), (2, 3), (HEADS, 1), (B * HEADS, 8)])
@pytest.mark.parametrize("mask", MASKS)
def test_values_and_gradients(mask, heads, at_once, monkeypatch):
    monkeypatch.setattr(by_heads, "BLOCK_ELEMENTS", heads * Q * S)
    monkeypatch.setattr(by_heads, "BLOCKS_AT_ONCE", at_once)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, n, HEADS, SIZE) for n in (Q, S, S, Q)]
    *inputs, direction = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))

    def results(fn):
        out, pull_back = jax.vjp(lambda *inputs: fn(*inputs, mask=MASKS[mask]), *inputs)
        return out, *pull_back(direction)

    plain = lambda *inputs, mask: jax.nn.dot_product_attention(*inputs, mask=mask, implementation="xla")
    own = jax.jit(lambda: results(by_heads.attention_by_heads))()
    for value, expected in zip(own, results(plain), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal_from", [0, 3, S])
@pytest.mark.parametrize("places", [S, 2])
def test_causal_attention_leaves_out_what_is_not_seen(places, causal_from, monkeypatch):
    causal_from = min(causal_from, places)
    mask = visibility(causal_from, places - causal_from, ROWS[:, :causal_from], causal=True)
    keys = jax.random.split(jax.random.key(1), 4)
    *inputs, direction = (jax.random.normal(k, (B, places, HEADS, SIZE)) for k in keys)

    def results(fn):
        out, pull_back = jax.vjp(fn, *inputs)
        return out, *pull_back(direction)

    seen, attend = [], by_heads._attend
    note = lambda query, key, value, mask: seen.append(query.shape[1] * key.shape[1]) or attend(
        query, key, value, mask
    )
    monkeypatch.setattr(by_heads, "_attend", note)
    own = jax.jit(lambda: results(lambda *x: by_heads.attention_by_heads(*x, mask, causal_from)))()
    plain = lambda *x: jax.nn.dot_product_attention(*x, mask=mask, implementation="xla")
    for value, expected in zip(own, results(plain), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert (sum(seen) < places**2) == (causal_from < places)


@pytest.mark.parametrize("cross", [False, True])
def test_a_causal_network_gives_the_same_by_heads_and_says_what_is_causal(cross, monkeypatch):
    promised = []

    def note(*arguments):
        promised.append(arguments[4])
        return by_heads.attention_by_heads(*arguments)

    monkeypatch.setattr(attention_module, "attention_by_heads", note)
    make = lambda attention: Transformer((2, 3), 8, 2, 2, causal=True, cross=cross, attention=attention)
    x, memory = jax.random.normal(jax.random.key(2), (B, 6, 8)), jnp.ones((B, 3, 8))
    arguments = (x, memory, ROWS[:, 2:5])
    params = make("xla").init(jax.random.key(3), *arguments)
    outs = [jax.jit(make(name).apply)(params, *arguments) for name in ("heads", "xla")]
    np.testing.assert_allclose(*outs, rtol=1e-4, atol=1e-5)
    # Tokens of the memory in front, or, with cross-attention, none; the memory itself is seen whole.
    assert set(promised) == ({0, None} if cross else {3})


def test_only_where_one_cpu_computes_in_float32(monkeypatch):
    choose = choose_implementation
    assert choose("auto", jnp.float32, 64, 64, 64) == "xla"  # Of several devices, as in these tests.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert choose("auto", jnp.float32, 64, 64, 64) == "heads"
    assert choose("auto", jnp.bfloat16, 64, 64, 64) == "xla"
    assert choose("xla", jnp.float32, 64, 64, 64) == "xla"
