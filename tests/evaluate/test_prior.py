import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.evaluate.prior import MaskedLoss
from regvq_jax.models.prior import PriorNet
from regvq_jax.priors.schedules import cosine


def make_model(text_length):
    return PriorNet(
        codebook_size=8,
        grid=(2, 2),
        dim=8,
        depth=1,
        num_heads=1,
        dropout=0.0,
        text_length=text_length,
        text_depth=1,
        text_embed_dim=4,
    )


def test_an_untrained_prior_of_zeros_costs_log_k(one_device_mesh):
    """Logits of zeros: log 8 nats a token; padded rows do not count; captions then make no difference."""
    model = make_model(6)
    rows = 5
    text = make_tokenizer().encode([f"caption {i}" for i in range(rows)], 6)
    tokens = np.arange(rows * 4).reshape(rows, 4).astype(np.int32) % 8
    params = model.init(jax.random.key(0), tokens, text)["params"]
    params["to_logits"] = jax.tree.map(jnp.zeros_like, params["to_logits"])

    def batches():
        padded = {"tokens": np.resize(tokens, (8, 4)), "text_tokens": np.resize(text, (8, 6))}
        yield padded | {"valid": np.arange(8) < rows}

    evaluator = MaskedLoss(model, batches, cosine, num_masks=2)
    for mesh in (one_device_mesh, sharding.make_mesh()):
        metrics = evaluator({"prior": params}, {}, mesh).metrics
        assert metrics["eval/prior/loss"] == pytest.approx(np.log(8), rel=1e-5)
        assert metrics["eval/prior/loss_shuffled_text"] == pytest.approx(np.log(8), rel=1e-5)


def test_an_unconditional_prior_has_no_shuffled_loss(one_device_mesh):
    model = make_model(0)
    tokens = np.zeros((8, 4), np.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    evaluator = MaskedLoss(model, lambda: iter([{"tokens": tokens, "valid": np.ones(8, bool)}]), cosine)
    assert set(evaluator({"prior": params}, {}, one_device_mesh).metrics) == {"eval/prior/loss"}
