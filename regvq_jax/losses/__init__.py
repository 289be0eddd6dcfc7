"""Losses as pure functions of arrays; each returns float32 and has its own weight in a config."""

from regvq_jax.losses.adversarial import (
    GAN_LOSSES,
    adaptive_weight,
    discriminator_accuracy,
    hinge_discriminator_loss,
    hinge_generator_loss,
    lecam_penalty,
    linear_ramp,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
)
from regvq_jax.losses.contrastive import (
    contrastive_loss,
    probabilistic_contrastive_loss,
    sample_places,
)
from regvq_jax.losses.lpips import lpips
from regvq_jax.losses.perceptual import feature_distance, normalize
from regvq_jax.losses.reconstruction import l1_loss, l2_loss

__all__ = [
    "GAN_LOSSES",
    "adaptive_weight",
    "contrastive_loss",
    "discriminator_accuracy",
    "feature_distance",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "l1_loss",
    "l2_loss",
    "lecam_penalty",
    "linear_ramp",
    "lpips",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "normalize",
    "probabilistic_contrastive_loss",
    "r1_penalty",
    "sample_places",
]
