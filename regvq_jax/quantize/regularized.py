"""Stochastic mask regularization: Reg-VQ's quantizer and its two ends."""

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput


def regularized(
    key: jax.Array,
    logits: jax.Array,
    codebook: jax.Array,
    *,
    mask_ratio: float = 0.4,
    temperature: float = 1.0,
) -> QuantizeOutput:
    """Samples a random share of the positions and takes the best match at the rest (Reg-VQ, Algorithm 1).

    Each position is in the stochastic mask with probability `mask_ratio`. There the code is
    argmax(logits + Gumbel noise), so that codes follow softmax(logits); elsewhere it is argmax(logits).
    The backward pass is that of the softmax of the same (noisy or clean) logits divided by `temperature`.

    Args:
        key: a random key; the same key gives the same codes.
        logits: float [B, h, w, K], unnormalised log-probabilities of the codes; computed in float32.
        codebook: float [K, D].
        mask_ratio: probability in [0, 1] that a position is sampled; 0 is `deterministic`, 1 is Gumbel-VQ.
        temperature: of the soft backward pass only.

    Returns:
        A `QuantizeOutput` in float32.
    """
    logits = logits.astype(jnp.float32)
    mask_key, noise_key = jax.random.split(key)
    stochastic_mask = jax.random.bernoulli(mask_key, mask_ratio, logits.shape[:-1])
    noise = jax.random.gumbel(noise_key, logits.shape, jnp.float32)
    noisy_logits = jnp.where(stochastic_mask[..., None], logits + noise, logits)
    return _assign(logits, noisy_logits, codebook, stochastic_mask, temperature)


def deterministic(logits: jax.Array, codebook: jax.Array, *, temperature: float = 1.0) -> QuantizeOutput:
    """Takes the best-matching code everywhere: argmax forward, softmax backward.

    This is also how a trained tokenizer encodes. Args and result as in `regularized`.
    """
    logits = logits.astype(jnp.float32)
    nowhere = jnp.zeros(logits.shape[:-1], bool)
    return _assign(logits, logits, codebook, nowhere, temperature)


def _assign(logits, noisy_logits, codebook, stochastic_mask, temperature) -> QuantizeOutput:
    """Chooses argmax(noisy_logits) with the gradient of softmax(noisy_logits / temperature)."""
    codebook = codebook.astype(jnp.float32)
    num_codes = codebook.shape[0]
    best_codes = jnp.argmax(logits, -1).astype(jnp.int32)
    codes = jnp.argmax(noisy_logits, -1).astype(jnp.int32)

    # Straight-through: `soft - stop_gradient(soft)` is exactly zero, so the values below are those of a
    # look-up and a histogram (to the bit, on every device), while gradients take the soft assignment.
    soft = jax.nn.softmax(noisy_logits / temperature, -1)
    soft_path = soft - jax.lax.stop_gradient(soft)
    quantized = codebook[codes] + soft_path @ jax.lax.stop_gradient(codebook)
    one_hot = jax.nn.one_hot(codes, num_codes, dtype=jnp.float32)
    posterior = jnp.mean(one_hot + soft_path, axis=(1, 2))

    difference = jax.lax.stop_gradient(codebook[codes] - codebook[best_codes])
    return QuantizeOutput(
        quantized=quantized,
        codes=codes,
        best_codes=best_codes,
        posterior=posterior,
        stochastic_mask=stochastic_mask,
        perturbation=jnp.sum(difference**2, -1),
    )
