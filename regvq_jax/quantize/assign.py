"""Codes and soft assignments in tiles of positions; the backward pass makes the logits again."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from regvq_jax.quantize.contract import histogram
from regvq_jax.quantize.logits import Affine, affine_logits, best_code
from regvq_jax.quantize.noise import Draws, gumbel_noise


class Assignment(NamedTuple):
    """What became of each position; as in `QuantizeOutput`, with [B, N] where the grid is [B, h, w]."""

    quantized: jax.Array
    codes: jax.Array
    best_codes: jax.Array
    posterior: jax.Array
    soft_posterior: jax.Array
    entropy: jax.Array


class _Tile(NamedTuple):
    """Some positions of every image: features [B, n, C], draws [B, n] or None."""

    features: jax.Array
    draws: Draws | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def assign(
    features: jax.Array,
    affine: Affine,
    codebook: jax.Array,
    draws: Draws | None,
    temperature: jax.Array,
    entropy_temperature: float,
    tile_size: int,
) -> Assignment:
    """Assigns codes to positions; the gradient is that of the softmax of the same logits.

    The code vectors carry the gradient of the positions that chose them to `codebook`, and that of the soft
    assignment to features and affine map. [B, tile, K] arrays are the largest there are, forward and
    backward; only features, draws, and one number and two codes of each position are kept between the two.
    Under jit, what the loss does not look at costs nothing.

    Args:
        features: float32 [B, N, C].
        affine: makes their logits.
        codebook: float32 [K, D].
        draws: None samples nowhere.
        temperature: float32 [], of the backward pass; gets no gradient.
        entropy_temperature: `entropy` and `soft_posterior` are those of softmax(logits / it).
        tile_size: positions of each image at once, a divisor of N.
    """
    return _forward(features, affine, codebook, draws, entropy_temperature, tile_size)[0]


def _forward(features, affine, codebook, draws, entropy_temperature, tile_size):
    """(assignment, largest logit [B, N] with noise where there is some)."""
    batch, positions, _ = features.shape
    num_codes = codebook.shape[0]

    def step(soft_sum, tile):
        logits = _unflatten(affine_logits(_flatten(tile.features), affine), batch)
        best_codes, best = best_code(logits)
        codes, largest = best_codes, best
        if draws is not None:
            codes, largest = jax.lax.cond(
                jnp.any(tile.draws.mask),
                lambda: best_code(logits, functools.partial(_add_noise, tile.draws)),
                lambda: (best_codes, best),
            )
        scaled = (logits - best[..., None]) / entropy_temperature
        shares = jnp.exp(scaled)
        total = jnp.sum(shares, -1)
        entropy = jnp.log(total) - jnp.sum(shares * scaled, -1) / total
        soft_sum += jnp.sum(shares / total[..., None], 1)
        return soft_sum, (codes, best_codes, largest, entropy)

    order = _Order(draws, positions, tile_size)
    tiles = order.split(_Tile(features, draws))
    soft_sum, results = jax.lax.scan(step, jnp.zeros((batch, num_codes), jnp.float32), tiles)
    codes, best_codes, largest, entropy = order.join(results)
    assignment = Assignment(
        quantized=codebook[codes],
        codes=codes,
        best_codes=best_codes,
        posterior=histogram(codes, num_codes),
        soft_posterior=soft_sum / positions,
        entropy=entropy,
    )
    return assignment, largest


def _forward_for_gradient(features, affine, codebook, draws, temperature, entropy_temperature, tile_size):
    arguments = jax.tree.map(lambda x: x.value, (features, affine, codebook, draws, temperature))
    features, affine, codebook, draws, temperature = arguments
    out, largest = _forward(features, affine, codebook, draws, entropy_temperature, tile_size)
    return out, (arguments, out.codes, largest)


def _backward(entropy_temperature, tile_size, kept, cotangents):
    (features, affine, codebook, draws, temperature), codes, largest = kept
    batch, positions, _ = features.shape
    # None where the loss does not look.
    given = Assignment(*(None if isinstance(x, SymbolicZero) else x for x in cotangents))

    def step(affine_sum, tile):
        tile, largest, to_vectors, to_entropy = tile
        logits, pull = jax.vjp(affine_logits, _flatten(tile.features), affine)
        logits = _unflatten(logits, batch)
        to_logits = jnp.zeros_like(logits)
        if to_vectors is not None or given.posterior is not None:
            shares = _shares(logits, largest, tile.draws, temperature)
            to_shares = jnp.zeros_like(logits)
            if to_vectors is not None:
                to_shares += _unflatten(jnp.matmul(_flatten(to_vectors), codebook.T), batch)
            if given.posterior is not None:
                to_shares += given.posterior[:, None] / positions
            to_logits += _pull_softmax(shares, to_shares) / temperature
        if to_entropy is not None or given.soft_posterior is not None:
            scaled = (logits - jnp.max(logits, -1, keepdims=True)) / entropy_temperature
            shares, to_shares = jnp.exp(scaled), jnp.zeros_like(logits)
            if to_entropy is not None:
                # Of -sum p log p, but for what is the same for all codes.
                to_shares -= to_entropy[..., None] * scaled
            if given.soft_posterior is not None:
                to_shares += given.soft_posterior[:, None] / positions
            to_logits += _pull_softmax(shares, to_shares) / entropy_temperature
        to_features, to_affine = pull(_flatten(to_logits))
        return jax.tree.map(jnp.add, affine_sum, to_affine), _unflatten(to_features, batch)

    order = _Order(draws, positions, tile_size)
    tiles = order.split((_Tile(features, draws), largest, given.quantized, given.entropy))
    to_affine, to_features = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, affine), tiles)
    to_codebook = jnp.zeros_like(codebook)
    if given.quantized is not None:
        to_codebook = to_codebook.at[codes].add(given.quantized)
    return order.join(to_features), to_affine, to_codebook, None, None


assign.defvjp(_forward_for_gradient, _backward, symbolic_zeros=True)


def _flatten(x):
    """[B, n, C] to [B * n, C]: products over one axis each are several times faster on a CPU."""
    return x.reshape(-1, x.shape[-1])


def _unflatten(x, batch):
    """[B * n, C] to [B, n, C]."""
    return x.reshape(batch, -1, x.shape[-1])


def _add_noise(draws, logits, codes):
    """Logits [B, n, k] of some codes [..., k], with noise at the positions in the mask."""
    # Not a select, which a CPU does one element at a time.
    return logits + draws.mask.astype(jnp.float32)[..., None] * gumbel_noise(draws.row_keys, codes)


def _shares(logits, largest, draws, temperature):
    """exp((logits - largest) / temperature) of the logits with their noise: softmax but for its sum."""

    def scale(logits):
        # `largest` is of other products, whose last bits may differ: of huge logits that is much.
        return jnp.exp(jnp.minimum(logits - largest[..., None], 0.0) / temperature)

    if draws is None:
        return scale(logits)
    codes = jnp.arange(logits.shape[-1])
    return jax.lax.cond(
        jnp.any(draws.mask), lambda: scale(_add_noise(draws, logits, codes)), lambda: scale(logits)
    )


def _pull_softmax(shares, cotangent):
    """The cotangent at the logits of one at their softmax, which is `shares` but for its sum."""
    # Three readers: written once, not computed in each.
    shares = jax.lax.optimization_barrier(shares)
    # Zero where all shares vanish, as beside logits of 1e30: one code then has all there is, and no gradient.
    total = jnp.maximum(jnp.sum(shares, -1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    mean = jnp.sum(shares * cotangent, -1, keepdims=True) / total
    return shares * (cotangent - mean) / total


class _Order:
    """Positions in tiles, the sampled ones of each image first, so that few tiles make noise."""

    def __init__(self, draws: Draws | None, positions: int, tile_size: int):
        self._tile_size = tile_size
        self._order = None
        if draws is not None and tile_size < positions:
            self._order = jnp.argsort(~draws.mask, axis=-1, stable=True)
            self._inverse = jnp.argsort(self._order, axis=-1)

    def split(self, tree):
        """[B, N, ...] to [tiles, B, tile, ...]."""

        def one(x):
            x = x if self._order is None else _take(x, self._order)
            return x.reshape(x.shape[0], -1, self._tile_size, *x.shape[2:]).swapaxes(0, 1)

        return jax.tree.map(one, tree)

    def join(self, tree):
        """[tiles, B, tile, ...] to [B, N, ...]."""

        def one(x):
            x = x.swapaxes(0, 1)
            x = x.reshape(x.shape[0], -1, *x.shape[3:])
            return x if self._order is None else _take(x, self._inverse)

        return jax.tree.map(one, tree)


def _take(x, order):
    """x [B, N, ...] with its positions as `order` [B, N] says."""
    return jax.vmap(lambda row, index: row[index])(x, order)
