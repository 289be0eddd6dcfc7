"""A pruned tokenizer says the same with fewer codes, and is not taken for the old one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regvq_jax import Tokenizer, prune
from regvq_jax.data.ranges import to_unit_range
from regvq_jax.data.sources import make_source
from regvq_jax.data.tokens import TokenSource
from regvq_jax.errors import UserError
from regvq_jax.files import read_json, write_json_atomic
from regvq_jax.interop.tokenizer_file import load_tokenizer_file
from regvq_jax.models.quantizer import Quantizer
from regvq_jax.models.tokenizer import ImageTokenizer
from regvq_jax.trained import open_tokenizer
from regvq_jax.trainers import build_prior
from regvq_jax.workdir import load_config

QUANTIZERS = {
    "projection": Quantizer("regularized", 64, 4),
    "dot": Quantizer("gumbel", 64, 4, logits="dot"),
    "distance": Quantizer("deterministic", 64, 4, logits="distance"),
    "nearest": Quantizer("nearest", 64, 4),
    "residual": Quantizer("nearest", 64, 4, depth=2),
    "simvq": Quantizer("simvq", 64, 4),
    "ibq": Quantizer("ibq", 64, 4),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_kept_codes_are_chosen_as_before(name):
    quantizer = QUANTIZERS[name]
    features = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
    params = quantizer.init(jax.random.key(1), features)["params"]
    old = quantizer.apply({"params": params}, features)
    counts = np.bincount(np.ravel(old.codes), minlength=64)
    assert 1 < np.count_nonzero(counts) < 64
    params = {"quantizer": params, "decoder": {"bias": np.zeros(2)}}
    model, pruned, kept = prune.prune(ImageTokenizer(quantizer), params, counts)
    np.testing.assert_array_equal(kept, np.unique(old.codes))
    assert model.quantizer.codebook_size == len(kept) and model.quantizer.kind == quantizer.kind
    new = model.quantizer.apply({"params": pruned["quantizer"]}, features)
    np.testing.assert_array_equal(kept[new.codes], old.codes)
    np.testing.assert_allclose(new.quantized, old.quantized, rtol=1e-6)
    assert pruned["decoder"] is params["decoder"]


def test_rarer_codes_go_and_their_features_take_the_next_best():
    quantizer = Quantizer("nearest", 3, 2)
    params = {"quantizer": {"codebook": jnp.array([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])}}
    counts = np.array([5, 2, 1])
    model, pruned, kept = prune.prune(ImageTokenizer(quantizer), params, counts, min_count=2)
    assert kept.tolist() == [0, 1]
    out = model.quantizer.apply({"params": pruned["quantizer"]}, jnp.array([[[[8.0, 8.0]]]]))
    assert out.codes.item() == 1


@pytest.mark.parametrize(
    "quantizer, counts, words",
    [
        (Quantizer("fsq", 15, 2, levels=(3, 5)), np.ones(15), '"fsq" cannot be pruned.*fixed grid'),
        (Quantizer("lfq", 4, 2), np.ones(4), '"lfq" cannot be pruned'),
        (Quantizer("nearest", 4, 2), np.ones(5), "counts are of 5 codes, and the tokenizer has 4"),
        (Quantizer("nearest", 4, 2), np.ones(4), "No code occurs 2 times"),
    ],
)
def test_what_cannot_be_pruned(quantizer, counts, words):
    with pytest.raises(UserError, match=words):
        prune.prune(ImageTokenizer(quantizer), {"quantizer": {}}, counts, min_count=2)


@pytest.fixture(scope="module")
def pruned_file(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("pruned") / "pruned.safetensors"
    prune.main([f"--input={tiny_run[0]}", f"--output={path}"])
    return path


def test_a_run_is_pruned_by_its_token_cache(tiny_run, pruned_file):
    workdir, _ = tiny_run
    caches = [TokenSource(workdir / "tokens" / split) for split in ("train", "heldout")]
    tokens = np.concatenate([cache[i]["tokens"] for cache in caches for i in range(len(cache))])
    model, params, metadata = load_tokenizer_file(pruned_file)
    pruned_from = metadata["pruned_from"]
    assert pruned_from["kept"] == np.unique(tokens).tolist() and pruned_from["tokens"] == tokens.size
    assert pruned_from["codebook_size"] == 32 and pruned_from["min_count"] == 1
    assert pruned_from["tokenizer_hash"] == caches[0].meta.tokenizer_hash
    assert model.quantizer.codebook_size == len(pruned_from["kept"]) < 32

    source = make_source("emoji-grounds", split="heldout", image_size=32)
    images = to_unit_range(np.stack([source[i]["image"] for i in range(4)]))
    old, new = Tokenizer.load(workdir), Tokenizer.load(pruned_file)
    codes, new_codes = old.encode(images), new.encode(images)
    np.testing.assert_array_equal(np.array(pruned_from["kept"])[new_codes], codes)
    np.testing.assert_allclose(new.decode(new_codes), old.decode(codes), atol=1e-6)


def test_stage_two_refuses_the_tokens_of_the_unpruned_tokenizer(tiny_run, pruned_file):
    workdir, _ = tiny_run
    config = load_config(workdir)
    model, params = open_tokenizer(pruned_file)
    with pytest.raises(UserError) as error:
        build_prior.make_prior_trainer(config, workdir, model, params)
    new_size = model.quantizer.codebook_size
    for words in ("tokenizer hash", f"codebook size 32 instead of {new_size}", "use another workdir"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_codes_are_counted_by_encoding_where_there_is_no_cache(tiny_run, tmp_path):
    workdir, _ = tiny_run
    model, params = open_tokenizer(workdir)
    counts = prune.count_run_codes(load_config(workdir), tmp_path, model, params, max_images=20)
    caches = [TokenSource(workdir / "tokens" / split) for split in ("train", "heldout")]
    # One whole batch of each split.
    tokens = np.concatenate([cache[i]["tokens"] for cache in caches for i in range(32)])
    np.testing.assert_array_equal(counts, np.bincount(tokens, minlength=32))


def test_a_file_is_pruned_by_the_counts_of_an_evaluation(tiny_run, pruned_file, tmp_path, capsys):
    record = tiny_run[0] / "tokenizer" / "codebook.json"
    exported, output = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    Tokenizer.load(tiny_run[0]).save(exported)
    prune.main([f"--input={exported}", f"--output={output}", f"--counts={record}"])
    assert capsys.readouterr().out.strip() == str(output)
    kept = load_tokenizer_file(output)[2]["pruned_from"]["kept"]
    assert kept == np.flatnonzero(read_json(record)["counts"]).tolist()

    with pytest.raises(UserError, match="without images .*--counts"):
        prune.main([f"--input={exported}", f"--output={output}"])
    with pytest.raises(UserError, match="no-such"):
        prune.main([f"--input={tmp_path / 'no-such'}", f"--output={output}"])
    write_json_atomic(tmp_path / "other.json", {"step": 1})
    with pytest.raises(UserError, match='other.json has no "counts"'):
        prune.main([f"--input={exported}", f"--output={output}", f"--counts={tmp_path / 'other.json'}"])


@pytest.mark.parametrize(
    "arguments, words",
    [(["--input=x"], "required: --output"), (["--input=x", "--output=y", "--min-count=0"], "at least 1")],
)
def test_wrong_arguments_get_one_sentence(arguments, words):
    with pytest.raises(UserError, match=f"{words}.*see python -m regvq_jax.prune --help"):
        prune.main(arguments)
