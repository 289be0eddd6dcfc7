"""Drawn images on the disk, one PNG file each: a long sampling that was stopped goes on where it was."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from regvq_jax.data.images import ImageError, read_image
from regvq_jax.files import report_write_errors, write_bytes_atomic
from regvq_jax.preemption import stop_if_requested
from regvq_jax.progress import Progress

Batch = dict[str, np.ndarray]


@jax.jit
def _checksums(tree: Any) -> jax.Array:
    """A number of each array that changes with any bit of it, wherever its parts lie; uint32 [leaves]."""

    def checksum(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).ravel()
        # Odd weights: a changed bit changes the sum; places matter. Sums of integers know no order.
        return jnp.sum(bits.astype(jnp.uint32) * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1))

    return jnp.stack([checksum(x) for x in jax.tree.leaves(tree)])


def digest_of(tree: Any, *settings: Any) -> str:
    """16 hex digits of the values of arrays, sharded or not, and of settings that JSON can say."""
    digest = hashlib.sha256(np.asarray(_checksums(tree)).tobytes())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def image_path(directory: Path, index: int) -> Path:
    """Where the image of this index lies."""
    return directory / f"{index:07d}.png"


def draw_all(
    directory: Path,
    batches: Iterator[Batch],
    draw_fn: Callable[[Batch], np.ndarray],
    count: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Draws what is not there yet, and gives all of it.

    Args:
        directory: made if it does not exist; holds nothing but these images.
        batches: this process's parts, with "valid": bool [B] and "index": int [B].
        draw_fn: such a batch to uint8 [B, H, W, 3]; called by all processes together.
        count: valid rows of all batches and processes, for the progress.

    Yields:
        (batch, its images).

    Raises:
        UserError: no space or no permission.
    """
    with report_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    done = 0
    with Progress("drawing", count, unit="images", enabled=jax.process_index() == 0) as progress:
        for batch in batches:
            stop_if_requested("what was drawn is kept")
            images = _read_all(directory, batch["index"])
            if not _everywhere(images is not None):
                images = draw_fn(batch)
                for index, image in zip(batch["index"][batch["valid"]], images[batch["valid"]], strict=True):
                    content = io.BytesIO()
                    Image.fromarray(image).save(content, "png")
                    write_bytes_atomic(image_path(directory, int(index)), content.getvalue())
            yield batch, images
            done += len(images) * jax.process_count()
            progress.update(min(done, count))


def _read_all(directory: Path, indices: np.ndarray) -> np.ndarray | None:
    """The images of these indices, or None where one is missing or damaged."""
    paths = [image_path(directory, int(index)) for index in indices]
    if not all(path.exists() for path in paths):
        return None
    try:
        return np.stack([read_image(path) for path in paths])
    except ImageError:
        return None  # Drawn anew: the same key gives the same image.


def _everywhere(flag: bool) -> bool:
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).all())
