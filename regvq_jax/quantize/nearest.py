"""Nearest-code quantization: VQ-VAE, VQ-GAN, SimVQ, and codebooks that follow a moving average."""

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput, histogram, squared_errors, unsampled
from regvq_jax.quantize.logits import affine_logits, best_code, distance_affine


def nearest(features: jax.Array, codebook: jax.Array, *, tile_size: int = 0) -> QuantizeOutput:
    """Takes the nearest code; the gradient of the code vector goes to the feature unchanged (VQ-VAE).

    The codebook learns from `codebook_error` alone, and the encoder is held to its codes by
    `commitment_error`: two losses with a weight each, since projects differ about which one beta is on.

    Args:
        features: float [B, h, w, D].
        codebook: float [K, D].
        tile_size: positions of each image whose distances are held at once, a divisor of h * w; 0 = all.

    Returns:
        A `QuantizeOutput` in float32; nothing is sampled, and there is no soft assignment.
    """
    features, codebook = jnp.asarray(features, jnp.float32), jnp.asarray(codebook, jnp.float32)
    codes = nearest_codes(features, codebook, tile_size=tile_size)
    vectors = codebook[codes]
    # Exactly the code vectors: `features - stop_gradient(features)` is zero.
    quantized = jax.lax.stop_gradient(vectors) + (features - jax.lax.stop_gradient(features))
    out = unsampled(quantized, codes, histogram(codes, codebook.shape[0]))
    return out._replace(**squared_errors(features, vectors))


def simvq(
    features: jax.Array, codebook: jax.Array, projection: jax.Array, *, tile_size: int = 0
) -> QuantizeOutput:
    """`nearest` in a codebook that one linear layer makes of fixed vectors (SimVQ).

    The fixed vectors share the layer, so that all codes move whenever one is used.

    Args:
        features: float [B, h, w, D].
        codebook: float [K, D], fixed: no gradient flows into it.
        projection: float [D, D], learned.
        tile_size: as in `nearest`.
    """
    return nearest(features, simvq_codebook(codebook, projection), tile_size=tile_size)


def simvq_codebook(codebook: jax.Array, projection: jax.Array) -> jax.Array:
    """The codes of `simvq`: fixed vectors float [K, D] times a learned layer float [D, D], float32 [K, D]."""
    return jax.lax.stop_gradient(codebook.astype(jnp.float32)) @ projection.astype(jnp.float32)


def nearest_codes(features: jax.Array, codebook: jax.Array, *, tile_size: int = 0) -> jax.Array:
    """The nearest code of each feature, with the distances of a few positions of every image at a time.

    Args:
        features: float [B, h, w, D].
        codebook: float [K, D].
        tile_size: positions of each image at once, a divisor of h * w; 0 = all.

    Returns:
        int32 [B, h, w], no gradient.
    """
    batch, height, width, dim = features.shape
    tiles = jax.lax.stop_gradient(features).reshape(batch, -1, tile_size or height * width, dim)
    affine = distance_affine(jax.lax.stop_gradient(codebook))
    codes = jax.lax.map(lambda tile: best_code(affine_logits(tile, affine))[0], tiles.swapaxes(0, 1))
    return codes.swapaxes(0, 1).reshape(batch, height, width)


def update_moving_codebook(
    key: jax.Array,
    counts: jax.Array,
    codebook: jax.Array,
    features: jax.Array,
    codes: jax.Array,
    *,
    decay: float = 0.99,
    restart_below: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The codebook as the moving average of the features that chose each code (VQ-VAE-2, appendix).

    With counts n and batch counts m, e moves by (1 - decay) (sum of its features - m e) / n: the average of
    VQ-VAE-2 without its moving sums, so that an unused code stays where it is. A code whose moving count
    falls below a share of the even one starts anew from a random feature of the batch (Jukebox).

    Args:
        key: a random key, for the features that restart codes.
        counts: float32 [K], moving counts; `init_moving_counts`.
        codebook: float [K, D].
        features: float [..., D], of the whole batch.
        codes: int32 [...], what they chose.
        decay: of the averages, in [0, 1).
        restart_below: share of the even count, positions / K, in [0, 1); 0 restarts nothing.

    Returns:
        (new counts, new codebook float32 [K, D]).
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    codebook, codes = jnp.asarray(codebook, jnp.float32), codes.reshape(-1)
    batch_counts = jnp.zeros_like(counts).at[codes].add(1.0)
    batch_sums = jnp.zeros_like(codebook).at[codes].add(features)
    counts = decay * counts + (1 - decay) * batch_counts
    step = (1 - decay) * (batch_sums - batch_counts[:, None] * codebook)
    codebook = codebook + step / jnp.maximum(counts, jnp.finfo(jnp.float32).tiny)[:, None]
    if restart_below > 0:
        even = features.shape[0] / counts.shape[0]
        dead = counts < restart_below * even
        fresh = features[jax.random.randint(key, counts.shape, 0, features.shape[0])]
        # An even count: it then has a few time constants to find users.
        counts = jnp.where(dead, even, counts)
        codebook = jnp.where(dead[:, None], fresh, codebook)
    return counts, codebook


def init_moving_counts(num_codes: int, positions: int) -> jax.Array:
    """Even counts: `positions` of a batch over K codes, float32 [K]."""
    return jnp.full(num_codes, positions / num_codes)
