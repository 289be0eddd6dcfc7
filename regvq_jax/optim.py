"""Optimisers and gradient accumulation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regvq_jax.errors import UserError

PyTree = Any
SCHEDULES = ("constant", "cosine")
# Begins the names of metrics that are no numbers for people, see `gradient_metrics`.
NONFINITE = "nonfinite/"


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """One optimiser; the fields of a config's `optim` group.

    Attributes:
        lr: peak learning rate. It is never scaled by batch size or device count.
        schedule: "constant", or "cosine" from `lr` down to `final_lr_ratio * lr`.
        warmup_steps: linear rise from 0.
        final_lr_ratio: end of the cosine as a share of `lr`.
        b1, b2: Adam's decay rates.
        weight_decay: decoupled, on matrices and convolution kernels only.
        clip_norm: global gradient norm above which gradients are scaled down; 0 = never.
    """

    lr: float
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_lr_ratio: float = 0.05
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 0.0


def make_schedule(settings: OptimSettings, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    Raises:
        UserError: unknown schedule, or a warm-up that is not shorter than the training.
    """
    if settings.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule is {settings.schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    if settings.warmup_steps >= total_steps:
        raise UserError(
            f"optim.warmup_steps ({settings.warmup_steps}) must be smaller than total_steps "
            f"({total_steps}); lower the first or raise the second."
        )
    warmup = optax.linear_schedule(0.0, settings.lr, max(settings.warmup_steps, 1))
    if settings.schedule == "constant":
        rest = optax.constant_schedule(settings.lr)
    else:
        decay_steps = total_steps - settings.warmup_steps
        rest = optax.cosine_decay_schedule(settings.lr, decay_steps, settings.final_lr_ratio)
    if settings.warmup_steps == 0:
        return rest
    return optax.join_schedules([warmup, rest], [settings.warmup_steps])


def make_optimizer(settings: OptimSettings, total_steps: int) -> optax.GradientTransformation:
    """AdamW with clipping and a schedule, as `settings` describe it."""
    adam = optax.adamw(
        make_schedule(settings, total_steps),
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map_with_path(_is_kernel, params),
    )
    if settings.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adam)
    return adam


def gradient_metrics(grads: dict[str, PyTree]) -> dict[str, jax.Array]:
    """Which gradient is the first that is not finite.

    Args:
        grads: by network.

    Returns:
        "nonfinite/NETWORK": int32 [], its place among the network's leaves; -1 = all of them are finite.
    """

    def first(tree):
        bad = jnp.stack([~jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])
        return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)

    return {f"{NONFINITE}{name}": first(tree) for name, tree in grads.items()}


def skip_nonfinite(old: PyTree, new: PyTree, metrics: dict[str, jax.Array]) -> PyTree:
    """The new train state, or all but the step of the old one where a gradient or the loss is not finite.

    Args:
        old, new: train states around a step.
        metrics: of the step, with `gradient_metrics` and "train/loss".
    """
    bad = ~jnp.isfinite(metrics["train/loss"])
    for name, place in metrics.items():
        if name.startswith(NONFINITE):
            bad |= place >= 0
    kept = jax.tree.map(lambda before, after: jnp.where(bad, before, after), old, new)
    return kept.replace(step=new.step)


def _is_kernel(path, value) -> bool:
    return value.ndim >= 2 and path[-1].key == "kernel"


def accumulate(
    gradient_fn: Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]], batch: PyTree, num_slices: int
) -> tuple[PyTree, PyTree]:
    """Means of `gradient_fn` over slices of a batch, one slice in memory at a time.

    Terms that are not a mean over images (the KL of the batch's posterior) are then computed within each
    slice: with `num_slices` = n they see a batch n times smaller.

    Args:
        gradient_fn: (slice of the batch, index of the slice int32 []) -> (gradients, metrics), pytrees of
            float arrays.
        batch: pytree of arrays [B, ...], B divisible by `num_slices`.
        num_slices: 1 calls `gradient_fn` on the whole batch.

    Returns:
        (gradients, metrics), each the mean over slices.
    """
    if num_slices == 1:
        return gradient_fn(batch, jnp.zeros((), jnp.int32))

    # Every n-th image, not n runs of images: each slice then lies evenly on all devices.
    slices = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // num_slices, num_slices, *x.shape[1:]), 0, 1),
        batch,
    )

    def add_slice(total, indexed_slice):
        index, batch_slice = indexed_slice
        result = gradient_fn(batch_slice, index)
        return jax.tree.map(jnp.add, total, result), None

    first_slice = jax.tree.map(lambda x: x[0], slices)
    shapes = jax.eval_shape(gradient_fn, first_slice, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add_slice, zeros, (jnp.arange(num_slices), slices))
    return jax.tree.map(lambda x: x / num_slices, total)
