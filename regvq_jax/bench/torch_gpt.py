"""A GPT in plain PyTorch with the weights of a causal, unconditional `PriorNet`: what ours is measured by."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from regvq_jax.bench.torch_weights import EPSILON, torch_weights
from regvq_jax.models.prior import PriorNet


class TorchGPT:
    """Draws tokens with cached keys and values: functions of tensors, without modules to call through.

    Queries, keys and values come from one product, the cache is allocated once, and attention reads what is
    filled of it.

    Attributes:
        num_parameters: of the weights.
        device: where it runs.
    """

    def __init__(self, net: PriorNet, params: Mapping[str, Any], rows: int, device: str = "cpu"):
        """Copies the weights.

        Args:
            net: with float32, learned positions and without a condition.
            params: its parameters.
            rows: B.
            device: "cpu" or "cuda".
        """
        import torch

        self._torch, self.device = torch, device
        self._net, self._rows = net, rows
        tensor = lambda array: torch.tensor(array, device=device)
        weights = jax.tree.map(tensor, torch_weights(net, params))
        self.num_parameters = sum(x.numel() for x in jax.tree.leaves(weights))
        self._embedding, self._blocks = weights["embedding"], weights["blocks"]
        self._places = (weights["row"][:, None] + weights["column"][None]).flatten(0, 1)
        self._last_norm, self._head = weights["last_norm"], weights["head"]
        shape = (net.depth, 2, rows, net.num_heads, net.num_tokens, net.dim // net.num_heads)
        self._cache = torch.zeros(shape, device=device)

    def step(self, token, position: int):
        """Logits float32 [B, K] at `position`, of the token int64 [B] before it; fills the cache there."""
        functional = self._torch.nn.functional
        linear, layer_norm, dim = functional.linear, functional.layer_norm, (self._net.dim,)
        heads = (self._rows, 3, self._net.num_heads, -1)
        x = self._embedding[token] + self._places[position]
        for (keys, values), block in zip(self._cache, self._blocks, strict=True):
            h = layer_norm(x, dim, *block["attention_norm"], EPSILON)
            query, key, value = linear(h, *block["query_key_value"]).view(heads).unbind(1)
            keys[:, :, position] = key
            values[:, :, position] = value
            filled = keys[:, :, : position + 1], values[:, :, : position + 1]
            h = functional.scaled_dot_product_attention(query[:, :, None], *filled)
            x = x + linear(h.reshape(x.shape), *block["out"])
            h = layer_norm(x, dim, *block["mlp_norm"], EPSILON)
            h = functional.gelu(linear(h, *block["mlp_in"]), approximate="tanh")
            x = x + linear(h, *block["mlp_out"])
        return linear(layer_norm(x, dim, *self._last_norm, EPSILON), *self._head)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits float32 [B, n, K] of a sequence's first inputs int [B, n], one step after the other."""
        torch = self._torch
        with torch.inference_mode():
            columns = torch.as_tensor(np.asarray(tokens, np.int64), device=self.device).T
            return torch.stack([self.step(x, i) for i, x in enumerate(columns)], 1).cpu().numpy()

    def sample(self, seed: int) -> np.ndarray:
        """Tokens int64 [B, N], each drawn from the softmax of its logits by Gumbel noise."""
        torch = self._torch
        with torch.inference_mode():
            generator = torch.Generator(self.device).manual_seed(seed)
            token = torch.full((self._rows,), self._net.special_id, device=self.device)
            tokens = torch.empty((self._rows, self._net.num_tokens), dtype=torch.int64, device=self.device)
            for position in range(self._net.num_tokens):
                logits = self.step(token, position)
                # Minus the logarithm of exponential noise is Gumbel noise.
                noise = torch.empty_like(logits).exponential_(generator=generator).log_()
                token = tokens[:, position] = (logits - noise).argmax(-1)
            return tokens.cpu().numpy()
