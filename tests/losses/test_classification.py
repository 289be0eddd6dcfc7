import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.losses.classification import binary_cross_entropy, cross_entropy, pixel_accuracy

# Two pixels, two classes: softmax (1/4, 3/4) and (1/2, 1/2), sigmoid (1/2, 3/4) and (1/2, 1/2).
LOGITS = jnp.log(jnp.array([[[[1.0, 3.0], [1.0, 1.0]]]]))
LABELS = jnp.array([[[0, 1]]], jnp.uint8)


def test_cross_entropy_by_hand():
    value, gradient = jax.value_and_grad(cross_entropy)(LOGITS, LABELS)
    assert value == pytest.approx((np.log(4) + np.log(2)) / 2)
    np.testing.assert_allclose(gradient[0, 0], [[-3 / 8, 3 / 8], [1 / 4, -1 / 4]], rtol=1e-5)
    assert cross_entropy(jnp.zeros((1, 1, 2, 25)), LABELS) == pytest.approx(np.log(25))


def test_binary_cross_entropy_by_hand():
    value, gradient = jax.value_and_grad(binary_cross_entropy)(LOGITS, LABELS)
    # Yes to class 0 at 1/2, no to class 1 at 3/4; then both at 1/2.
    assert value == pytest.approx((np.log(2) + np.log(4) + 2 * np.log(2)) / 4)
    np.testing.assert_allclose(gradient[0, 0] * 4, [[-1 / 2, 3 / 4], [1 / 2, -1 / 2]], rtol=1e-5)
    assert binary_cross_entropy(jnp.zeros((1, 1, 2, 25)), LABELS) == pytest.approx(np.log(2))


@pytest.mark.parametrize("loss_fn", [cross_entropy, binary_cross_entropy])
def test_extreme_and_short_logits_stay_finite(loss_fn):
    logits = jnp.array([[[[1e4, -1e4, -1e4], [-1e4, 1e4, -1e4]]]], jnp.bfloat16)
    value, gradient = jax.value_and_grad(loss_fn)(logits, LABELS)
    assert value.dtype == jnp.float32 and value == 0
    assert np.all(np.isfinite(np.asarray(gradient, np.float32)))


def test_a_label_beyond_the_classes_is_noticed():
    assert np.isnan(cross_entropy(LOGITS, LABELS.at[0, 0, 0].set(2)))


def test_accuracy_is_the_share_of_right_pixels():
    logits = jax.nn.one_hot(jnp.array([[[0, 1], [24, 3]]]), 25)
    labels = jnp.array([[[0, 2], [24, 3]]], jnp.uint8)
    assert pixel_accuracy(logits, labels) == 0.75
