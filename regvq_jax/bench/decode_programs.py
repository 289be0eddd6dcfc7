"""What the benchmark of drawing runs: our samplers, and a GPT of torch with their weights."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regvq_jax.bench.measure import Program, num_cores
from regvq_jax.bench.torch_gpt import TorchGPT
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.layers import DTYPES
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors import autoregressive
from regvq_jax.trainers.priors import PRIORS

PyTree = Any
CHECKED_TOKENS = 16
LOGITS_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all programs are given.

    Attributes:
        dim, depth, heads: of the network.
        grid: h = w.
        codes: K.
        batch: B.
        seed: of parameters and noise.
        dtype: of the network and its cache, a name in `DTYPES`.
        kind: of the prior, a name in `PRIORS`.
    """

    dim: int
    depth: int
    heads: int
    grid: int
    codes: int
    batch: int
    seed: int
    dtype: str = "float32"
    kind: str = "autoregressive"

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid**2

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of all tokens."""
        elements = 2 * self.depth * self.batch * self.num_tokens * self.dim
        return jnp.dtype(DTYPES[self.dtype]).itemsize * elements

    @property
    def net(self) -> PriorNet:
        """The network."""
        prior = PRIORS[self.kind]
        return PriorNet(
            self.codes,
            (self.grid, self.grid),
            causal=prior.causal,
            timed=prior.timed,
            dtype=DTYPES[self.dtype],
            dim=self.dim,
            depth=self.depth,
            num_heads=self.heads,
        )

    def params(self) -> PyTree:
        """Fresh parameters."""
        time = jnp.zeros(1) if self.net.timed else None
        return jax.jit(self.net.init)(jax.random.key(self.seed), self.unknown(1), time=time)["params"]

    def bound(self, bandwidth: float) -> float:
        """Tokens a second of all rows, where only what a step reads takes time, at bytes a second."""
        shapes = jax.eval_shape(self.params)
        step_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) + self.cache_bytes / 2
        return self.batch * bandwidth / step_bytes

    def keys(self) -> jax.Array:
        """One a row, [B]."""
        return jax.random.split(jax.random.key(self.seed + 1), self.batch)

    def unknown(self, rows: int, num_tokens: int | None = None) -> jax.Array:
        """Tokens that are all to be drawn: int32 [rows, N], or the first so many of them."""
        return jnp.full((rows, num_tokens or self.num_tokens), self.codes, jnp.int32)


def sample_as_trained(
    kind: str, net: PriorNet, params: PyTree, keys: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Fills int32 [B, n] as a trained prior of this kind does."""
    prior, nothing = PRIORS[kind](), Encoded()
    return prior.sample(net, params, keys, tokens, nothing, nothing, prior.sampling())


sample_cached = partial(sample_as_trained, "autoregressive")


def sample_uncached(net: PriorNet, params: PyTree, keys: jax.Array, tokens: jax.Array) -> jax.Array:
    """Fills int32 [B, n] with the same noise, and the whole sequence through the network for every token."""

    def step_fn(inputs, token, position):
        inputs = jax.lax.dynamic_update_index_in_dim(inputs, token, position, 1)
        logits = net.apply({"params": params}, inputs, method="predict")
        return inputs, jax.lax.dynamic_index_in_dim(logits, position, 1, keepdims=False)

    inputs = jnp.zeros((tokens.shape[0], net.num_tokens), jnp.int32)
    special = net.special_id
    return autoregressive.sample(keys, step_fn, inputs, tokens, start_id=special, unknown_id=special)


def compile_sampler(
    sample_fn: Callable, problem: Problem, num_tokens: int | None = None
) -> jax.stages.Compiled:
    """A compiled (params, keys, tokens int32 [B, n]) -> the same, filled; n = N by default."""
    arguments = lambda: (problem.params(), problem.keys(), problem.unknown(problem.batch, num_tokens))
    # Not the TF32 that GPUs have for a default: the same arithmetic as torch.
    with jax.default_matmul_precision("float32"):
        return jax.jit(partial(sample_fn, problem.net)).lower(*jax.eval_shape(arguments)).compile()


def jax_program(sample_fn: Callable, problem: Problem) -> Callable[[], Program]:
    """Draws B grids with one of our samplers."""
    # The processes share an accelerator: none may take all of it beforehand.
    arguments = problem.params(), problem.keys(), problem.unknown(problem.batch)

    def build() -> Program:
        compiled = compile_sampler(sample_fn, problem)
        run = lambda: {"tokens": jax.block_until_ready(compiled(*arguments))}
        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    return build


def torch_program(device: str, problem: Problem) -> Callable[[], Program]:
    """Draws B grids in torch."""
    import torch

    torch.set_num_threads(num_cores())
    # Numbers, so that no thread of JAX has anything to do.
    params = jax.tree.map(np.asarray, problem.params())

    def build() -> Program:
        gpt = TorchGPT(problem.net, params, problem.batch, device)
        return Program(lambda: {"tokens": gpt.sample(problem.seed)})

    return build


def check_equal(problem: Problem, device: str | None) -> int:
    """Makes sure that the programs do the same, on the first tokens.

    Args:
        problem: sizes.
        device: of torch; None leaves torch out.

    Returns:
        The number of parameters.

    Raises:
        RuntimeError: they do not.
    """
    net, params = problem.net, problem.params()
    first = min(CHECKED_TOKENS, problem.num_tokens)
    cached, uncached = (
        compile_sampler(sample_fn, problem, first)(
            params, problem.keys(), problem.unknown(problem.batch, first)
        )
        for sample_fn in (sample_cached, sample_uncached)
    )
    if not np.array_equal(cached, uncached):
        raise RuntimeError("cached and uncached sampling draw different tokens from the same key")
    count = sum(x.size for x in jax.tree.leaves(params))
    if device is None:
        return count
    # Of the same weights: whatever the programs compute in.
    net = net.clone(dtype=jnp.float32)
    gpt = TorchGPT(net, params, problem.batch, device)
    if gpt.num_parameters != count:
        raise RuntimeError(f"torch has {gpt.num_parameters:,} parameters, ours {count:,}")
    inputs = autoregressive.shift_right(cached, net.special_id)
    padded = jnp.pad(inputs, ((0, 0), (0, problem.num_tokens - first)))
    with jax.default_matmul_precision("float32"):
        expected = jax.jit(partial(net.apply, method="predict"))({"params": params}, padded)
    error = np.abs(gpt.logits(inputs) - np.asarray(expected)[:, :first]).max()
    if not error < LOGITS_TOLERANCE:
        raise RuntimeError(f"torch's logits are off by up to {error:.1e}")
    return count
