"""The sampler of the mask-and-replace diffusion, with truncation, purity and skipped steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError
from regvq_jax.priors import filters
from regvq_jax.priors.diffusion import log_posterior
from regvq_jax.priors.diffusion_schedules import LOG_ZERO, Schedule, grid_jumps


def row_noise(
    keys: jax.Array, step: jax.Array, num_tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one step's noise, each row's from its own key: a row draws the same alone and in any batch.

    Args:
        keys: a key array [B].
        step: int32 [], folded into each key.
        num_tokens: N.

    Returns:
        Keys of the noise over the codes, uint32 [B, N, 2]; uniform [0, 1) for whether a token is masked,
        float32 [B, N]; Gumbel noise for which tokens come first, float32 [B, N].
    """

    def draw(key):
        code_key, mask_key, order_key = jax.random.split(jax.random.fold_in(key, step), 3)
        codes = jax.random.bits(code_key, (num_tokens, 2))
        return codes, jax.random.uniform(mask_key, num_tokens), jax.random.gumbel(order_key, num_tokens)

    return jax.vmap(draw)(keys)


def sample(
    keys: jax.Array,
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    schedule: Schedule,
    *,
    steps: int,
    temperature: float | jax.Array = 1.0,
    truncation: float = 1.0,
    purity: float | jax.Array = 0.0,
) -> jax.Array:
    """Draws x_0 by going back from T to 0 in `steps` jumps of about equal length; one `lax.scan`.

    It starts from all mask, as VQ-Diffusion does: x_T tells (next to) nothing of x_0, so any x_T is as good
    a start as a drawn one. Given tokens are put back after every jump, so the network always sees them.

    Purity (Improved VQ-Diffusion), the largest probability in a token's x_0 distribution, works twice at
    strength r = `purity`. Which masked tokens open follows purity^r: drawn in that proportion, without
    replacement; how many open stays the plain sampler's own draw. And every x_0 distribution p becomes
    p^(1 + r * purity), renormalised. r = 0 is the plain sampler exactly, r = 1 comes nearest to the improved
    one. Where K * beta > 0 (`paper`), purity has no say in when an open token is replaced: open tokens go on
    being drawn again from the (sharpened) posterior at every jump, also while others are masked. The
    improved code freezes open tokens instead, which a schedule with replacement does not allow for.

    Args:
        keys: a key array [B], one a row.
        logits_fn: (int32 [B, N], float32 [B] = t / T) -> float [B, N, K]; see `guidance`.
        tokens: int32 [B, N], K where a code is wanted, given codes elsewhere.
        schedule: a schedule.
        steps: number of jumps and of calls of `logits_fn`, 1 .. T.
        temperature: x_0 follows softmax(logits / temperature); 0 takes the likeliest code.
        truncation: x_0 is drawn of the likeliest codes that together hold this share, in (0, 1]; 1 = of all,
            0.86 is VQ-Diffusion's.
        purity: r above, at least 0.

    Returns:
        int32 [B, N], in 0 .. K - 1.

    Raises:
        UserError: `steps` is not in 1 .. T.
        ValueError: `keys` is not [B], the logits are not over K codes, or `truncation` is not in (0, 1].
    """
    num_codes, num_steps = schedule.num_codes, schedule.num_steps
    if keys.shape != tokens.shape[:1]:
        raise ValueError(f"keys must be [{tokens.shape[0]}], one a row, got {keys.shape}")
    if not 1 <= steps <= num_steps:
        raise UserError(f"sampling steps must lie in 1..{num_steps}, the steps of training; got {steps}.")
    times = np.rint(np.linspace(num_steps, 0, steps + 1)).astype(np.int64)
    jumps = grid_jumps(schedule, times)
    stay_masked = np.exp(jumps.before.log_gamma - jumps.after.log_gamma)
    is_wanted = tokens == num_codes

    def step_fn(current, now):
        step, time, jump, stay = now
        logits = logits_fn(current, jnp.full(current.shape[:1], time)).astype(jnp.float32)
        if logits.shape[-1] != num_codes:
            raise ValueError(f"logits over {logits.shape[-1]} codes, but the schedule has {num_codes}")
        log_x0, log_purity = _x0(logits, temperature, truncation, purity)

        code_keys, mask_noise, order_noise = row_noise(keys, step, tokens.shape[1])
        # Of a masked token that opens, and of an open one: the posterior without the mask.
        codes = filters.draw(code_keys, log_posterior(log_x0, current, jump)[..., :num_codes])

        # A masked token stays so with the same probability whatever its x_0: count first, then choose.
        is_masked = is_wanted & (current == num_codes)
        num_opened = jnp.sum(is_masked & (mask_noise >= stay), -1, keepdims=True)
        eagerness = jnp.where(is_masked, purity * log_purity + order_noise, -jnp.inf)
        is_opened = jnp.argsort(jnp.argsort(-eagerness, -1), -1) < num_opened
        drawn = jnp.where(is_masked & ~is_opened, num_codes, codes).astype(tokens.dtype)
        return jnp.where(is_wanted, drawn, tokens), None

    grid = (np.arange(steps), np.float32(times[:-1] / num_steps), jumps, stay_masked)
    return jax.lax.scan(step_fn, tokens, grid)[0]


def _x0(logits, temperature, truncation, purity):
    """The x_0 distribution to sample from, float32 [B, N, K], and its purity [B, N], as logarithms."""
    logits = filters.top_p(logits, truncation, temperature=temperature)
    # Less than the largest: so nothing overflows at temperature 0.
    above = logits - logits.max(-1, keepdims=True)
    scaled = above / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    log_x0 = jnp.maximum(jax.nn.log_softmax(scaled, -1), LOG_ZERO)
    log_purity = log_x0.max(-1)
    sharper = log_x0 * (1 + purity * jnp.exp(log_purity))[..., None]
    return jnp.maximum(jax.nn.log_softmax(sharper, -1), LOG_ZERO), log_purity
