import pytest

from regvq_jax.errors import UserError
from regvq_jax.models.encoder import Encoder
from regvq_jax.settings import DataSettings, TrainSettings, choose, from_config


def test_lists_become_tuples_and_defaults_hold():
    module = from_config(Encoder, {"multipliers": [1, 2]}, "model")
    assert module.multipliers == (1, 2) and module.channels == 128
    assert from_config(DataSettings, {"source": "emoji", "image_size": 8}, "data").num_workers == 0


@pytest.mark.parametrize(
    "cls, group, words",
    [
        (TrainSettings, {"batch_size": 8, "total_step": 8}, 'train.total_step .*"total_steps"'),
        (TrainSettings, {"batch_size": 8}, "total_steps is missing"),
        (TrainSettings, {"batch_size": 8, "total_steps": 0}, "at least 1"),
        (Encoder, {"chanels": 8}, '"channels"'),
    ],
)
def test_mistakes_are_named_with_the_nearest_name(cls, group, words):
    with pytest.raises(UserError, match=words):
        from_config(cls, group, "train")


def test_choose():
    assert choose({"cosine": 1}, "cosine", "schedule") == 1
    with pytest.raises(UserError, match='schedule="cosin" is unknown. Did you mean "cosine"'):
        choose({"cosine": 1, "linear": 2}, "cosin", "schedule")
