"""A joint distribution of two tokens, and a network small enough to learn it in a second."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

NUM_TOKENS, NUM_CODES = 2, 4
# Each token alone is nearly uniform; together they are far from independent (total variation 0.45).
JOINT = np.array(
    [
        [0.18, 0.01, 0.04, 0.00],
        [0.00, 0.16, 0.02, 0.05],
        [0.06, 0.02, 0.00, 0.19],
        [0.02, 0.05, 0.17, 0.03],
    ]
)


def draw(key, rows):
    """Draws pairs from `JOINT`, int32 [rows, 2]."""
    pair = jax.random.choice(key, NUM_CODES**2, (rows,), p=jnp.asarray(JOINT.ravel()))
    return jnp.stack([pair // NUM_CODES, pair % NUM_CODES], -1).astype(jnp.int32)


def total_variation(tokens):
    """Total variation between the drawn pairs, int [rows, 2], and `JOINT`."""
    pair = np.asarray(tokens) @ np.array([NUM_CODES, 1])
    shares = np.bincount(pair, minlength=NUM_CODES**2) / len(pair)
    return np.abs(shares - JOINT.ravel()).sum() / 2


def network(params, tokens, time):
    """logits_fn of an MLP over one-hot tokens and time."""
    x = jax.nn.one_hot(tokens, NUM_CODES + 1).reshape(len(tokens), -1)
    time = time[:, None]
    x = jnp.concatenate([x, time, time**2, jnp.log(time + 0.01)], -1)
    x = jax.nn.gelu(x @ params["in"] + params["in_bias"])
    x = jax.nn.gelu(x @ params["middle"] + params["middle_bias"])
    return (x @ params["out"]).reshape(-1, NUM_TOKENS, NUM_CODES)


def train(loss_fn, *, steps=500, rows=512, width=48):
    """Minimises loss_fn(key, logits_fn, tokens) -> float [rows] over fresh draws; returns the parameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    num_inputs = NUM_TOKENS * (NUM_CODES + 1) + 3
    params = {
        "in": jax.random.normal(keys[0], (num_inputs, width)) / 2,
        "in_bias": jnp.zeros(width),
        "middle": jax.random.normal(keys[1], (width, width)) / np.sqrt(width),
        "middle_bias": jnp.zeros(width),
        "out": jax.random.normal(keys[2], (width, NUM_TOKENS * NUM_CODES)) / width,
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry, key):
        params, opt_state = carry
        data_key, loss_key = jax.random.split(key)

        def mean_loss(params):
            return loss_fn(loss_key, lambda *inputs: network(params, *inputs), draw(data_key, rows)).mean()

        updates, opt_state = optimizer.update(jax.grad(mean_loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(keys[0], steps))[0][0]

    return run(params)
