"""Regularized vector quantization in JAX: images to tokens, tokens to images."""

import importlib

__version__ = "0.1.0"
__all__ = ["Prior", "Tokenizer", "__version__"]


def __getattr__(name: str):
    # Imported when first used: `import regvq_jax.quantize` should not load checkpoints and data readers.
    if name in ("Prior", "Tokenizer"):
        return getattr(importlib.import_module("regvq_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
