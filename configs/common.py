"""Blocks that several configs share, and the argument after the colon of --config=FILE:ARGUMENT."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from regvq_jax.errors import UserError
from regvq_jax.settings import did_you_mean
from regvq_jax.trainers.map_tokenizer import MapLossSettings
from regvq_jax.trainers.priors import PRIORS
from regvq_jax.trainers.tokenizer_settings import LossSettings, QuantizerSettings


def quantizer(**fields) -> ConfigDict:
    """A `quantizer` group: the defaults of `QuantizerSettings`, all visible, with `fields` over them."""
    return ConfigDict(dataclasses.asdict(QuantizerSettings()) | fields)


def loss(**fields) -> ConfigDict:
    """A `loss` group: the defaults of `LossSettings`, all visible, with `fields` over them."""
    return ConfigDict(dataclasses.asdict(LossSettings()) | fields)


def set_prior(config: ConfigDict, name: str, *, settings: Mapping = {}, sampling: Mapping = {}) -> None:  # noqa: B006
    """Chooses the prior of a config in place, with the group of its settings and a `sample` group for it.

    Args:
        config: with a `prior` and a `sample` group, whose captions are kept.
        name: a name in `trainers.priors.PRIORS`.
        settings: over the defaults of the prior's own settings.
        sampling: over the defaults of its sampler's.
    """
    cls = PRIORS[name]
    for other in PRIORS:
        if other in config.prior:
            del config.prior[other]
    config.prior.name = name
    config.prior[name] = ConfigDict(dataclasses.asdict(cls(**settings)))
    captions = tuple(config.sample.captions)
    config.sample = ConfigDict(dataclasses.asdict(cls.sampling(captions=captions, **sampling)))


def set_map_tokens(config: ConfigDict) -> None:
    """Lets a config's prior read label maps as tokens of a tokenizer of their own, in place.

    The map tokenizer has the sizes of the image tokenizer, and is a Reg-VQ one with softmax cross-entropy:
    on maps of emoji that was better than taming-transformers' nearest codes with binary cross-entropy.
    """
    config.prior.condition = "map_tokens"
    config.stages = ("tokenizer", "map_tokenizer", "tokens", "prior", "report")
    config.map_tokenizer = dict(
        model=config.model.to_dict(),
        # Fewer sampled places and a larger rate than for images: so maps of emoji were rebuilt best.
        quantizer=quantizer(
            codebook_size=128, code_dim=config.quantizer.code_dim, logits="distance", mask_ratio=0.1
        ),
        loss=dataclasses.asdict(MapLossSettings()),
        optim=config.optim.to_dict(),
        train=config.train.to_dict(),
        evals=dict(map_reconstruction=dict(every_steps=config.evals.reconstruction.every_steps)),
    )


def set_f16_tokenizer(config: ConfigDict) -> None:
    """The networks of taming-transformers' f16 VQGAN at 256 px with 1,024 codes, in place.

    Sizes, adversarial weight and start are taming's; learning rate, batch, steps and the weights of
    Reg-VQ's terms are ours, since the paper's are not known.
    """
    config.data.update(image_size=256, crop="random", num_threads=16)
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
    config.train.update(batch_size=32, total_steps=150_000, ema_decay=0.999, **LONG_CADENCE)
    config.evals.reconstruction.every_steps = 5_000
    config.tokens.update(max_train_examples=None, batch_size=128)


def set_fid(config: ConfigDict, *, num_images: int = 0, reference: str = "heldout") -> None:
    """Judges by FID under torch-fidelity's protocol, taming-transformers' own, in place.

    Args:
        config: with the groups of the quickstart.
        num_images: to draw at the end of the prior's training; 0 = one for each held-out image.
        reference: what they are compared with, "heldout" or "train".
    """
    protocols = ("torch-fidelity",)
    config.evals.reconstruction.protocols = protocols
    config.prior.evals.generation.update(protocols=protocols, num_images=num_images, reference=reference)


LONG_CADENCE = dict(log_every_steps=100, checkpoint_every_steps=1_000)


def set_large_prior(
    config: ConfigDict, name: str, *, depth: int = 24, top_k: int = 0, diffusion_lr: float = 2e-4
) -> None:
    """A prior of the size of the system that it is from, in place.

    "autoregressive": taming-transformers' 24 x 1024, for semantic synthesis 28; "masked": MaskGIT's 24 x
    768 with its smallest mask of 0.5; "diffusion": VQ-Diffusion's 19 x 1024 with the schedule of its
    paper. Batch, steps, the autoregressive learning rate and what none of them has (positions, prefix or
    not) are ours.

    Args:
        config: with the groups of the quickstart.
        name: of the prior.
        depth: of the autoregressive one.
        top_k: of the autoregressive sampler; 0 = all.
        diffusion_lr: VQ-Diffusion's: 2e-4 for COCO, 4.5e-4 for CUB.
    """
    config.prior.model.update(scan_layers=True, dtype="bfloat16", remat="dots", dropout=0.1)
    config.prior.train.update(batch_size=128, total_steps=150_000, ema_decay=0.9999, **LONG_CADENCE)
    config.prior.evals.prior_loss.every_steps = 5_000
    config.prior.evals.samples.every_steps = 5_000
    config.prior.evals.generation.update(every_steps=150_000, num_images=10_000, memorisation=10_000)
    # One less than CLIP's context: fused attention on GPUs wants even lengths.
    config.prior.text.update(length=76, depth=4)
    config.sample.captions = ()
    if name == "autoregressive":
        config.prior.model.update(dim=1024, depth=depth, num_heads=16)
        config.prior.optim.update(lr=1e-4, warmup_steps=5_000, b2=0.95, weight_decay=0.01)
        set_prior(config, name, sampling=dict(top_k=top_k))
    elif name == "masked":
        config.prior.model.update(dim=768, depth=24, num_heads=16)
        config.prior.optim.update(lr=1e-4, warmup_steps=5_000, b2=0.96, weight_decay=0.045)
        set_prior(config, name, settings=dict(min_mask_ratio=0.5), sampling=dict(steps=12, guidance=3.0))
    else:
        config.prior.model.update(dim=1024, depth=19, num_heads=16, condition_by="cross", dropout=0.0)
        config.prior.optim.update(
            lr=diffusion_lr, warmup_steps=5_000, b2=0.96, weight_decay=0.045, clip_norm=0.5
        )
        set_prior(
            config,
            name,
            settings=dict(schedule="paper"),
            sampling=dict(steps=100, truncation=0.86, guidance=3.0),
        )


def set_tiny_data(config: ConfigDict) -> None:
    """The packaged emoji in place of a data set that has to be fetched, in place."""
    config.data.update(source="emoji-scenes:4", image_size=32, num_label_classes=0, num_threads=2)
    config.model.update(attention_levels=(), num_res_blocks=1, dtype="float32")
    config.discriminator.dtype = config.features.dtype = "float32"
    config.prior.model.update(dtype="float32")
    config.prior.text.length = 24
    if "top_k" in config.sample:
        config.sample.top_k = 8
    if "map_tokenizer" in config:
        config.map_tokenizer.model.update(attention_levels=(), num_res_blocks=1, dtype="float32")


PRIOR_NAMES = {"ar": "autoregressive", "masked": "masked", "diffusion": "diffusion"}


def parse_prior(
    arg: str | None, conditions: tuple[str, ...], priors: tuple[str, ...]
) -> tuple[str, str, str]:
    """Reads a first choice "CONDITION-PRIOR" or, where there is one condition, "PRIOR".

    Args:
        arg: what stood after the colon of --config.
        conditions: valid ones, the default first; one alone is not written.
        priors: short names of `PRIOR_NAMES`, the default first.

    Returns:
        (condition, name of the prior, the other choices).

    Raises:
        UserError: a first choice that is neither such a name nor a choice like "tiny" or "size=64".
    """
    several = len(conditions) > 1
    names = {(f"{c}-{p}" if several else p): (c, p) for c in conditions for p in priors}
    first, _, rest = (arg or "").partition(",")
    if first in names:
        condition, prior = names[first]
        return condition, PRIOR_NAMES[prior], rest
    if "-" in first or first in PRIOR_NAMES or first in conditions:
        raise UserError(f'The config has no prior "{first}".{did_you_mean(first, list(names))}')
    return conditions[0], PRIOR_NAMES[priors[0]], arg or ""


def parse_arg(arg: str | None, **defaults):
    """Reads "tiny,size=64" into a ConfigDict, each value of the type of its default.

    Args:
        arg: what stood after the colon of --config, None if nothing did. A name alone means True.
        **defaults: the valid names; bool, int, float or str.

    Raises:
        UserError: an unknown name (the nearest valid one is named) or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise UserError(f'The config has no choice "{name}".{did_you_mean(name, list(defaults))}')
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false"):
                raise UserError(f'The choice "{name}" is true or false, not "{text}".')
            values[name] = text.lower() != "false"
            continue
        if not equals:
            raise UserError(f'The choice "{name}" needs a value: {name}={defaults[name]}.')
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise UserError(f'The choice "{name}" needs a {kind.__name__}, not "{text}".') from error
    return ConfigDict(values)
