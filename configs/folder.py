"""A folder of your own images at 256 px, with or without captions, on one or more GPUs.

    python -m regvq_jax.main --config=configs/folder.py --config.data.source=folder:PATH --workdir=runs/mine

Networks of stage one have the taming-transformers f16 sizes, the prior is MaskGIT's at half its
depth; learning rates, batch and steps are ours; no result has been measured yet. `:tiny` is for
tests. Where the images have captions the prior draws from captions, otherwise from nothing.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    choice = common.parse_arg(arg, tiny=False)
    config = quickstart.get_config()
    config.data.update(source="folder:images", image_size=256, random_crop=True, flip=True, num_threads=16)
    config.quantizer.update(codebook_size=1024, code_dim=256)
    config.model.update(
        channels=128,
        multipliers=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        attention_levels=(4,),
        middle_attention=True,
        latent_channels=256,
        dtype="bfloat16",
    )
    config.discriminator.update(channels=64, num_layers=3, dtype="bfloat16")
    config.features.update(channels=(64, 128, 256, 512), dtype="bfloat16")
    config.loss.update(adversarial_weight=0.8, adversarial_start_step=30_000, adversarial_ramp_steps=5_000)
    config.optim.update(lr=1e-4, warmup_steps=1_000)
    config.train.update(
        batch_size=32,
        total_steps=150_000,
        log_every_steps=100,
        checkpoint_every_steps=1_000,
        ema_decay=0.999,
    )
    config.evals.reconstruction.every_steps = 5_000
    config.tokens.update(max_train_examples=None, batch_size=128)
    config.prior.model.update(
        dim=768,
        depth=12,
        num_heads=12,
        text_length=77,
        text_depth=4,
        scan_layers=True,
        dtype="bfloat16",
    )
    config.prior.optim.update(lr=1e-4, warmup_steps=5_000)
    config.prior.train.update(
        batch_size=128,
        total_steps=150_000,
        log_every_steps=100,
        checkpoint_every_steps=1_000,
        ema_decay=0.9999,
    )
    config.prior.evals.prior_loss.every_steps = 5_000
    config.prior.evals.samples.every_steps = 5_000
    config.sample.captions = ()
    if choice.tiny:
        quickstart.make_tiny(config)
        config.data.update(image_size=32, num_threads=2)
        config.model.update(attention_levels=(), num_res_blocks=1)
    return config
