"""Hinge GAN losses and the adaptive weight that balances them against the reconstruction."""

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
