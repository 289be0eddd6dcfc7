"""Quantizers as pure functions: logits or features and a codebook in, a `QuantizeOutput` out."""

from regvq_jax.quantize.contract import QuantizeOutput, squared_errors
from regvq_jax.quantize.entropy import entropy_loss, gumbel_kl
from regvq_jax.quantize.implicit import fsq, fsq_vectors, lfq, lfq_vectors
from regvq_jax.quantize.logits import (
    Affine,
    distance_affine,
    distance_logits,
    dot_affine,
    dot_logits,
)
from regvq_jax.quantize.nearest import (
    init_moving_counts,
    nearest,
    nearest_codes,
    simvq,
    simvq_codebook,
    update_moving_codebook,
)
from regvq_jax.quantize.prior import prior_kl
from regvq_jax.quantize.regularized import (
    deterministic,
    gumbel,
    ibq,
    regularized,
    regularized_in_tiles,
)
from regvq_jax.quantize.residual import residual

__all__ = [
    "Affine",
    "QuantizeOutput",
    "deterministic",
    "distance_affine",
    "distance_logits",
    "dot_affine",
    "dot_logits",
    "entropy_loss",
    "fsq",
    "fsq_vectors",
    "gumbel",
    "gumbel_kl",
    "ibq",
    "init_moving_counts",
    "lfq",
    "lfq_vectors",
    "nearest",
    "nearest_codes",
    "prior_kl",
    "regularized",
    "regularized_in_tiles",
    "residual",
    "simvq",
    "simvq_codebook",
    "squared_errors",
    "update_moving_codebook",
]
