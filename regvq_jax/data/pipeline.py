"""From a source to batches with Grain; the position in the data is nothing but the step.

Order of the operations, and why: the random transforms come before the slice of the process,
because Grain seeds `random_map` with the index it sees, and that has to be the global one. So
element i of the global order looks the same however many processes, threads or workers there are,
and a run resumes at any step. Processes have runs of neighbouring rows: a global batch has its rows
in the same order, too, so that noise which is drawn for a row meets the same image.
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from regvq_jax.data.sources import Source
from regvq_jax.data.transforms import Element, Transform
from regvq_jax.errors import UserError

Batch = dict[str, np.ndarray]


def make_batches(
    source: Source,
    transform_fns: Sequence[Transform],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Makes the endless, shuffled training batches: `batches[step]` is this process's part of it.

    Every epoch visits every element once, in an order of its own; batches cross the border between
    epochs. Process p has the rows from p * batch_size / process_count on.

    Args:
        source: random access to elements.
        transform_fns: see `regvq_jax.data.transforms`; called in this order with one generator.
        batch_size: of all processes together.
        seed: of shuffling and augmentation, at least 0.
        process_index: this process.
        process_count: all of them; must divide `batch_size`.

    Returns:
        Random access to dicts of arrays [batch_size / process_count, ...]; strings are left out.

    Raises:
        UserError: an empty source, a negative seed, or a batch that cannot be shared out evenly.
    """
    local_size = _local_batch_size(batch_size, process_index, process_count)
    if len(source) == 0:
        raise UserError(f"Data source {source.name!r} is empty: there is nothing to train on.")
    if seed < 0:
        raise UserError(f"The data seed must be at least 0, got {seed}.")
    elements = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    elements = elements.random_map(functools.partial(_apply, transform_fns=tuple(transform_fns)))
    parts = elements.batch(local_size, drop_remainder=True, batch_fn=stack_elements)
    return parts.slice(slice(process_index, None, process_count))


def iterate(
    batches: grain.MapDataset, start_step: int = 0, *, num_threads: int = 2, num_workers: int = 0
) -> Iterator[Batch]:
    """Yields `batches[start_step]`, `batches[start_step + 1]`, ... made ahead of time.

    Args:
        batches: from `make_batches`.
        start_step: the step of the train state; nothing else has to be restored.
        num_threads: threads (of each worker) that make one batch each, ahead of time; 0 makes each
            batch when it is asked for.
        num_workers: worker processes; needs parsed absl flags and a main guard in the program.

    Returns:
        An iterator with a `close()` that ends its threads and workers.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    dataset = batches.slice(slice(start_step, None)).to_iter_dataset(options)
    if num_workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        )
    return iter(dataset)


def evaluation_batches(
    source: Source,
    transform_fns: Sequence[Transform],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    num_threads: int = 2,
) -> Iterator[Batch]:
    """Yields every element once, in the source's order, with the last batch padded.

    Args:
        source: random access to elements.
        transform_fns: called with rng None, so that nothing is random.
        batch_size: of all processes together.
        process_index: this process.
        process_count: all of them; must divide `batch_size`.
        num_threads: threads that make one batch each ahead of time; 0 makes them when asked.

    Returns:
        An iterator of ceil(len(source) / batch_size) dicts of arrays
        [batch_size / process_count, ...]; among them "valid": bool [batch_size / process_count],
        False on the copies of the last element that fill the last batch, and "index": int32, the
        element's place in the source.

    Raises:
        UserError: an empty source, or a batch that cannot be shared out evenly.
    """
    local_size = _local_batch_size(batch_size, process_index, process_count)
    if len(source) == 0:
        raise UserError(f"Data source {source.name!r} is empty: there is nothing to evaluate on.")
    padded = -(-len(source) // batch_size) * batch_size
    element_fn = functools.partial(_evaluation_element, source=source, transform_fns=tuple(transform_fns))
    parts = grain.MapDataset.range(padded).map(element_fn).batch(local_size, batch_fn=stack_elements)
    batches = parts.slice(slice(process_index, None, process_count))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(batches.to_iter_dataset(options))


def stack_elements(elements: Sequence[Element]) -> Batch:
    """Stacks elements to a batch of arrays; strings ("text", "texts") are left out.

    Args:
        elements: B dicts with the same keys and shapes.

    Returns:
        Arrays [B, ...] by key.
    """
    keys = [key for key, value in elements[0].items() if not isinstance(value, (str, tuple))]
    return {key: np.stack([element[key] for element in elements]) for key in keys}


def _apply(
    element: Element, rng: np.random.Generator | None, *, transform_fns: tuple[Transform, ...]
) -> Element:
    for transform_fn in transform_fns:
        element = transform_fn(element, rng)
    return element


def _evaluation_element(index: int, *, source: Source, transform_fns: tuple[Transform, ...]) -> Element:
    place = min(index, len(source) - 1)
    element = _apply(source[place], None, transform_fns=transform_fns)
    return {**element, "valid": np.bool_(index == place), "index": np.int32(place)}


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"Process {process_index} of {process_count} cannot be.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"A batch size of {batch_size} cannot be shared out evenly to {process_count} "
            f"processes: choose a multiple of {process_count}."
        )
    return batch_size // process_count
