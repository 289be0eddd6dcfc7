"""CUB-200-2011: captions to birds at 256 px, by default with discrete diffusion, the paper's choice.

    python -m regvq_jax.main --config=configs/cub.py \
        --config.data.source=folder:PATH --workdir=runs/cub

`:masked` and `:ar` choose the other priors, `:tiny` is for tests and runs on the packaged emoji. PATH
holds `train/` (8,855 images of the class-disjoint split) and `val/` (2,933), each image with a `.txt`
beside it that has its ten captions, one a line.

Networks, text encoder and features as in configs/coco.py; VQ-Diffusion's learning rate for CUB, 4.5e-4.
Batch, steps and loss weights are ours; no result has been measured. The paper reports rFID 10.84.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    condition, prior, choices = common.parse_prior(arg, ('text',), ('diffusion', 'masked', 'ar'))
    choice = common.parse_arg(choices, tiny=False)
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    config.data.source = "folder:data/cub"
    config.prior.condition = condition
    common.set_large_prior(config, prior, diffusion_lr=4.5e-4)
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
    return config
