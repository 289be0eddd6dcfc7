"""The discriminator's part of a tokenizer's step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regvq_jax import losses
from regvq_jax.metrics import Occasional
from regvq_jax.trainers.tokenizer_settings import LossSettings

PyTree = Any
LOGITS_DECAY = 0.99  # As in the authors' code of LeCam.


def judge_reconstructions(
    judge: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    images: jax.Array,
    reconstructions: jax.Array,
    last_layer_gradient: Callable[[jax.Array], jax.Array],
    reconstruction_gradient: jax.Array,
    moving_logits: dict[str, jax.Array],
    ramp: jax.Array,
    settings: LossSettings,
) -> tuple[jax.Array, PyTree, dict[str, Occasional], dict[str, jax.Array]]:
    """Both players' gradients from one pass of the discriminator over originals and reconstructions.

    Args:
        judge: (discriminator parameters, float32 [B, H, W, 3]) -> logits [B, h, w, 1].
        params: of the discriminator.
        images: float32 [B, H, W, 3] in [-1, 1].
        reconstructions: float32 [B, H, W, 3].
        last_layer_gradient: a cotangent of the reconstructions -> the gradient at the last kernel.
        reconstruction_gradient: that gradient of the other terms that look at the image.
        moving_logits: {"real", "fake"}: float32 [], for LeCam.
        ramp: float32 [] in [0, 1], share of the adversarial weight at this step.
        settings: of the loss.

    Returns:
        (weighted cotangent of the reconstructions, gradients of `params`, metrics, new moving logits). The
        metrics are present: zeros in the place of all results say that there are none.
    """
    generator_loss_fn, discriminator_loss_fn = losses.GAN_LOSSES[settings.adversarial_loss]
    fake_logits, pull_fake = jax.vjp(judge, params, reconstructions)
    real_logits, pull_real = jax.vjp(partial(judge, x=images), params)

    generator_loss, toward_real = jax.value_and_grad(generator_loss_fn)(fake_logits)
    cotangent = pull_fake(toward_real)[1]
    adversarial_gradient = last_layer_gradient(cotangent)
    adaptive = losses.adaptive_weight(
        reconstruction_gradient, adversarial_gradient, maximum=settings.adaptive_weight_limit
    )

    def discriminate(real_logits, fake_logits):
        loss = discriminator_loss_fn(real_logits, fake_logits)
        if not settings.lecam_weight:
            return loss, {"train/discriminator": loss}
        lecam = losses.lecam_penalty(real_logits, fake_logits, moving_logits["real"], moving_logits["fake"])
        metrics = {"train/discriminator": loss, "train/lecam": lecam}
        return loss + settings.lecam_weight * lecam, metrics

    (to_real, to_fake), metrics = jax.grad(discriminate, argnums=(0, 1), has_aux=True)(
        real_logits, fake_logits
    )
    grads = jax.tree.map(jnp.add, pull_real(to_real)[0], pull_fake(to_fake)[0])
    if settings.r1_weight:
        r1, r1_grads = jax.value_and_grad(lambda p: losses.r1_penalty(partial(judge, p), images))(params)
        grads = jax.tree.map(lambda g, r: g + settings.r1_weight * r, grads, r1_grads)
        metrics["train/r1"] = r1

    real_accuracy, fake_accuracy = losses.discriminator_accuracy(real_logits, fake_logits)
    metrics |= {
        "train/adversarial": generator_loss,
        "train/adaptive_weight": adaptive,
        "train/real_logits": jnp.mean(real_logits),
        "train/fake_logits": jnp.mean(fake_logits),
        "train/real_accuracy": real_accuracy,
        "train/fake_accuracy": fake_accuracy,
        "train/last_layer_rec_grad": jnp.linalg.norm(reconstruction_gradient.ravel()),
        "train/last_layer_gan_grad": jnp.linalg.norm(adversarial_gradient.ravel()),
    }
    means = {"real": metrics["train/real_logits"], "fake": metrics["train/fake_logits"]}
    moving_logits = optax.incremental_update(means, moving_logits, 1 - LOGITS_DECAY)
    metrics = {name: Occasional(value, jnp.ones(())) for name, value in metrics.items()}
    return settings.adversarial_weight * ramp * adaptive * cotangent, grads, metrics, moving_logits
