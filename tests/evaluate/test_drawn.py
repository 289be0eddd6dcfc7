import numpy as np
import pytest

from regvq_jax import sharding
from regvq_jax.evaluate.drawn import digest_of, draw_all, image_path


def batches(count=10, size=4):
    for start in range(0, count, size):
        index = start + np.arange(size)
        yield {"valid": index < count, "index": np.minimum(index, count - 1)}


class Drawer:
    """Draws the index as a grey, and stops at the batch of an index."""

    def __init__(self, stop_at=None):
        self.stop_at, self.drawn = stop_at, []

    def __call__(self, batch):
        if self.stop_at in batch["index"]:
            raise KeyboardInterrupt
        self.drawn += batch["index"][batch["valid"]].tolist()
        return np.repeat(batch["index"], 3 * 64).reshape(-1, 8, 8, 3).astype(np.uint8)


def greys(pairs):
    return [int(x) for batch, images in pairs for x in images[batch["valid"], 0, 0, 0]]


def test_what_is_there_is_not_drawn_again(tmp_path):
    stopped = Drawer(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        greys(draw_all(tmp_path / "a", batches(), stopped, 10))
    assert stopped.drawn == [0, 1, 2, 3]
    again = Drawer()
    assert greys(draw_all(tmp_path / "a", batches(), again, 10)) == list(range(10))
    assert again.drawn == list(range(4, 10))
    whole = Drawer()
    assert greys(draw_all(tmp_path / "a", batches(), whole, 10)) == list(range(10)) and not whole.drawn
    assert len(list((tmp_path / "a").iterdir())) == 10


def test_a_damaged_or_missing_file_is_drawn_again(tmp_path):
    greys(draw_all(tmp_path, batches(), Drawer(), 10))
    image_path(tmp_path, 1).write_bytes(b"half a pict")
    image_path(tmp_path, 9).unlink()
    again = Drawer()
    assert greys(draw_all(tmp_path, batches(), again, 10)) == list(range(10))
    assert again.drawn == [0, 1, 2, 3, 8, 9]


def test_the_digest_sees_every_bit_and_no_sharding():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(16, 8)).astype(np.float32), "b": rng.integers(0, 9, 16).astype(np.int32)}
    first = digest_of(tree, {"steps": 8})
    for mesh in (sharding.make_mesh(8, 1), sharding.make_mesh(2, 4)):
        assert digest_of(sharding.put_batch(tree, mesh), {"steps": 8}) == first
    assert digest_of(tree, {"steps": 9}) != first
    swapped = tree | {"a": tree["a"][::-1]}
    nudged = tree | {"a": np.nextafter(tree["a"], np.float32(9))}
    assert len({first, digest_of(swapped, {"steps": 8}), digest_of(nudged, {"steps": 8})}) == 3
    import jax.numpy as jnp

    assert digest_of(jnp.ones(3, jnp.bfloat16)) != digest_of(jnp.zeros(3, jnp.bfloat16))
