"""Which codes a sampler may draw: top-k, top-p, and the draw itself."""

import jax
import jax.numpy as jnp

from regvq_jax.quantize.logits import best_code
from regvq_jax.quantize.noise import gumbel_noise


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k likeliest codes, and those exactly as likely as the k-th.

    Ties are kept so that the place of a code in the codebook decides nothing.

    Args:
        logits: float [..., K].
        k: how many to keep, in 1..K; 0 keeps all.

    Returns:
        The logits, -inf for every code that is not kept.

    Raises:
        ValueError: `k` is not in 0..K.
    """
    num_codes = logits.shape[-1]
    if not 0 <= k <= num_codes:
        raise ValueError(f"top_k must lie in 0..{num_codes}, the number of codes, got {k}")
    if k in (0, num_codes):
        return logits
    smallest = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def top_p(logits: jax.Array, p: float, *, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Keeps the likeliest codes that together hold a share p (the nucleus).

    A code is kept where the strictly likelier ones together hold less than p. So the likeliest is
    always kept, and of equally likely codes all or none.

    Args:
        logits: float [..., K].
        p: the share, in (0, 1]; 1 keeps all.
        temperature: shares are those of softmax(logits / temperature); 0 keeps only the likeliest.

    Returns:
        The logits, -inf for every code that is not kept.

    Raises:
        ValueError: `p` is not in (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {p}")
    if p == 1:
        return logits
    ordered = jnp.sort(logits.astype(jnp.float32), -1, descending=True)
    # Less than the largest: so nothing overflows at temperature 0, where all others become -inf.
    scaled = (ordered - ordered[..., :1]) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    shares = jax.nn.softmax(scaled, -1)
    likelier = jnp.cumsum(shares, -1) - shares
    smallest = jnp.min(jnp.where(likelier < p, ordered, jnp.inf), -1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def draw(
    row_keys: jax.Array,
    logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    k: int = 0,
    p: float = 1.0,
) -> jax.Array:
    """Draws codes from softmax(logits / temperature), of those that `top_k` and then `top_p` keep.

    Args:
        row_keys: uint32 [..., 2], random bits: keys of the `gumbel_noise` over the codes.
        logits: float [..., K].
        temperature: 0 takes the likeliest code.
        k: as in `top_k`.
        p: as in `top_p`; of the distribution that `k` and `temperature` leave.

    Returns:
        int32 [...].
    """
    kept = top_p(top_k(logits.astype(jnp.float32), k), p, temperature=temperature)
    return best_code(kept, lambda logits, codes: logits + temperature * gumbel_noise(row_keys, codes))[0]
