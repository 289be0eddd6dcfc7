from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.evaluate.prior import PriorLoss
from regvq_jax.models.conditioners import ClassConditioner
from regvq_jax.models.prior import PriorNet, make_room
from regvq_jax.trainers.autoregressive import AutoregressivePrior
from regvq_jax.trainers.build_prior import bound
from regvq_jax.trainers.diffusion import DiffusionPrior
from regvq_jax.trainers.masked import MaskedPrior

ROWS = 5
PRIORS = [AutoregressivePrior(), MaskedPrior(), DiffusionPrior(process="absorbing", schedule="linear")]


def make_evaluator(prior, conditioner, **batch):
    sizes = dict(dim=8, depth=1, num_heads=1, dropout=0.0)
    model = PriorNet(8, (2, 2), conditioner, causal=prior.causal, timed=prior.timed, **sizes)
    tokens = np.arange(ROWS * 4).reshape(ROWS, 4).astype(np.int32) % 8
    time = jnp.zeros(ROWS) if prior.timed else None
    params = model.init(jax.random.key(0), tokens, batch.get("condition"), None, time)["params"]
    params["to_logits"] = jax.tree.map(jnp.zeros_like, params["to_logits"])

    def batches():
        padded = {"tokens": np.resize(tokens, (8, 4))}
        padded |= {name: np.resize(value, (8, *value.shape[1:])) for name, value in batch.items()}
        yield padded | {"valid": np.arange(8) < ROWS}

    evaluator = PriorLoss(
        partial(bound, prior, model),
        lambda frozen, batch: (batch["tokens"], batch.get("condition")),
        batches,
        num_draws=2,
    )
    return evaluator, {"prior": params}


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_an_untrained_prior_of_zeros_costs_log_k(prior, one_device_mesh):
    """Logits of zeros: log 8 nats a token, 3 bits, with any condition; padded rows do not count."""
    classes = np.arange(ROWS, dtype=np.int32) % 3
    evaluator, ema = make_evaluator(prior, ClassConditioner(3, 8), condition=classes)
    for mesh in (one_device_mesh, sharding.make_mesh()):
        metrics = evaluator(ema, {}, mesh).metrics
        assert metrics["eval/prior/loss"] == pytest.approx(np.log(8), rel=1e-5)
        assert metrics["eval/prior/loss_shuffled"] == pytest.approx(np.log(8), rel=1e-5)
        assert metrics["eval/prior/bits_per_token"] == pytest.approx(3, rel=1e-5)


def test_an_unconditional_prior_has_no_shuffled_loss(one_device_mesh):
    evaluator, ema = make_evaluator(PRIORS[0], None)
    metrics = evaluator(ema, {}, one_device_mesh).metrics
    assert set(metrics) == {"eval/prior/loss", "eval/prior/bits_per_token"}


def test_the_bound_of_a_causal_prior_is_the_sum_of_its_steps():
    prior = PRIORS[0]
    model = PriorNet(8, (2, 2), causal=True, dim=8, depth=1, num_heads=1, dropout=0.0)
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 0]])
    params = model.init(jax.random.key(1), tokens)["params"]
    state, expected = make_room(model.apply({"params": params}, 2, method="start"), 4), np.zeros(2)
    before = jnp.array([8, 8])
    for position in range(4):
        state, logits = model.apply({"params": params}, state, before, jnp.int32(position), method="step")
        before = tokens[:, position]
        expected -= np.asarray(jax.nn.log_softmax(logits))[np.arange(2), before]
    nats = bound(prior, model, params, tokens, None, jax.random.key(0), 1)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
