"""The masked prior (MaskGIT): hide tokens, predict them, decode in a few parallel steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from regvq_jax.priors import filters
from regvq_jax.priors.likelihood import cross_entropy, mean_where
from regvq_jax.priors.timesteps import stratified


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
        label_smoothing: as in `likelihood.cross_entropy`.
        row_mask: bool [B], True = a real row; the others (a padded last batch) do not count.

    Returns:
        float32 [], in nats; 0 where nothing counts.
    """
    counts = is_masked if row_mask is None else is_masked & row_mask[:, None]
    values = cross_entropy(logits, tokens, label_smoothing=label_smoothing)
    return mean_where(values, counts)


def bound(
    key: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    *,
    mask_id: int,
    draws: int = 1,
) -> jax.Array:
    """Estimates, without bias, each row's order-agnostic bound on -log p(tokens) (Uria et al. 2014).

    p draws one token at a time, the positions in a uniformly random order: `sample` with a random `order`
    and as many steps as tokens. Given the order, -log p is a sum of cross-entropies, and its mean over the
    orders is the bound:

        -log p(x) <= N * mean over n in 1..N and over the sets S of n positions of
                     1/n * sum over i in S of -log p(x_i | x outside S)

    A row's `draws` of n are spread evenly over 1..N, and so are those of the rows.

    Args:
        key: a random key.
        logits_fn: as in `sample`; its time is the masked share n / N.
        tokens: int32 [B, N].
        mask_id: the id that means masked.
        draws: of n and S for each row, each one call of `logits_fn`; one alone is a rough figure for a row.

    Returns:
        float32 [B], in nats a row (N tokens).
    """
    rows, num_tokens = tokens.shape
    count_key, order_key = jax.random.split(key)
    first = stratified(count_key, rows) / draws

    def estimate(draw):
        uniform = jnp.mod(first + draw / draws, 1.0)
        count = jnp.minimum(1 + (uniform * num_tokens).astype(jnp.int32), num_tokens)
        order = jax.random.uniform(jax.random.fold_in(order_key, draw), tokens.shape)
        is_masked = _ranks(order) < count[:, None]
        logits = logits_fn(jnp.where(is_masked, mask_id, tokens), count / num_tokens)
        total = jnp.where(is_masked, cross_entropy(logits, tokens), 0.0).sum(-1)
        return total * num_tokens / count

    return jax.lax.map(estimate, jnp.arange(draws)).mean(0)


def sample(
    keys: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    *,
    mask_id: int,
    steps: int,
    schedule_fn: Callable[[jax.Array], jax.Array],
    temperature: float | jax.Array = 1.0,
    choice_temperature: float | jax.Array = 4.5,
    order: jax.Array | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Fills the masked positions in `steps` parallel steps, the most confident first or in a given order.

    Each step draws a code for every masked position and keeps some of them. Of the M positions masked at
    the start of a row, round(M * schedule_fn(ratio)) stay masked, with ratio = (step + 1) / steps; fewer
    where that would fill none, and none after the last step. A filled or given token never changes, so
    every masked position is filled exactly once; given tokens are how a picture is in- or outpainted.

    Without an `order` the most confident draws are kept: confidence is the code's log-probability +
    choice_temperature * (1 - ratio) * Gumbel noise. One `lax.scan`: memory does not grow with `steps`.

    Noise is drawn from each row's own key: a key gives the same sample alone and in any batch, up
    to the rounding of the network.

    Args:
        keys: a key array [B] (`jax.random.key` type), one a row.
        logits_fn: (tokens int32 [B, N], time float32 [B]) -> float [B, N, K], K <= `mask_id`. The time is
            the share of the steps still to be done, 1 at the first: for `guidance.guided`.
        tokens: int32 [B, N], `mask_id` where a code is wanted, given codes elsewhere.
        mask_id: the id that means masked.
        steps: number of calls of `logits_fn`, at least 1.
        schedule_fn: ratio in [0, 1] -> masked fraction in [0, 1]; see `schedules`.
        temperature, top_k, top_p: of the codes, as in `filters.draw`; the last two are Python numbers.
        choice_temperature: of the confidence; 0 is strictly by probability.
        order: int32 [N] or [B, N], rank of each position, the smallest is filled first; such as
            `schedules.halton_order`.

    Returns:
        int32 [B, N] without `mask_id`.

    Raises:
        ValueError: `keys` is not [B], `steps` is below 1, the logits could yield `mask_id`, or a filter is
            out of range.
    """
    rows = tokens.shape[0]
    if keys.shape != (rows,):
        raise ValueError(f"keys must be [{rows}], one a row, got {keys.shape}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    num_at_start = jnp.sum(tokens == mask_id, -1)

    def step_fn(tokens, step):
        logits = logits_fn(tokens, jnp.full((rows,), 1 - step / steps, jnp.float32)).astype(jnp.float32)
        if logits.shape[-1] > mask_id:
            raise ValueError(f"logits over {logits.shape[-1]} codes include the mask id {mask_id}")
        code_keys, choice_noise = _row_noise(keys, step, tokens.shape[1])
        codes = filters.draw(code_keys, logits, temperature=temperature, k=top_k, p=top_p)
        codes = codes.astype(tokens.dtype)

        ratio = (step + 1) / steps
        if order is None:
            priority = -cross_entropy(logits, codes) + choice_temperature * (1 - ratio) * choice_noise
        else:
            priority = jnp.broadcast_to(-jnp.asarray(order, jnp.float32), tokens.shape)

        is_masked = tokens == mask_id
        num_left = jnp.round(num_at_start * schedule_fn(ratio)).astype(jnp.int32)
        num_left = jnp.minimum(num_left, is_masked.sum(-1) - 1)
        num_left = jnp.where(step + 1 == steps, 0, num_left)
        waits = _ranks(jnp.where(is_masked, priority, jnp.inf)) < num_left[:, None]
        return jnp.where(is_masked & ~waits, codes, tokens), None

    return jax.lax.scan(step_fn, tokens, jnp.arange(steps))[0]


def _row_noise(keys, step, num_tokens) -> tuple[jax.Array, jax.Array]:
    """Keys of the noise over the codes, uint32 [B, N, 2], and Gumbel noise [B, N] for the order."""

    def draw(key):
        code_key, order_key = jax.random.split(jax.random.fold_in(key, step))
        return jax.random.bits(code_key, (num_tokens, 2)), jax.random.gumbel(order_key, num_tokens)

    return jax.vmap(draw)(keys)


def _ranks(values: jax.Array) -> jax.Array:
    """Ranks each row from 0 (smallest) to N - 1; ties by place, so that no rank occurs twice."""
    return jnp.argsort(jnp.argsort(values, -1), -1)
