"""CUB-200-2011: captions to birds at 256 px, by default with discrete diffusion, the paper's choice.

    python -m regvq_jax.data prepare cub_captions --raw CUB_200_2011.tgz cvpr2016_cub.tar.gz
    python -m regvq_jax.main --config=configs/cub.py --workdir=runs/cub

`:masked` and `:ar` choose the other priors, `:tiny` is for tests and runs on the packaged emoji. The split is
the class-disjoint one, 8,855 and 2,933 images. With `--config.data.source=folder:PATH` (`train/` and `val/`,
each image with a `.txt` beside it that has its ten captions, one a line) nothing has to be prepared.

Networks, text encoder and features as in configs/coco.py; VQ-Diffusion's learning rate for CUB, 4.5e-4.
Batch, steps and loss weights are ours; no result has been measured. The paper reports rFID 10.84. Judged
as configs/coco.py is.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    condition, prior, choices = common.parse_prior(arg, ('text',), ('diffusion', 'masked', 'ar'))
    choice = common.parse_arg(choices, tiny=False)
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    config.data.update(source="tfds:cub_captions", crop="near_center", crop_scale=1.125, upscale=True)
    config.prior.condition = condition
    common.set_large_prior(config, prior, diffusion_lr=4.5e-4)
    config.prior.evals.prior_loss.all_captions = True
    common.set_fid(config, num_images=30_000)
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
    return config
