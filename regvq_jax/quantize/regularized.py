"""Stochastic mask regularization: Reg-VQ's quantizer, its two ends, and its form for large codebooks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from regvq_jax.quantize.contract import QuantizeOutput, squared_errors
from regvq_jax.quantize.logits import dot_logits


def regularized(
    key: jax.Array,
    logits: jax.Array,
    codebook: jax.Array,
    *,
    mask_ratio: float = 0.4,
    temperature: float | jax.Array = 1.0,
) -> QuantizeOutput:
    """Samples a random share of the positions and takes the best match at the rest (Reg-VQ, Algorithm 1).

    Each position is in the stochastic mask with probability `mask_ratio`. There the code is
    argmax(logits + Gumbel noise), so that codes follow softmax(logits); elsewhere it is argmax(logits).
    The backward pass is that of the softmax of the same (noisy or clean) logits divided by `temperature`.

    Args:
        key: a random key; the same key gives the same codes.
        logits: float [B, h, w, K], unnormalised log-probabilities of the codes; computed in float32.
        codebook: float [K, D].
        mask_ratio: probability in [0, 1] that a position is sampled; 0 is `deterministic`, 1 is `gumbel`.
        temperature: of the soft backward pass only, > 0.

    Returns:
        A `QuantizeOutput` in float32; `entropy` and `soft_posterior` are those of softmax(logits).

    Raises:
        ValueError: `mask_ratio` is outside [0, 1].
    """
    return regularized_in_tiles(
        key, logits, lambda x: x, codebook, mask_ratio=mask_ratio, temperature=temperature
    )


def deterministic(
    logits: jax.Array, codebook: jax.Array, *, temperature: float | jax.Array = 1.0
) -> QuantizeOutput:
    """Takes the best-matching code everywhere: argmax forward, softmax backward.

    This is also how a trained tokenizer encodes. Args and result as in `regularized`.
    """
    return regularized_in_tiles(None, logits, lambda x: x, codebook, mask_ratio=0.0, temperature=temperature)


def gumbel(
    key: jax.Array, logits: jax.Array, codebook: jax.Array, *, temperature: float | jax.Array = 1.0
) -> QuantizeOutput:
    """Samples everywhere: the hard Gumbel-softmax of Gumbel-VQ. Args and result as in `regularized`."""
    return regularized(key, logits, codebook, mask_ratio=1.0, temperature=temperature)


def ibq(
    features: jax.Array,
    codebook: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    entropy_temperature: float = 0.01,
    tile_size: int = 0,
) -> QuantizeOutput:
    """`deterministic` on inner products with every code, with the errors of `nearest` (IBQ, SEED-Voken).

    The softmax over the whole codebook gives every code a gradient at every step.

    Args:
        features: float [B, h, w, D].
        codebook: float [K, D].
        temperature: of the soft backward pass only.
        entropy_temperature: of `entropy` and `soft_posterior`. Theirs is low: a flat softmax uses all codes
            evenly whatever its argmax does, and the entropy loss would be content with few codes.
        tile_size: see `regularized_in_tiles`.

    Returns:
        A `QuantizeOutput` in float32.
    """
    out = regularized_in_tiles(
        None,
        features,
        lambda x: dot_logits(x, codebook),
        codebook,
        mask_ratio=0.0,
        temperature=temperature,
        entropy_temperature=entropy_temperature,
        tile_size=tile_size,
    )
    return out._replace(**squared_errors(features, jnp.asarray(codebook)[out.codes]))


def regularized_in_tiles(
    key: jax.Array | None,
    features: jax.Array,
    to_logits: Callable[[jax.Array], jax.Array],
    codebook: jax.Array,
    *,
    mask_ratio: float = 0.4,
    temperature: float | jax.Array = 1.0,
    entropy_temperature: float = 1.0,
    tile_size: int = 0,
) -> QuantizeOutput:
    """`regularized` that makes the logits itself, a few positions of every image at a time.

    A large codebook's logits, noise, soft and hard assignments are float32 [B, h, w, K] each. Here they
    exist for one tile, and the backward pass makes them again, so that memory grows with
    B * tile_size * K and time by one more forward pass. The random draws belong to the position: the
    result is that of the plain form whatever the tile.

    Args:
        key: a random key; None where `mask_ratio` is 0.
        features: float [B, h, w, C].
        to_logits: float [B, n, C] to float [B, n, K].
        codebook: float [K, D].
        mask_ratio, temperature: as in `regularized`.
        entropy_temperature: `entropy` and `soft_posterior` are those of softmax(logits / it).
        tile_size: positions of each image that are held at once, a divisor of h * w; 0 = all of them.

    Returns:
        As `regularized`.

    Raises:
        ValueError: `mask_ratio` is outside [0, 1], or `tile_size` does not divide h * w.
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio must be in [0, 1], got {mask_ratio}")
    batch, height, width, channels = features.shape
    positions = height * width
    tile_size = tile_size or positions
    if positions % tile_size:
        raise ValueError(f"tile_size {tile_size} does not divide the {positions} positions of an image")
    keys = None if mask_ratio == 0 else jax.random.split(key, positions)
    flat = features.reshape(batch, positions, channels)

    def assign(keys, tile):
        return _assign(keys, to_logits(tile), codebook, mask_ratio, temperature, entropy_temperature)

    if tile_size == positions:
        out = assign(keys, flat)
    else:
        tiles = flat.reshape(batch, -1, tile_size, channels).swapaxes(0, 1)
        tile_keys = None if keys is None else keys.reshape(-1, tile_size)

        def add_tile(sums, tile):
            # Nothing of a tile but its result outlives it: the backward pass starts from the features again.
            out = jax.checkpoint(assign)(*tile)
            sums = jax.tree.map(jnp.add, sums, (out.posterior, out.soft_posterior))
            return sums, out._replace(posterior=None, soft_posterior=None)

        zeros = jnp.zeros((batch, codebook.shape[0]), jnp.float32)
        sums, out = jax.lax.scan(add_tile, (zeros, zeros), (tile_keys, tiles))
        # [tiles, B, tile, ...] to [B, positions, ...].
        out = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, positions, *x.shape[3:]), out)
        posterior, soft_posterior = (total / tiles.shape[0] for total in sums)
        out = out._replace(posterior=posterior, soft_posterior=soft_posterior)
    grid = {
        name: x.reshape(batch, height, width, *x.shape[2:])
        for name, x in out._asdict().items()
        if name not in ("posterior", "soft_posterior")
    }
    return out._replace(**grid)


def _assign(keys, logits, codebook, mask_ratio, temperature, entropy_temperature) -> QuantizeOutput:
    """One tile: keys [n] and logits [B, n, K] to an output with [B, n] where the grid was [B, h, w]."""
    logits, codebook = jnp.asarray(logits, jnp.float32), jnp.asarray(codebook, jnp.float32)
    batch, _, num_codes = logits.shape
    best_codes = jnp.argmax(logits, -1).astype(jnp.int32)
    if mask_ratio == 0:
        stochastic_mask = jnp.zeros(best_codes.shape, bool)
        noisy_logits, codes = logits, best_codes
    else:
        stochastic_mask, noise = jax.vmap(_draw, (0, None, None, None), out_axes=1)(
            keys, batch, num_codes, mask_ratio
        )
        noisy_logits = jnp.where(stochastic_mask[..., None], logits + noise, logits)
        codes = jnp.argmax(noisy_logits, -1).astype(jnp.int32)

    # Straight-through: `soft - stop_gradient(soft)` is exactly zero, so the values below are those of a
    # look-up and a histogram (to the bit, on every device), while gradients take the soft assignment.
    soft = jax.nn.softmax(noisy_logits / temperature, -1)
    soft_path = soft - jax.lax.stop_gradient(soft)
    quantized = codebook[codes] + soft_path @ jax.lax.stop_gradient(codebook)
    one_hot = jax.nn.one_hot(codes, num_codes, dtype=jnp.float32)

    # Less the largest before they are scaled: a low temperature would scale rounding errors, too.
    largest = jax.lax.stop_gradient(jnp.take_along_axis(logits, best_codes[..., None], -1))
    log_probabilities = jax.nn.log_softmax((logits - largest) / entropy_temperature, -1)
    probabilities = jnp.exp(log_probabilities)
    difference = jax.lax.stop_gradient(codebook[codes] - codebook[best_codes])
    zeros = jnp.zeros(codes.shape, jnp.float32)
    return QuantizeOutput(
        quantized=quantized,
        codes=codes,
        best_codes=best_codes,
        posterior=jnp.mean(one_hot + soft_path, axis=1),
        stochastic_mask=stochastic_mask,
        perturbation=jnp.sum(difference**2, -1),
        soft_posterior=jnp.mean(probabilities, axis=1),
        entropy=-jnp.sum(probabilities * log_probabilities, -1),
        codebook_error=zeros,
        commitment_error=zeros,
    )


def _draw(key, batch, num_codes, mask_ratio):
    """(mask [B], Gumbel noise [B, K]) of one position in every image."""
    mask_key, noise_key = jax.random.split(key)
    mask = jax.random.bernoulli(mask_key, mask_ratio, (batch,))
    return mask, jax.random.gumbel(noise_key, (batch, num_codes), jnp.float32)
