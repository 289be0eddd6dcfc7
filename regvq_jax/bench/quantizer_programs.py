"""What the benchmark of the quantizers runs: our functions and module, and vector-quantize-pytorch's."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax import quantize
from regvq_jax.bench.measure import Program
from regvq_jax.models.quantizer import Quantizer, largest_tile

MASK_RATIO = 0.4


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all programs of one comparison are given.

    Attributes:
        num_codes, batch, grid, code_dim: K, B, h = w, D.
        tile_elements: most elements of a [positions, K] array in a tile; None = as a tokenizer's.
        seed: of features, codebook and noise.
    """

    num_codes: int
    batch: int
    grid: int
    code_dim: int
    tile_elements: int | None
    seed: int

    @property
    def tile_size(self) -> int:
        """Positions of each image that are held at once."""
        return largest_tile(self.batch, self.grid**2, self.num_codes, self.tile_elements)

    @property
    def array_bytes(self) -> int:
        """Of one float32 [positions, K] array."""
        return 4 * self.batch * self.grid**2 * self.num_codes

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, the gradient at the code vectors (both [B, h, w, D]) and the codebook [K, D], float32."""
        rng = np.random.default_rng(self.seed)
        shape = (self.batch, self.grid, self.grid, self.code_dim)
        features, direction = (rng.standard_normal(shape, np.float32) for _ in range(2))
        codebook = rng.standard_normal((self.num_codes, self.code_dim), np.float32)
        # Dot logits of unit variance, as a tokenizer's codebook begins.
        return features, direction, codebook * np.float32(self.code_dim**-0.5)


def jax_program(loss_fn: Callable, problem: Problem) -> Callable[[], Program]:
    """The gradients of loss_fn(problem, key, features, codebook, direction) -> (loss, output), compiled."""
    # The processes of the cases share an accelerator: none may take all of it beforehand.
    features, direction, codebook = jax.device_put(problem.arrays())
    key = jax.random.key(problem.seed)

    def build() -> Program:
        # The whole output is returned: a training step takes its figures from it.
        step = jax.value_and_grad(functools.partial(loss_fn, problem), (1, 2), has_aux=True)
        compiled = jax.jit(step).lower(key, features, codebook, direction).compile()

        def run():
            (_, out), gradients = jax.block_until_ready(compiled(key, features, codebook, direction))
            return {"codes": out.codes, "features": gradients[0], "codebook": gradients[1]}

        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def nearest_loss(problem, key, features, codebook, direction):
    """A linear loss of the code vectors, plus codebook and commitment loss."""
    out = quantize.nearest(features, codebook, tile_size=problem.tile_size)
    return jnp.mean(out.quantized * direction) + jnp.mean(out.codebook_error + out.commitment_error), out


def plain_loss(problem, key, features, codebook, direction):
    """A linear loss of the code vectors, plus the prior KL."""
    logits = quantize.dot_logits(features, codebook)
    out = quantize.regularized(key, logits, codebook, mask_ratio=MASK_RATIO)
    return jnp.mean(out.quantized * direction) + quantize.prior_kl(out.posterior), out


def tiled_loss(problem, key, features, codebook, direction):
    """`plain_loss` in tiles."""
    out = quantize.regularized_in_tiles(
        key,
        features,
        quantize.dot_affine(codebook),
        codebook,
        mask_ratio=MASK_RATIO,
        tile_size=problem.tile_size,
    )
    return jnp.mean(out.quantized * direction) + quantize.prior_kl(out.posterior), out


def module_program(kind: str, problem: Problem, depth: int = 1) -> Callable[[], Program]:
    """The gradients of a tokenizer's quantizer, parameters and features: the terms it is trained with."""
    bits = problem.num_codes.bit_length() - 1
    # 3 bits a dimension, and what is left.
    levels = (8,) * (bits // 3) + ((2 ** (bits % 3),) if bits % 3 else ()) if kind == "fsq" else ()
    dim = {"fsq": len(levels), "lfq": bits}.get(kind, problem.code_dim)
    logits = "projection" if kind in ("nearest", "simvq", "ibq", "fsq", "lfq") else "dot"
    module = Quantizer(kind, problem.num_codes, dim, logits=logits, levels=levels, depth=depth)
    features, direction, _ = dataclasses.replace(problem, code_dim=dim).arrays()
    features, direction = jax.device_put((features, direction))
    key = jax.random.key(problem.seed)
    variables = jax.jit(module.init)(key, features[:1])

    def loss(variables, features, key, direction):
        out = module.apply(variables, features, key, MASK_RATIO)
        value = jnp.mean(out.quantized * direction) + quantize.prior_kl(out.posterior)
        value += jnp.mean(out.codebook_error + out.commitment_error)
        if kind in ("ibq", "lfq"):
            value += quantize.entropy_loss(out.entropy, out.soft_posterior)
        return value, out.codes

    def build() -> Program:
        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        compiled = step.lower(variables, features, key, direction).compile()

        def run():
            (_, codes), gradients = jax.block_until_ready(compiled(variables, features, key, direction))
            return {"codes": codes, "features": gradients[1]}

        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def torch_program(stochastic: bool, device: str, problem: Problem) -> Callable[[], Program]:
    """The gradients of vector-quantize-pytorch's layer: nearest codes, or stochastic ones."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    # Products in full float32, torch's default, as ours of [positions, K].
    features, direction, codebook = (torch.from_numpy(x).to(device) for x in problem.arrays())
    features, direction = (x.reshape(problem.batch, -1, problem.code_dim) for x in (features, direction))
    features.requires_grad_()

    def build() -> Program:
        torch.manual_seed(problem.seed)
        layer = VectorQuantize(
            problem.code_dim,
            problem.num_codes,
            rotation_trick=False,
            ema_update=False,
            # Its soft gradient excludes a learned codebook.
            learnable_codebook=not stochastic,
            commitment_weight=0.0 if stochastic else 1.0,
            stochastic_sample_codes=stochastic,
            straight_through=stochastic,
            route_gradients_to_input=not stochastic,
        ).to(device)
        with torch.no_grad():
            layer.codebook = codebook

        def run():
            layer.zero_grad()
            features.grad = None
            quantized, codes, loss = layer(features)
            (torch.mean(quantized * direction) + loss.sum()).backward()
            getattr(torch, device).synchronize()
            shape = (problem.batch, problem.grid, problem.grid)
            result = {"codes": codes.reshape(shape), "features": features.grad.reshape(*shape, -1)}
            return result if stochastic else result | {"codebook": layer._codebook.embed.grad[0]}

        return Program(run)

    return build
