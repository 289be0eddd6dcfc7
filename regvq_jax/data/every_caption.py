"""An evaluation over all captions: each (image, caption) pair is an element of its own."""

from typing import Any, Protocol

import numpy as np


class Captioned(Protocol):
    """Random access to elements with "text" and, where there may be several, "texts"."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class EveryCaption:
    """The elements of a source, each as often as it has captions, with one caption each.

    Attributes:
        name: that of the source.
    """

    def __init__(self, source: Captioned):
        """Reads every element once, to count its captions: meant for a token cache, which has no pictures."""
        self.name = source.name
        self._source = source
        counts = [len(source[i].get("texts", ("",))) for i in range(len(source))]
        self._images = np.repeat(np.arange(len(counts)), counts)
        self._captions = np.arange(len(self._images)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The element of a pair: "text" is its caption, and "texts" has no other."""
        element = self._source[int(self._images[index])]
        text = element.get("texts", (element["text"],))[int(self._captions[index])]
        return {**element, "text": text, "texts": (text,)}
