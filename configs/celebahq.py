"""CelebA-HQ: maps of a face's parts to images at 256 px, by default autoregressive, the paper's choice.

    python -m regvq_jax.data prepare celeba_hq_mask/official --raw CelebAMask-HQ.zip
    python -m regvq_jax.main --config=configs/celebahq.py --workdir=runs/cel

`:masked` and `:diffusion` choose the other priors, `split=taming` taming-transformers' 25,000 / 5,000 instead
of CelebA's own 24,183 / 2,993 / 2,824 (papers use both), `:tiny` is for tests and runs on the packaged emoji.
With `--config.data.source=folder:PATH` (`images/{train,val}/*.jpg` and `labels/{train,val}/*.png`, one map of
19 classes an image) nothing has to be prepared.

Networks as in configs/ade20k.py; top-k 400. No mirroring: left and right are classes of their own.
Batch, steps, learning rate and loss weights are ours; no result has been measured. The paper reports
rFID 10.09, gFID 15.34. Judged by FID as configs/coco.py is, against the training images, as
taming-transformers does.
"""

from ml_collections import ConfigDict

from configs import common, quickstart
from regvq_jax.settings import choose


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    _, prior, choices = common.parse_prior(arg, ('map',), ('ar', 'masked', 'diffusion'))
    choice = common.parse_arg(choices, split="official", tiny=False)
    choose(dict.fromkeys(("official", "taming")), choice.split, "split")
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    config.data.update(source=f"tfds:celeba_hq_mask/{choice.split}", num_label_classes=19)
    common.set_map_tokens(config)
    config.map_tokenizer.quantizer.codebook_size = 1024
    common.set_large_prior(config, prior, depth=28, top_k=400)
    common.set_fid(config, reference="train")
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
    return config
