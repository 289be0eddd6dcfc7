"""Every pair of an image and a caption once, in order."""

from regvq_jax.data.every_caption import EveryCaption
from regvq_jax.data.sources import shuffled


class Captioned:
    name = "captioned"
    texts = (("a",), ("b", "c", "d"), ("e", "f"))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        texts = self.texts[index]
        return {"tokens": index, "text": texts[index % len(texts)], "texts": texts}


def test_every_pair_once():
    pairs = EveryCaption(Captioned())
    assert len(pairs) == 6 and pairs.name == "captioned"
    elements = [pairs[i] for i in range(6)]
    assert [element["tokens"] for element in elements] == [0, 1, 1, 1, 2, 2]
    assert "".join(element["text"] for element in elements) == "abcdef"
    assert all(element["texts"] == (element["text"],) for element in elements)
    mixed = shuffled(pairs)
    assert sorted(mixed[i]["text"] for i in range(len(mixed))) == list("abcdef")


def test_a_source_of_single_captions_is_as_it_was():
    class Single(Captioned):
        def __getitem__(self, index):
            return {"tokens": index, "text": "abc"[index]}

    pairs = EveryCaption(Single())
    assert len(pairs) == 3 and [pairs[i]["text"] for i in range(3)] == ["a", "b", "c"]
