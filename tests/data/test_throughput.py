"""Images a second of a source whose speed is known."""

import time

import numpy as np

from regvq_jax.data.throughput import images_per_second


class Slow:
    """Elements that take 4 ms each, whatever else goes on."""

    name = "slow"

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(0.004)
        return {"image": np.zeros((2, 2, 3), np.uint8)}


def test_speed_is_what_the_source_gives_and_threads_add_up():
    one = images_per_second(Slow(), [], batch_size=8, num_threads=0, seconds=0.5)
    assert 50 < one < 251
    # What was made before the clock started would show as more than four times 250.
    four = images_per_second(Slow(), [], batch_size=8, num_threads=4, seconds=0.5)
    assert 1.3 * one < four < 1100
