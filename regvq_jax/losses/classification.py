"""What a predicted label map is judged by: each pixel is one of C classes."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy: the classes of a pixel exclude one another.

    Args:
        logits: float [B, H, W, C].
        labels: int [B, H, W] in [0, C); any other label makes the loss NaN.

    Returns:
        float32 [], in nats a pixel: log C for even logits, whatever the labels.
    """
    pixels = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels.astype(jnp.int32)
    )
    return jnp.mean(pixels)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a yes-or-no question for each pixel and class, as taming-transformers has it.

    As a mean over the classes too, it is small next to a quantizer's terms where there are many classes.

    Args:
        logits: float [B, H, W, C], one question each: sigmoid(logit) is the chance of yes.
        labels: int [B, H, W] in [0, C); for any other label all answers are no.

    Returns:
        float32 [], in nats a question: log 2 for logits of 0.
    """
    answers = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), answers))


def pixel_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of pixels whose largest logit is that of their label.

    Args:
        logits: float [B, H, W, C].
        labels: int [B, H, W].

    Returns:
        float32 [] in [0, 1], no gradient.
    """
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


CLASSIFICATION_LOSSES = {"cross_entropy": cross_entropy, "bce": binary_cross_entropy}
