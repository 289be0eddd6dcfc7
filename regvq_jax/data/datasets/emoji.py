"""The packaged emoji as a tensorflow-datasets builder that needs no tensorflow.

builder = Emoji(data_dir="~/tensorflow_datasets", config="64px")
builder.download_and_prepare()  # nothing is downloaded
source = builder.as_data_source("train")  # random access: source[0]["caption"]
"""

import tensorflow_datasets as tfds
from PIL import Image

from regvq_jax.data.emoji import load_pack

_DESCRIPTION = """\
1,570 drawings of things, people, animals and signs (Microsoft's Fluent emoji, without skin tones)
on transparent ground, with an English caption and tags (emojibase) and a label map of 25 classes:
0 is the background, the others are the fill colours of the flat twin of the drawing. A tenth of
the pictures is held out.
"""


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Pictures, label maps, captions and tags; splits 'train' (1,413) and 'heldout' (157)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="64px", version="1.0.0", description="64 x 64 pixels"),
        tfds.core.BuilderConfig(name="128px", version="1.0.0", description="128 x 128 pixels"),
    ]

    def __init__(self, *, file_format="array_record", **kwargs):
        """Takes what every builder takes; array_record is the format that needs no tensorflow."""
        super().__init__(file_format=file_format, **kwargs)

    @property
    def image_size(self) -> int:
        """Width and height of the pictures of this config."""
        return int(self.builder_config.name.removesuffix("px"))

    def _info(self):
        size = self.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            homepage="https://github.com/microsoft/fluentui-emoji",
            license="MIT",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 4), encoding_format="png"),
                    "labels": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "tags": tfds.features.Sequence(tfds.features.Text()),
                    "code_point": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # the data come with the package
        return {split: self._generate_examples(split) for split in ("train", "heldout")}

    def _generate_examples(self, split):
        pack = load_pack(self.image_size)
        for index in pack.indices(split):
            entry = pack.entries[index]
            yield (
                entry.code_point,
                {
                    # PIL images: tensorflow-datasets encodes arrays with tensorflow.
                    "image": Image.fromarray(pack.pictures[index]),
                    "labels": Image.fromarray(pack.labels[index]),
                    "caption": entry.caption,
                    "tags": list(entry.tags),
                    "code_point": entry.code_point,
                },
            )
