"""What a tokenizer's trainer observes of its codes without a gradient, and the codebook that follows it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regvq_jax import quantize
from regvq_jax.quantize import QuantizeOutput
from regvq_jax.trainers.tokenizer_settings import QuantizerSettings

PyTree = Any
# Of the moving average of code shares that training metrics are taken from: about a hundred batches.
SHARES_DECAY = 0.99


def init_code_statistics(
    settings: QuantizerSettings, num_codes: int, positions: int
) -> dict[str, jax.Array]:
    """Those of a fresh state.

    Args:
        settings: of the quantizer.
        num_codes: K.
        positions: tokens of a whole batch.

    Returns:
        {"code_shares": float32 [K]} and, for a codebook that is a moving average, "moving_counts".
    """
    statistics = {"code_shares": jnp.zeros(num_codes)}
    if settings.ema_decay:
        statistics["moving_counts"] = quantize.init_moving_counts(num_codes, positions)
    return statistics


def observe_codes(
    settings: QuantizerSettings, out: QuantizeOutput, features: jax.Array
) -> dict[str, jax.Array]:
    """What `update_code_statistics` needs of a batch.

    Args:
        settings: of the quantizer.
        out: of the quantizer.
        features: float [B, h, w, D], what it was given.

    Returns:
        {"code_shares": float32 [K]} and, for a moving codebook, "features" and "codes"; no gradient.
    """
    observed = {"code_shares": out.posterior.mean(0)}
    if settings.ema_decay:
        observed |= {"features": features, "codes": out.codes}
    return jax.lax.stop_gradient(observed)


def update_code_statistics(
    key: jax.Array,
    settings: QuantizerSettings,
    statistics: dict[str, jax.Array],
    observed: dict[str, jax.Array],
    codebook: jax.Array | None,
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """One step of the averages.

    Args:
        key: for the codes that start anew.
        settings: of the quantizer.
        statistics: as of `init_code_statistics`.
        observed: of the batch, from `observe_codes`.
        codebook: float32 [K, D] before the step; None for a quantizer without one.

    Returns:
        (new statistics, the moved codebook; None where it is no moving average, but has gradients).
    """
    shares = optax.incremental_update(
        observed["code_shares"], statistics["code_shares"], 1 - SHARES_DECAY
    )
    if not settings.ema_decay:
        return {"code_shares": shares}, None
    counts, codebook = quantize.update_moving_codebook(
        key,
        statistics["moving_counts"],
        codebook,
        observed["features"],
        observed["codes"],
        decay=settings.ema_decay,
        restart_below=settings.restart_below,
    )
    return {"code_shares": shares, "moving_counts": counts}, codebook
