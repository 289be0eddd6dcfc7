"""The packaged emoji at 64 px (or 128 px) in scenes of up to four, as a longer run on one GPU.

    python -m regvq_jax.main --config=configs/emoji.py --workdir=runs/emoji

Choices after a colon: `:size=128` for the larger pictures, `:objects=1` for single emoji, `:tiny`
for tests. 16x16 tokens of 1,024 codes. Sizes and steps are ours; no result has been measured yet.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    choice = common.parse_arg(arg, tiny=False, size=64, objects=4)
    config = quickstart.get_config()
    config.data.update(source=f"emoji-scenes:{choice.objects}", image_size=choice.size)
    config.quantizer.update(codebook_size=1024, code_dim=256)
    config.model.update(channels=64, latent_channels=256)
    # Every halving of the grid is a level: the tokens stay 16x16.
    config.model.multipliers = {64: (1, 2, 4), 128: (1, 2, 2, 4)}[choice.size]
    config.model.num_res_blocks = 2
    config.discriminator.update(channels=64, num_layers=3)
    config.features.channels = (32, 64, 128)
    config.loss.update(adversarial_start_step=20_000, adversarial_ramp_steps=2_000)
    config.optim.update(lr=3e-4, warmup_steps=1_000)
    config.train.update(
        batch_size=64,
        total_steps=50_000,
        log_every_steps=100,
        checkpoint_every_steps=1_000,
        ema_decay=0.999,
    )
    config.evals.reconstruction.every_steps = 5_000
    config.tokens.update(max_train_examples=200_000, batch_size=256)
    config.prior.model.update(dim=512, depth=12, num_heads=8, text_length=40, text_depth=4)
    config.prior.optim.update(lr=3e-4, warmup_steps=1_000)
    config.prior.train.update(
        batch_size=128,
        total_steps=50_000,
        log_every_steps=100,
        checkpoint_every_steps=1_000,
        ema_decay=0.9995,
    )
    config.prior.evals.prior_loss.every_steps = 2_500
    config.prior.evals.samples.every_steps = 5_000
    if choice.tiny:
        quickstart.make_tiny(config)
        config.prior.model.text_length = 24
    return config
