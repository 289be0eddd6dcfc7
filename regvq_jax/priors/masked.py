"""The masked prior (MaskGIT): hide tokens, predict them, decode in a few parallel steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def corrupt(
    key: jax.Array,
    tokens: jax.Array,
    *,
    mask_id: int,
    schedule_fn: Callable[[jax.Array], jax.Array],
    min_ratio: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Replaces a random share of each row by the mask id.

    A row draws u ~ U[0, 1) and has exactly round(N * max(schedule_fn(u), min_ratio)) tokens masked,
    at least one, at places drawn uniformly.

    Args:
        key: a random key.
        tokens: int32 [B, N].
        mask_id: the id that means masked.
        schedule_fn: ratio in [0, 1] -> masked fraction in [0, 1]; see `schedules`.
        min_ratio: smallest masked fraction.

    Returns:
        corrupted, int32 [B, N]; is_masked, bool [B, N], True = masked.
    """
    rows, num_tokens = tokens.shape
    ratio_key, order_key = jax.random.split(key)
    fraction = jnp.maximum(schedule_fn(jax.random.uniform(ratio_key, (rows,))), min_ratio)
    count = jnp.clip(jnp.round(fraction * num_tokens), 1, num_tokens).astype(jnp.int32)
    is_masked = _ranks(jax.random.uniform(order_key, tokens.shape)) < count[:, None]
    return jnp.where(is_masked, mask_id, tokens), is_masked


def cross_entropy(logits: jax.Array, tokens: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each token against (1 - label_smoothing) * one_hot + label_smoothing / K.

    Args:
        logits: float [B, N, K], unnormalised; computed in float32.
        tokens: int32 [B, N], the true tokens.
        label_smoothing: share of the target that is spread over all codes.

    Returns:
        float32 [B, N], in nats.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    of_token = jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    return -(1 - label_smoothing) * of_token - label_smoothing * log_probs.mean(-1)


def loss(
    logits: jax.Array,
    tokens: jax.Array,
    is_masked: jax.Array,
    *,
    label_smoothing: float = 0.1,
    row_mask: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy over the masked positions of the whole batch.

    Args:
        logits: float [B, N, K].
        tokens: int32 [B, N], before the corruption.
        is_masked: bool [B, N], from `corrupt`.
        label_smoothing: as in `cross_entropy`.
        row_mask: bool [B], True = a real row; the others (a padded last batch) do not count.

    Returns:
        float32 [], in nats; 0 where nothing counts.
    """
    counts = is_masked if row_mask is None else is_masked & row_mask[:, None]
    values = cross_entropy(logits, tokens, label_smoothing=label_smoothing)
    return jnp.where(counts, values, 0.0).sum() / jnp.maximum(counts.sum(), 1)


def sample(
    keys: jax.Array,
    tokens_to_logits: Callable[[jax.Array], jax.Array],
    tokens: jax.Array,
    *,
    mask_id: int,
    steps: int,
    schedule_fn: Callable[[jax.Array], jax.Array],
    temperature: float | jax.Array = 1.0,
    choice_temperature: float | jax.Array = 4.5,
) -> jax.Array:
    """Fills the masked positions in `steps` parallel steps, the most confident first.

    Each step samples a code for every masked position and keeps the most confident ones: confidence
        is the
    code's log-probability + choice_temperature * (1 - ratio) * Gumbel noise, ratio = (step + 1) /
    steps. Of the M positions masked at the start of a row, round(M * schedule_fn(ratio)) stay
    masked, fewer where that would fill none, and none after the last step. A filled or given token
    never changes, so every masked position is filled exactly once. One `lax.scan`: memory does not
    grow with `steps`.

    Noise is drawn from each row's own key: a key gives the same sample alone and in any batch, up
    to the rounding of the network.

    Args:
        keys: a key array [B] (`jax.random.key` type), one a row.
        tokens_to_logits: int32 [B, N] -> float [B, N, K], K <= `mask_id`; see `guidance`.
        tokens: int32 [B, N], `mask_id` where a code is wanted, given codes elsewhere.
        mask_id: the id that means masked.
        steps: number of calls of `tokens_to_logits`, at least 1.
        schedule_fn: ratio in [0, 1] -> masked fraction in [0, 1]; see `schedules`.
        temperature: of the codes: they follow softmax(logits / temperature); 0 takes the likeliest.
        choice_temperature: of the order; 0 is strictly by probability.

    Returns:
        int32 [B, N] without `mask_id`.

    Raises:
        ValueError: `keys` is not [B], `steps` is below 1, or the logits could yield `mask_id`.
    """
    if keys.shape != tokens.shape[:1]:
        raise ValueError(f"keys must be [{tokens.shape[0]}], one a row, got {keys.shape}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    num_at_start = jnp.sum(tokens == mask_id, -1)

    def step_fn(tokens, step):
        logits = tokens_to_logits(tokens).astype(jnp.float32)
        if logits.shape[-1] > mask_id:
            raise ValueError(f"logits over {logits.shape[-1]} codes include the mask id {mask_id}")
        code_noise, choice_noise = _row_noise(keys, step, logits.shape[1:])
        codes = jnp.argmax(logits + temperature * code_noise, -1).astype(tokens.dtype)

        ratio = (step + 1) / steps
        log_probs = jax.nn.log_softmax(logits, -1)
        confidence = jnp.take_along_axis(log_probs, codes[..., None], -1)[..., 0]
        confidence += choice_temperature * (1 - ratio) * choice_noise

        is_masked = tokens == mask_id
        num_left = jnp.round(num_at_start * schedule_fn(ratio)).astype(jnp.int32)
        num_left = jnp.minimum(num_left, is_masked.sum(-1) - 1)
        num_left = jnp.where(step + 1 == steps, 0, num_left)
        unsure = _ranks(jnp.where(is_masked, confidence, jnp.inf)) < num_left[:, None]
        return jnp.where(is_masked & ~unsure, codes, tokens), None

    return jax.lax.scan(step_fn, tokens, jnp.arange(steps))[0]


def _row_noise(keys, step, shape) -> tuple[jax.Array, jax.Array]:
    """Draws Gumbel noise [B, N, K] for the codes and [B, N] for the order, row by row."""
    num_tokens, num_codes = shape

    def draw(key):
        return jax.random.gumbel(jax.random.fold_in(key, step), (num_tokens, num_codes + 1))

    noise = jax.vmap(draw)(keys)
    return noise[..., :num_codes], noise[..., num_codes]


def _ranks(values: jax.Array) -> jax.Array:
    """Ranks each row from 0 (smallest) to N - 1; ties by place, so that no rank occurs twice."""
    return jnp.argsort(jnp.argsort(values, -1), -1)
