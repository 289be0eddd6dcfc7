"""The paper's Table 2 ladder and its baselines on the packaged emoji at 64 px, equal in all else.

    python -m regvq_jax.main --config=configs/ablation.py:pcl --workdir=runs/ablation/pcl
    python -m regvq_jax.compare runs/ablation/* --output=runs/ablation

Rungs, one after the colon:

    vqvae   nearest code, codebook and commitment terms, no discriminator
    vqgan   vqvae + discriminator
    gumbel  Gumbel-VQ: sampled everywhere, its own KL and temperature schedule, + discriminator
    prior   best-matching code + prior distribution regularization (paper equation 1), + discriminator
    mask    prior + stochastic mask regularization
    cl      mask + contrastive loss (equation 2)
    pcl     mask + probabilistic contrastive loss (equation 3): Reg-VQ

and, beyond the paper, `vqema` (moving-average codebook with restarts), `simvq`, `ibq`, `fsq`, `lfq`,
`residual`, each with the discriminator. `:pcl,mask_ratio=0.2` (or mask, cl) sweeps Figure 3,
`:pcl,codes=4096` (or any rung) Figure 8; `steps=N` sets the length, `tiny` beside any of them is
for tests. Logits are negative distances to the codes throughout: beside a learned projection they
learn faster (README), and they scale to large codebooks. LPIPS needs the extra `.[lpips]`.
"""

from ml_collections import ConfigDict

from configs import common, quickstart
from regvq_jax.errors import UserError
from regvq_jax.settings import did_you_mean

# Field by field what a rung changes; everything else is the same for all.
NO_REGULARIZATION = {"loss.prior_kl_weight": 0.0, "loss.pcl_weight": 0.0}
NEAREST = {**NO_REGULARIZATION, "quantizer.name": "nearest"}
PRIOR = {"quantizer.name": "deterministic", "loss.pcl_weight": 0.0}
MASK = {"loss.pcl_weight": 0.0}
RUNGS = {
    "vqvae": {**NEAREST, "loss.adversarial_weight": 0.0},
    "vqgan": NEAREST,
    "gumbel": {
        **NO_REGULARIZATION,
        "quantizer.name": "gumbel",
        "loss.gumbel_kl_weight": 5e-4,
        "quantizer.final_temperature": 0.0625,
    },
    "prior": PRIOR,
    "mask": MASK,
    "cl": {**MASK, "loss.cl_weight": 0.05},
    "pcl": {},
    "vqema": {
        **NEAREST,
        "loss.codebook_weight": 0.0,
        # Short enough a memory that dead codes start anew within these few steps.
        "quantizer.ema_decay": 0.95,
        "quantizer.restart_below": 0.1,
    },
    "simvq": {**NO_REGULARIZATION, "quantizer.name": "simvq"},
    "ibq": {**NO_REGULARIZATION, "quantizer.name": "ibq", "loss.entropy_weight": 0.05},
    "fsq": {**NO_REGULARIZATION, "quantizer.name": "fsq"},
    "lfq": {**NO_REGULARIZATION, "quantizer.name": "lfq", "loss.entropy_weight": 0.1},
    "residual": {**NEAREST, "quantizer.depth": 2},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config: a rung, then choices."""
    rung, _, choices = (arg or "pcl").partition(",")
    if rung not in RUNGS:
        # `:mask_ratio=0.4` and `:codes=4096` alone are about Reg-VQ itself.
        rung, choices = "pcl", arg
        first = choices.partition(",")[0]
        if "=" not in first and first != "tiny":
            raise UserError(f'The config has no rung "{first}".{did_you_mean(first, list(RUNGS))}')
    choice = common.parse_arg(choices, tiny=False, mask_ratio=0.4, codes=1024, steps=400)

    if "mask_ratio" in choices and "quantizer.name" in RUNGS[rung]:
        raise UserError(f'The rung "{rung}" has no stochastic mask: mask_ratio goes with mask, cl and pcl.')

    config = quickstart.get_config()
    config.stages = ("tokenizer", "report")
    config.data.image_size = 64
    # 8x8 tokens from 64 px.
    config.model.multipliers = (1, 2, 2, 4)
    config.quantizer.update(codebook_size=choice.codes, mask_ratio=choice.mask_ratio)
    config.train.update(total_steps=choice.steps, checkpoint_every_steps=200)
    # The discriminator has the last third.
    config.loss.adversarial_start_step = choice.steps * 2 // 3
    config.loss.adversarial_ramp_steps = max(choice.steps // 20, 1)
    config.quantizer.temperature_steps = choice.steps if rung == "gumbel" else 0
    config.evals.reconstruction.update(every_steps=max(choice.steps // 2, 1), lpips="alexnet")
    config.update_from_flattened_dict(RUNGS[rung])
    if choice.tiny:
        quickstart.make_tiny(config)
        if "codes=" in choices:
            config.quantizer.codebook_size = choice.codes
        else:
            config.quantizer.codebook_size = 256 if rung == "fsq" else 32
        config.evals.reconstruction.lpips = ""
        config.quantizer.temperature_steps = 8 if rung == "gumbel" else 0
    return config
