"""The list of everything that a run's data left out, and why."""

import os
from collections.abc import Mapping

from regvq_jax.data.sources import Source
from regvq_jax.files import write_text_atomic


def write_skipped(path: str | os.PathLike, sources: Mapping[str, Source]) -> int:
    """Writes one line for each thing left out, "split<TAB>name<TAB>reason", sorted.

    Args:
        path: of the file; not written, nor changed, where nothing was left out.
        sources: by split; those that left something out have `skipped`, found when they were opened, or
            `undecodable`, found when they were read.

    Returns:
        The number of lines.
    """
    lines = set()
    for split, source in sources.items():
        for name, reason in (*getattr(source, "skipped", ()), *getattr(source, "undecodable", ())):
            lines.add(f"{split}\t{name}\t{' '.join(reason.split())}\n")
    if lines:
        write_text_atomic(path, "".join(sorted(lines)))
    return len(lines)
