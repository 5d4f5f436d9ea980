"""DoIT, the data of "Dynamics of Instruction Tuning" (Song et al. 2023): ten abilities, and Alpaca-GPT4 in Chinese."""

from pathlib import Path

import tensorflow_datasets as tfds

from dynamics.data.catalogue import entry
from dynamics.data.doit import CEVAL_NAMES, SYNTHETIC, Doit, Part, without_format
from dynamics.data.inputs import Input
from dynamics.data.tfds_base import Config, RecordsBuilder
from dynamics.data.tfds_download import Published
from dynamics.record import ABILITY_NAMES

# Patterns: role-play is spelt in several ways, and the folders may lie under another.
_VALID_AND_TEST = ("*curated/valid/*.json", "*curated/test/*.json")
_PARTS: dict[str, Part] = {
    "curated": "curated",
    "full": "full",
    "synthetic": "synthetic",
    "mixed": "mixed",
    "ceval": "curated",
}
_TRAIN: dict[str, tuple[str, ...]] = {
    "curated": ("*curated/1000/*.json",),
    "full": ("*curated/full/*.json",),
    "synthetic": ("*synthetic/40960/*.json",),
    "mixed": ("*curated/full/*.json", "*synthetic/40960/*.json"),
    "ceval": ("*curated/1000/*.json",),  # without which the data set does not count as whole
}


class Builder(RecordsBuilder):
    """DoIT as published; valid and test are the same in all configurations."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Ten abilities of Chinese instruction tuning, curated by people or drawn from existing sets."
    HOMEPAGE = "arXiv:2310.19651"
    LICENSE = "MIT"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Copy the data set ChiyuSONG/dynamics-of-instruction-tuning into manual_dir as it is published, with the folders
    curated/1000, curated/full, curated/valid, curated/test and synthetic/40960.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012  # as tfds spells it
        Config(name="curated_1000", part="curated", description="Train: the first thousand records of each ability."),
        Config(name="curated_full", part="full", description="Train: all curated records."),
        Config(name="synthetic", part="synthetic", description="Train: 40,960 records of one ability, `synthetic`."),
        Config(name="mixed", part="mixed", description="Train: curated_full, then synthetic."),
        Config(name="ceval", part="ceval", description="The three C-Eval parts: test, five-shot prompts."),
    ]

    def inputs(self, folder: Path) -> list[Input]:
        names = CEVAL_NAMES if self.config.part == "ceval" else (*ABILITY_NAMES, SYNTHETIC)
        part: Part = "curated" if self.config.part == "ceval" else self.config.part  # type: ignore[assignment]
        found = Doit(data_dir=str(entry("doit").home(folder)), part=part).found()
        order = {name: number for number, name in enumerate(names)}
        return [
            Input(
                split=split,
                ability=ability,
                path=str(path),
                source=path.relative_to(found.base).as_posix(),
                amend=without_format if split == "train" else None,
            )
            for (ability, split), path in sorted(found.files.items(), key=lambda item: order.get(item[0][0], 0))
            if ability in order
        ]

    def published(self) -> Published:
        ceval = tuple(f"*{name}*.json" for name in CEVAL_NAMES) if self.config.part == "ceval" else ()
        repository = "ChiyuSONG/dynamics-of-instruction-tuning"
        return Published(repository=repository, files=(*_TRAIN[self.config.part], *_VALID_AND_TEST), optional=ceval)
