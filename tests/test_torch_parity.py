"""The paper's equations once more in torch: values and gradients by another autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import losses, quantize
from regvq_jax.quantize.noise import draw, gumbel_noise

torch = pytest.importorskip("torch", reason="needs the extra [parity]")


def to_torch(x, requires_grad=False):
    return torch.tensor(np.asarray(x, np.float32), requires_grad=requires_grad)


def test_contrastive_losses():
    y, z = (losses.normalize(x) for x in jax.random.normal(jax.random.key(0), (2, 2, 6, 4)))
    weights = jax.random.uniform(jax.random.key(1), (2, 6)).at[:, 0].set(0.0)
    tau = 0.2
    cl, cl_grad = jax.value_and_grad(lambda z: losses.contrastive_loss(y, z, temperature=tau))(z)
    pcl, pcl_grad = jax.value_and_grad(
        lambda z: losses.probabilistic_contrastive_loss(y, z, weights, temperature=tau)
    )(z)

    ty, tw = to_torch(y), to_torch(weights)
    for value, grad, weighted in ((cl, cl_grad, False), (pcl, pcl_grad, True)):
        tz = to_torch(z, requires_grad=True)
        similarity = torch.einsum("bic,bjc->bij", ty, tz) / tau
        if weighted:
            share = tw / tw.sum(-1, keepdim=True)
            eye = torch.eye(6)
            terms = similarity.exp() * (eye * share[..., None] + (1 - eye) / 6)
            expected = (terms.sum(-1).log() - torch.diagonal(similarity, dim1=1, dim2=2)).mean()
        else:
            target = torch.arange(6).repeat(2)
            expected = torch.nn.functional.cross_entropy(similarity.reshape(12, 6), target)
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        np.testing.assert_allclose(grad, tz.grad.numpy(), atol=1e-6)


def test_straight_through_and_prior_kl():
    """Hard forward, soft backward: `hard + soft - soft.detach()`, through decoder path and eq. 1 at once."""
    key = jax.random.key(4)
    logits = jax.random.normal(jax.random.key(2), (2, 3, 3, 8))
    codebook = jax.random.normal(jax.random.key(3), (8, 5))
    cotangent = jax.random.normal(jax.random.key(5), (2, 3, 3, 5))
    temperature = 0.7

    def value(logits, codebook):
        out = quantize.regularized(key, logits, codebook, mask_ratio=0.5, temperature=temperature)
        return jnp.sum(out.quantized * cotangent) + quantize.prior_kl(out.posterior), out

    grads, out = jax.grad(value, argnums=(0, 1), has_aux=True)(logits, codebook)
    assert 0 < out.stochastic_mask.mean() < 1

    # The same noise, as the quantizer draws it.
    draws = draw(key, 2, 9, 0.5)
    noise = gumbel_noise(draws.row_keys, jnp.arange(8)).reshape(logits.shape)
    noise = jnp.where(out.stochastic_mask[..., None], noise, 0.0)
    t_logits, t_codebook = to_torch(logits, True), to_torch(codebook, True)
    noisy = t_logits + to_torch(noise)
    soft = torch.softmax(noisy / temperature, -1)
    hard = torch.nn.functional.one_hot(noisy.argmax(-1), 8).float()
    assignment = hard + soft - soft.detach()
    # The soft path carries gradient to the logits only, as codebook vectors move by the decoder alone.
    quantized = hard @ t_codebook + (soft - soft.detach()) @ t_codebook.detach()
    shares = assignment.mean((0, 1, 2))
    kl = (shares * torch.log(8 * shares.clamp(min=1e-8))).sum()
    ((quantized * to_torch(cotangent)).sum() + kl).backward()
    np.testing.assert_array_equal(out.codes, noisy.argmax(-1).numpy())
    np.testing.assert_allclose(grads[0], t_logits.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(grads[1], t_codebook.grad.numpy(), atol=1e-5)
