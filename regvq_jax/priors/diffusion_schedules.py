"""Noise schedules of the mask-and-replace diffusion (VQ-Diffusion), as logarithms of probabilities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.errors import UserError

# The logarithm of probability 0. Finite, so that sums and differences of logarithms and their gradients
# never meet inf - inf; exp of it is exactly 0.
LOG_ZERO = -1e6


class Kernel(NamedTuple):
    """Transition probabilities of one token, from an earlier to a later time.

    A code stays with probability alpha + beta, becomes each other code with beta, and the mask with gamma,
    alpha + K * beta + gamma = 1. The mask stays the mask. Arrays of one shape, 0 held as `LOG_ZERO`.
    """

    log_alpha: np.ndarray
    log_beta: np.ndarray
    log_gamma: np.ndarray
    log_stay: np.ndarray  # log(alpha + beta)


class Jump(NamedTuple):
    """What the reverse of one jump t > s needs: the way from s to t, from 0 to s, and from 0 to t."""

    step: Kernel
    before: Kernel
    after: Kernel


class Schedule(NamedTuple):
    """A schedule over the times t = 0 .. T: host values, to be closed over, not passed through jit."""

    step: Kernel  # float64 numpy [T + 1]: from t - 1 to t; at t = 0 nothing happens
    total: Kernel  # float64 numpy [T + 1]: from 0 to t
    num_codes: int  # K; the mask is id K

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.total.log_alpha) - 1


def paper(num_codes: int, num_steps: int = 100) -> Schedule:
    """VQ-Diffusion as published: total gamma from 0 to 0.9, total K * beta from 0 to 0.1, linear in t.

    Nothing of x_0 is left at T (alpha = 0), and a tenth of the tokens are random codes there.

    Args:
        num_codes: K.
        num_steps: T, at least 1.

    Returns:
        The schedule.
    """
    share = np.arange(num_steps + 1) / num_steps
    return _schedule(1 - share, 0.9 * share, num_codes)


def released(num_codes: int, num_steps: int = 100) -> Schedule:
    """VQ-Diffusion's released code: total alpha from 0.99999 (t = 1) to 9e-6 (T), gamma from 9e-6 to 0.99999.

    K * beta is 1e-6 throughout: masking alone, in effect. Args and Returns as in `paper`.
    """
    # Written from the end, so that a single step is the last one.
    alpha = np.linspace(9e-6, 0.99999, num_steps)[::-1]
    gamma = np.linspace(0.99999, 9e-6, num_steps)[::-1]
    return _schedule(np.r_[1.0, alpha], np.r_[0.0, gamma], num_codes)


SCHEDULES = {"paper": paper, "released": released}


def make_schedule(name: str, num_codes: int, num_steps: int = 100) -> Schedule:
    """Makes a schedule by its name.

    Args:
        name: a key of `SCHEDULES`.
        num_codes: K, at least 1.
        num_steps: T, at least 1.

    Returns:
        The schedule.

    Raises:
        UserError: the name is unknown, or T is below 1.
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown diffusion schedule {name!r}: choose one of {', '.join(SCHEDULES)}.")
    if num_steps < 1:
        raise UserError(f"a diffusion needs at least 1 time step, got {num_steps}.")
    return SCHEDULES[name](num_codes, num_steps)


def single_jumps(schedule: Schedule, t: jax.Array) -> Jump:
    """The jumps t > t - 1, for times known only on the device.

    Args:
        schedule: a schedule.
        t: int32 of any shape, in 1 .. T.

    Returns:
        A jump of float32 arrays shaped as `t`.
    """

    def at(kernel, t):
        return jax.tree.map(lambda values: jnp.asarray(values, jnp.float32)[t], kernel)

    return Jump(at(schedule.step, t), at(schedule.total, t - 1), at(schedule.total, t))


def grid_jumps(schedule: Schedule, times: np.ndarray) -> Jump:
    """The jumps times[0] > times[1] > ... of a sampler that may leave times out.

    Worked out in float64: 1 - alpha - gamma of a `released` jump is 1e-8 and would drown in float32.

    Args:
        schedule: a schedule.
        times: host int [S + 1], strictly falling, in T .. 0.

    Returns:
        A jump of float32 numpy arrays [S].
    """
    before = Kernel(*(values[times[1:]] for values in schedule.total))
    after = Kernel(*(values[times[:-1]] for values in schedule.total))
    step = _between(_probabilities(before), _probabilities(after), schedule.num_codes)
    return jax.tree.map(np.float32, Jump(step, before, after))


def end_kl(schedule: Schedule) -> float:
    """KL(q(x_T | x_0) || p(x_T)) of one token, in nats: the part of the bound without a network.

    p(x_T) gives the mask its total gamma and shares the rest evenly among the codes, so this is 0 where
    total alpha is 0 at T (`paper`), and below 1e-4 for `released` at K = 1024.
    """
    alpha, gamma = (values[-1] for values in _probabilities(schedule.total))
    num_codes = schedule.num_codes
    beta = (1 - alpha - gamma) / num_codes
    log_even = np.log((1 - gamma) / num_codes)
    own = (alpha + beta) * (np.log(alpha + beta) - log_even)
    return float(own + (num_codes - 1) * beta * (np.log(beta) - log_even))


def _schedule(alpha, gamma, num_codes) -> Schedule:
    """Completes total alpha and gamma [T + 1], which are 1 and 0 at t = 0."""
    earlier, later = (alpha[:-1], gamma[:-1]), (alpha[1:], gamma[1:])
    total = _kernel(alpha, gamma, num_codes)
    step = _between(earlier, later, num_codes)
    start = _kernel(np.ones(1), np.zeros(1), num_codes)
    step = Kernel(*(np.concatenate(pair) for pair in zip(start, step, strict=True)))
    return Schedule(step, total, num_codes)


def _between(earlier, later, num_codes) -> Kernel:
    """The kernel that leads from one total (alpha, gamma) to a later one."""
    alpha = later[0] / earlier[0]
    gamma = 1 - (1 - later[1]) / (1 - earlier[1])
    return _kernel(alpha, gamma, num_codes)


def _kernel(alpha, gamma, num_codes) -> Kernel:
    replaced = 1 - alpha - gamma
    beta = np.where(replaced < 1e-14, 0.0, replaced) / num_codes  # Rounding may leave 1e-16 of 0.
    return Kernel(*map(_log, (alpha, beta, gamma, alpha + beta)))


def _probabilities(kernel):
    return np.exp(kernel.log_alpha), np.exp(kernel.log_gamma)


def _log(values):
    positive = values > 0
    return np.where(positive, np.log(np.where(positive, values, 1.0)), LOG_ZERO)
