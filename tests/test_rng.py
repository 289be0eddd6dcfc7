import jax
import numpy as np

from regvq_jax import rng

QUANTIZER_KEY = [1947217677, 1737973998]


def draw(key):
    return np.asarray(jax.random.uniform(key, (4,)))


def test_a_draw_is_a_function_of_seed_name_and_step():
    first = draw(rng.step_key(0, "quantizer", 3))
    np.testing.assert_array_equal(first, draw(rng.step_key(0, "quantizer", 3)))
    for other in (
        rng.step_key(1, "quantizer", 3),
        rng.step_key(0, "mask", 3),
        rng.step_key(0, "quantizer", 4),
    ):
        assert not np.array_equal(first, draw(other))


def test_traced_steps_draw_what_numbers_draw():
    traced = jax.jit(lambda step: jax.random.uniform(rng.step_key(0, "quantizer", step), (4,)))
    np.testing.assert_array_equal(traced(7), draw(rng.step_key(0, "quantizer", 7)))


def test_names_have_fixed_keys():
    """Runs of other versions and machines must be repeatable: the hash of a name may never change."""
    key = rng.fold_in_name(jax.random.key(0), "quantizer")
    np.testing.assert_array_equal(jax.random.key_data(key), QUANTIZER_KEY)
