"""What the tensorflow-datasets builders share: raw files to array_record shards, in parallel and resumable.

    builder = Ade20k(raw=["ADEChallengeData2016.zip"], data_dir="~/tensorflow_datasets")
    builder.download_and_prepare()  # nothing is downloaded

tensorflow is needed neither to write nor to read: shards are array_record. Threads write one shard
each; a call that was broken off, even by kill -9, finds the shards that it had finished.
"""

import abc
import io
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from regvq_jax.data.datasets.raw_shards import Item, Layout, ShardWriter, put_in_place
from regvq_jax.data.images import read_image
from regvq_jax.data.labels import label_colours
from regvq_jax.data.listing import MAX_SKIPPED_SHARE, first_names
from regvq_jax.data.transforms import resize_and_crop
from regvq_jax.data.tree import Tree, open_trees
from regvq_jax.errors import UserError
from regvq_jax.evaluate.sheets import captioned_sheet
from regvq_jax.files import (
    check_writable,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

SHEET_EXAMPLES, SHEET_SIZE = 32, 128


class RawBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder of a data set whose raw files the user has fetched.

    Attributes:
        RAW_HELP: what to fetch, for messages.
        EXPECTED: official number of examples by config ("" without configs) and split.
        LABEL_NAMES: of the classes of label maps in order; () without maps.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    RAW_HELP = ""
    EXPECTED: dict[str, dict[str, int]] = {}
    LABEL_NAMES: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        raw: Sequence[str | os.PathLike] = (),
        num_workers: int | None = None,
        allow_count_mismatch: bool = False,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        """Reads nothing yet.

        Args:
            raw: folders and archives, on a disk or at URLs; see `tree.open_trees`. Not needed to read a
                prepared set.
            num_workers: threads; by default one for each core. No choice changes what is written.
            allow_count_mismatch: prepare what is not as large as the official set, or has many files that
                cannot be read.
            file_format: the one that needs no tensorflow.
            **kwargs: of every builder: data_dir, config, version.
        """
        super().__init__(file_format=file_format, **kwargs)
        self._raw = tuple(raw)
        self._num_workers = num_workers or os.cpu_count() or 1
        self._allow_count_mismatch = allow_count_mismatch
        # While it prepares, tensorflow-datasets puts another directory in the place of data_dir.
        self.partial_dir = Path(f"{self.data_dir}.partial")

    @abc.abstractmethod
    def make_layout(self, tree: Tree) -> Layout:
        """The layout of this data set in a tree of raw files."""

    @abc.abstractmethod
    def make_features(self) -> dict[str, Any]:
        """The features by name."""

    def find_label_names(self, layout: Any) -> tuple[str, ...]:
        """Names of the classes of label maps, where the raw files know them better than `LABEL_NAMES`."""
        del layout
        return self.LABEL_NAMES

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = {}
        if self.LABEL_NAMES:
            metadata = {"num_label_classes": len(self.LABEL_NAMES), "label_names": list(self.LABEL_NAMES)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(self.make_features()),
            metadata=tfds.core.MetadataDict(metadata),
        )

    def open_layout(self) -> Layout:
        """The layout of the raw files.

        Raises:
            UserError: none were named, or they cannot be opened.
        """
        return self.make_layout(self._open_raw())

    def _open_raw(self) -> Tree:
        if not self._raw:
            raise UserError(
                f"{self.name} is made from files that you have to fetch: {self.RAW_HELP} Name them by --raw."
            )
        return open_trees(self._raw, self.partial_dir / "unzipped")

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Every split one example after another: what `_generate_splits` does in parallel."""
        del dl_manager
        layout = self.open_layout()
        return {split: self._generate_examples(layout, items) for split, items in layout.items().items()}

    def _generate_examples(self, layout: Layout, items: Sequence[Item]) -> Iterator[tuple[str, dict]]:
        for item in items:
            yield item.key, layout.read(item)

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        del dl_manager, download_config
        began = time.monotonic()
        check_writable(self.partial_dir)
        tree = self._open_raw()
        try:
            layout = self.make_layout(tree)
            splits = layout.items()
        except OSError as error:
            raise UserError(f"Cannot read {tree.name}: {error}; fetch it again.") from error
        if self.LABEL_NAMES:
            self.info.metadata["label_names"] = list(self.find_label_names(layout))
        for split, items in splits.items():
            self._check_count(split, len(items), "in the raw files")
            _check_keys(self.name, split, items)
        sizes = {file.path: file.size for file in tree.files()}
        shards = self._shard_writer().write(layout, splits, sizes)

        infos, facts = [], {}
        for split, results in shards.items():
            skipped = [x for result in results for x in result.skipped]
            count = sum(result.examples for result in results)
            self._check_skipped(split, skipped, len(splits[split]))
            if skipped:
                self._check_count(split, count, "left without those that cannot be read")
            template = self._get_filename_template(split)
            num_bytes = sum(result.num_bytes for result in results)
            lengths = [result.examples for result in results]
            infos.append(tfds.core.SplitInfo(split, lengths, num_bytes, template))
            facts[split] = {"examples": count, "bytes": num_bytes, "skipped": skipped}
        for info in infos:  # When all of them have passed.
            results = shards[info.name]
            targets = info.filename_template.sharded_filepaths(len(results))
            for result, target in zip(results, targets, strict=True):
                put_in_place(result.path, Path(target))
        report = {
            "name": self.info.full_name,
            "raw": [os.fspath(path) for path in self._raw],
            "notes": layout.notes,
            "splits": facts,
            "seconds": time.monotonic() - began,
        }
        self._report(report, layout, splits)
        return infos

    def _post_download_and_prepare_hook(self) -> None:
        """Deletes what is of no more use, now that the set is in its place."""
        shutil.rmtree(self.partial_dir, ignore_errors=True)
        # What tensorflow-datasets had no time to delete in calls that were killed.
        for left in self.partial_dir.parent.glob(f"incomplete.*_{Path(self.data_dir).name}"):
            shutil.rmtree(left, ignore_errors=True)

    def _shard_writer(self) -> ShardWriter:
        return ShardWriter(
            self.partial_dir / "shards",
            name=self.name,
            features=self.info.features,
            file_format=self.info.file_format,
            num_workers=self._num_workers,
        )

    def _check_count(self, split: str, count: int, where: str) -> None:
        config = self.builder_config.name if self.builder_config else ""
        expected = self.EXPECTED.get(config, {}).get(split)
        if expected is None or count == expected:
            return
        off = f"{abs(count - expected):,} {'too many' if count > expected else 'missing'}"
        text = (
            f"The {split} split of {self.info.full_name} has {expected:,} examples, and {count:,} are "
            f"{where}: {off}"
        )
        if not self._allow_count_mismatch:
            raise UserError(
                f"{text}; fetch the data again, or go on with --allow_count_mismatch (results will not "
                "compare with those on the whole set)."
            )
        logging.warning("%s; going on as told.", text)

    def _check_skipped(self, split: str, skipped: Sequence[tuple[str, str]], total: int) -> None:
        if len(skipped) <= MAX_SKIPPED_SHARE * total:
            return
        others = first_names([key for key, _ in skipped[1:]])
        text = (
            f"{len(skipped):,} of the {total:,} examples of {self.name}'s {split} split cannot be read "
            f"({skipped[0][1].rstrip('.')}{f'; also {others}' if others else ''}): fetch the data again"
        )
        if len(skipped) == total:  # No one can want that.
            raise UserError(f"{text}.")
        if not self._allow_count_mismatch:
            raise UserError(f"{text}, or go on with --allow_count_mismatch.")

    def _report(self, report: dict[str, Any], layout: Layout, splits: dict[str, list[Item]]) -> None:
        directory = Path(self.data_dir)
        write_json_atomic(directory / "report.json", report)
        lines = [
            f"{split}\t{key}\t{reason}\n"
            for split, facts in report["splits"].items()
            for key, reason in facts["skipped"]
        ]
        if lines:
            write_text_atomic(directory / "skipped.txt", "".join(lines))
        first = next(iter(splits))
        left_out = {key for key, _ in report["splits"][first]["skipped"]}
        usable = [item for item in splits[first] if item.key not in left_out]
        if usable:
            spread = sorted({i * len(usable) // SHEET_EXAMPLES for i in range(SHEET_EXAMPLES)})
            sheet = self._contact_sheet([layout.read(usable[i]) for i in spread])
            content = io.BytesIO()
            sheet.save(content, format="png")
            write_bytes_atomic(directory / "contact_sheet.png", content.getvalue())

    def _contact_sheet(self, examples: Sequence[dict[str, Any]]) -> Image.Image:
        """Pictures with a caption each, and with their coloured label maps beside them."""
        pictures, captions = [], []
        for example in examples:
            element = {"image": read_image(example["image"])}
            if "labels" in example:
                element["labels"] = np.array(Image.open(io.BytesIO(example["labels"])))
            element = resize_and_crop(element, size=SHEET_SIZE)
            parts = [element["image"]]
            if "labels" in example:
                parts.append(label_colours(len(self.LABEL_NAMES))[element["labels"]])
            pictures.append(np.concatenate(parts, 1))
            texts = example.get("captions") or (example.get("name", ""),)
            captions.append(texts[0])
        return captioned_sheet(np.stack(pictures), captions, columns=8 if len(parts) == 1 else 4, scale=1)


def _check_keys(name: str, split: str, items: Sequence[Item]) -> None:
    if not items:
        raise UserError(f"The {split} split of {name} is empty in these raw files.")
    seen = set()
    for item in items:
        if item.key in seen:
            raise UserError(f"The {split} split of {name} has {item.key} twice.")
        seen.add(item.key)
