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


def test_label_classes_and_class_folders(tmp_path):
    emoji = make_source("emoji", split="heldout", image_size=32, num_label_classes=25)
    assert isinstance(emoji, Source) and emoji.num_label_classes == 25 and emoji.num_classes == 9
    with pytest.raises(UserError, match=r"'emoji' has 25 label classes, not 151.*leave it at 0"):
        make_source("emoji", split="heldout", image_size=32, num_label_classes=151)
    with pytest.raises(UserError, match="'emoji-grounds' has no class folders"):
        make_source("emoji-grounds", split="heldout", image_size=32, class_folders=True)
    with pytest.raises(UserError, match="num_label_classes must be at least 0, got -1"):
        make_source("emoji", split="heldout", image_size=32, num_label_classes=-1)
    for folder in ("cats", "dogs"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "labels" / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / folder / f"{i}.png")
            Image.new("L", (8, 8), i).save(tmp_path / "labels" / folder / f"{i}.png")
    wanted = dict(image_size=8, num_label_classes=3, class_folders=True)
    source = make_source(f"folder:{tmp_path}", split="train", **wanted)
    assert isinstance(source, Source) and source.has_labels and len(source) == 5
    assert (source.num_label_classes, source.class_names) == (3, ("cats", "dogs"))
