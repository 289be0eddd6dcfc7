"""Which noise level each row of a batch is trained at: spread evenly, or where the loss is large."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# As in VQ-Diffusion: a time's history is trusted after more than 10 visits, and forgets at this rate.
MIN_VISITS = 10
DECAY = 0.9
# This share of the draws stays uniform, which bounds 1 / probability by T / UNIFORM_SHARE: a time whose
# losses once were tiny is still visited, and its rare rows cannot blow up a batch.
UNIFORM_SHARE = 0.01


class History(NamedTuple):
    """What is known of the loss at each time t = 1 .. T; entry t - 1 belongs to t."""

    mean_square: jax.Array  # float32 [T], running mean of the squared loss
    visits: jax.Array  # int32 [T], rows seen


def stratified(key: jax.Array, rows: int) -> jax.Array:
    """Uniform numbers spread evenly over the batch: frac(u + place / rows), u ~ U[0, 1) shared by the rows.

    Each row alone is exactly uniform, so every per-row estimate stays unbiased; together they lie 1 / rows
    apart (the low-discrepancy or "antithetic" times of MD4 and MDLM). Places are permuted, so that rows
    that stand together, such as the captions of one image, do not share their noise level.

    Args:
        key: a random key.
        rows: B.

    Returns:
        float32 [B], in [0, 1).
    """
    shift_key, place_key = jax.random.split(key)
    place = jax.random.permutation(place_key, jnp.arange(rows, dtype=jnp.float32))
    return jnp.mod(jax.random.uniform(shift_key) + place / rows, 1.0)


def init_history(num_steps: int) -> History:
    """The history before training, T = `num_steps`; `draw_times` draws uniformly from it."""
    return History(jnp.zeros(num_steps, jnp.float32), jnp.zeros(num_steps, jnp.int32))


def draw_times(key: jax.Array, history: History, rows: int) -> tuple[jax.Array, jax.Array]:
    """Draws each row's time with probability in proportion to sqrt(mean squared loss), stratified.

    Uniform until every time was seen more than `MIN_VISITS` times, and for `UNIFORM_SHARE` of the draws
    afterwards. Dividing a row's loss by the probability makes its mean the plain sum over t.

    Args:
        key: a random key.
        history: from `init_history` or `update_history`.
        rows: B.

    Returns:
        t, int32 [B] in 1 .. T; probability, float32 [B], with which that t was drawn.
    """
    num_steps = history.visits.shape[0]
    uniform = jnp.full(num_steps, 1 / num_steps, jnp.float32)
    size = jnp.sqrt(history.mean_square + 1e-10)
    by_size = UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * size / size.sum()
    probability = jnp.where((history.visits > MIN_VISITS).all(), by_size, uniform)

    ends = jnp.cumsum(probability)
    index = jnp.searchsorted(ends, stratified(key, rows) * ends[-1], side="right", method="compare_all")
    index = jnp.minimum(index, num_steps - 1).astype(jnp.int32)  # u * ends[-1] may round up to the end.
    return index + 1, probability[index]


class Observed(NamedTuple):
    """What a batch, or a part of one, saw of the loss; entry t - 1 belongs to t. Parts add up."""

    squares: jax.Array  # float32 [T], sum of squared losses
    visits: jax.Array  # float32 [T], rows


def observe(t: jax.Array, values: jax.Array, num_steps: int) -> Observed:
    """Sums a batch's losses by time, for `update_history`.

    Values that are not finite are left out: one bad step must not spoil the draws for good.

    Args:
        t: int32 [B], in 1 .. T.
        values: float [B], the rows' losses at t, not divided by the probability; no gradient flows.
        num_steps: T.

    Returns:
        Sums over the whole batch, so that one split over devices gives the same on each.
    """
    squares = jnp.square(jax.lax.stop_gradient(values).astype(jnp.float32))
    usable = jnp.isfinite(squares)
    # Left-out rows get a segment number past the end, which segment_sum drops.
    segment = jnp.where(usable, t - 1, num_steps)
    total = jax.ops.segment_sum(jnp.where(usable, squares, 0.0), segment, num_steps)
    return Observed(total, jax.ops.segment_sum(usable.astype(jnp.float32), segment, num_steps))


def update_history(history: History, observed: Observed) -> History:
    """Takes a batch's losses into the history; a time seen n times in the batch moves by 1 - 0.9^n.

    The first visit sets the mean.

    Args:
        history: the state before.
        observed: of the batch, from `observe`.

    Returns:
        The new history.
    """
    share = jnp.where(history.visits == 0, 1.0, 1.0 - DECAY**observed.visits)
    mean = observed.squares / jnp.maximum(observed.visits, 1)
    moved = history.mean_square + share * (mean - history.mean_square)
    seen = observed.visits > 0
    visits = history.visits + jnp.round(observed.visits).astype(jnp.int32)
    return History(jnp.where(seen, moved, history.mean_square), visits)
