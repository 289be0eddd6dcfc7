"""The network of stage two: image tokens and an encoded condition to code logits."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from regvq_jax.models import blocks
from regvq_jax.models.blocks import Cache
from regvq_jax.models.conditioners import Encoded
from regvq_jax.models.layers import Dtype
from regvq_jax.models.products import kernel_product
from regvq_jax.models.transformer import Transformer, embedding_init

TIME_FEATURES, TIME_SCALE = 128, 1000.0


class DecodeState(NamedTuple):
    """What an autoregressive sampler carries from token to token.

    Attributes:
        cache: keys and values of the condition and of the tokens so far.
        added: float [B, N, dim], what the condition adds to the tokens; None = nothing.
    """

    cache: Cache
    added: jax.Array | None


def make_room(state: DecodeState, places: int) -> DecodeState:
    """The state with room for so many more tokens."""
    return state._replace(cache=blocks.make_room(state.cache, places))


def time_features(time: jax.Array) -> jax.Array:
    """Sines and cosines of float [B] in [0, 1], from 1000 radians down to 0.1: float32 [B, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    frequencies = TIME_SCALE * 1e-4 ** (jnp.arange(half) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class PriorNet(nn.Module):
    """A transformer over image tokens that is told a condition.

    For `regvq_jax.priors`, which take any callable from tokens to logits. A sampler that asks many
    times about one condition encodes it once with `encode_condition` and then calls `predict`, or, where
    `causal`, `start` and `step`.

    Attributes:
        codebook_size: K; input ids are 0..K, where K means masked, or the start of a causal sequence;
            output logits are over 0..K-1.
        grid: (h, w) of the token grid.
        conditioner: one of `models.conditioners`, or None for an unconditional prior.
        condition_by: "prefix" or "cross": how a condition with a memory is read.
        causal: position i sees only the inputs up to i: the input is shifted (`autoregressive.shift_right`).
        timed: the network is told the noise level, through AdaLN.
        dim, depth, num_heads, mlp_ratio, dropout, positions, qk_norm, attention, scan_layers, remat, dtype:
            as in `Transformer`.
    """

    codebook_size: int
    grid: tuple[int, int]
    conditioner: nn.Module | None = None
    condition_by: str = "prefix"
    causal: bool = False
    timed: bool = False
    dim: int = 768
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    dropout: float = 0.1
    positions: str = "learned"
    qk_norm: bool = False
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"
    dtype: Dtype = jnp.float32

    def setup(self):
        # Looked up in float32: a bfloat16 table would also sum its gradient in bfloat16.
        self.token_embedding = nn.Embed(self.codebook_size + 1, self.dim, embedding_init=embedding_init)
        names = ("grid", "dim", "depth", "num_heads", "mlp_ratio", "dropout", "positions", "causal")
        names += ("qk_norm", "attention", "scan_layers", "remat", "dtype")
        self.transformer = Transformer(
            cross=self.condition_by == "cross" and self.conditioner is not None,
            modulated=self.timed,
            **{name: getattr(self, name) for name in names},
        )
        if self.timed:
            self.time_in = nn.Dense(self.dim, dtype=self.dtype)
            self.time_out = nn.Dense(self.dim, dtype=self.dtype)
        self.to_logits = nn.Dense(
            self.codebook_size, dtype=jnp.float32, dot_general_cls=lambda: kernel_product
        )

    @property
    def special_id(self) -> int:
        """The input id that is no code: K, masked or start."""
        return self.codebook_size

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def __call__(
        self,
        tokens: jax.Array,
        condition=None,
        drop: jax.Array | None = None,
        time: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Predicts the code at every position; Args as in `encode_condition` and `predict`."""
        encoded = self.encode_condition(condition, drop, deterministic=deterministic)
        return self.predict(tokens, encoded, time, deterministic=deterministic)

    def encode_condition(
        self, condition=None, drop: jax.Array | None = None, *, deterministic: bool = True
    ) -> Encoded:
        """Encodes conditions once.

        Args:
            condition: what the conditioner takes; None if and only if there is no conditioner.
            drop: bool [B], True = the learned null in place of the condition.
            deterministic: False draws dropout from the "dropout" stream.

        Raises:
            ValueError: a condition is given to an unconditional model or missing from a conditional one.
        """
        if self.conditioner is None:
            if condition is not None or drop is not None:
                raise ValueError("an unconditional prior takes no condition")
            return Encoded()
        if condition is None:
            raise ValueError("a conditional prior needs a condition")
        return self.conditioner(condition, drop, deterministic=deterministic)

    def predict(
        self,
        tokens: jax.Array,
        encoded: Encoded = Encoded(),  # noqa: B008 - an empty tuple
        time: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Predicts the code at every position.

        Args:
            tokens: int32 [B, N], ids 0..K.
            encoded: from `encode_condition`.
            time: float [B] in [0, 1], the noise level, of a `timed` network.
            deterministic: False draws dropout from the "dropout" stream.

        Returns:
            float32 [B, N, K], unnormalised log-probabilities.
        """
        x = self.token_embedding(tokens)
        if encoded.added is not None:
            x = x + encoded.added
        level = None
        if self.timed:
            level = self.time_out(nn.swish(self.time_in(time_features(time))))
        x = self.transformer(
            x, encoded.memory, encoded.memory_mask, level, deterministic=deterministic
        )
        return self.to_logits(x)

    def start(self, rows: int, encoded: Encoded = Encoded()) -> DecodeState:  # noqa: B008
        """The state before the first token of `rows` sequences, of a causal network; see `make_room`."""
        cache = self.transformer.start_cache(rows, encoded.memory, encoded.memory_mask)
        return DecodeState(cache, encoded.added)

    def step(
        self, state: DecodeState, token: jax.Array, position: jax.Array
    ) -> tuple[DecodeState, jax.Array]:
        """One token of a causal network.

        Args:
            state: from `start` or the step before, with room for a token at `position`.
            token: int32 [B], the input at `position`: the token before it, K at position 0.
            position: int32 [].

        Returns:
            The next state; float32 [B, K], equal to what `predict` gives at `position`.
        """
        x = self.token_embedding(token)
        if state.added is not None:
            x = x + state.added[:, position]
        cache, x = self.transformer.step(state.cache, x, position)
        return state._replace(cache=cache), self.to_logits(x)
