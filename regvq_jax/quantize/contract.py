"""What every quantizer returns."""

from typing import NamedTuple

import jax


class QuantizeOutput(NamedTuple):
    """The result of one quantization of a batch of latent grids.

    Attributes:
        quantized: float32 [B, h, w, D], code vectors for the decoder, with straight-through gradient.
        codes: int32 [B, h, w], the chosen code.
        best_codes: int32 [B, h, w], the best-matching code; equals `codes` where nothing was sampled.
        posterior: float32 [B, K], mean one-hot assignment of each image (rows sum to 1); its gradient
            runs through the soft assignment.
        stochastic_mask: bool [B, h, w], True = sampled.
        perturbation: float32 [B, h, w], ||z_sampled - z_best||^2, the w of paper equation 3; no gradient.
    """

    quantized: jax.Array
    codes: jax.Array
    best_codes: jax.Array
    posterior: jax.Array
    stochastic_mask: jax.Array
    perturbation: jax.Array
