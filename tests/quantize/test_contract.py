"""What every quantizer must do, asked of all of them through the module that a tokenizer uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import quantize, sharding
from regvq_jax.models import quantizer as quantizer_module
from regvq_jax.models.quantizer import IMPLICIT_KINDS, Quantizer

SHAPE = (8, 4, 4)
QUANTIZERS = {
    "regularized": Quantizer(kind="regularized", codebook_size=16, code_dim=4),
    "regularized-dot": Quantizer(kind="regularized", codebook_size=16, code_dim=4, logits="dot"),
    "regularized-distance": Quantizer(kind="regularized", codebook_size=16, code_dim=4, logits="distance"),
    "deterministic": Quantizer(kind="deterministic", codebook_size=16, code_dim=4),
    "gumbel": Quantizer(kind="gumbel", codebook_size=16, code_dim=4),
    "nearest": Quantizer(kind="nearest", codebook_size=16, code_dim=4),
    "simvq": Quantizer(kind="simvq", codebook_size=16, code_dim=4),
    "ibq": Quantizer(kind="ibq", codebook_size=16, code_dim=4),
    "fsq": Quantizer(kind="fsq", codebook_size=30, code_dim=3, levels=(5, 3, 2)),
    "lfq": Quantizer(kind="lfq", codebook_size=16, code_dim=4),
    "residual-nearest": Quantizer(kind="nearest", codebook_size=16, code_dim=4, depth=3),
    "residual-regularized": Quantizer(
        kind="regularized", codebook_size=16, code_dim=4, logits="dot", depth=2
    ),
}
STOCHASTIC = ("regularized", "regularized-dot", "regularized-distance", "gumbel", "residual-regularized")
KEY = jax.random.key(7)


@pytest.fixture(params=QUANTIZERS, scope="module")
def case(request):
    """(name, module, parameters, features, jitted call)."""
    module = QUANTIZERS[request.param]
    features = jax.random.normal(jax.random.key(1), (*SHAPE, module.code_dim))
    variables = jax.jit(module.init)(jax.random.key(2), features)
    call = jax.jit(lambda variables, x, key: module.apply(variables, x, key, 0.4, 0.8))
    return request.param, module, variables, features, call


def test_shapes_dtypes_and_ranges(case):
    name, module, variables, features, call = case
    out = call(variables, features, KEY)
    codes_shape = SHAPE if module.depth == 1 else (*SHAPE, module.depth)
    shapes = {
        "quantized": (*SHAPE, module.code_dim),
        "codes": codes_shape,
        "best_codes": codes_shape,
        "stochastic_mask": codes_shape,
        "posterior": (SHAPE[0], module.codebook_size),
        "soft_posterior": (SHAPE[0], module.codebook_size),
        **dict.fromkeys(("perturbation", "entropy", "codebook_error", "commitment_error"), SHAPE),
    }
    dtypes = {"codes": jnp.int32, "best_codes": jnp.int32, "stochastic_mask": jnp.bool_}
    for field, value in out._asdict().items():
        assert value.shape == shapes[field], field
        assert value.dtype == dtypes.get(field, jnp.float32), field
    for codes in (out.codes, out.best_codes):
        assert 0 <= codes.min() and codes.max() < module.codebook_size
    for posterior in (out.posterior, out.soft_posterior):
        np.testing.assert_allclose(posterior.sum(-1), 1.0, rtol=1e-5)
    assert (out.entropy >= -1e-6).all() and (out.entropy <= np.log(module.codebook_size) + 1e-5).all()
    assert (out.perturbation >= 0).all()
    sampled = np.asarray(out.stochastic_mask)
    np.testing.assert_array_equal(np.asarray(out.codes)[~sampled], np.asarray(out.best_codes)[~sampled])
    assert sampled.any() == (name in STOCHASTIC)


def test_the_posterior_counts_the_codes(case):
    _, module, variables, features, call = case
    out = call(variables, features, KEY)
    for row, codes in zip(out.posterior, out.codes, strict=True):
        counts = np.bincount(np.ravel(codes), minlength=module.codebook_size)
        np.testing.assert_allclose(row, counts / codes.size, atol=1e-6)


def test_looking_the_codes_up_gives_what_was_quantized(case):
    _, module, variables, features, call = case
    out = call(variables, features, KEY)
    looked_up = module.apply(variables, out.codes, method="lookup")
    np.testing.assert_allclose(looked_up, out.quantized, atol=1e-6)
    if module.depth == 1:
        vectors = module.apply(variables, method="vectors")
        np.testing.assert_allclose(vectors[out.codes], out.quantized, atol=1e-6)


def test_without_a_key_nothing_is_sampled(case):
    _, module, variables, features, call = case
    out = call(variables, features, None)
    assert not out.stochastic_mask.any() and not out.perturbation.any()
    np.testing.assert_array_equal(out.codes, out.best_codes)


def test_the_same_key_gives_the_same_result_and_another_key_another(case):
    name, _, variables, features, call = case
    first, second = call(variables, features, KEY), call(variables, features, KEY)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = call(variables, features, jax.random.key(8))
    assert np.any(other.codes != first.codes) == (name in STOCHASTIC)


def test_gradients_arrive_where_they_should_and_nowhere_else(case):
    name, module, variables, features, _ = case
    target = jax.random.normal(jax.random.key(3), features.shape)

    def gradient(term):
        def value(params, x):
            out = module.apply({"params": params}, x, KEY, 0.4, 0.8)
            return term(out)

        params, x = jax.jit(jax.grad(value, (0, 1)))(variables.get("params", {}), features)
        moved = {jax.tree_util.keystr(p) for p, g in jax.tree.leaves_with_path(params) if np.any(g != 0)}
        assert all(np.isfinite(g).all() for g in jax.tree.leaves((params, x)))
        return moved, bool(np.any(x != 0))

    codebook, projection = "['codebook']", "['projection']"
    logits = {"['to_logits']['kernel']", "['to_logits']['bias']"}
    learned = {jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(variables.get("params", {}))}

    # The decoder's gradient reaches the encoder always; the codebook where a look-up carries it.
    moved, reached = gradient(lambda out: jnp.sum(out.quantized * target))
    assert reached
    without = {"nearest", "simvq", "residual-nearest", *IMPLICIT_KINDS}
    assert moved == (set() if name in without else learned)

    # The prior's gradient runs through a soft assignment, if there is one, and never through the look-up.
    moved, reached = gradient(lambda out: quantize.prior_kl(out.posterior))
    soft = name not in without - {"lfq"}
    assert reached == soft
    from_logits = {"regularized": logits, "deterministic": logits, "gumbel": logits}
    assert moved == (from_logits.get(name, learned) if soft else set())

    # Each half of the VQ-VAE loss moves its own side only.
    moved, reached = gradient(lambda out: jnp.sum(out.codebook_error))
    assert not reached
    assert moved == {
        "nearest": {codebook},
        "ibq": {codebook},
        "residual-nearest": {codebook},
        "simvq": {projection},
    }.get(name, set())
    moved, reached = gradient(lambda out: jnp.sum(out.commitment_error))
    assert not moved
    assert reached == (name in ("nearest", "simvq", "ibq", "lfq", "residual-nearest"))

    # What weighs the contrastive loss is a constant.
    assert gradient(lambda out: jnp.sum(out.perturbation)) == (set(), False)


def test_bfloat16_features_are_quantized_in_float32(case):
    _, _, variables, features, call = case
    low = features.astype(jnp.bfloat16)
    jax.tree.map(
        np.testing.assert_array_equal,
        call(variables, low, KEY),
        call(variables, low.astype(jnp.float32), KEY),
    )


def test_a_batch_needs_no_vmap_and_no_jit(case):
    """Each image is quantized as if it came alone, and outside of jit as inside."""
    _, module, variables, features, call = case
    whole = call(variables, features, None)
    alone = module.apply(variables, features[3:4], None, 0.4, 0.8)
    for field, value in alone._asdict().items():
        np.testing.assert_allclose(value[0], getattr(whole, field)[3], rtol=1e-5, atol=1e-5, err_msg=field)


def make_step(module):
    """A jitted (variables, features) -> ((loss of everything in the output, output), gradients)."""

    def value(variables, x):
        out = module.apply(variables, x, KEY, 0.4, 0.8)
        terms = quantize.prior_kl(out.posterior) + quantize.entropy_loss(out.entropy, out.soft_posterior)
        errors = jnp.mean(out.codebook_error + out.commitment_error)
        return terms + errors + jnp.mean(out.quantized**2), out

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))


@pytest.fixture(scope="module")
def one_step(case):
    """What `make_step` gives on one device, the logits in one piece."""
    _, module, variables, features, _ = case
    return make_step(module)(variables, features)


def assert_same_step(one, other):
    np.testing.assert_array_equal(one[0][1].codes, other[0][1].codes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-6), one, other)


def test_eight_devices_equal_one(case, one_step, monkeypatch):
    _, module, variables, features, _ = case
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)  # So that this codebook is split, too.
    mesh = sharding.make_mesh(4, 2)
    split = jax.device_put(variables, sharding.param_shardings(variables, mesh))
    if module.kind not in IMPLICIT_KINDS:
        assert not split["params"]["codebook"].sharding.is_fully_replicated
    images = jax.device_put(features, sharding.batch_sharding(mesh))
    assert_same_step(one_step, make_step(module)(split, images))


def test_tiles_change_nothing(case, one_step, monkeypatch):
    """A large codebook's logits are made a few positions at a time, whatever the quantizer."""
    _, module, variables, features, _ = case
    monkeypatch.setattr(quantizer_module, "largest_tile", lambda *sizes: 2)
    assert_same_step(one_step, make_step(module)(variables, features))


def test_tiles_of_large_codebooks_have_rows_enough():
    # 16 MiB on a CPU, until that is less than 64 rows of a batch.
    largest_tile = quantizer_module.largest_tile
    assert [largest_tile(8, 1024, codes) for codes in (2**10, 2**16, 2**18)] == [512, 8, 8]
    assert largest_tile(256, 1024, 2**18) == 1


@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_extreme_features_stay_finite(case, scale):
    _, module, variables, features, _ = case

    def value(variables, x):
        out = module.apply(variables, x, KEY, 0.4, 0.8)
        terms = quantize.prior_kl(out.posterior) + quantize.entropy_loss(out.entropy, out.soft_posterior)
        return terms + jnp.mean(out.quantized), out

    (loss, out), grads = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(variables, features * scale)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, out, grads)))
