"""Evaluators: what a config's `evals` groups name, run on averaged parameters during and after training."""

from regvq_jax.evaluate.prior import MaskedLoss
from regvq_jax.evaluate.reconstruction import Reconstruction
from regvq_jax.evaluate.samples import Samples

EVALUATORS = {"reconstruction": Reconstruction, "prior_loss": MaskedLoss, "samples": Samples}
