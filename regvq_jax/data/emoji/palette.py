"""Turn the fill colours of flat drawings into a small palette of named label classes."""

import numpy as np

# Anchors for human names; a class takes the nearest free name, so that no two classes share one.
NAMED_COLOURS = {
    "black": 0x101010,
    "dark grey": 0x606060,
    "grey": 0x9B9B9B,
    "light grey": 0xD0D0D0,
    "white": 0xFFFFFF,
    "dark red": 0x8E0F2C,
    "crimson": 0xCA0B4A,
    "red": 0xF8312F,
    "salmon": 0xFF8687,
    "peach": 0xFFD0B0,
    "hot pink": 0xF70A8D,
    "pink": 0xFF78C4,
    "light pink": 0xFFC4DC,
    "magenta": 0xC239B3,
    "orange": 0xFF7A20,
    "amber": 0xFFB02E,
    "yellow": 0xFCD53F,
    "light yellow": 0xFFF5A8,
    "dark brown": 0x5F3C2E,
    "brown": 0x8C5543,
    "light brown": 0xB07855,
    "beige": 0xE0C8A8,
    "olive": 0x9A8B20,
    "lime": 0xB8E838,
    "light green": 0x86D72F,
    "green": 0x00D060,
    "dark green": 0x2F8A20,
    "teal": 0x0E9A8A,
    "turquoise": 0x26D0C8,
    "light blue": 0x40C8FC,
    "sky blue": 0x00A6ED,
    "blue": 0x0074BA,
    "royal blue": 0x3F5FFF,
    "navy": 0x26264A,
    "blue grey": 0x9DB2C5,
    "lavender": 0xC6AFEA,
    "purple": 0x8D65C5,
    "dark purple": 0x533566,
    "aubergine": 0x321B41,
}


def pack_rgb(rgb: np.ndarray) -> np.ndarray:
    """Packs uint8 [..., 3] colours into int32 [...] numbers 0xRRGGBB."""
    r, g, b = (np.asarray(rgb)[..., channel].astype(np.int32) for channel in range(3))
    return (r << 16) | (g << 8) | b


def unpack_rgb(packed: np.ndarray) -> np.ndarray:
    """Unpacks int [...] numbers 0xRRGGBB into uint8 [..., 3] colours."""
    packed = np.asarray(packed, np.int32)
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB to OKLab, where Euclidean distance follows perceived difference.

    Args:
        rgb: uint8 [..., 3].

    Returns:
        float64 [..., 3]: lightness, green-red, blue-yellow.
    """
    srgb = np.asarray(rgb, np.float64) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


def squared_distance(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between float [P, D] and [C, D], as float [P, C]."""
    return ((points[:, None] - centres[None]) ** 2).sum(-1)


def cluster_colours(
    colours: np.ndarray, counts: np.ndarray, num_classes: int, *, num_steps: int = 100
) -> np.ndarray:
    """Clusters colours by weighted k-means in OKLab, without any random choice.

    The centres start at the commonest colour and then, one by one, at the colour that adds most to
    the error; each class finally takes the colour of its commonest member, so that every colour is
    one that the drawings use.

    Args:
        colours: uint8 [P, 3], distinct.
        counts: int [P], pixels of each colour.
        num_classes: number of classes C.
        num_steps: bound on the k-means steps.

    Returns:
        uint8 [C, 3], from dark to light.
    """
    points = oklab(colours)
    # The root keeps small but distinct details (an eye, a pip) from drowning in large fills.
    weights = np.sqrt(np.asarray(counts, np.float64))
    centres = points[[int(weights.argmax())]]
    while len(centres) < num_classes:
        error = weights * squared_distance(points, centres).min(1)
        centres = np.concatenate([centres, points[[int(error.argmax())]]])
    for _ in range(num_steps):
        classes = squared_distance(points, centres).argmin(1)
        mass = np.bincount(classes, weights, num_classes)
        sums = np.stack([np.bincount(classes, weights * axis, num_classes) for axis in points.T], -1)
        # A class that lost all members keeps its centre.
        moved = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-12)[:, None], centres)
        if np.allclose(moved, centres, rtol=0.0, atol=1e-9):
            break
        centres = moved
    classes = squared_distance(points, centres).argmin(1)
    palette = np.stack([colours[np.where(classes == c, counts, -1).argmax()] for c in range(num_classes)])
    order = np.lexsort((pack_rgb(palette), oklab(palette)[:, 0].round(6)))
    return palette[order]


def name_colours(palette: np.ndarray) -> list[str]:
    """Gives each colour of uint8 [C, 3] a human name of its own, the closest pairs first."""
    names = list(NAMED_COLOURS)
    anchors = unpack_rgb(list(NAMED_COLOURS.values()))
    distance = squared_distance(oklab(palette), oklab(anchors))
    chosen = [""] * len(palette)
    for _ in palette:
        row, column = np.unravel_index(distance.argmin(), distance.shape)
        chosen[row] = names[column]
        distance[row] = np.inf
        distance[:, column] = np.inf
    return chosen
