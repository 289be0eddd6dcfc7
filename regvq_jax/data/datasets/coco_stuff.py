"""COCO 2017 with the label maps of COCO-Stuff: things and stuff, 182 classes."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from regvq_jax.data.datasets.coco_captions import SPLITS, find_files, read_captions
from regvq_jax.data.datasets.raw_builder import Item, RawBuilder
from regvq_jax.data.datasets.raw_files import checked_image, image_size, labels_of_size, png, read_mask
from regvq_jax.data.images import ImageError
from regvq_jax.data.listing import first_names
from regvq_jax.data.tree import Tree
from regvq_jax.errors import UserError

YEAR, UNLABELLED = "2017", 255
_THINGS = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table, window,
desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush"""
_STUFF = """banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"""


class CocoStuff(RawBuilder):
    """COCO 2017 photographs with COCO-Stuff's label maps of 182 classes and 0 = unlabelled."""

    RAW_HELP = (
        "train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip ({train,val}2017/*.png), or what "
        "they hold; with annotations_trainval2017.zip examples have captions, too."
    )
    EXPECTED = {"": {"train": 118287, "validation": 5000}}
    LABEL_NAMES = ("unlabelled", *(" ".join(name.split()) for name in f"{_THINGS}, {_STUFF}".split(",")))

    def make_features(self) -> dict[str, Any]:
        """Image, label map, captions (none without their file) and the file's name."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "name": tfds.features.Text(),
        }

    def make_layout(self, tree: Tree) -> "CocoStuffLayout":
        """See `CocoStuffLayout`."""
        return CocoStuffLayout(tree)


class CocoStuffLayout:
    """{train,val}2017/NAME.jpg with {train,val}2017/NAME.png: a class is one less than its id there."""

    def __init__(self, tree: Tree):
        """Reads nothing yet."""
        self.notes: list[str] = []
        self._tree = tree

    def items(self) -> dict[str, list[Item]]:
        """Every image; maps without an image become a note."""
        names = [file.path.rpartition("/")[2] for file in self._tree.files()]
        splits = {}
        for split, folder in SPLITS.items():
            images = find_files(self._tree, f"{folder}{YEAR}", ".jpg")
            maps = find_files(self._tree, f"{folder}{YEAR}", ".png")
            caption_file = f"captions_{folder}{YEAR}.json"
            captions = read_captions(self._tree, caption_file) if caption_file in names else {}
            lonely = sorted(maps.keys() - images.keys())
            if lonely:
                self.notes.append(f"{len(lonely)} {split} maps have no image: {first_names(lonely)}")
            splits[split] = [
                Item(name, (images[name], maps.get(name), captions.get(name, ()))) for name in sorted(images)
            ]
        return splits

    def read(self, item: Item) -> dict[str, Any]:
        """One example; ImageError where image or map cannot be used."""
        path, map_path, captions = item.facts
        if map_path is None:
            raise ImageError(f"Image {path} has no label map.")
        image = checked_image(self._tree, path)
        stored = labels_of_size(read_mask(self._tree, map_path), image_size(image), map_path)
        known = stored[stored != UNLABELLED]
        if known.max(initial=0) >= len(CocoStuff.LABEL_NAMES) - 1:
            raise UserError(
                f"Label map {map_path} of {self._tree.name} has the value {known.max()}, and the classes end "
                f"at {len(CocoStuff.LABEL_NAMES) - 2} (255 is unlabelled): these are other maps."
            )
        labels = np.where(stored == UNLABELLED, 0, stored + 1).astype(np.uint8)
        return {"image": image, "labels": png(labels), "captions": list(captions), "name": item.key}
