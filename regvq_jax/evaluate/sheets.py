"""Pictures for people: reconstructions below originals, captioned samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT_INK = (255, 255, 255), (30, 30, 30), (120, 120, 120)
GAP, MARGIN = 4, 12
FONT_SIZE, LINE_HEIGHT = 13, 17
MIN_CAPTION_WIDTH = 140
MAX_CAPTION_LINES = 5


def reconstruction_sheet(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    *,
    columns: int = 8,
    scale: int | None = None,
) -> Image.Image:
    """Rows of originals, each with the row of its reconstructions right below.

    Args:
        originals: uint8 [B, H, W, 3].
        reconstructions: uint8 [B, H, W, 3].
        columns: images a row.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    lines = {"original": originals, "rebuilt": reconstructions}
    return labelled_sheet(lines, columns=columns, scale=scale)


def labelled_sheet(
    lines: Mapping[str, np.ndarray], *, columns: int = 8, scale: int | None = None
) -> Image.Image:
    """Versions of the same images in lines with a label each, right below one another.

    Args:
        lines: uint8 [B, H, W, 3] by label, all of one shape.
        columns: images a line; what does not fit goes on in a second group of lines.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    for images in lines.values():
        _check_images(images)
    if len({images.shape for images in lines.values()}) != 1:
        raise ValueError(", ".join(f"{label} {images.shape}" for label, images in lines.items()))
    count, height, width, _ = next(iter(lines.values())).shape
    scale = scale or _default_scale(width)
    columns = min(columns, count)
    groups = -(-count // columns)
    cell_height, cell_width = scale * height, scale * width
    font = _font()
    left = MARGIN + round(max(font.getlength(label) for label in lines)) + MARGIN
    group_height = len(lines) * (cell_height + GAP) - GAP + MARGIN
    sheet = Image.new(
        "RGB",
        (left + columns * (cell_width + GAP) - GAP + MARGIN, MARGIN + groups * group_height),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for group in range(groups):
        for line, (label, images) in enumerate(lines.items()):
            top = MARGIN + group * group_height + line * (cell_height + GAP)
            draw.text((MARGIN, top + cell_height // 2), label, FAINT_INK, font, anchor="lm")
            for column, image in enumerate(images[group * columns : (group + 1) * columns]):
                sheet.paste(_enlarge(image, scale), (left + column * (cell_width + GAP), top))
    return sheet


def captioned_sheet(
    images: np.ndarray, captions: Sequence[str], *, columns: int = 4, scale: int | None = None
) -> Image.Image:
    """Images in rows, each with its caption below.

    Args:
        images: uint8 [B, H, W, 3].
        captions: B texts; long ones are wrapped, very long ones cut.
        columns: images a row.
        scale: enlargement, without smoothing; by default what makes an image about 96 pixels wide.
    """
    _check_images(images)
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} images, {len(captions)} captions")
    count, height, width, _ = images.shape
    scale = scale or _default_scale(width)
    columns = min(columns, count)
    font = _font()
    cell_width = max(scale * width, MIN_CAPTION_WIDTH)
    wrapped = [wrap(caption, font, cell_width) for caption in captions]
    rows = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    row_heights = [
        scale * height + GAP + LINE_HEIGHT * max(len(wrapped[index]) for index in row) + MARGIN
        for row in rows
    ]
    sheet_width = MARGIN + columns * (cell_width + MARGIN)
    sheet = Image.new("RGB", (sheet_width, MARGIN + sum(row_heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, index in enumerate(row):
            left = MARGIN + column * (cell_width + MARGIN)
            sheet.paste(_enlarge(images[index], scale), (left + (cell_width - scale * width) // 2, top))
            for line, text in enumerate(wrapped[index]):
                position = (left + cell_width // 2, top + scale * height + GAP + line * LINE_HEIGHT)
                draw.text(position, text, INK, font, anchor="ma")
        top += row_height
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks `text` into lines of at most `width` pixels, at spaces where there are any.

    Args:
        text: may be empty, which gives no line.
        font: that it is drawn in.
        width: pixels; wide enough for any one letter.

    Returns:
        At most `MAX_CAPTION_LINES` lines; an ellipsis shows that there was more.
    """
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        while font.getlength(line) > width:  # one word, wider than a line
            cut = max(end for end in range(1, len(line)) if font.getlength(line[:end]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    lines += [line] if line else []
    if len(lines) > MAX_CAPTION_LINES:
        last = lines[MAX_CAPTION_LINES - 1]
        while font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[MAX_CAPTION_LINES - 1 :] = [f"{last.rstrip()}…"]
    return lines


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"want uint8 [B, H, W, 3] images, got {images.dtype} {images.shape}")


def _default_scale(width: int) -> int:
    return max(1, round(96 / width))


def _enlarge(image: np.ndarray, scale: int) -> Image.Image:
    height, width, _ = image.shape
    return Image.fromarray(image).resize((scale * width, scale * height), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont:
    # Imported here, or else each training's first step would wait for it.
    import matplotlib

    # Its own, since Pillow's has no letters beyond English.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, FONT_SIZE)
