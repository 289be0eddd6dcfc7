"""Where FID's weights come from, how they are known, and what is said of others."""

import hashlib

import flax.linen as nn
import fsspec
import jax
import numpy as np
import pytest
import safetensors.numpy

from regvq_jax.errors import UserError
from regvq_jax.interop import inception_weights
from regvq_jax.interop.inception_weights import ENVIRONMENT, FILES, load_inception


class Small(nn.Module):
    """Two layers of InceptionV3, so that files are small."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(2, (1, 3), name="Conv2d_1a_3x3")(images).mean((1, 2))
        return nn.Dense(4, use_bias=False, name="fc")(x)


def make_weights(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return {
        "Conv2d_1a_3x3.conv.weight": draw((2, 3, 1, 3), np.float32),
        "Conv2d_1a_3x3.bn.weight": draw(2, np.float32),
        "Conv2d_1a_3x3.bn.bias": draw(2, np.float32),
        "Conv2d_1a_3x3.bn.running_mean": draw(2, np.float32),
        "Conv2d_1a_3x3.bn.running_var": draw(2, np.float32) ** 2,
        "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7),
        "fc.weight": draw((4, 2), np.float32),
        "fc.bias": draw(4, np.float32),
    }


def save(folder, name="weights.pth", **changes):
    """Writes a file; returns (path, sha256)."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save({k: v for k, v in (make_weights() | changes).items() if v is not None})
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Where copies are kept; no network, no weights of this machine's."""
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(inception_weights, "MIRRORS", ())
    monkeypatch.setattr(inception_weights, "InceptionV3", Small)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """(path, sha256) of a file that passes for FID's."""
    path, digest = save(tmp_path / "downloads", "weights-inception-2015-12-05-6726825d.pth")
    monkeypatch.setattr(inception_weights, "FILES", dict.fromkeys(FILES, digest[:8]))
    return path, digest


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


def test_the_published_files_are_named_by_their_sha256():
    for name, digits in FILES.items():
        assert name.endswith(f"-{digits}.pth") and len(digits) == 8


def test_norms_are_folded_in(official):
    path, digest = official
    module, params, found = load_inception(path)
    assert isinstance(module, Small) and found == digest
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    images = np.random.default_rng(1).standard_normal((2, 5, 6, 3)).astype(np.float32)
    _, state = module.apply({"params": params}, images, capture_intermediates=True)
    convolved = state["intermediates"]["Conv2d_1a_3x3"]["__call__"][0]

    weights = {name.rpartition(".")[2]: x for name, x in make_weights().items() if ".bn." in name}
    kernel = make_weights()["Conv2d_1a_3x3.conv.weight"]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)))
    expected = sum(np.einsum("bhwc,oc->bhwo", padded[:, :, i : i + 6], kernel[:, :, 0, i]) for i in range(3))
    expected = (expected - weights["running_mean"]) / np.sqrt(weights["running_var"] + 1e-3)
    expected = expected * weights["weight"] + weights["bias"]
    np.testing.assert_allclose(convolved, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(params["fc"]["kernel"], make_weights()["fc.weight"].T)


def test_an_earlier_runs_copy_is_enough(official, kept):
    path, digest = official
    _, params, _ = load_inception(path)
    copy = kept / f"inception-{digest}.safetensors"
    assert [file.name for file in kept.iterdir()] == [copy.name]
    path.unlink()
    _, again, found = load_inception()
    assert found == digest and equal(again, params)
    # The copy is what is read: change it, and the weights change.
    tensors = make_weights() | {"fc.weight": np.zeros((4, 2), np.float32)}
    safetensors.numpy.save_file(tensors, copy)
    assert not load_inception()[1]["fc"]["kernel"].any()


def test_a_named_file_is_parsed_once(official, monkeypatch):
    path, _ = official
    _, params, _ = load_inception(path)
    monkeypatch.setattr(inception_weights, "read_torch_file", None)
    assert equal(load_inception(path)[1], params)


def test_the_environment_names_a_file_a_folder_or_a_url(official, monkeypatch, tmp_path):
    path, digest = official
    for value in (path, path.parent):
        monkeypatch.setenv(ENVIRONMENT, str(value))
        assert load_inception()[2] == digest
    # Of pytorch-fid's name; the cache must not be what answers.
    other = tmp_path / "other"
    other.mkdir()
    path.rename(other / "pt_inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv(ENVIRONMENT, str(other))
    monkeypatch.setenv("REGVQ_JAX_CACHE", str(tmp_path / "new"))
    assert load_inception()[2] == digest
    # An argument goes before it.
    named, own = save(tmp_path / "own", **{"fc.bias": np.ones(4, np.float32)})
    assert load_inception(f"{named}#sha256={own[:8]}")[2] == own
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "own"))
    with pytest.raises(UserError, match=r"own has no weights-inception-2015-12-05-6726825d\.pth or pt_"):
        load_inception()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=f"nowhere.pth do not exist .{ENVIRONMENT} names them.; fetch "):
        load_inception()


def test_mirrors_are_tried_in_order(official, monkeypatch, kept):
    path, digest = official
    memory = fsspec.filesystem("memory")
    memory.pipe("/mirrors/second.pth", path.read_bytes())
    urls = ("memory://mirrors/first.pth", "memory://mirrors/second.pth")
    monkeypatch.setattr(inception_weights, "MIRRORS", urls)
    _, params, found = load_inception()
    assert found == digest
    memory.rm("/mirrors/second.pth")
    assert equal(load_inception()[1], params)
    (kept / f"inception-{digest}.safetensors").unlink()
    advice = rf"could not be had from its mirrors; fetch weights-inc.*--weights=FILE.*{ENVIRONMENT}=FOLDER"
    with pytest.raises(UserError, match=advice):
        load_inception()


def test_without_a_mirror():
    with pytest.raises(UserError, match="could not be had from its mirrors; fetch weights-inception-2015"):
        load_inception()


def test_a_url(official):
    path, digest = official
    fsspec.filesystem("memory").pipe("/user/weights.pth", path.read_bytes())
    assert load_inception("memory://user/weights.pth")[2] == digest
    with pytest.raises(UserError, match="Cannot fetch memory://user/missing.pth"):
        load_inception("memory://user/missing.pth")


def test_other_weights_only_on_purpose(tmp_path, kept):
    path, digest = save(tmp_path)
    start = digest[:16]
    with pytest.raises(UserError, match=f"sha256 {start}.*begins? with 6726825d.*#sha256={start}"):
        load_inception(path)
    assert not kept.exists()
    for digits in (digest[:8], digest[:16].upper(), digest):
        assert load_inception(f"{path}#sha256={digits}")[2] == digest
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    with pytest.raises(UserError, match=f"{digest[:16]}.*begins? with {wrong}"):
        load_inception(f"{path}#sha256={wrong}")
    for digits in (digest[:7], f"{digest[:8]}g", "sixty-four"):
        with pytest.raises(UserError, match="after #sha256= give at least 8 hexadecimal digits"):
            load_inception(f"{path}#sha256={digits}")
    # They do not become those of the next run that names none.
    with pytest.raises(UserError, match="could not be had"):
        load_inception()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.weight": np.zeros((1000, 2), np.float32)}, r"fc.weight is \(1000, 2\), expected \(4, 2\)"),
        (
            {"Conv2d_1a_3x3.bn.running_var": None},
            r"Conv2d_1a_3x3.bn.running_var is missing, expected \(2,\)",
        ),
        (
            {"Conv2d_1a_3x3.conv.weight": np.zeros((2, 3, 3, 1), np.float32)},
            r"conv.weight is \(2, 3, 3, 1\), expected \(2, 3, 1, 3\)",
        ),
    ],
)
def test_another_networks_file(tmp_path, changes, message):
    path, digest = save(tmp_path, **changes)
    with pytest.raises(UserError, match=f"{path.name} is not FID's InceptionV3: .*{message}; name weights-"):
        load_inception(f"{path}#sha256={digest[:8]}")


def test_no_weights_at_all(tmp_path):
    with pytest.raises(UserError, match="missing.pth do not exist; fetch weights-inception-2015"):
        load_inception(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    with pytest.raises(UserError, match="page.pth has the sha256"):
        load_inception(tmp_path / "page.pth")
    digest = hashlib.sha256((tmp_path / "page.pth").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="page.pth is damaged, or not a file of torch.save"):
        load_inception(f"{tmp_path / 'page.pth'}#sha256={digest[:8]}")
