"""Classes by sub-folder, as in ImageNet: PATH/train/CLASS/NAME.jpg."""

from collections.abc import Collection, Sequence

from regvq_jax.data.listing import find_layout, first_names
from regvq_jax.errors import UserError


def class_names(name: str, paths: Collection[str]) -> tuple[str, ...]:
    """The names of the classes: the sub-folders of the training images, sorted.

    Args:
        name: of the data, for messages.
        paths: of all files, relative to the root.

    Returns:
        The names, the same for both splits.

    Raises:
        UserError: there are no sub-folders.
    """
    folder = find_layout(paths, "train").images
    prefix = f"{folder}/" if folder else ""
    inside = (path.removeprefix(prefix).split("/") for path in paths if path.startswith(prefix))
    names = sorted({parts[0] for parts in inside if len(parts) > 1})
    if not names:
        raise UserError(
            f"data.class_folders=True needs one sub-folder a class, and {name}/{folder} has none: sort the "
            "images into sub-folders, or set data.class_folders=False."
        )
    return tuple(names)


def class_ids(names: Sequence[str], folder: str, images: Sequence[str]) -> list[int]:
    """The class of each image.

    Args:
        names: of the classes.
        folder: of the images, "" = the root.
        images: their paths, relative to the root as `folder` is.

    Returns:
        Indices into `names`.

    Raises:
        UserError: an image lies in no class's sub-folder.
    """
    ids = {name: i for i, name in enumerate(names)}
    prefix = f"{folder}/" if folder else ""
    # An image that lies in no sub-folder has its own name here, which no folder beside it can have.
    found = [path.removeprefix(prefix).partition("/")[0] for path in images]
    strays = [path for path, name in zip(images, found, strict=True) if name not in ids]
    if strays:
        raise UserError(
            f"data.class_folders=True, but {len(strays)} images lie in none of the {len(ids)} sub-folders "
            f"of the training images ({first_names(strays)}): move or remove them."
        )
    return [ids[name] for name in found]
