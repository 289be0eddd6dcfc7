"""How many training images a second a source and its transforms make, without any training."""

import time
from collections.abc import Sequence

from absl import flags

from regvq_jax.data.pipeline import iterate, make_batches
from regvq_jax.data.sources import Source
from regvq_jax.data.transforms import Transform

_MIN_BATCHES = 3


def images_per_second(
    source: Source,
    transform_fns: Sequence[Transform],
    *,
    batch_size: int,
    num_threads: int,
    num_workers: int = 0,
    seconds: float = 3.0,
    seed: int = 0,
) -> float:
    """Reads training batches as fast as they come, for a while.

    Args:
        source: the training split.
        transform_fns: as of `pipeline.make_batches`.
        batch_size: images of one batch.
        num_threads, num_workers: as of `pipeline.iterate`; 0 threads make each batch when it is asked for.
        seconds: to measure for, at least; begins after the first batch, which starts threads and workers.
        seed: of the order, in which pictures are read.

    Returns:
        Images a second.
    """
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers ask absl's flags.
    batches = iterate(
        make_batches(source, transform_fns, batch_size=batch_size, seed=seed),
        num_threads=num_threads,
        num_workers=num_workers,
    )
    try:
        # What threads made before the clock starts must not count: let their buffers run dry first.
        for _ in range(1 + 2 * max(num_threads, 1) * max(num_workers, 1) * bool(num_threads)):
            next(batches)
        count, begin = 0, time.perf_counter()
        while count < _MIN_BATCHES or time.perf_counter() - begin < seconds:
            next(batches)
            count += 1
        return count * batch_size / (time.perf_counter() - begin)
    finally:
        batches.close()
