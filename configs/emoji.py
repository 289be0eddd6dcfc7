"""The packaged emoji with every prior, drawn from captions or from label maps.

    python -m regvq_jax.main --config=configs/emoji.py:text-masked --workdir=runs/emoji

Before the colon's first comma: `{text,map}-{ar,masked,diffusion}`, the condition and the prior. After it,
choices: `size=128` for the larger pictures, `objects=1` for single emoji instead of scenes of up to four,
`map_tokens` to give maps to the prior as tokens of a tokenizer of their own, `absorbing` for diffusion
that masks only, `small` for two CPU cores (single emoji on plain grounds at 32 px, the tokenizer of the
quickstart), `tiny` for tests. All priors of a size have the same width, depth, batch and steps. Several
priors share one tokenizer by `--config.tokenizer=FILE` (`Tokenizer.load(WORKDIR).save(FILE)`).

Without `small` it is a longer run on one GPU: 16x16 tokens of 1,024 codes; sizes and steps are ours; no
result of it has been measured yet. Results of `small` are in the README.
"""

from ml_collections import ConfigDict

from configs import common, quickstart
from regvq_jax.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` is what stands after the colon of --config."""
    condition, prior, choices = common.parse_prior(arg, ("text", "map"), ("masked", "ar", "diffusion"))
    choice = common.parse_arg(
        choices, tiny=False, small=False, size=64, objects=4, map_tokens=False, absorbing=False
    )
    for name, fits in (
        ("map_tokens", condition == "map"),
        ("absorbing", prior == "diffusion"),
        ("small", (choice.size, choice.objects) == (64, 4)),
    ):
        if choice[name] and not fits:
            raise UserError(f'The choice "{name}" does not go with the others in "{arg}".')
    if choice.size not in (64, 128):
        raise UserError(f"The choice size={choice.size} is not one of 64 and 128.")
    config = quickstart.get_config()
    if not choice.small:
        make_large(config, choice)
    config.prior.condition = condition
    if condition == "map" and choice.map_tokens:
        common.set_map_tokens(config)
        if choice.small:
            config.map_tokenizer.optim.lr = 3e-3
    common.set_prior(config, prior, **prior_options(prior, choice))
    if choice.small:
        config.prior.model.update(dim=128, depth=4, num_heads=4)
        config.prior.train.update(total_steps=1200, checkpoint_every_steps=200)
        config.prior.evals.prior_loss.every_steps = 400
        config.prior.evals.samples.every_steps = 600
        config.prior.evals.generation.every_steps = 1200
    if choice.tiny:
        quickstart.make_tiny(config)
        config.data.image_size = 32
    return config


def prior_options(prior: str, choice: ConfigDict) -> dict[str, dict]:
    """Settings and sampling of a prior, over the defaults of both."""
    if prior == "autoregressive":
        return {"sampling": dict(guidance=3.0, top_p=0.95)}
    if prior == "masked":
        return {"sampling": dict(guidance=3.0, steps=24, temperature=0.8, choice_temperature=20.0)}
    if choice.absorbing:
        return {
            "settings": dict(process="absorbing", schedule="linear"),
            "sampling": dict(guidance=3.0, steps=64, temperature=0.8, remask="cap", eta=0.02),
        }
    return {"sampling": dict(guidance=3.0, steps=50, truncation=0.95)}


def make_large(config: ConfigDict, choice: ConfigDict) -> None:
    """The sizes of a run on a GPU, in place."""
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
    config.prior.text.update(length=40, depth=4)
    config.prior.model.update(dim=512, depth=12, num_heads=8)
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
    config.prior.evals.generation.update(every_steps=50_000, num_images=10_000, memorisation=10_000)
