"""The weights of a `PriorNet` as a transformer in plain PyTorch wants them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from regvq_jax.models.prior import PriorNet

EPSILON = 1e-6  # flax's of a LayerNorm
Dense = tuple[np.ndarray, ...]  # weight [out, in] and bias [out]; of a norm: scale and bias, or nothing.


def torch_weights(net: PriorNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in torch's layout, the products of queries, keys and values as one.

    Args:
        net: with learned positions, without a condition and without scanned layers.
        params: its parameters.

    Returns:
        "embedding", "row" and "column" as arrays; "last_norm", "head" and, of a timed network, "time_in" and
        "time_out" as `Dense`; "blocks": for each layer "attention_norm", "query_key_value", "out",
        "mlp_norm", "mlp_in", "mlp_out" and, of a timed network, "modulation". All are float32 copies.
    """
    transformer = params["transformer"]
    blocks = transformer["blocks"]
    weights = {
        "embedding": _copy(params["token_embedding"]["embedding"]),
        "row": _copy(transformer["row_embedding"]),
        "column": _copy(transformer["column_embedding"]),
        "blocks": [_block(blocks[f"layers_{layer}"]) for layer in range(net.depth)],
        "last_norm": _norm(blocks["last_norm"]),
        "head": _dense(params["to_logits"]),
    }
    return weights | {name: _dense(params[name]) for name in ("time_in", "time_out") if name in params}


def _block(params: Mapping[str, Any]) -> dict[str, Dense]:
    attention = params["self_attention"]
    each = [_dense(attention[name]) for name in ("query", "key", "value")]
    block = {
        "query_key_value": tuple(np.concatenate(parts) for parts in zip(*each, strict=True)),
        "out": _dense(attention["out"]),
    }
    block |= {name: _norm(params.get(name, {})) for name in ("attention_norm", "mlp_norm")}
    names = ("mlp_in", "mlp_out", "modulation")
    return block | {name: _dense(params[name]) for name in names if name in params}


def _dense(params: Mapping[str, Any]) -> Dense:
    """Of a dense layer, whose heads become one axis."""
    bias = _copy(params["bias"]).reshape(-1)
    return np.ascontiguousarray(_copy(params["kernel"]).reshape(-1, bias.size).T), bias


def _norm(params: Mapping[str, Any]) -> Dense:
    return tuple(_copy(params[name]) for name in ("scale", "bias") if name in params)


def _copy(array) -> np.ndarray:
    return np.array(array, np.float32)
