"""Every sampler with the real network, as evaluators and users call it."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.conditioning.condition import Condition
from regvq_jax.evaluate.samples import draw_tokens
from regvq_jax.models.conditioners import ClassConditioner
from regvq_jax.models.prior import PriorNet
from regvq_jax.trainers.autoregressive import AutoregressivePrior, AutoregressiveSampling
from regvq_jax.trainers.diffusion import DiffusionPrior, DiffusionSampling
from regvq_jax.trainers.masked import MaskedPrior, MaskedSampling

K, DIM, DEPTH, CLASSES = 64, 32, 2, 4
ABSORBING = DiffusionPrior(process="absorbing", schedule="linear")
# (prior, settings) by name.
SAMPLERS = {
    "autoregressive": (AutoregressivePrior(), AutoregressiveSampling(guidance=5.0)),
    "masked": (MaskedPrior(), MaskedSampling(guidance=5.0, steps=8)),
    "mask_replace": (DiffusionPrior(), DiffusionSampling(guidance=5.0, steps=10)),
    "absorbing": (ABSORBING, DiffusionSampling(guidance=5.0, steps=8, remask="cap")),
}


@functools.cache
def make_sampler(name, grid=(4, 4), **changes):
    """A jitted (keys, classes) -> tokens, the list of its traces, and its network."""
    prior, settings = SAMPLERS[name]
    settings = type(settings)(**{**settings.__dict__, **changes})
    conditioner = ClassConditioner(CLASSES, DIM)
    net = PriorNet(
        K, grid, conditioner, causal=prior.causal, timed=prior.timed, dim=DIM, depth=DEPTH, num_heads=2
    )
    time = jnp.zeros(1) if prior.timed else None
    tokens, classes = jnp.zeros((1, net.num_tokens), jnp.int32), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens, classes, None, time)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    condition, traces = Condition("class", conditioner, size=CLASSES), []

    @jax.jit
    def draw(keys, classes):
        traces.append(keys.shape)
        return draw_tokens(prior, net, condition, settings, params, {}, keys, classes)

    return SimpleNamespace(draw=draw, traces=traces, net=net)


def temp_bytes(name, rows=2, **changes):
    """Of the compiled sampler, beside parameters and result."""
    draw = make_sampler(name, **changes).draw
    keys, classes = jax.random.split(jax.random.key(0), rows), np.zeros(rows, np.int32)
    return draw.lower(keys, classes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_trace_and_rows_that_know_nothing_of_each_other(name):
    sampler = make_sampler(name)
    keys = jax.random.split(jax.random.key(0), 3)
    classes = np.array([0, 3, 3], np.int32)
    tokens = np.asarray(sampler.draw(keys, classes))
    assert tokens.shape == (3, 4, 4) and tokens.dtype == np.int32
    assert 0 <= tokens.min() and tokens.max() < K
    # Two rows of one class have noise of their own; a key and a class are all that decides.
    assert (tokens[1] != tokens[2]).any()
    np.testing.assert_array_equal(sampler.draw(keys, classes), tokens)
    others = np.asarray(sampler.draw(jax.random.split(jax.random.key(1), 3), classes))
    assert (others != tokens).any((1, 2)).all()
    reclassed = np.asarray(sampler.draw(keys, np.array([1, 0, 3], np.int32)))
    assert (reclassed[:2] != tokens[:2]).any()
    np.testing.assert_array_equal(reclassed[2], tokens[2])
    assert sampler.traces == [(3,)]
    alone = [np.asarray(sampler.draw(keys[i : i + 1], classes[i : i + 1]))[0] for i in range(3)]
    np.testing.assert_array_equal(alone, tokens)
    assert sampler.traces == [(3,), (1,)]


@pytest.mark.parametrize(
    "name, few, many", [("masked", 8, 64), ("mask_replace", 10, 100), ("absorbing", 8, 64)]
)
def test_memory_does_not_grow_with_the_steps(name, few, many):
    assert temp_bytes(name, steps=many) < 1.03 * temp_bytes(name, steps=few)


def test_memory_of_the_autoregressive_sampler_is_its_cache():
    rows = 4
    for side in (8, 16):
        # Keys and values of every layer, of rows with their condition and with the null.
        cache = 4 * 2 * DEPTH * 2 * rows * (side**2 + 1) * DIM
        # And once more those of the layer at work, half of a cache of two layers.
        assert cache < temp_bytes("autoregressive", rows, grid=(side, side)) < 1.6 * cache
