"""The mask-and-replace diffusion prior (VQ-Diffusion): corrupt, take one step back, loss and bound.

Times t = 0 .. T; ids 0 .. K - 1 are codes, id K is the mask. The network predicts x_0: logits_fn(tokens
int32 [B, N], time float32 [B] = t / T) -> float [B, N, K]. Schedules are in `diffusion_schedules`, the
drawing of t in `timesteps`, the sampler in `diffusion_sampling`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.priors.diffusion_schedules import LOG_ZERO, Jump, Schedule, end_kl, single_jumps
from regvq_jax.priors.timesteps import stratified


class DiffusionLoss(NamedTuple):
    """One value a row, in nats, summed over its N tokens."""

    loss: jax.Array  # float32 [B], what to minimise the mean of
    variational: jax.Array  # float32 [B], the bound's term at the row's t: what `update_history` wants
    auxiliary: jax.Array  # float32 [B], -log p(x_0 | x_t) of the network's own prediction, without weight


def corrupt(key: jax.Array, tokens: jax.Array, t: jax.Array, schedule: Schedule) -> jax.Array:
    """Draws x_t from q(x_t | x_0), each token on its own.

    Args:
        key: a random key.
        tokens: int32 [B, N], x_0, in 0 .. K - 1.
        t: int32 [B], in 0 .. T; at 0 nothing changes.
        schedule: a schedule.

    Returns:
        int32 [B, N], in 0 .. K.
    """
    num_codes = schedule.num_codes
    # Kept with probability alpha / (alpha + K beta) where it is not masked: of two separate draws, since
    # the 1e-6 of K beta in `released` is lost in a float32 1 - alpha - gamma.
    log_keep = schedule.total.log_alpha - np.logaddexp(
        schedule.total.log_alpha, schedule.total.log_beta + np.log(num_codes)
    )
    keep = jnp.asarray(np.exp(log_keep), jnp.float32)[t][:, None]
    gamma = jnp.asarray(np.exp(schedule.total.log_gamma), jnp.float32)[t][:, None]

    mask_key, keep_key, code_key = jax.random.split(key, 3)
    codes = jax.random.randint(code_key, tokens.shape, 0, num_codes, tokens.dtype)
    kept = jnp.where(jax.random.uniform(keep_key, tokens.shape) < keep, tokens, codes)
    return jnp.where(jax.random.uniform(mask_key, tokens.shape) < gamma, num_codes, kept)


def log_posterior(log_x0: jax.Array, noisy: jax.Array, jump: Jump) -> jax.Array:
    """Takes a distribution over x_0 one jump t > s back: sum_c p(x_0 = c) q(x_s | x_t, x_0 = c).

    For s = 0 that is p(x_0) itself, without the mask. Everything happens in log space; the sum over c is
    one logsumexp, since q(x_s | x_0) is the same for all codes that are neither x_0 nor x_s.

    Args:
        log_x0: float [B, N, K], log-probabilities; `LOG_ZERO` (not -inf) for what cannot be.
        noisy: int32 [B, N], x_t, in 0 .. K.
        jump: `single_jumps` [B] or one of `grid_jumps`, [].

    Returns:
        float32 [B, N, K + 1], log-probabilities of x_s, the mask last.
    """
    step, before, after = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32)[..., None, None], jump)
    num_codes = log_x0.shape[-1]
    is_masked = (noisy == num_codes)[..., None]
    is_same = noisy[..., None] == jnp.arange(num_codes)

    def log_of_reaching(kernel):
        """log q(x_t | a code at the kernel's start), for each code."""
        return jnp.where(is_masked, kernel.log_gamma, jnp.where(is_same, kernel.log_stay, kernel.log_beta))

    # q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0).
    weight = log_x0.astype(jnp.float32) - log_of_reaching(after)
    total = jax.nn.logsumexp(weight, -1, keepdims=True)
    codes = log_of_reaching(step) + jnp.logaddexp(before.log_alpha + weight, before.log_beta + total)
    mask = jnp.where(is_masked, before.log_gamma + total, LOG_ZERO)
    return jnp.concatenate([codes, mask], -1)


def loss(
    logits: jax.Array,
    tokens: jax.Array,
    noisy: jax.Array,
    t: jax.Array,
    schedule: Schedule,
    *,
    probability: jax.Array,
    auxiliary_weight: float = 5e-4,
) -> DiffusionLoss:
    """The term of the variational bound at each row's t, and the auxiliary x_0 loss.

    `variational` is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), which is the decoder's -log p(x_0 | x_1)
    at t = 1. loss = (variational + auxiliary_weight * (2 - t / T) * auxiliary) / probability, so that its
    mean estimates the sum over t, however t was drawn.

    Args:
        logits: float [B, N, K], the network's x_0 at (noisy, t / T); computed in float32.
        tokens: int32 [B, N], x_0.
        noisy: int32 [B, N], x_t, from `corrupt`.
        t: int32 [B], in 1 .. T.
        schedule: a schedule.
        probability: float [B], with which t was drawn; 1 / T where it was uniform.
        auxiliary_weight: weight of the auxiliary loss; times 2 - t / T, more where little noise is.

    Returns:
        A `DiffusionLoss` of sums over tokens; divide by N for the size of a mean over tokens.
    """
    log_x0 = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    jump = single_jumps(schedule, t)
    is_true = tokens[..., None] == jnp.arange(schedule.num_codes)
    true = log_posterior(jnp.where(is_true, 0.0, LOG_ZERO), noisy, jump)
    predicted = log_posterior(log_x0, noisy, jump)
    variational = jnp.sum(jnp.exp(true) * (true - predicted), (1, 2))
    auxiliary = -jnp.sum(jnp.where(is_true, log_x0, 0.0), (1, 2))
    adaptive_weight = auxiliary_weight * (2 - t / schedule.num_steps)
    return DiffusionLoss((variational + adaptive_weight * auxiliary) / probability, variational, auxiliary)


def bound(
    key: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    schedule: Schedule,
    *,
    draws: int = 1,
) -> jax.Array:
    """Estimates, without bias, each row's variational bound on -log p(x_0).

    The bound is the sum of two parts: KL(q(x_T | x_0) || p(x_T)), exact (see `end_kl` for p(x_T)), and the
    sum over t = 1 .. T of `loss`'s variational term, estimated by T times the term at a uniform t. A row's
    `draws` times are spread evenly over 1 .. T, and so are those of the rows.

    Args:
        key: a random key.
        logits_fn: (int32 [B, N], float32 [B]) -> float [B, N, K].
        tokens: int32 [B, N], x_0.
        schedule: a schedule.
        draws: times drawn a row, each one call of `logits_fn`; the variance falls faster than 1 / draws.

    Returns:
        float32 [B], in nats a row (N tokens).
    """
    rows, num_tokens = tokens.shape
    num_steps = schedule.num_steps
    time_key, noise_key = jax.random.split(key)
    first = stratified(time_key, rows) / draws

    def term(draw):
        uniform = first + draw / draws
        t = jnp.minimum(1 + (uniform * num_steps).astype(jnp.int32), num_steps)  # Rounding may reach T + 1.
        noisy = corrupt(jax.random.fold_in(noise_key, draw), tokens, t, schedule)
        logits = logits_fn(noisy, t.astype(jnp.float32) / num_steps)
        probability = jnp.full(rows, 1 / num_steps, jnp.float32)
        return loss(logits, tokens, noisy, t, schedule, probability=probability, auxiliary_weight=0.0).loss

    return jax.lax.map(term, jnp.arange(draws)).mean(0) + num_tokens * end_kl(schedule)
