"""Residual quantization: each level codes what the levels before left over."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput


def residual(
    quantize_fn: Callable[[jax.Array, int], QuantizeOutput],
    features: jax.Array,
    depth: int,
    *,
    straight_through: bool,
) -> QuantizeOutput:
    """Quantizes features by the sum of `depth` codes of one codebook (RQ-VAE).

    Args:
        quantize_fn: (float [B, h, w, D], level) -> `QuantizeOutput` with codes [B, h, w] and vectors in the
            space of the features.
        features: float [B, h, w, D].
        depth: number of levels R.
        straight_through: give `quantized` the gradient of the features alone, once. For levels that each
            pass on the gradient unchanged (`nearest`), which would otherwise count R times. False sums
            the gradients of the levels' soft assignments.

    Returns:
        A `QuantizeOutput` with codes, best_codes and stochastic_mask [B, h, w, R]. Vectors, perturbations
        and errors are sums over the levels, posteriors and entropies means. A level sees
        the features minus the codes before it, which carry no gradient.
    """
    features = features.astype(jnp.float32)
    left, outs = features, []
    for level in range(depth):
        out = quantize_fn(left, level)
        left = left - jax.lax.stop_gradient(out.quantized)
        outs.append(out)
    quantized = sum(out.quantized for out in outs)
    if straight_through:
        quantized = jax.lax.stop_gradient(quantized) + (features - jax.lax.stop_gradient(features))
    levels = QuantizeOutput(*(jnp.stack(field, -1) for field in zip(*outs, strict=True)))
    # `stack` puts the levels last: [B, h, w, R] for codes, which is how they are returned.
    return levels._replace(
        quantized=quantized,
        posterior=levels.posterior.mean(-1),
        perturbation=levels.perturbation.sum(-1),
        soft_posterior=levels.soft_posterior.mean(-1),
        entropy=levels.entropy.mean(-1),
        codebook_error=levels.codebook_error.sum(-1),
        commitment_error=levels.commitment_error.sum(-1),
    )
