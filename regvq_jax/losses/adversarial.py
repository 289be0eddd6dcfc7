"""GAN losses, what steadies their discriminator, and the weight that balances them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def hinge_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """-mean(D(fake)).

    Args:
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.

    Returns:
        float32 [].
    """
    return -jnp.mean(fake_logits.astype(jnp.float32))


def hinge_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """(mean(relu(1 - D(real))) + mean(relu(1 + D(fake)))) / 2.

    Args:
        real_logits: float [B, h, w, 1], discriminator output on originals.
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.

    Returns:
        float32 [].
    """
    real = jnp.mean(jax.nn.relu(1.0 - real_logits.astype(jnp.float32)))
    fake = jnp.mean(jax.nn.relu(1.0 + fake_logits.astype(jnp.float32)))
    return 0.5 * (real + fake)


def non_saturating_generator_loss(fake_logits: jax.Array) -> jax.Array:
    """mean(softplus(-D(fake))) = -mean(log sigmoid(D(fake))) (Goodfellow et al. 2014).

    Args:
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.

    Returns:
        float32 [].
    """
    return jnp.mean(jax.nn.softplus(-fake_logits.astype(jnp.float32)))


def non_saturating_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """(mean(softplus(-D(real))) + mean(softplus(D(fake)))) / 2.

    The factor 1/2 is that of the hinge loss; StyleGAN takes the sum, so its weights of R1 and LeCam
    correspond to half of them here.

    Args:
        real_logits: float [B, h, w, 1], discriminator output on originals.
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.

    Returns:
        float32 [].
    """
    real = jnp.mean(jax.nn.softplus(-real_logits.astype(jnp.float32)))
    fake = jnp.mean(jax.nn.softplus(fake_logits.astype(jnp.float32)))
    return 0.5 * (real + fake)


# (generator loss, discriminator loss) by the name that a config gives them.
GAN_LOSSES = {
    "hinge": (hinge_generator_loss, hinge_discriminator_loss),
    "non_saturating": (non_saturating_generator_loss, non_saturating_discriminator_loss),
}


def r1_penalty(judge_fn: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """1/2 E[ ||grad_x D(x)||^2 ] on originals, R1 of Mescheder et al. 2018 without its gamma.

    D(x) is the sum of an image's patch logits, so the penalty grows with their number. The square is
    summed over an image's pixels and averaged over images.

    Args:
        judge_fn: images -> logits float [B, h, w, 1], each image judged on its own; the penalty can be
            differentiated in parameters that it closes over.
        images: float [B, H, W, 3].

    Returns:
        float32 [], to be multiplied by gamma.
    """

    def total(images):
        return jnp.sum(judge_fn(images).astype(jnp.float32))

    gradient = jax.grad(total)(images.astype(jnp.float32))
    return 0.5 * jnp.mean(jnp.sum(jnp.square(gradient), axis=(1, 2, 3)))


def lecam_penalty(
    real_logits: jax.Array, fake_logits: jax.Array, ema_real: jax.Array, ema_fake: jax.Array
) -> jax.Array:
    """E[relu(D(x) - ema_fake)^2] + E[relu(ema_real - D(G))^2] (Tseng et al. 2021).

    Keeps either side's logits near the other's moving average. The rectifiers are those of the authors'
    code; their paper writes the squares alone.

    Args:
        real_logits: float [B, h, w, 1], discriminator output on originals.
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.
        ema_real: float32 [], moving average of earlier steps' mean real logit; no gradient.
        ema_fake: float32 [], moving average of earlier steps' mean fake logit; no gradient.

    Returns:
        float32 [].
    """
    ema_real, ema_fake = jax.lax.stop_gradient((ema_real, ema_fake))
    real = jnp.mean(jnp.square(jax.nn.relu(real_logits.astype(jnp.float32) - ema_fake)))
    fake = jnp.mean(jnp.square(jax.nn.relu(ema_real - fake_logits.astype(jnp.float32))))
    return real + fake


def discriminator_accuracy(real_logits: jax.Array, fake_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares of patches that the discriminator tells right: D(real) > 0 and D(fake) < 0.

    A logit of 0 is undecided and counts as wrong, on either side.

    Args:
        real_logits: float [B, h, w, 1], discriminator output on originals.
        fake_logits: float [B, h, w, 1], discriminator output on reconstructions.

    Returns:
        (real, fake), float32 [] in [0, 1].
    """
    return (
        jnp.mean(real_logits > 0, dtype=jnp.float32),
        jnp.mean(fake_logits < 0, dtype=jnp.float32),
    )


def linear_ramp(step: jax.Array, start: int, ramp_steps: int) -> jax.Array:
    """0 before step `start`, then a linear rise to 1, which step `start + ramp_steps - 1` reaches.

    Args:
        step: int32 [], number of finished steps.
        start: first step above 0.
        ramp_steps: length of the rise; with 0 or 1, step `start` is at 1.

    Returns:
        float32 [] in [0, 1].
    """
    return jnp.clip((step - start + 1) / max(ramp_steps, 1), 0.0, 1.0)


def adaptive_weight(
    reconstruction_gradient: jax.Array, adversarial_gradient: jax.Array, *, maximum: float = 1e4
) -> jax.Array:
    """||reconstruction gradient|| / ||adversarial gradient||, clamped, as taming-transformers defines it.

    Args:
        reconstruction_gradient: float array, gradient of the reconstruction terms at the last layer.
        adversarial_gradient: float array of the same shape, gradient of the adversarial term there.
        maximum: upper clamp.

    Returns:
        float32 [] in [0, maximum], no gradient.
    """
    reconstruction_norm = jnp.linalg.norm(reconstruction_gradient.astype(jnp.float32).ravel())
    adversarial_norm = jnp.linalg.norm(adversarial_gradient.astype(jnp.float32).ravel())
    weight = jnp.clip(reconstruction_norm / (adversarial_norm + 1e-4), 0.0, maximum)
    return jax.lax.stop_gradient(weight)
