"""The absorbing diffusion prior (MD4, MDLM): tokens are masked in continuous time, and predicted back.

Time runs from 0 (all tokens) to 1 (all masked); at time t a token is still seen with probability alpha(t).
The network is logits_fn(tokens int32 [B, N], time float32 [B]) -> float [B, N, K] and predicts the tokens;
the mask is id K. It is the masked prior with a weight on the loss, so weights trained as one can be sampled
as the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.priors import filters
from regvq_jax.priors.diffusion_sampling import row_noise
from regvq_jax.priors.likelihood import cross_entropy
from regvq_jax.priors.timesteps import stratified


class Alpha(NamedTuple):
    """A schedule, told by the masked share 1 - alpha; `xp` is numpy or jax.numpy."""

    masked: Callable  # (time, xp) -> 1 - alpha(time), rising from 0 at time 0 to 1 at time 1
    weight: Callable  # (time, xp) -> -alpha'(time) / (1 - alpha(time)), about 1 / time near 0
    time: Callable  # (masked share, xp) -> the time


# Cosine is alpha = 1 - cos(pi / 2 * (1 - t)); by the sine nothing cancels near 0.
SCHEDULES = {
    "linear": Alpha(lambda t, xp: t, lambda t, xp: 1 / t, lambda share, xp: share),
    "cosine": Alpha(
        lambda t, xp: xp.sin(np.pi / 2 * t),
        lambda t, xp: np.pi / 2 / xp.tan(np.pi / 2 * t),
        lambda share, xp: 2 / np.pi * xp.arcsin(share),
    ),
}
REMASKS = ("none", "cap", "rescale", "conf")


def draw_times(key: jax.Array, rows: int, *, min_time: float = 1e-3) -> jax.Array:
    """Draws a time for each row, evenly spread over the batch (`timesteps.stratified`).

    Args:
        key: a random key.
        rows: B.
        min_time: smallest time. The loss leaves out the times below it (a share of about `min_time` of the
            bound), where few rows with a weight of 1 / time would make most of the variance.

    Returns:
        float32 [B], in [min_time, 1].
    """
    return 1 - (1 - min_time) * stratified(key, rows)


def corrupt(
    key: jax.Array, tokens: jax.Array, time: jax.Array, *, mask_id: int, schedule: str = "linear"
) -> tuple[jax.Array, jax.Array]:
    """Masks each token on its own with probability 1 - alpha(time).

    Args:
        key: a random key.
        tokens: int32 [B, N].
        time: float [B], in [0, 1].
        mask_id: K.
        schedule: a key of `SCHEDULES`.

    Returns:
        corrupted, int32 [B, N]; is_masked, bool [B, N], True = masked.

    Raises:
        UserError: the schedule is unknown.
    """
    share = _schedule(schedule).masked(time, jnp)
    is_masked = jax.random.uniform(key, tokens.shape) < share[:, None]
    return jnp.where(is_masked, mask_id, tokens), is_masked


def loss(
    logits: jax.Array,
    tokens: jax.Array,
    is_masked: jax.Array,
    time: jax.Array,
    *,
    schedule: str = "linear",
    weighted: bool = True,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Weighted cross-entropy over the masked tokens; with weight 1 it is MaskGIT's loss, summed by row.

    The weight -alpha'(t) / (1 - alpha(t)) makes its mean over uniform times the continuous-time bound on
    -log p(tokens), the same for every schedule; schedules differ in the variance. Without weight, and with
    the masked shares of a MaskGIT schedule, it is what `masked.loss` averages.

    Args:
        logits: float [B, N, K].
        tokens: int32 [B, N], before the corruption.
        is_masked: bool [B, N], from `corrupt`.
        time: float [B], in (0, 1]; the times of `corrupt`.
        schedule: the schedule of `corrupt`.
        weighted: False takes weight 1.
        label_smoothing: as in `likelihood.cross_entropy`; 0 for a bound.

    Returns:
        float32 [B], in nats, summed over the masked tokens.

    Raises:
        UserError: the schedule is unknown.
    """
    values = cross_entropy(logits, tokens, label_smoothing=label_smoothing)
    total = jnp.sum(jnp.where(is_masked, values, 0.0), -1)
    weight = _schedule(schedule).weight(time, jnp) if weighted else 1.0
    return jnp.maximum(weight, 0.0) * total  # The cosine's weight at 1 is -7e-8 in float32.


def bound(
    key: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    *,
    mask_id: int,
    schedule: str = "linear",
    draws: int = 1,
) -> jax.Array:
    """Estimates, without bias, each row's bound on -log p(tokens): the mean of `loss` over all times.

    Drawing the time uniformly has no finite variance near 0. So the number n of masked tokens is drawn first,
    evenly over 1 .. N (a row's `draws`, and the rows, are spread over it), and then the time given n: each
    token has a uniform level and is masked below the n-th smallest. That is the same integral,
    N / n times the cross-entropy of the masked tokens. The prior term is 0, since all is masked at time 1.

    Args:
        key: a random key.
        logits_fn: (int32 [B, N], float32 [B]) -> float [B, N, K].
        tokens: int32 [B, N].
        mask_id: K.
        schedule: which time the network is told; a network that ignores time has one bound for all.
        draws: calls of `logits_fn`.

    Returns:
        float32 [B], in nats a row (N tokens).

    Raises:
        UserError: the schedule is unknown.
    """
    time_of = _schedule(schedule).time
    rows, num_tokens = tokens.shape
    count_key, level_key = jax.random.split(key)
    first = stratified(count_key, rows) / draws

    def term(draw):
        count = 1 + ((first + draw / draws) * num_tokens).astype(jnp.int32)
        count = jnp.minimum(count, num_tokens)[:, None]  # Rounding may reach N + 1.
        levels = jax.random.uniform(jax.random.fold_in(level_key, draw), tokens.shape)
        order = jnp.argsort(levels, -1)
        is_masked = jnp.argsort(order, -1) < count
        share = jnp.take_along_axis(jnp.take_along_axis(levels, order, -1), count - 1, -1)[:, 0]
        logits = logits_fn(jnp.where(is_masked, mask_id, tokens), time_of(share, jnp))
        values = jnp.where(is_masked, cross_entropy(logits, tokens), 0.0)
        return num_tokens * jnp.sum(values / count, -1)

    return jax.lax.map(term, jnp.arange(draws)).mean(0)


def sample(
    keys: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    *,
    mask_id: int,
    steps: int,
    schedule: str = "linear",
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    remask: str = "none",
    eta: float | jax.Array = 0.02,
) -> jax.Array:
    """Draws tokens by going back from time 1 to 0 in `steps` equal steps t > s; one `lax.scan`.

    "none" is the ancestral sampler: a masked token opens with probability (alpha_s - alpha_t) / (1 - alpha_t)
    and then stays. The others (ReMDM) mask an open token again with probability sigma, and open masked ones
    that much more often, 1 - (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t), so that as much is masked at
    each time as without. With limit = min(1, (1 - alpha_s) / alpha_t), sigma is

        "cap": min(eta, limit);
        "rescale": eta * limit;
        "conf": eta * limit on the average of a row's open tokens, shared out among them by
            softmax(-probability the token had when it opened), none above the limit. (ReMDM lets the
            shares sum to 1 instead: at most one token a step, and eta would mean less the longer the row.)

    Given tokens are never masked. At the last step the limit is 0 and everything opens.

    Args:
        keys: a key array [B], one a row.
        logits_fn: (int32 [B, N], float32 [B]) -> float [B, N, K], K <= `mask_id`; see `guidance`.
        tokens: int32 [B, N], `mask_id` where a code is wanted, given codes elsewhere.
        mask_id: K.
        steps: number of calls of `logits_fn`, at least 1. Remasking pays with many (ReMDM: 32 and more).
        schedule: a key of `SCHEDULES`; need not be that of the training where the network ignores time.
        temperature, top_k, top_p: of the codes, as in `filters.draw`; the last two are Python numbers.
        remask: one of `REMASKS`.
        eta: strength of the remasking, in [0, 1]; 0 is the ancestral sampler.

    Returns:
        int32 [B, N] without `mask_id`.

    Raises:
        UserError: the schedule or the way of remasking is unknown, or `steps` is below 1.
        ValueError: `keys` is not [B], the logits could yield `mask_id`, or a filter is out of range.
    """
    if keys.shape != tokens.shape[:1]:
        raise ValueError(f"keys must be [{tokens.shape[0]}], one a row, got {keys.shape}")
    if remask not in REMASKS:
        raise UserError(f"unknown way of remasking {remask!r}: choose one of {', '.join(REMASKS)}.")
    if steps < 1:
        raise UserError(f"sampling needs at least 1 step, got {steps}.")
    times = np.linspace(1, 0, steps + 1)
    alphas = 1 - _schedule(schedule).masked(times, np)
    is_wanted = tokens == mask_id

    def step_fn(carry, now):
        current, confidence = carry
        step, time, alpha_t, alpha_s = now
        logits = logits_fn(current, jnp.full(current.shape[:1], time)).astype(jnp.float32)
        if logits.shape[-1] > mask_id:
            raise ValueError(f"logits over {logits.shape[-1]} codes include the mask id {mask_id}")
        code_keys, mask_noise, _ = row_noise(keys, step, tokens.shape[1])
        codes = filters.draw(code_keys, logits, temperature=temperature, k=top_k, p=top_p)

        is_open = is_wanted & (current != mask_id)
        sigma, mean_sigma = _sigma(remask, eta, alpha_t, alpha_s, is_open, confidence)
        stay_masked = (1 - alpha_s - mean_sigma * alpha_t) / (1 - alpha_t)
        is_masked = is_wanted & (mask_noise < jnp.where(is_open, sigma, stay_masked))

        is_opened = is_wanted & ~is_open & ~is_masked
        after = jnp.where(is_opened, codes, jnp.where(is_masked, mask_id, current)).astype(tokens.dtype)
        probability = jnp.exp(-cross_entropy(logits, codes))
        return (after, jnp.where(is_opened, probability, confidence)), None

    grid = (np.arange(steps), *(np.float32(x) for x in (times[:-1], alphas[:-1], alphas[1:])))
    start = (tokens, jnp.zeros(tokens.shape, jnp.float32))
    return jax.lax.scan(step_fn, start, grid)[0][0]


def _sigma(remask, eta, alpha_t, alpha_s, is_open, confidence):
    """The probability of masking again, for each token, and its mean over the open ones, [B, 1] or []."""
    limit = jnp.minimum(1.0, (1 - alpha_s) / jnp.maximum(alpha_t, 1e-9))
    if remask == "none":
        return 0.0, 0.0
    if remask == "cap":
        sigma = jnp.minimum(eta, limit)
        return sigma, sigma
    if remask == "rescale":
        return eta * limit, eta * limit
    num_open = jnp.maximum(is_open.sum(-1, keepdims=True), 1)
    shares = jnp.where(is_open, jnp.exp(-confidence), 0.0)  # Confidences lie in [0, 1]: no overflow.
    shares /= jnp.maximum(shares.sum(-1, keepdims=True), 1e-9)
    sigma = jnp.minimum(eta * limit * num_open * shares, limit)
    return sigma, sigma.sum(-1, keepdims=True) / num_open


def _schedule(name) -> Alpha:
    if name not in SCHEDULES:
        raise UserError(f"unknown absorbing schedule {name!r}: choose one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[name]
