"""Contrastive losses between places of the original and of the reconstruction (paper equations 2 and 3)."""

import jax
import jax.numpy as jnp


def contrastive_loss(keys: jax.Array, queries: jax.Array, *, temperature: float = 0.07) -> jax.Array:
    """InfoNCE over places: pulls each place to itself and away from the others (paper equation 2).

    -(1/L) sum_i log( exp(y_i.z_i / tau) / sum_j exp(y_i.z_j / tau) ), mean over the batch.

    Args:
        keys: float [B, L, C], features y of the original, of unit length; no gradient flows into them.
        queries: float [B, L, C], features z of the reconstruction at the same places, of unit length.
        temperature: tau.

    Returns:
        float32 [], between 0 and about log L + 2 / tau.
    """
    similarity = _similarity(keys, queries, temperature)
    positive = jnp.diagonal(similarity, axis1=-2, axis2=-1)
    return jnp.mean(jax.nn.logsumexp(similarity, -1) - positive)


def probabilistic_contrastive_loss(
    keys: jax.Array, queries: jax.Array, weights: jax.Array, *, temperature: float = 0.07
) -> jax.Array:
    """The contrastive loss with a weaker pull where sampling perturbed the token more (paper equation 3).

    With s_i = y_i.z_i / tau, c_i = (1/L) sum_{j != i} exp(y_i.z_j / tau) and w' = weights / sum(weights),
    each place contributes log(w'_i e^{s_i} + c_i) - s_i. That is the paper's term without its constant
    -log w'_i, which has no gradient and is infinite at w'_i = 0, the value of every place that was not
    sampled. Where an image's weights are all 0, w' is the uniform 1/L, and the loss is then
    `contrastive_loss` minus log L. The paper's sum over places is a mean here, over places and batch.

    Args:
        keys: float [B, L, C], features y of the original, of unit length; no gradient flows into them.
        queries: float [B, L, C], features z of the reconstruction at the same places, of unit length.
        weights: float [B, L], perturbation w >= 0 of the token at each place; no gradient.
        temperature: tau.

    Returns:
        float32 [], possibly negative.
    """
    length = keys.shape[-2]
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    total = jnp.sum(weights, -1, keepdims=True)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 1.0 / length)

    similarity = _similarity(keys, queries, temperature)
    positive = jnp.diagonal(similarity, axis1=-2, axis2=-1)
    # Row i holds the logarithms of the shares in place i's denominator. log 0 = -inf is meant: the term
    # vanishes, and logsumexp gives it a zero gradient.
    is_positive = jnp.eye(length, dtype=bool)
    log_share = jnp.where(is_positive, jnp.log(weights)[..., None], -jnp.log(length))
    return jnp.mean(jax.nn.logsumexp(similarity + log_share, -1) - positive)


def sample_places(
    key: jax.Array, keys: jax.Array, queries: jax.Array, perturbation: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the places of one feature map that a contrastive loss compares, the same for every image.

    Args:
        key: a random key.
        keys: float [B, h', w', C], features of the original.
        queries: float [B, h', w', C], features of the reconstruction.
        perturbation: float [B, h, w], weight of each token; every place takes that of the nearest token.
        count: how many places, without repetition; all of them where the map has fewer.

    Returns:
        keys [B, L, C], queries [B, L, C] and weights [B, L] with L = min(count, h' * w').
    """
    batch, height, width, channels = keys.shape
    token_height, token_width = perturbation.shape[1:]
    places = jax.random.permutation(key, height * width)[:count]
    token_rows = (places // width) * token_height // height
    token_columns = (places % width) * token_width // width
    return (
        keys.reshape(batch, height * width, channels)[:, places],
        queries.reshape(batch, height * width, channels)[:, places],
        perturbation[:, token_rows, token_columns],
    )


def _similarity(keys, queries, temperature):
    """y_i.z_j / tau as float32 [B, L, L], row i = key i."""
    keys = jax.lax.stop_gradient(keys.astype(jnp.float32))
    queries = queries.astype(jnp.float32)
    return jnp.einsum("bic,bjc->bij", keys, queries) / temperature
