"""Losses as pure functions of arrays; each returns a float32 scalar and has its own weight in a config."""

from regvq_jax.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from regvq_jax.losses.contrastive import (
    contrastive_loss,
    probabilistic_contrastive_loss,
    sample_places,
)
from regvq_jax.losses.perceptual import feature_distance, normalize
from regvq_jax.losses.reconstruction import l1_loss

__all__ = [
    "adaptive_weight",
    "contrastive_loss",
    "feature_distance",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "l1_loss",
    "normalize",
    "probabilistic_contrastive_loss",
    "sample_places",
]
