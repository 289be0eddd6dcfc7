import dataclasses

import jax
import pytest

from regvq_jax import loop, sharding, step_costs
from regvq_jax.described import describe
from regvq_jax.step_costs import Compiled, largest_batch


def plan(total_of):
    """A compiler for which memory is a function of the batch size, and the sizes it was asked for."""
    asked = []

    def compile_fn(size):
        asked.append(size)
        total = total_of(size)
        return total and Compiled({"parameters": 100, "temporaries": total - 100, "batch": 0}, {}, 0.0)

    return compile_fn, asked


@pytest.mark.parametrize(
    "total_of, limit, expected",
    [
        (lambda n: 100 + n, 1000, (512, 612)),  # In proportion: the first guess is right, and the last.
        (lambda n: 500 + n, 1000, (256, 756)),  # Temporaries that do not grow with the batch.
        (lambda n: 100 + 20 * n, 1000, (32, 740)),
        (lambda n: 100 + 100 * n, 1000, (8, 900)),  # It has to be smaller than what was asked for.
        (lambda n: 100 + 500 * n, 1000, (0, 0)),  # Not even the smallest that the mesh divides.
        (lambda n: 100 + n if n <= 128 else None, 1000, (128, 228)),  # The compiler itself refuses.
        (lambda n: 100 + n if n <= 8 else None, 1000, (8, 108)),
    ],
)
def test_the_largest_batch_is_found_with_few_compilations(total_of, limit, expected):
    compile_fn, asked = plan(total_of)
    first = compile_fn(16)
    assert largest_batch(compile_fn, 16, first, 4, limit) == expected
    assert len(asked) <= 1 + step_costs.MAX_SEARCHES and len(set(asked)) == len(asked)


@pytest.fixture(scope="module")
def prior():
    from configs import quickstart

    config = quickstart.get_config("tiny")
    config.prior.condition = "none"
    config.prior.model.update(dim=128)
    return describe(config, "prior")


def test_what_is_kept_is_what_the_compiler_says(prior):
    for axes, parts in (((8, 1, 1), 1), ((1, 8, 1), 8)):
        mesh = sharding.make_mesh(*axes)
        memory = step_costs.state_memory(prior, prior.batch(8), mesh)
        count = step_costs.count_parameters(prior)["prior"]
        assert memory["averages"] == memory["parameters"] and memory["batch"] == 8 * 64 * 4 // 8
        # Small arrays stay whole.
        assert 4 * count / parts <= memory["parameters"] < 4 * count / parts + 4 * 12_000
        step_fn = loop.jit_step(prior.trainer, prior.state, mesh)
        compiled = step_fn.lower(prior.state, prior.batch(8), prior.frozen).compile()
        # The frozen tokenizer is not read where tokens come from a cache.
        read = {name: size for name, size in memory.items() if name != "frozen networks"}
        assert compiled.memory_analysis().argument_size_in_bytes == sum(read.values())


def test_flops_are_those_of_all_layers_and_rows(prior):
    def written_out(described, rows):
        step_fn = jax.jit(described.with_batch_size(rows).trainer.train_step)
        lowered = step_fn.lower(described.state, described.batch(rows), described.frozen)
        return lowered.cost_analysis()["flops"]

    assert step_costs.count_flops(prior, 32) == pytest.approx(written_out(prior, 32), rel=1e-3)

    def deep(**fields):
        model = prior.trainer.model.clone(depth=4, **fields)
        trainer = dataclasses.replace(prior.trainer, model=model)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        return dataclasses.replace(prior, trainer=trainer, state=state).with_batch_size(
            8, accumulation_slices=2
        )

    scanned, unrolled = (step_costs.count_flops(deep(scan_layers=scan), 8) for scan in (True, False))
    assert scanned == unrolled
    # The products of layers: forward and twice backward, 2 x 12 dim^2 for a token each.
    layers = 3 * 3 * 2 * 12 * 128**2 * 64 * 8
    assert unrolled - step_costs.count_flops(prior, 8) == pytest.approx(layers, rel=0.2)
