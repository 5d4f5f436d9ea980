"""Any folder of JSON Lines in one of the layouts of dynamics.data.sources.Files."""

from pathlib import Path

import tensorflow_datasets as tfds

from dynamics.data.inputs import Input
from dynamics.data.sources import Files
from dynamics.data.tfds_base import Config, RecordsBuilder


class Builder(RecordsBuilder):
    """Records of yours. Give a Config of your own a `name` for each folder, since prepared files go by it."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Instruction records in a local folder."
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put files of records into manual_dir, or name the folder in the configuration: {ability}/{train,valid,test}.jsonl,
    or {ability}_{train,valid,test}.jsonl, or DoIT's layout; .json and .gz too.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012  # as tfds spells it
        Config(name="folder", description="The files in manual_dir."),
    ]

    def inputs(self, folder: Path) -> list[Input]:
        found = Files(data_dir=str(folder)).found()
        return [
            Input(split=split, ability=ability, path=str(path), source=path.relative_to(folder).as_posix())
            for ability in found.abilities()
            for (name, split), path in found.files.items()
            if name == ability
        ]
