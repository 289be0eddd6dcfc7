"""What the benchmark of the tokenizer runs: our network, VQModel with its weights, and a whole GAN step."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import loop, sharding
from regvq_jax.bench.measure import Program, num_cores
from regvq_jax.interop.diffusers import export_directory
from regvq_jax.interop.tokenizer_file import param_shapes
from regvq_jax.models.discriminator import PatchDiscriminator
from regvq_jax.models.features import RandomFeatures
from regvq_jax.models.imagenet import ImageNetFeatures
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.optim import OptimSettings, make_optimizer
from regvq_jax.settings import DataSettings, TrainSettings
from regvq_jax.trainers.tokenizer import TokenizerTrainer
from regvq_jax.trainers.tokenizer_settings import LossSettings, QuantizerSettings

PyTree = Any
FORWARD, GRADIENTS, STEP = "forward", "gradients", "GAN step"
CODEBOOK_WEIGHT = 0.25  # VQModel's; that of the commitment is 1.


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all programs are given.

    Attributes:
        size, batch: of the images.
        channels, multipliers: of the network; its coarsest level has attention.
        res_blocks: of each level.
        codes, code_dim: K and D; D is also the number of latent channels.
        features: "vgg19" or "random", of the GAN step.
        dtype: of the computation.
        seed: of parameters and images.
    """

    size: int
    batch: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    codes: int
    code_dim: int
    features: str
    dtype: str
    seed: int

    @property
    def model(self) -> ImageTokenizer:
        """The network."""
        return ImageTokenizer(
            Quantizer(kind="nearest", codebook_size=self.codes, code_dim=self.code_dim),
            channels=self.channels,
            multipliers=self.multipliers,
            num_res_blocks=self.res_blocks,
            attention_levels=(len(self.multipliers) - 1,),
            latent_channels=self.code_dim,
            norm_groups=math.gcd(32, self.channels),
            dtype=DTYPES[self.dtype],
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, W, 3]."""
        return self.batch, self.size, self.size, 3

    def params(self) -> PyTree:
        """Parameters drawn as a training begins, with codes that lie apart; nothing is compiled."""
        rng = np.random.default_rng(self.seed)

        def draw(path, x):
            if path[-1].key in ("scale", "bias"):
                return np.full(x.shape, path[-1].key == "scale", np.float32)
            spread = 1.0 if path[-1].key == "codebook" else math.prod(x.shape[:-1]) ** -0.5
            return np.float32(spread) * rng.standard_normal(x.shape, np.float32)

        return jax.tree.map_with_path(draw, param_shapes(self.model))

    def images(self) -> np.ndarray:
        """float32 [B, H, W, 3] in [-1, 1]."""
        return np.random.default_rng(self.seed).uniform(-1, 1, self.shape).astype(np.float32)

    def trainer(self) -> TokenizerTrainer:
        """Of the GAN step; its discriminator plays from the first step on."""
        image = jnp.zeros((1, *self.shape[1:]))
        dtype = DTYPES[self.dtype]
        features = {"vgg19": ImageNetFeatures("vgg19", dtype), "random": RandomFeatures(dtype=dtype)}
        network = features[self.features]
        optimizer = make_optimizer(OptimSettings(lr=1e-4, schedule="constant"), 1000)
        return TokenizerTrainer(
            model=self.model.clone(quantizer=Quantizer(codebook_size=self.codes, code_dim=self.code_dim)),
            discriminator=PatchDiscriminator(dtype=dtype),
            features=network,
            lpips=None,
            frozen={"features": jax.jit(network.init)(jax.random.key(self.seed), image)["params"]},
            quantizer=QuantizerSettings(codebook_size=self.codes, code_dim=self.code_dim),
            loss=LossSettings(adversarial_start_step=0, adversarial_ramp_steps=1),
            optimizers={"tokenizer": optimizer, "discriminator": optimizer},
            seed=self.seed,
            train=TrainSettings(batch_size=self.batch, total_steps=1000),
            data=DataSettings(source="", image_size=self.size),
            make_batches=lambda: None,
        )


def reconstruct(model: ImageTokenizer, params: PyTree, images: jax.Array) -> tuple[jax.Array, Any]:
    """(images float32 [B, H, W, 3], the quantizer's output) of images float [B, H, W, 3]."""
    variables = {"params": params}
    features = model.apply(variables, images, method="encode_features")
    out = model.apply(variables, features, method="quantize")
    return model.apply(variables, out.quantized, method="decode"), out


def forward(model: ImageTokenizer, params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    """What the program `FORWARD` returns: {"codes", "images"}."""
    reconstructions, out = reconstruct(model, params, images)
    return {"codes": out.codes, "images": reconstructions}


def gradients(model: ImageTokenizer, params: PyTree, images: jax.Array) -> PyTree:
    """What the program `GRADIENTS` makes: the gradient of each parameter."""

    def loss(params):
        reconstructions, out = reconstruct(model, params, images)
        of_codes = out.commitment_error + CODEBOOK_WEIGHT * out.codebook_error
        return jnp.mean((reconstructions - images) ** 2) + jnp.mean(of_codes)

    return jax.grad(loss)(params)


def ends_of(grads: Mapping) -> dict[str, jax.Array]:
    """Of the gradients those of the first kernel, the last, and the codebook: the longest ways back."""
    return {
        "first": grads["encoder"]["conv_in"]["kernel"],
        "last": grads["conv_out"]["kernel"],
        "codebook": grads["quantizer"]["codebook"],
    }


FUNCTIONS = {FORWARD: forward, GRADIENTS: gradients}


def jax_program(name: str, problem: Problem) -> Callable[[], Program]:
    """`FORWARD` or `GRADIENTS` in JAX."""
    # The processes share an accelerator: none may take all of it beforehand.
    arguments = jax.device_put((problem.params(), problem.images()))
    keep = {FORWARD: dict, GRADIENTS: ends_of}[name]

    def build() -> Program:
        compiled = jax.jit(partial(FUNCTIONS[name], problem.model)).lower(*arguments).compile()
        run = lambda: keep(jax.block_until_ready(compiled(*arguments)))
        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def step_program(problem: Problem) -> Callable[[], Program]:
    """Steps of a training, each from where the one before it ended."""
    trainer, mesh = problem.trainer(), sharding.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(trainer.init)(jax.random.key(problem.seed))
    batch = {"image": ((problem.images() + 1) * 127.5).astype(np.uint8)}

    def build() -> Program:
        compiled = loop.jit_step(trainer, state, mesh).lower(state, batch, trainer.frozen).compile()
        states = [state]

        def run():
            new, metrics = jax.block_until_ready(compiled(states.pop(), batch, trainer.frozen))
            states.append(new)
            return {"loss": metrics["train/loss"]}

        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def torch_program(name: str, device: str, problem: Problem) -> Callable[[], Program]:
    """`FORWARD` or `GRADIENTS` in torch: eager in float32, compiled in bfloat16."""
    import torch

    torch.set_num_threads(num_cores())
    images = torch.from_numpy(problem.images()).permute(0, 3, 1, 2).contiguous().to(device)
    network = make_rival(problem, problem.params()).to(device)

    def build() -> Program:
        half = problem.dtype == "bfloat16"

        def losses(images):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                latents = network.encode(images).latents
                quantized, of_codes, (_, _, codes) = network.quantize(latents.float())
                reconstructions = network.decode(quantized, force_not_quantize=True).sample.float()
            return reconstructions, codes, torch.mean((reconstructions - images) ** 2) + of_codes

        call = torch.compile(losses) if half else losses

        def run_forward():
            with torch.no_grad():
                reconstructions, codes, _ = call(images)
            getattr(torch, device).synchronize()
            grid = problem.size // problem.model.downsampling
            codes = codes.reshape(problem.batch, grid, grid)
            return {"codes": codes, "images": reconstructions.permute(0, 2, 3, 1)}

        def run_gradients():
            network.zero_grad()
            call(images)[2].backward()
            getattr(torch, device).synchronize()
            first, last = network.encoder.conv_in.weight.grad, network.decoder.conv_out.weight.grad
            kernels = {"first": first, "last": last}
            of_kernels = {name: x.permute(2, 3, 1, 0) for name, x in kernels.items()}
            return of_kernels | {"codebook": network.quantize.embedding.weight.grad}

        return Program({FORWARD: run_forward, GRADIENTS: run_gradients}[name])

    return build


def make_rival(problem: Problem, params: PyTree):
    """diffusers' VQModel with our weights.

    Raises:
        RuntimeError: it has another number of parameters.
    """
    from diffusers import VQModel

    with tempfile.TemporaryDirectory() as folder:
        export_directory(Path(folder), problem.model, params)
        network = VQModel.from_pretrained(folder, low_cpu_mem_usage=False)
    network.register_to_config(lookup_from_codebook=False)  # It decodes code vectors here.
    count, theirs = count_parameters(params), sum(x.numel() for x in network.parameters())
    if theirs != count:
        raise RuntimeError(f"VQModel has {theirs:,} parameters, ours {count:,}")
    return network


def count_parameters(params: PyTree) -> int:
    """Numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))


def count_flops(name: str, problem: Problem) -> float:
    """FLOPs of a program as accelerators run it, who have no special forms; none is compiled."""
    params = param_shapes(problem.model)
    images = jax.ShapeDtypeStruct(problem.shape, jnp.float32)
    if name == STEP:
        trainer = problem.trainer()
        batch = {"image": jax.ShapeDtypeStruct(problem.shape, jnp.uint8)}
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        traced = jax.jit(trainer.train_step).trace(state, batch, trainer.frozen)
    else:
        traced = jax.jit(partial(FUNCTIONS[name], problem.model)).trace(params, images)
    return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]
