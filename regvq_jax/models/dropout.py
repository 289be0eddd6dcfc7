"""Dropout that draws one 16-bit number for an element."""

import flax.linen as nn
import jax
import jax.numpy as jnp

STEPS = 2**16


def keep_mask(key: jax.Array, shape: tuple[int, ...], threshold: int) -> jax.Array:
    """bool of `shape`, each element True with probability `threshold` / 2^16, on its own.

    One evaluation of the generator makes two words, of which `jax.random.bits` returns one; the data of
    split keys are both. Halves of words being enough, the generator runs once for four elements.
    """
    words = jax.random.key_data(jax.random.split(key, (*shape[:-1], -(-shape[-1] // 4))))
    halves = [half for word in jnp.moveaxis(words, -1, 0)[:2] for half in (word & (STEPS - 1), word >> 16)]
    return jnp.concatenate([half < threshold for half in halves], -1)[..., : shape[-1]]


class Dropout(nn.Module):
    """Sets elements to 0 and scales the others, so that the mean stays.

    Attributes:
        rate: share of zeros, rounded to a multiple of 2^-16.
    """

    rate: float

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """x, float [..., C]; False draws from the "dropout" stream which elements are dropped."""
        threshold = round((1 - self.rate) * STEPS)
        if deterministic or threshold == STEPS:
            return x
        if threshold == 0:
            return jnp.zeros_like(x)
        keep = keep_mask(self.make_rng("dropout"), x.shape, threshold)
        return jnp.where(keep, x * jnp.asarray(STEPS / threshold, x.dtype), 0)
