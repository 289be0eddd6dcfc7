"""Nearest-code quantization: VQ-VAE, VQ-GAN, SimVQ, and codebooks that follow a moving average."""

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput, histogram, squared_errors
from regvq_jax.quantize.logits import distance_logits


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
    posterior = histogram(codes, codebook.shape[0])
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
        **squared_errors(features, vectors),
    )


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
    codebook = jax.lax.stop_gradient(codebook)
    codes = jax.lax.map(
        lambda tile: jnp.argmax(distance_logits(tile, codebook), -1).astype(jnp.int32), tiles.swapaxes(0, 1)
    )
    return codes.swapaxes(0, 1).reshape(batch, height, width)


def update_moving_codebook(
    key: jax.Array,
    statistics: dict[str, jax.Array],
    features: jax.Array,
    codes: jax.Array,
    *,
    decay: float = 0.99,
    restart_below: float = 0.0,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The codebook as the moving average of the features that chose each code (VQ-VAE-2, appendix).

    A code whose moving count fell below `restart_below` starts anew from a random feature of the batch
    (Jukebox), with the count that would keep it alive for one more time constant.

    Args:
        key: a random key, for the features that restart codes.
        statistics: {"counts": float32 [K], "sums": float32 [K, D]}; see `init_moving_codebook`.
        features: float [..., D], of the whole batch.
        codes: int32 [...], what they chose.
        decay: of the averages.
        restart_below: in positions of a batch; 0 restarts nothing.

    Returns:
        (new statistics, codebook float32 [K, D]).
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    codes = codes.reshape(-1)
    num_codes = statistics["counts"].shape[0]
    batch_counts = jnp.zeros(num_codes).at[codes].add(1.0)
    batch_sums = jnp.zeros_like(statistics["sums"]).at[codes].add(features)
    counts = decay * statistics["counts"] + (1 - decay) * batch_counts
    sums = decay * statistics["sums"] + (1 - decay) * batch_sums
    if restart_below > 0:
        dead = counts < restart_below
        fresh = features[jax.random.randint(key, (num_codes,), 0, features.shape[0])]
        alive = max(restart_below, 1e-3) / decay ** (1 / (1 - decay))
        counts = jnp.where(dead, alive, counts)
        sums = jnp.where(dead[:, None], fresh * alive, sums)
    codebook = sums / jnp.maximum(counts, 1e-5)[:, None]
    return {"counts": counts, "sums": sums}, codebook


def init_moving_codebook(codebook: jax.Array) -> dict[str, jax.Array]:
    """Statistics that stand for `codebook`, float [K, D], with one position a code."""
    codebook = codebook.astype(jnp.float32)
    return {"counts": jnp.ones(codebook.shape[0]), "sums": codebook}
