import logging

import pytest

from regvq_jax.errors import UserError
from regvq_jax.metric_writers import JsonlWriter
from regvq_jax.watch import DiscriminatorWatch, UsageWatch, usage_history


@pytest.fixture
def warnings(caplog, monkeypatch):
    """A function that returns the warnings since it was last called."""
    monkeypatch.setattr(logging.getLogger("regvq_jax"), "propagate", True)  # setup_logging may have cut it

    def read():
        messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        caplog.clear()
        return messages

    return read


def window(real, fake):
    return {"train/loss": 1.0, "train/real_accuracy": real, "train/fake_accuracy": fake}


WON, PLAYED = window(0.994, 0.991), window(0.999, 0.97)


def test_discriminator_that_wins_is_warned_of_once_and_then_stopped(warnings):
    watch = DiscriminatorWatch(patience_steps=400)
    for step in (100, 200):
        watch(step, WON)
    assert warnings() == []
    watch(300, WON)
    (warning,) = warnings()
    assert "won for 200 steps, up to step 300: it tells 99.4% of the original and 99.1% of" in warning
    assert "lower loss.adversarial_weight" in warning and warning.endswith("stops at 400 such steps.")
    watch(400, WON)
    assert warnings() == []
    with pytest.raises(UserError, match="won for 400 steps, up to step 500: .* loss.r1_weight"):
        watch(500, WON)


def test_discriminator_that_loses_one_side_starts_anew(warnings):
    watch = DiscriminatorWatch(patience_steps=400)
    for step in range(100, 2000, 400):
        for later in (0, 100, 200):
            watch(step + later, WON)
        watch(step + 300, PLAYED)
    assert len(warnings()) == 5  # one for each time


def test_discriminator_that_may_win_or_does_not_play(warnings):
    endless, absent = DiscriminatorWatch(patience_steps=0), DiscriminatorWatch(patience_steps=1)
    for step in range(100, 1000, 100):
        endless(step, WON)
        absent(step, {"train/loss": 1.0})
    assert warnings() == []


def test_usage_that_falls_is_warned_of_once(warnings):
    watch = UsageWatch()
    watch(50, {"eval/psnr": 20.0})
    for step, usage in ((100, 0.5), (200, 0.8), (300, 0.73)):
        watch(step, {"codebook/usage": usage})
    assert warnings() == []
    watch(400, {"codebook/usage": 0.7})
    (warning,) = warnings()
    assert "from 80.0% at step 200 to 70.0% at step 400; raise loss.prior_kl_weight" in warning
    watch(500, {"codebook/usage": 0.4})
    assert warnings() == []
    for step, usage in ((600, 0.78), (700, 0.6)):  # recovered, and a second fall
        watch(step, {"codebook/usage": usage})
    assert len(warnings()) == 1


def test_usage_is_remembered_over_a_restart(tmp_path, warnings):
    path = tmp_path / "metrics.jsonl"
    assert usage_history(path) == []
    writer = JsonlWriter(path)
    writer.write_scalars(100, {"codebook/usage": 0.9, "eval/psnr": 20.0})
    writer.write_scalars(150, {"train/loss": 0.1})
    writer.write_scalars(200, {"codebook/usage": 0.85})
    assert usage_history(path) == [(100, 0.9), (200, 0.85)]

    UsageWatch(usage_history(path))(300, {"codebook/usage": 0.6})
    assert "from 90.0% at step 100 to 60.0% at step 300" in warnings()[0]
    writer.write_scalars(300, {"codebook/usage": 0.6})
    writer.close()
    UsageWatch(usage_history(path))(400, {"codebook/usage": 0.6})
    assert warnings() == []  # it was warned of before the restart
