"""Makes a data set of the paper's ready for training, from the files that you fetched.

    python -m regvq_jax.data prepare ade20k --raw ADEChallengeData2016.zip
    python -m regvq_jax.data prepare coco_captions/2014 --raw DIR_OF_ZIPS --data_dir=/data/tfds

Archives are read in place. A call that was broken off goes on where it stopped. Then train with
--config.data.source=tfds:NAME (and --config.data.data_dir=DIR). tensorflow is not needed.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from regvq_jax.command_line import Parser, positive
from regvq_jax.data.tfds_source import DATA_DIR
from regvq_jax.errors import UserError
from regvq_jax.files import read_json, report_write_errors
from regvq_jax.progress import format_seconds, print_table
from regvq_jax.settings import did_you_mean

# Imported when they are asked for: tensorflow-datasets takes seconds.
DATASETS = {
    "ade20k": "ade20k:Ade20k",
    "celeba_hq_mask": "celeba_hq_mask:CelebaHqMask",
    "coco_captions": "coco_captions:CocoCaptions",
    "coco_stuff": "coco_stuff:CocoStuff",
    "cub_captions": "cub_captions:CubCaptions",
}
