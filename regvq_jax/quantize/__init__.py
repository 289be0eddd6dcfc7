"""Quantizers as pure functions of arrays: logits and a codebook in, a `QuantizeOutput` out."""

from regvq_jax.quantize.contract import QuantizeOutput
from regvq_jax.quantize.prior import prior_kl
from regvq_jax.quantize.regularized import deterministic, regularized

__all__ = ["QuantizeOutput", "deterministic", "prior_kl", "regularized"]
