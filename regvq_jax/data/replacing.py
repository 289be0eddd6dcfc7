"""What to do about images that only fail when they are decoded: the next one takes their place."""

import threading
from collections.abc import Callable
from typing import Any

from absl import logging

from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import MAX_SKIPPED_SHARE, first_names
from regvq_jax.errors import UserError


class Replacing:
    """Reads elements by index; one that raises `ImageError` is replaced by the next that does not.

    The same in every process, named in the log, and an error where it is more than 1 % of all. Picklable
    where its functions are.
    """

    def __init__(
        self, read_fn: Callable[[int], dict[str, Any]], length: int, name_fn: Callable[[int], str], what: str
    ):
        """Reads nothing yet.

        Args:
            read_fn: an element by index, or ImageError.
            length: number of elements.
            name_fn: what an element is called, for messages.
            what: what the elements are, such as "train images of PATH", for messages.
        """
        self._read_fn, self._length, self.name_fn, self._what = read_fn, length, name_fn, what
        self._undecodable: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    @property
    def undecodable(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of what this process could not decode so far."""
        with self._lock:
            return tuple((self.name_fn(i), reason) for i, reason in sorted(self._undecodable.items()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The element, or the next one that can be decoded.

        Raises:
            IndexError: `index` is not in [0, length).
            UserError: more than 1 % cannot be used.
        """
        if not 0 <= index < self._length:
            raise IndexError(index)
        # Ends at the latest where the share of undecodable images passes the limit.
        while True:
            if index in self._undecodable:
                self._check()
            else:
                try:
                    return self._read_fn(index)
                except ImageError as error:
                    self._note(index, error)
            index = (index + 1) % self._length

    def _note(self, index: int, error: ImageError) -> None:
        with self._lock:
            is_new = index not in self._undecodable
            self._undecodable[index] = str(error)
            count = len(self._undecodable)
        if is_new:
            logging.warning("%s The next one is used in its place (%d so far).", error, count)
        self._check()

    def _check(self) -> None:
        with self._lock:
            bad = dict(sorted(self._undecodable.items()))
        if len(bad) > MAX_SKIPPED_SHARE * self._length:
            names = first_names([self.name_fn(i) for i in bad])
            raise UserError(
                f"More than 1 % of the {self._length} {self._what} cannot be used, so far {len(bad)} "
                f"({names}): repair or remove them, or, where they are too small, set data.upscale=True. The "
                f"first: {next(iter(bad.values()))}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class ReplacingSource:
    """What the sources of files share: `_elements` reads their elements."""

    _elements: Replacing

    def __len__(self) -> int:
        return len(self._elements)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decodes one element; see `sources.Source` for what is in it, `Replacing` for what fails.

        Raises:
            UserError: more than 1 % cannot be used, or a label is none of the classes'.
        """
        return self._elements[index]

    def element_name(self, index: int) -> str:
        """What an element is called: the path of its image, or the set and its place in it."""
        return self._elements.name_fn(index)

    @property
    def undecodable(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of what this process could not decode so far."""
        return self._elements.undecodable
