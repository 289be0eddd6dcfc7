import sys
import types

import pytest
from PIL import Image

from regvq_jax.data import sources
from regvq_jax.data.sources import Source, make_source
from regvq_jax.errors import UserError


@pytest.fixture
def emoji_calls(monkeypatch):
    """Stands in for the emoji package: records what it is asked for."""
    calls = []
    module = types.ModuleType("regvq_jax.data.emoji.sources")
    for name in ("EmojiPictures", "EmojiScenes"):
        setattr(module, name, lambda *args, name=name: calls.append((name, *args)))
    package = types.ModuleType("regvq_jax.data.emoji")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "regvq_jax.data.emoji", package)
    monkeypatch.setitem(sys.modules, "regvq_jax.data.emoji.sources", module)
    return calls


def test_emoji_specs(emoji_calls):
    make_source("emoji", split="train", image_size=32)
    make_source("emoji-scenes", split="heldout", image_size=64)
    make_source("emoji-scenes:2", split="train", image_size=64)
    assert emoji_calls == [
        ("EmojiPictures", "train", 32),
        ("EmojiScenes", "heldout", 64, 4),
        ("EmojiScenes", "train", 64, 2),
    ]


def test_folder_spec(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "a:b" / name)
    source = make_source(f"folder:{tmp_path / 'a:b'}", split="train", image_size=8)
    assert isinstance(source, Source) and len(source) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(make_source("folder:~/a:b", split="heldout", image_size=9, upscale=True)) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folders:/x", "did you mean 'folder'.*'emoji', 'emoji-grounds', 'emoji-scenes'"),
        ("emoji_scenes:3", "did you mean 'emoji-scenes'"),
        ("zzz", "Unknown data source 'zzz': Known are"),
        ("folder", "needs a path"),
        ("folder:", "needs a path"),
        ("emoji:3", "takes no argument"),
        ("emoji-scenes:", "whole number"),
        ("emoji-scenes:0", "whole number"),
        ("emoji-scenes:-1", "whole number"),
        ("emoji-scenes:two", "whole number"),
    ],
)
def test_bad_specs(emoji_calls, spec, message):
    with pytest.raises(UserError, match=message):
        make_source(spec, split="train", image_size=8)


def test_bad_split_and_size(emoji_calls):
    with pytest.raises(UserError, match="Unknown split 'test'"):
        make_source("emoji", split="test", image_size=8)
    with pytest.raises(UserError, match="image_size"):
        make_source("emoji", split="train", image_size=0)


def test_every_scheme_is_in_the_help():
    assert {spec.strip("'").partition(":")[0] for spec in sources.SOURCES_HELP} == set(sources.SOURCES)
