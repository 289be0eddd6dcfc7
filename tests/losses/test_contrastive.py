"""Paper equations 2 and 3 against sums written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses

TAU = 0.3
B, L, C = 2, 5, 4


@pytest.fixture(scope="module")
def features():
    y, z = jax.random.normal(jax.random.key(0), (2, B, L, C))
    return losses.normalize(y), losses.normalize(z)


def paper_terms(y, z, weights, tau):
    """Equation 3, term by term, without the constant -log w', as a mean over places."""
    y, z, weights = (np.asarray(x, np.float64) for x in (y, z, weights))
    terms = []
    for b in range(y.shape[0]):
        length = y.shape[1]
        share = weights[b] / weights[b].sum()
        for i in range(length):
            positive = np.exp(y[b, i] @ z[b, i] / tau)
            rest = sum(np.exp(y[b, i] @ z[b, j] / tau) for j in range(length) if j != i) / length
            terms.append(np.log(share[i] * positive + rest) - np.log(positive))
    return np.mean(terms)


def test_contrastive_value(features):
    y, z = (np.asarray(x, np.float64) for x in features)
    expected = []
    for b in range(B):
        for i in range(L):
            row = np.exp(z[b] @ y[b, i] / TAU)
            expected.append(-np.log(row[i] / row.sum()))
    value = losses.contrastive_loss(*features, temperature=TAU)
    assert value == pytest.approx(np.mean(expected), rel=1e-5)


def test_contrastive_gradient(features):
    """d/dz_j = sum_i (p_ij - [i = j]) y_i / tau, with p_i the softmax over the places; the keys get none."""
    to_keys, to_queries = jax.grad(
        lambda y, z: losses.contrastive_loss(y, z, temperature=TAU), argnums=(0, 1)
    )(*features)
    y, z = (np.asarray(x, np.float64) for x in features)
    shares = np.exp(np.einsum("bic,bjc->bij", y, z) / TAU)
    shares /= shares.sum(-1, keepdims=True)
    expected = np.einsum("bij,bic->bjc", shares - np.eye(L), y) / TAU / (B * L)
    np.testing.assert_allclose(to_queries, expected, atol=1e-6)
    assert not to_keys.any()


@pytest.mark.parametrize("zeros", [0, 3, 4])
def test_probabilistic_value(features, zeros):
    weights = jnp.arange(1.0, L + 1).at[:zeros].set(0.0) * jnp.array([[1.0], [10.0]])
    value = losses.probabilistic_contrastive_loss(*features, weights, temperature=TAU)
    assert value == pytest.approx(paper_terms(*features, weights, TAU), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_equal_weights_give_the_plain_loss_less_log_l(features, weight):
    plain = losses.contrastive_loss(*features, temperature=TAU)
    weights = jnp.full((B, L), weight)
    value = losses.probabilistic_contrastive_loss(*features, weights, temperature=TAU)
    assert value == pytest.approx(float(plain) - np.log(L), rel=1e-4)


def test_gradient_is_minus_c_over_w_exp_s_plus_c(features):
    """The pull on the positive, -c / (w' e^s + c), per place; a larger weight pulls more weakly."""
    y, z = (x[:1] for x in features)
    weights = jnp.array([[0.0, 1.0, 2.0, 3.0, 10.0]])
    share = np.asarray(weights[0]) / 16.0

    def loss_of_positive(shift):
        # z_i moves along y_i only in the positive pair: shift s_i itself.
        similarity = jnp.einsum("bic,bjc->bij", y, z) / TAU
        similarity = similarity + jnp.diag(shift)
        identity = jnp.eye(L)[None]
        return losses.probabilistic_contrastive_loss(
            identity, jnp.swapaxes(similarity, 1, 2), weights, temperature=1.0
        )

    s = np.exp(np.asarray(jnp.einsum("bic,bjc->bij", y, z)[0], np.float64) / TAU)
    c = (s.sum(1) - np.diag(s)) / L
    expected = -c / (share * np.diag(s) + c) / L
    np.testing.assert_allclose(jax.grad(loss_of_positive)(jnp.zeros(L)), expected, rtol=1e-4)
    pull = -jax.grad(loss_of_positive)(jnp.zeros(L)) * L
    assert pull[0] == pytest.approx(1.0, rel=1e-5) and pull[4] < 1.0


@pytest.mark.parametrize("weights", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("tau", [0.005, 1.0])
def test_finite_at_the_edges(features, weights, tau):
    y, z = features
    z = z.at[:, 0].set(0.0)
    weights = jnp.zeros((B, L)).at[:, 1].set(weights)

    def value(y, z, weights):
        return losses.probabilistic_contrastive_loss(y, z, weights, temperature=tau)

    result, grads = jax.value_and_grad(value, argnums=(0, 1, 2))(y, z, weights)
    assert np.isfinite(result) and all(np.isfinite(g).all() for g in grads)
    # Only the reconstruction learns.
    assert not np.any(grads[0]) and np.any(grads[1]) and not np.any(grads[2])


def test_sample_places_takes_matching_places_and_the_nearest_tokens_weight():
    height = width = 8
    keys = jnp.broadcast_to(jnp.arange(height * width).reshape(1, height, width, 1), (2, 8, 8, 1))
    perturbation = jnp.arange(2 * 4 * 4).reshape(2, 4, 4)
    y, z, weights = losses.sample_places(jax.random.key(0), keys, -keys, perturbation, 20)
    places = np.asarray(y[0, :, 0])
    assert len(set(places)) == 20
    np.testing.assert_array_equal(y, -z)
    for b in range(2):
        expected = perturbation[b][places // 8 // 2, places % 8 // 2]
        np.testing.assert_array_equal(weights[b], expected)
    y, _, _ = losses.sample_places(jax.random.key(0), keys, keys, perturbation, 256)
    assert y.shape == (2, 64, 1)
