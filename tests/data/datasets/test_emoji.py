"""The tensorflow-datasets builder, written and read where tensorflow cannot be found."""

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

SCRIPT = """
import sys

import tests.hide_tensorflow

import numpy as np
import tensorflow_datasets as tfds

from regvq_jax.data.datasets.emoji import Emoji
from regvq_jax.data.emoji import load_pack

builder = Emoji(data_dir=sys.argv[1], config="64px")
builder.download_and_prepare()
pack = load_pack(64)
index = {entry.code_point: number for number, entry in enumerate(pack.entries)}
for split, count in (("train", 1413), ("heldout", 157)):
    source = builder.as_data_source(split)
    assert len(source) == count, (split, len(source))
    for example in (source[0], source[count - 1]):
        number = index[example["code_point"].decode()]
        entry = pack.entries[number]
        assert entry.split == split
        assert example["caption"].decode() == entry.caption
        assert tuple(tag.decode() for tag in example["tags"]) == entry.tags
        np.testing.assert_array_equal(example["image"], pack.pictures[number])
        np.testing.assert_array_equal(example["labels"][..., 0], pack.labels[number])

again = tfds.data_source("emoji/64px", data_dir=sys.argv[1], split="heldout[:10]")
assert len(again) == 10
assert "tensorflow" not in sys.modules
print("read without tensorflow")
"""


def test_writes_and_reads_without_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "read without tensorflow" in done.stdout
