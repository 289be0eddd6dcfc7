import numpy as np
import pytest

from regvq_jax.conditioning.text import make_tokenizer
from regvq_jax.data.captions import caption_fields, count_cut_captions, read_metadata, read_text_file
from regvq_jax.data.tree import open_tree
from regvq_jax.errors import UserError


def metadata(root, folder=""):
    tree = open_tree(root)
    return read_metadata(tree, folder, {file.path for file in tree.files()})


def test_caption_fields_walk_through_the_captions():
    assert caption_fields((), 3) == {}
    texts = ["a", "b", "c"]
    assert [caption_fields(texts, i)["text"] for i in range(5)] == ["a", "b", "c", "a", "b"]
    assert caption_fields(texts, 0)["texts"] == ("a", "b", "c")


def test_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffein  rotes Herz\r\n\r\n 赤いハート \n".encode())
    assert read_text_file(open_tree(tmp_path), path.name) == ("ein rotes Herz", "赤いハート")
    path.write_bytes(b"\xff\xfe bad")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        read_text_file(open_tree(tmp_path), path.name)


def test_metadata_jsonl(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "x/a.png", "text": "one"}\n\n'
        '{"file_name": "./b.png", "text": ["two", " ", "three"], "id": 5}\n'
        '{"file_name": "x/a.png", "text": "again"}\n'
    )
    assert metadata(tmp_path) == {"x/a.png": ("one", "again"), "b.png": ("two", "three")}


def test_metadata_csv(tmp_path):
    (tmp_path / "metadata.csv").write_text(
        'id,file_name,text\n1,a.png,"a cat, asleep"\n2,b.png,"two\nlines"\n', encoding="utf-8-sig"
    )
    assert metadata(tmp_path) == {"a.png": ("a cat, asleep",), "b.png": ("two lines",)}
    assert metadata(tmp_path, "elsewhere") == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file_', "line 2: not JSON"),
        ("metadata.jsonl", '{"file": "a.png", "text": "x"}', r"line 1.*\['file', 'text'\]"),
        ("metadata.jsonl", '["a.png", "x"]', "line 1: needs an object"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1"),
        ("metadata.csv", "file_name,words\na.png,x\n", r"line 2.*\['file_name', 'words'\]"),
    ],
)
def test_metadata_errors_name_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        metadata(tmp_path)


def test_metadata_of_a_folder_inside(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,caption,other_file_name\nx/a.png,a cat,b\n")
    assert metadata(tmp_path, "train") == {"train/x/a.png": ("a cat",)}


def test_two_metadata_files(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match="has both"):
        metadata(tmp_path)


def test_counts_the_captions_that_are_cut():
    elements = [{"text": "a" * i, "texts": ("a" * i, "b" * 30)} for i in range(20)]

    def lengths(texts):
        return np.array([len(text) for text in texts])

    # Of each pair the second is too long, and of the first those of 11 to 19.
    assert count_cut_captions(elements, lengths, 10) == (20 + 9, 40)
    assert count_cut_captions(elements, lengths, 30) == (0, 40)
    # Elements 0, 4, 8, 12 and 16: all over the source.
    assert count_cut_captions(elements, lengths, 10, limit=5) == (5 + 2, 10)
    single = [{"text": "abc"}, {"text": ""}]
    assert count_cut_captions(single, lengths, 2) == (1, 2)
    tokenizer = make_tokenizer()
    assert count_cut_captions([{"text": "a red heart"}], tokenizer.lengths, 5) == (0, 1)
    assert count_cut_captions([{"text": "a red heart"}], tokenizer.lengths, 4) == (1, 1)
