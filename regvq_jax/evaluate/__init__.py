"""Evaluators: what a config's `evals` groups name, run on averaged parameters during and after training."""

from regvq_jax.evaluate.generation import Generation
from regvq_jax.evaluate.maps import MapReconstruction
from regvq_jax.evaluate.prior import PriorLoss
from regvq_jax.evaluate.reconstruction import Reconstruction
from regvq_jax.evaluate.samples import Samples

EVALUATORS = {
    "reconstruction": Reconstruction,
    "map_reconstruction": MapReconstruction,
    "prior_loss": PriorLoss,
    "samples": Samples,
    "generation": Generation,
}
