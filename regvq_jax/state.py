"""The train state that every trainer shares."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """All that a training run must remember, apart from its config.

    The random state is not here: every draw is a function of the config's seed and of `step`.

    Attributes:
        step: int32 [], number of finished steps; also the position in the data.
        params: parameters by network, e.g. {"tokenizer": ..., "discriminator": ...}.
        opt_state: optimiser state by network, with the same keys.
        ema: exponential moving average of the networks that are used after training.
        statistics: what a trainer observes over time without a gradient, by name.
    """

    step: jax.Array
    params: dict[str, PyTree]
    opt_state: dict[str, PyTree]
    ema: dict[str, PyTree]
    statistics: dict[str, PyTree]


def init_state(
    params: dict[str, PyTree],
    optimizers: dict[str, optax.GradientTransformation],
    averaged: tuple[str, ...],
    statistics: dict[str, PyTree] | None = None,
) -> TrainState:
    """A fresh state at step 0.

    Args:
        params: initial parameters by network.
        optimizers: optimiser by network, with the same keys.
        averaged: the networks that keep an exponential moving average.
        statistics: initial ones, none by default.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={name: optimizers[name].init(params[name]) for name in params},
        # A copy, since the step donates both trees and one buffer cannot be donated twice.
        ema={name: jax.tree.map(jnp.copy, params[name]) for name in averaged},
        statistics=statistics or {},
    )


def update_ema(ema: PyTree, params: PyTree, step: jax.Array, decay: float) -> PyTree:
    """ema + (1 - d) (params - ema), with d = min(decay, (1 + step) / (10 + step)).

    The cap lets the average forget its initialisation at once in short runs.
    """
    step = step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, value: average + rate * (value - average), ema, params)
