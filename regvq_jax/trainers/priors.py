"""The priors that a config can name."""

from regvq_jax.trainers.autoregressive import AutoregressivePrior
from regvq_jax.trainers.diffusion import DiffusionPrior
from regvq_jax.trainers.masked import MaskedPrior

PRIORS = {"autoregressive": AutoregressivePrior, "masked": MaskedPrior, "diffusion": DiffusionPrior}
