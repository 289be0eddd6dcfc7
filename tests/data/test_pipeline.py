import functools
import itertools
import time

import numpy as np
import pytest

from regvq_jax.data.pipeline import evaluation_batches, iterate, make_batches, stack_elements
from regvq_jax.errors import UserError


class NumberSource:
    """Element i is the number i, as an image and a caption."""

    name = "numbers"
    fingerprint = "0" * 16
    has_text = True
    has_labels = False

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        return {"image": np.full((2, 2, 3), index, np.int32), "text": f"number {index}"}


def add_noise(element, rng):
    noise = -1 if rng is None else rng.integers(1 << 30)
    return {**element, "noise": np.int64(noise)}


def keep_numbers(element, rng):
    return {"image": element["image"][0, 0, 0], "noise": element["noise"]}


TRANSFORMS = (add_noise, keep_numbers)


def numbers(batches, steps):
    return np.concatenate([batches[step]["image"] for step in range(steps)])


def test_a_batch_is_arrays_only():
    batch = make_batches(NumberSource(5), (), batch_size=3, seed=0)[0]
    assert batch.keys() == {"image"} and batch["image"].shape == (3, 2, 2, 3)


def test_every_epoch_has_every_element_once_in_its_own_order():
    batches = make_batches(NumberSource(10), TRANSFORMS, batch_size=4, seed=3)
    epochs = numbers(batches, 10).reshape(4, 10)  # Batches cross the border between epochs.
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = make_batches(NumberSource(10), TRANSFORMS, batch_size=4, seed=4)
    assert list(numbers(other, 10)) != list(epochs.ravel())


def test_augmentation_differs_between_epochs_and_seeds():
    steps = range(30)
    batches = make_batches(NumberSource(1), TRANSFORMS, batch_size=1, seed=0)
    noise = [int(batches[step]["noise"][0]) for step in steps]
    other = make_batches(NumberSource(1), TRANSFORMS, batch_size=1, seed=1)
    assert len(set(noise)) == 30
    assert not set(noise) & {int(other[step]["noise"][0]) for step in steps}
    assert noise == [int(batches[step]["noise"][0]) for step in steps]


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_join_to_the_same_global_batches(process_count):
    make = functools.partial(make_batches, NumberSource(11), TRANSFORMS, batch_size=8, seed=5)
    whole = make()
    parts = [make(process_index=p, process_count=process_count) for p in range(process_count)]
    for step in (0, 1, 2, 7, 1000):
        for key in ("image", "noise"):
            merged = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(merged, whole[step][key])


def test_ten_thousand_images_over_processes_and_a_resume():
    """Every index once an epoch; the rest of the order after a stop; whatever the number of processes."""
    length, batch_size = 10_000, 400
    make = functools.partial(make_batches, NumberSource(length), TRANSFORMS, batch_size=batch_size, seed=1)
    steps = 2 * length // batch_size
    whole = np.stack([batch["image"] for batch in itertools.islice(iterate(make()), steps)])
    for epoch in np.split(whole.ravel(), 2):
        assert np.array_equal(np.sort(epoch), np.arange(length))
    for process_count in (2, 4):
        stop = 17 + process_count  # somewhere
        parts = []
        for p in range(process_count):
            batches = make(process_index=p, process_count=process_count)
            before = itertools.islice(iterate(batches), stop)
            # A process that begins anew at the step of the checkpoint goes on as if nothing had been.
            after = itertools.islice(iterate(batches, stop), steps - stop)
            parts.append(np.stack([batch["image"] for batch in (*before, *after)]))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_iterate_starts_at_any_step(num_threads):
    batches = make_batches(NumberSource(7), TRANSFORMS, batch_size=3, seed=0)
    for start in (0, 5, 123_456):
        iterator = iterate(batches, start, num_threads=num_threads)
        for step, batch in zip(range(start, start + 6), iterator, strict=False):
            assert batch.keys() == {"image", "noise"}
            for key, value in batch.items():
                np.testing.assert_array_equal(value, batches[step][key])
        iterator.close()


def test_a_long_source_starts_at_once():
    begin = time.perf_counter()
    batches = make_batches(NumberSource(1 << 20), TRANSFORMS, batch_size=64, seed=0)
    drawn = numbers(batches, 4)
    assert time.perf_counter() - begin < 1.0  # A permutation in memory, or a list, would show.
    assert len(set(drawn)) == 256 and drawn.max() > 1 << 19


def test_errors_of_the_source_reach_the_loop():
    class Broken(NumberSource):
        def __getitem__(self, index):
            raise UserError("too many bad images")

    iterator = iterate(make_batches(Broken(3), (), batch_size=2, seed=0), 0, num_threads=2)
    with pytest.raises(UserError, match="too many bad images"):
        next(iterator)


def test_bad_arguments():
    source = NumberSource(4)
    with pytest.raises(UserError, match="6 cannot be shared out evenly to 4 processes"):
        make_batches(source, (), batch_size=6, seed=0, process_count=4)
    with pytest.raises(UserError, match="6 cannot be shared"):
        evaluation_batches(source, (), 6, 0, 4)
    with pytest.raises(UserError, match=r"numbers.*is empty"):
        make_batches(NumberSource(0), (), batch_size=2, seed=0)
    with pytest.raises(UserError, match=r"numbers.*is empty"):
        evaluation_batches(NumberSource(0), (), 2)
    with pytest.raises(UserError, match="seed"):
        make_batches(source, (), batch_size=2, seed=-1)
    with pytest.raises(ValueError, match="Process 2 of 2"):
        make_batches(source, (), batch_size=2, seed=0, process_index=2, process_count=2)


@pytest.mark.parametrize("length", [1, 4, 5, 7, 8])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_evaluation_sees_every_element_once(length, process_count):
    parts = [
        list(evaluation_batches(NumberSource(length), TRANSFORMS, 4, p, process_count))
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-length // 4)}
    seen = []
    for batches in zip(*parts, strict=True):
        images = np.concatenate([batch["image"] for batch in batches])
        valid = np.concatenate([batch["valid"] for batch in batches])
        assert valid.shape == (4,) and valid.dtype == bool
        assert (images[~valid] == length - 1).all()
        seen += images[valid].tolist()
        assert all((batch["noise"] == -1).all() for batch in batches)  # Nothing random.
    assert seen == list(range(length))


def test_stack_elements():
    elements = [{"a": np.zeros(2), "n": i, "text": "x", "texts": ("x",)} for i in range(3)]
    batch = stack_elements(elements)
    assert batch.keys() == {"a", "n"} and batch["a"].shape == (3, 2)
    np.testing.assert_array_equal(batch["n"], [0, 1, 2])
