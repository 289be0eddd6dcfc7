"""The terms of a tokenizer's loss that look at its quantizer's output alone."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from regvq_jax import quantize
from regvq_jax.errors import UserError
from regvq_jax.quantize import QuantizeOutput
from regvq_jax.settings import choose


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """Their part of a `loss` group: a weight for each term (0 leaves it out), and what shapes the terms.

    Attributes:
        prior_kl_weight, prior_kl_scope: `quantize.prior_kl` over the "batch" or each "image".
        gumbel_kl_weight: `quantize.gumbel_kl`.
        entropy_weight, entropy_diversity: `quantize.entropy_loss`.
        codebook_weight, commitment_weight: the halves of the VQ-VAE loss.
    """

    prior_kl_weight: float = 0.01
    prior_kl_scope: str = "batch"
    gumbel_kl_weight: float = 0.0
    entropy_weight: float = 0.0
    entropy_diversity: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    group: ClassVar[str] = "loss"  # In a config, for messages.

    def __post_init__(self):
        choose(dict.fromkeys(("batch", "image")), self.prior_kl_scope, f"{self.group}.prior_kl_scope")
        for field, value in vars(self).items():
            if field.endswith("_weight") and value < 0:
                raise UserError(
                    f"config.{self.group}.{field}={value} must be at least 0; 0 leaves the term out."
                )

    def latent_weights(self) -> dict[str, float]:
        """The weight of each term by its name."""
        names = ("prior_kl", "gumbel_kl", "entropy", "codebook", "commitment")
        return {name: getattr(self, f"{name}_weight") for name in names}


def latent_losses(
    out: QuantizeOutput, loss: LatentSettings, known: Sequence[str], num_codes: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the terms, and those that are in it.

    Args:
        out: of the quantizer, for the whole batch.
        loss: settings with the fields of `LatentSettings`.
        known: the terms that have a gradient with this quantizer (`LATENT_TERMS`); others are left out.
        num_codes: K.

    Returns:
        (float32 [], {name: float32 []} of the known terms with a weight, before weighting).
    """
    term_fns = {
        "prior_kl": lambda: quantize.prior_kl(out.posterior, scope=loss.prior_kl_scope),
        "gumbel_kl": lambda: quantize.gumbel_kl(out.entropy, num_codes),
        "entropy": lambda: quantize.entropy_loss(
            out.entropy, out.soft_posterior, diversity_weight=loss.entropy_diversity
        ),
        "codebook": lambda: jnp.mean(out.codebook_error),
        "commitment": lambda: jnp.mean(out.commitment_error),
    }
    weights = {name: weight for name, weight in loss.latent_weights().items() if weight and name in known}
    terms = {name: term_fns[name]() for name in weights}
    return sum((weights[name] * terms[name] for name in terms), jnp.float32(0.0)), terms
