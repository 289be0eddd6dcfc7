import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax.evaluate.codebook import codebook_report, count_codes, dead_codes, perplexity, usage


def test_count_codes_of_a_padded_batch():
    codes = jnp.array([[[0, 1], [1, 3]], [[3, 3], [4, -1]], [[2, 2], [2, 2]]], jnp.int32)
    count = jax.jit(count_codes, static_argnums=1)
    counts = count(codes, 4)  # 4 is the mask id, -1 a padding
    assert counts.dtype == jnp.int32
    assert counts.tolist() == [1, 2, 4, 3]
    assert count(codes, 4, jnp.array([True, True, False])).tolist() == [1, 2, 0, 3]
    assert count(codes, 4, codes == 3).tolist() == [0, 0, 0, 3]


def test_usage_and_dead_codes():
    counts = np.array([5, 0, 1, 0])
    assert usage(counts) == 0.5
    assert dead_codes(counts).tolist() == [1, 3]
    assert usage(jnp.array([1, 1])) == 1.0


def test_perplexity():
    assert perplexity(np.full(8, 3)) == pytest.approx(8.0)
    assert perplexity(np.array([0, 7, 0])) == pytest.approx(1.0)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits.
    assert perplexity(np.array([2, 1, 1, 0])) == pytest.approx(2**1.5)
    assert perplexity(np.zeros(4, np.int64)) == 0.0


def test_the_report_is_json_and_lists_the_dead():
    report = codebook_report(np.array([0, 3, 3, 0], np.int32))
    assert json.loads(json.dumps(report)) == {
        "codebook_size": 4,
        "tokens": 6,
        "usage": 0.5,
        "perplexity": pytest.approx(2.0),
        "dead_codes": [0, 3],
        "counts": [0, 3, 3, 0],
    }
