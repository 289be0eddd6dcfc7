import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regvq_jax.errors import UserError
from regvq_jax.optim import OptimSettings, accumulate, make_optimizer, make_schedule


def test_warmup_then_cosine():
    settings = OptimSettings(lr=1.0, warmup_steps=10, final_lr_ratio=0.1)
    schedule = make_schedule(settings, total_steps=110)
    assert [float(schedule(s)) for s in (0, 5, 10)] == pytest.approx([0.0, 0.5, 1.0])
    assert float(schedule(60)) == pytest.approx(0.55)
    assert float(schedule(110)) == pytest.approx(0.1)
    constant = make_schedule(OptimSettings(lr=0.3, schedule="constant"), 10)
    assert float(constant(0)) == float(constant(10)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "settings, words",
    [
        (OptimSettings(lr=1.0, schedule="cosin"), "cosine"),
        (OptimSettings(lr=1.0, warmup_steps=10), "warmup_steps"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        make_schedule(settings, total_steps=10)


def test_decay_touches_kernels_only():
    settings = OptimSettings(lr=1.0, schedule="constant", weight_decay=0.1)
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))},
        "codebook": jnp.ones((2, 2)),
    }
    optimizer = make_optimizer(settings, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert np.allclose(updates["dense"]["kernel"], -0.1)
    assert not np.any(updates["dense"]["bias"]) and not np.any(updates["codebook"])


def test_clipping_bounds_the_global_norm():
    settings = OptimSettings(lr=1.0, schedule="constant", clip_norm=1.0, b1=0.0, b2=0.0)
    optimizer = make_optimizer(settings, 10)
    assert isinstance(optimizer, optax.GradientTransformation)
    params = {"w": jnp.zeros(2)}
    clipped, _ = optax.clip_by_global_norm(1.0).update({"w": jnp.array([3.0, 4.0])}, optax.EmptyState())
    np.testing.assert_allclose(clipped["w"], [0.6, 0.8], rtol=1e-6)
    # Adam with b1 = b2 = 0 divides by |g|: equal steps, whatever the clipping, but finite.
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-1.0, -1.0], rtol=1e-3)


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(slices):
    batch = {"x": jnp.arange(8.0), "y": jnp.arange(8.0) ** 2}

    def gradients(batch, index):
        loss, grad = jax.value_and_grad(lambda w: jnp.mean((w * batch["x"] - batch["y"]) ** 2))(2.0)
        return {"w": grad}, {"loss": loss, "index": index.astype(jnp.float32)}

    grads, metrics = accumulate(gradients, batch, slices)
    expected, _ = gradients(batch, jnp.zeros((), jnp.int32))
    assert float(grads["w"]) == pytest.approx(float(expected["w"]))
    # Each slice has its own index, so that its random draws differ.
    assert float(metrics["index"]) == pytest.approx((slices - 1) / 2)
