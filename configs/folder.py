"""A folder of your own images at 256 px, with or without captions, on one or more GPUs.

    python -m regvq_jax.main --config=configs/folder.py --config.data.source=folder:PATH --workdir=runs/mine

Networks of stage one have the taming-transformers f16 sizes, the prior is MaskGIT's at half its
depth; `:ar` and `:diffusion` choose another. Learning rates, batch and steps are ours; no result has
been measured yet. `:tiny` is for tests. Where the images have captions the prior draws from captions,
otherwise from nothing; `--config.prior.condition=map` (with `--config.data.num_label_classes=N` and maps
in `labels/` beside `images/`) or `=class` (with `--config.data.class_folders=True`) choose otherwise.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    condition, prior, choices = common.parse_prior(arg, ("auto",), ("masked", "ar", "diffusion"))
    choice = common.parse_arg(choices, tiny=False)
    config = quickstart.get_config()
    common.set_f16_tokenizer(config)
    config.data.update(source="folder:images", flip=True)
    config.prior.condition = condition
    common.set_large_prior(config, prior)
    config.prior.model.depth //= 2
    if choice.tiny:
        quickstart.make_tiny(config)
        common.set_tiny_data(config)
        config.data.source = "folder:images"
    return config
