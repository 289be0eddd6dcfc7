"""What every quantizer returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class QuantizeOutput(NamedTuple):
    """The result of one quantization of a batch of latent grids.

    A residual quantizer of depth R has codes, best_codes and stochastic_mask of shape [B, h, w, R]; the
    other fields keep their shapes. Its best codes are those of what the chosen ones before them left, and
    its perturbation is the sum of the levels'.

    Attributes:
        quantized: float32 [B, h, w, D], code vectors for the decoder, with straight-through gradient.
        codes: int32 [B, h, w], the chosen code.
        best_codes: int32 [B, h, w], the best-matching code; equals `codes` where nothing was sampled.
        posterior: float32 [B, K], mean one-hot assignment of each image (rows sum to 1); its gradient
            runs through the soft assignment. Quantizers without one (nearest, FSQ) give it no gradient.
        stochastic_mask: bool [B, h, w], True = sampled.
        perturbation: float32 [B, h, w], ||z_sampled - z_best||^2, the w of paper equation 3; no gradient.
        soft_posterior: float32 [B, K], mean soft assignment of each image; `posterior` without a gradient
            where there is no soft assignment.
        entropy: float32 [B, h, w], entropy of each position's soft assignment in nats; 0 without one.
        codebook_error: float32 [B, h, w], mean squared distance of the code from its feature, with a
            gradient for the code only; 0 for quantizers that learn their codebook by other means.
        commitment_error: float32 [B, h, w], the same values with a gradient for the feature only.
    """

    quantized: jax.Array
    codes: jax.Array
    best_codes: jax.Array
    posterior: jax.Array
    stochastic_mask: jax.Array
    perturbation: jax.Array
    soft_posterior: jax.Array
    entropy: jax.Array
    codebook_error: jax.Array
    commitment_error: jax.Array


def unsampled(quantized: jax.Array, codes: jax.Array, posterior: jax.Array) -> QuantizeOutput:
    """The output of a quantizer that samples nothing and has no soft assignment.

    Args:
        quantized: float32 [B, h, w, D].
        codes: int32 [B, h, w].
        posterior: float32 [B, K].

    Returns:
        A `QuantizeOutput` whose entropy, perturbation and errors are 0, for `_replace` to fill in.
    """
    zeros = jnp.zeros(codes.shape, jnp.float32)
    return QuantizeOutput(
        quantized=quantized,
        codes=codes,
        best_codes=codes,
        posterior=posterior,
        stochastic_mask=jnp.zeros(codes.shape, bool),
        perturbation=zeros,
        soft_posterior=posterior,
        entropy=zeros,
        codebook_error=zeros,
        commitment_error=zeros,
    )


def squared_errors(features: jax.Array, vectors: jax.Array) -> dict[str, jax.Array]:
    """The two halves of the VQ-VAE loss at each position.

    Args:
        features: float [..., D].
        vectors: float [..., D], the codes that were chosen for them.

    Returns:
        {"codebook_error", "commitment_error"}: float32 [...], for `QuantizeOutput._replace`.
    """
    features, vectors = features.astype(jnp.float32), vectors.astype(jnp.float32)
    fixed = jax.lax.stop_gradient
    return {
        "codebook_error": jnp.mean((vectors - fixed(features)) ** 2, -1),
        "commitment_error": jnp.mean((features - fixed(vectors)) ** 2, -1),
    }


def histogram(codes: jax.Array, num_codes: int) -> jax.Array:
    """The share of each code in each image, without a [positions, K] array.

    Args:
        codes: int32 [B, ...], in [0, K).
        num_codes: K.

    Returns:
        float32 [B, K], rows sum to 1.
    """
    flat = codes.reshape(codes.shape[0], -1)
    counts = jax.vmap(lambda row: jnp.zeros(num_codes, jnp.float32).at[row].add(1.0))(flat)
    return counts / flat.shape[1]
