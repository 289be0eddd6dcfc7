"""The whole road on real pictures in under ten minutes on two CPU cores: tokenizer, tokens, prior, samples.

    python -m regvq_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Emoji on coloured grounds at 32 px become 8x8 tokens of 256 codes; a small masked transformer then
draws from captions. Choices after a colon: `:tiny` is the same road in seconds, for tests; it
learns nothing.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    choice = common.parse_arg(arg, tiny=False)
    config = ConfigDict()
    config.seed = 0
    config.stages = ("tokenizer", "tokens", "prior", "report")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.tokenizer = ""  # A tokenizer file takes the place of stage one.

    config.data = dict(
        source="emoji-grounds",
        image_size=32,
        crop="center",
        crop_scale=1.1,
        flip=False,
        upscale=False,
        num_label_classes=0,
        class_folders=False,
        data_dir="",
        heldout_split="",
        num_threads=2,
        num_workers=0,
    )

    # Stage one: the tokenizer.
    config.model = dict(
        architecture="taming",
        channels=16,
        multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_levels=(),
        middle_attention=True,
        latent_channels=64,
        norm_groups=0,
        remat=False,
        dtype="float32",
    )
    config.discriminator = dict(channels=16, num_layers=2, dtype="float32")
    config.features = dict(name="random", weights="", channels=(16, 32, 64), dtype="float32")
    config.quantizer = common.quantizer(codebook_size=256, code_dim=32, logits="distance")
    config.loss = common.loss(
        perceptual_weight=0.2,
        prior_kl_weight=0.006,
        pcl_weight=0.05,
        contrastive_places=64,
        adversarial_weight=0.1,
        adversarial_start_step=720,
        adversarial_ramp_steps=40,
    )
    config.optim = dict(
        lr=1e-3,
        schedule="cosine",
        warmup_steps=50,
        final_lr_ratio=0.05,
        b1=0.9,
        b2=0.99,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.train = dict(
        batch_size=16,
        total_steps=800,
        log_every_steps=25,
        checkpoint_every_steps=100,
        accumulation_slices=1,
        ema_decay=0.995,
        skip_nonfinite_steps=0,
        rollback_factor=0.0,
        hang_seconds=600,
    )
    config.evals = dict(
        reconstruction=dict(every_steps=400, num_shown=32, lpips="", protocols=("efficientnet_lite0",))
    )

    # Stage two: the prior over the tokens of all 14,130 images.
    config.tokens = dict(
        max_train_examples=16384, batch_size=64, shard_size=4096, random_crops=0, flip=False
    )
    config.prior = dict(
        name="masked",
        condition="auto",  # Captions where the data have them, otherwise none.
        condition_drop=0.1,
        from_images=False,
        text=dict(encoder="learned", weights="", length=24, depth=1, embed_dim=64),
        model=dict(
            dim=96,
            depth=4,
            num_heads=4,
            mlp_ratio=4,
            dropout=0.0,
            positions="learned",
            qk_norm=False,
            condition_by="prefix",
            attention="auto",
            scan_layers=False,
            remat="none",
            dtype="float32",
        ),
        optim=dict(
            lr=1e-3,
            schedule="cosine",
            warmup_steps=100,
            final_lr_ratio=0.05,
            b1=0.9,
            b2=0.96,
            weight_decay=0.045,
            clip_norm=1.0,
        ),
        train=dict(
            batch_size=32,
            total_steps=750,
            log_every_steps=25,
            checkpoint_every_steps=125,
            accumulation_slices=1,
            ema_decay=0.995,
            skip_nonfinite_steps=0,
            rollback_factor=0.0,
            hang_seconds=600,
        ),
        evals=dict(
            prior_loss=dict(every_steps=250, num_draws=2, all_captions=False),
            samples=dict(every_steps=375),
            generation=dict(
                every_steps=750,
                num_images=1000,
                protocols=("efficientnet_lite0",),
                reference="heldout",
                memorisation=1000,
                segmenter="",
            ),
        ),
    )
    config.sample = dict(
        captions=(
            "a red heart on a white background",
            "a red heart on a dark blue background",
            "a red heart on a yellow background",
            "a blue heart on a white background",
            "a grinning face on a light blue background",
            "a grinning face on a dark blue background",
            "a pizza on a light green background",
            "a soccer ball on an orange background",
            "a frog on a pink background",
            "a panda on a beige background",
            "a sunflower on a light purple background",
            "a red apple on a light grey background",
            # Pictures that no training saw:
            "a carrot on a white background",
            "a tiger, wild, cat, on a light green background",
            "a rocket on a dark blue background",
            "a winking face on a light blue background",
        ),
    )
    # Much noise in the order: a young prior is surest of the ground and would fill all with it.
    sampling = dict(steps=16, temperature=0.7, choice_temperature=20.0, guidance=4.0)
    common.set_prior(config, "masked", sampling=sampling)
    if choice.tiny:
        make_tiny(config)
    return config


def make_tiny(config: ConfigDict) -> None:
    """Shrinks every size in place; the road stays the same."""
    config.model.update(channels=8, latent_channels=16, multipliers=(1, 1, 2))
    config.quantizer.update(codebook_size=32, code_dim=8)
    config.discriminator.update(channels=8, num_layers=1)
    config.features.update(channels=(8, 8))
    config.loss.update(adversarial_start_step=4, adversarial_ramp_steps=2)
    config.optim.warmup_steps = 2
    config.train.update(batch_size=8, total_steps=8, log_every_steps=2, checkpoint_every_steps=4)
    # Features cost more than all the rest of a tiny run.
    config.evals.reconstruction.update(every_steps=4, protocols=())
    config.tokens.update(max_train_examples=64, batch_size=32, shard_size=32)
    config.prior.model.update(dim=32, depth=1, num_heads=2)
    config.prior.text.update(depth=1, embed_dim=8)
    config.prior.optim.warmup_steps = 2
    config.prior.train.update(batch_size=8, total_steps=8, log_every_steps=2, checkpoint_every_steps=4)
    config.prior.evals.prior_loss.every_steps = 4
    config.prior.evals.samples.every_steps = 8
    config.prior.evals.generation.update(every_steps=8, num_images=12, protocols=(), memorisation=0)
    if "steps" in config.sample:
        config.sample.steps = 3
    if "map_tokenizer" in config:
        group = config.map_tokenizer
        group.model.update(channels=8, latent_channels=16, multipliers=config.model.multipliers)
        group.quantizer.update(codebook_size=16, code_dim=8)
        group.optim.warmup_steps = 2
        group.train.update(batch_size=8, total_steps=8, log_every_steps=2, checkpoint_every_steps=4)
        group.evals.map_reconstruction.every_steps = 8
