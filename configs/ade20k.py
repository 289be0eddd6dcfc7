"""ADE20K: semantic maps to images at 256 px, by default autoregressive, the paper's choice.

    python -m regvq_jax.data prepare ade20k --raw ADEChallengeData2016.zip
    python -m regvq_jax.main --config=configs/ade20k.py --workdir=runs/ade

`:masked` and `:diffusion` choose the other priors, `:tiny` is for tests and runs on the packaged emoji.
With `--config.data.source=folder:ADEChallengeData2016`, the unpacked archive, nothing has to be prepared:
`images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png`, 150 classes, 0 = unknown. The
short side is brought to at most 296 before a crop of 256 is taken.

Networks: taming-transformers' f16 tokenizer, one of the same size for one-hot maps with 1,024 codes (a
Reg-VQ one with cross-entropy, see configs/common.py), whose 256 tokens are a prefix of the image's as
with taming-transformers, and its 28 x 1024 transformer with dropout 0.1, AdamW (0.9, 0.95),
weight decay 0.01; top-k 100. Features as in configs/coco.py. Batch, steps, learning rate and loss
weights are ours; no result has been measured. The paper reports rFID 23.69, gFID 34.47. Judged by FID as
configs/coco.py is, one sample for each of the 2,000 held-out maps; and by the mIoU of a segmenter with
`--config.prior.evals.generation.segmenter=FILE` (SegFormer for ADE20K, Hugging Face's layout).
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    _, prior, choices = common.parse_prior(arg, ('map',), ('ar', 'masked', 'diffusion'))
    choice = common.parse_arg(choices, tiny=False)
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    config.data.update(source="tfds:ade20k", num_label_classes=151, flip=True, upscale=True)
    config.data.crop_scale = 296 / 256
    common.set_map_tokens(config)
    config.map_tokenizer.quantizer.codebook_size = 1024
    common.set_large_prior(config, prior, depth=28, top_k=100)
    common.set_fid(config)
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
    return config
