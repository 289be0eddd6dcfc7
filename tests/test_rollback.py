import math

import pytest

from regvq_jax.errors import UserError
from regvq_jax.rollback import (
    MAX_ROLLBACKS,
    MIN_WINDOWS,
    LossSpike,
    SpikeWatch,
    note_rollback,
    skipped_batches,
)


def test_a_spike_is_above_a_factor_of_the_usual():
    watch = SpikeWatch(3.0)
    for step in range(MIN_WINDOWS):
        watch(step, 1.0)
    watch(8, math.nan)  # Of steps that were all skipped: it must not become the usual.
    watch(9, 2.9)
    with pytest.raises(LossSpike, match="from 1 to 3.1 before step 10") as caught:
        watch(10, 3.1)
    assert caught.value.step == 10


def test_too_few_losses_negative_ones_and_no_factor_are_no_reason():
    early = SpikeWatch(3.0)
    early(1, 1.0)
    early(2, 100.0)
    for watch, losses in ((SpikeWatch(3.0), [-1.0] * 9 + [50.0]), (SpikeWatch(0.0), [1.0] * 9 + [50.0])):
        for step, loss in enumerate(losses):
            watch(step, loss)


def test_batches_that_were_left_out_add_up_until_it_is_enough(tmp_path):
    assert skipped_batches(tmp_path) == 0
    for restart in range(MAX_ROLLBACKS):
        note_rollback(tmp_path, LossSpike(restart + 2, 9.0, 1.0), restart, "toy")
    assert skipped_batches(tmp_path) == 2 * MAX_ROLLBACKS
    with pytest.raises(UserError, match="toy: the loss jumped .* 3 returns to a checkpoint have not helped"):
        note_rollback(tmp_path, LossSpike(9, 9.0, 1.0), 7, "toy")
