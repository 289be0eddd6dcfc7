"""MS-COCO: captions to images at 256 px, by default with discrete diffusion, the paper's choice.

    python -m regvq_jax.data prepare coco_captions/2014 --raw DIR_OF_ZIPS
    python -m regvq_jax.main --config=configs/coco.py --workdir=runs/coco

`:masked` and `:ar` choose the other priors, `year=2017` the other year (text-to-image papers mostly use
2014), `:tiny` is for tests and runs on the packaged emoji. DIR_OF_ZIPS holds train2014.zip, val2014.zip and
annotations_trainval2014.zip. With `--config.data.source=folder:PATH` (`train/` and `val/`, each with images
and a `metadata.jsonl` of rows `{"file_name", "text"}`) nothing has to be prepared.

Networks: taming-transformers' f16 tokenizer; VQ-Diffusion's 19 x 1024 prior with the schedule of its
paper, cross-attention, lr 2e-4, clip 0.5, caption drop 0.1, guidance 3, truncation 0.86, crops near the
centre. Captions are read by an encoder that learns with the prior; VQ-Diffusion's own is frozen:
`--config.prior.text.encoder=clip --config.prior.text.weights=FILE` (CLIP ViT-B/32 in Hugging Face's
layout). Perceptual and contrastive terms use random filters until you name the paper's VGG-19:
`--config.features.name=vgg19 --config.features.weights=FILE`. Batch, steps and loss weights are ours; no
result has been measured. The paper reports rFID 13.76, gFID 19.91.

Judged by FID under torch-fidelity's protocol, whose weights are fetched before the training, or named by
REGVQ_WEIGHTS (README); `--config.evals.reconstruction.protocols="()"` and the same of
`prior.evals.generation` do without. 30,000
images are drawn at the end, as VQ-Diffusion does.
"""

from ml_collections import ConfigDict

from configs import common, quickstart
from regvq_jax.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    condition, prior, choices = common.parse_prior(arg, ('text',), ('diffusion', 'masked', 'ar'))
    choice = common.parse_arg(choices, year=2014, tiny=False)
    if choice.year not in (2014, 2017):
        raise UserError(f"The choice year={choice.year} must be 2014 or 2017.")
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    # A few photographs are smaller than the crop: they are enlarged, not left out.
    config.data.update(
        source=f"tfds:coco_captions/{choice.year}", crop="near_center", crop_scale=1.125, upscale=True
    )
    config.prior.condition = condition
    common.set_large_prior(config, prior)
    config.prior.evals.prior_loss.all_captions = True
    common.set_fid(config, num_images=30_000)
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
    return config
