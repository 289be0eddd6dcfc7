"""Small copies of the true downloads, with their names, layouts and oddities, for tests."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth coloured picture, uint8 [H, W, 3], another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(array: np.ndarray, mode: str = "RGB", **options) -> bytes:
    """uint8 [H, W, 3] as a JPEG file."""
    content = io.BytesIO()
    Image.fromarray(array).convert(mode).save(content, "jpeg", quality=95, **options)
    return content.getvalue()


def rotated_jpeg(array: np.ndarray) -> bytes:
    """A JPEG that is stored on its side and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(np.ascontiguousarray(np.rot90(array)), exif=exif)


def png(array: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png")
    return content.getvalue()


def labels(seed: int, num_classes: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A label map of a few blocks, uint8 [H, W]."""
    coarse = np.random.default_rng(seed).integers(0, num_classes, (3, 4), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def write(files: dict[str, bytes], folder: Path) -> str:
    """Writes files by relative path below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def write_zip(files: dict[str, bytes], path: Path) -> str:
    """Writes files by relative path into a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def ade20k(train: int = 12, validation: int = 4) -> dict[str, bytes]:
    """ADEChallengeData2016: grey, CMYK and one-pixel-high photographs among them."""
    files, scenes = {}, []
    for folder, prefix, count in (("training", "train", train), ("validation", "val", validation)):
        for i in range(1, count + 1):
            name, height = f"ADE_{prefix}_{i:08d}", 1 if i == 4 else 48
            pixels = picture(i, height)
            content = {1: jpeg(pixels, "L"), 2: jpeg(pixels, "CMYK")}.get(i, jpeg(pixels))
            files[f"ADEChallengeData2016/images/{folder}/{name}.jpg"] = content
            map_path = f"ADEChallengeData2016/annotations/{folder}/{name}.png"
            files[map_path] = png(labels(i, 151, height))
            scenes.append(f"{name} street_corner")
    files["ADEChallengeData2016/sceneCategories.txt"] = "\n".join(scenes).encode()
    return files


PARTS = ("skin", "nose", "l_eye", "r_eye", "mouth", "hair", "cloth")


def celeba_hq(count: int = 10) -> dict[str, bytes]:
    """CelebAMask-HQ: masks of half the size, absent where a part is hidden."""
    files, rows = {}, ["idx orig_idx orig_file"]
    # Places in CelebA on both sides of the borders of its official splits.
    places = (119613, 162770, 99094, 162771, 182637, 182638, 202599, 5, 162769, 182700)
    for i in range(count):
        files[f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg"] = jpeg(picture(i, 64, 64))
        for k, part in enumerate(PARTS[: 4 + i % 4]):
            mask = np.zeros((32, 32), np.uint8)
            mask[4 * k : 4 * k + 6] = 255
            path = f"CelebAMask-HQ/CelebAMask-HQ-mask-anno/{i // 2000}/{i:05d}_{part}.png"
            files[path] = png(np.repeat(mask[..., None], 3, -1) if k == 1 else mask)
        place = places[i % len(places)]
        rows.append(f"{i}        {place - 1}        {place:06d}.jpg")
    files["CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt"] = "\n".join(rows).encode()
    return files


def cub(per_class: int = 3) -> dict[str, bytes]:
    """CUB-200-2011 with its captions: training and test classes, one caption not in ASCII."""
    files, images, number = {}, [], 0
    for name in ("001.Black_footed_Albatross", "002.Laysan_Albatross", "150.Sage_Thrasher"):
        for i in range(per_class):
            number += 1
            stem = f"{name}/{name[4:]}_{i:04d}_{number}"
            files[f"CUB_200_2011/images/{stem}.jpg"] = jpeg(picture(number), "L" if i == 1 else "RGB")
            captions = [f"this bird number {number} has {j} wings." for j in range(9)] + ["a café bird", ""]
            files[f"text/{stem}.txt"] = "\n".join(captions).encode("latin-1" if i else "utf-8")
            images.append(f"{number} {stem}.jpg")
    files["CUB_200_2011/images.txt"] = "\n".join(images).encode()
    return files


def coco(year: str = "2014", train: int = 8, val: int = 4) -> dict[str, bytes]:
    """COCO's images and captions; the names of 2014 have a prefix, those of 2017 have none."""
    files, number = {}, 0
    for split, count in (("train", train), ("val", val)):
        images, captions = [], []
        for _ in range(count):
            number += 1
            prefix = f"COCO_{split}2014_" if year == "2014" else ""
            name = f"{prefix}{number:012d}.jpg"
            files[f"{split}{year}/{name}"] = jpeg(picture(number), "CMYK" if number == 2 else "RGB")
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            for j in range(5 + number % 2):
                text = f" A  dog {number}\nnear a ☕ number {j}. "
                captions.append({"id": 10 * number + j, "image_id": number, "caption": text})
        content = {"images": images, "annotations": captions}
        files[f"annotations/captions_{split}{year}.json"] = json.dumps(content).encode()
    return files


def coco_stuff(train: int = 6, val: int = 3) -> dict[str, bytes]:
    """COCO 2017 with the maps of COCO-Stuff: 255 is unlabelled."""
    files = coco("2017", train, val)
    for path in [path for path in files if path.endswith(".jpg")]:
        seed = int(path.rpartition("/")[2][:12])
        stuff = labels(seed, 182)
        stuff[0, 0] = 255
        files[f"stuffthingmaps/{path.removesuffix('.jpg')}.png"] = png(stuff)
    return files
