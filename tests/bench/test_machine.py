"""What a machine can do is measured once, and FLOPs and bytes are counted right."""

import jax
import jax.numpy as jnp
import pytest

from regvq_jax.bench import machine


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "SIDES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "ARRAY_BYTES", {"cpu": 2**12})
    caches = machine.memory_bandwidth, machine._matmul_peak
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_flops_of_a_chain_of_products(monkeypatch):
    monkeypatch.setattr(machine, "_fastest", lambda fn, matrix: 0.5)
    assert machine.matmul_peak(jnp.float32) == 2 * 4 * 64**3 / 0.5
    matrix = machine._matrix(64, "float32")
    counted = jax.jit(machine._chain).lower(matrix).cost_analysis()["flops"]
    assert counted == pytest.approx(2 * 4 * 64**3, rel=0.01)


def test_both_are_measured_once(monkeypatch):
    first = machine.matmul_peak(jnp.float32), machine.memory_bandwidth()
    assert min(first) > 0
    assert (machine.matmul_peak("float32"), machine.memory_bandwidth()) == first


def test_bytes_of_a_triad(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(clock)))
    assert machine.memory_bandwidth() == 3 * 2**12
