"""`dynamics data show|check|practice`: look at data before any training."""

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dynamics.cli import EXIT_USER
from dynamics.cli.options import load_study
from dynamics.errors import UserError
from dynamics.record import Record


def check(options: argparse.Namespace) -> int:
    """Every bad line of the files and folders, with file, line and field; exit code 2 when there is one.

    Of a folder also the records that stand in two splits of one ability.
    """
    from dynamics.data.sources import read_jsonl

    files, bad, problems = [], [], []
    owners: dict[str, dict[str, str]] = {}  # {folder and ability: {record: the file that has it}}
    for given in options.files:
        in_folder = Path(given).is_dir()
        for path, ability in _files_of(Path(given), problems):
            try:
                loaded = read_jsonl(path, ability=ability, on_bad_record="skip")
            except UserError as error:
                problems.append(str(error))
                continue
            abilities = collections.Counter(record.ability for record in loaded.records)
            bad.extend(loaded.rejected)
            if in_folder:
                problems += _in_two_splits(owners.setdefault(f"{given} {ability}", {}), loaded.records, path)
            files.append(
                {
                    "file": str(path),
                    "records": len(loaded.records),
                    "rejected": len(loaded.rejected),
                    "abilities": dict(sorted(abilities.items())),
                }
            )
    code = EXIT_USER if bad or problems else 0
    if options.json:
        rejected = [dataclasses.asdict(line) for line in bad]
        print(json.dumps({"files": files, "rejected": rejected, "problems": problems}, ensure_ascii=False))
        return code
    for message in [*(f"{line.file}:{line.line}: {line.reason}" for line in bad), *problems]:
        print(message, file=sys.stderr)
    for row in files:
        names = ", ".join(f"{name} {count}" for name, count in row["abilities"].items()) or "none"
        print(f"{row['file']}: {row['records']} records, {row['rejected']} rejected ({names})")
    return code


def _in_two_splits(owners: dict[str, str], records: Sequence[Record], path: Path) -> list[str]:
    """A line for the records that stood in another split of this ability before; the others are noted as this one's."""
    again = [owners[record.id] for record in records if record.id in owners]
    owners |= {record.id: str(path) for record in records if record.id not in owners}
    return [
        f"{path}: {count} of its records stand in {other} too; leave them in one split, or what is trained on is tested"
        for other, count in collections.Counter(again).items()
    ]


def _files_of(given: Path, problems: list[str]) -> Iterator[tuple[Path, str | None]]:
    """(file, ability that its place says); of a folder every file of its layout, as a study would read it."""
    from dynamics.data.sources import SPLITS, Files, ability_of_file

    if not given.is_dir():
        yield given, ability_of_file(given)
        return
    source = Files(data_dir=str(given))
    try:
        found = source.found()
        if found.corpus is not None:
            collections.deque(source.corpus(), maxlen=0)
    except UserError as error:
        problems.append(str(error))
        return
    for (ability, _), path in sorted(found.files.items(), key=lambda item: (item[0][0], SPLITS.index(item[0][1]))):
        yield path, ability


def practice(options: argparse.Namespace) -> int:
    """The practice set as files in the layout that the `Files` source reads back."""
    from dynamics.data.practice.source import Practice
    from dynamics.data.sources import SPLITS, write_jsonl

    folder = Path(options.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not an empty folder; give a new one")
    source = Practice(seed=options.seed, pool=options.records)
    written: dict[str, dict[str, int]] = {}
    for ability in source.abilities():
        written[ability] = {}
        for split in SPLITS:
            records = source.load(ability, split).records
            path = folder / ability / f"{split}.jsonl"
            written[ability][split] = write_jsonl(path, (record.to_dict() for record in records))
    texts = write_jsonl(folder / "corpus.jsonl", ({"text": text} for text in source.corpus()))
    if options.json:
        print(json.dumps({"folder": str(folder), "records": written, "corpus": texts}))
    else:
        for ability, counts in written.items():
            print(f"{ability:18} " + "  ".join(f"{split} {count}" for split, count in counts.items()))
        print(f"{'corpus':18} {texts} texts\nwritten to {folder}; study it with a Files(data_dir=...) source")
    return 0


def show(options: argparse.Namespace) -> int:
    """Abilities x volumes x tokens, and rendered rows with the trained part marked, before anything is trained."""
    from dynamics.study.prepare import Workspace, cache_folder
    from dynamics.study.preview import preview

    view = preview(load_study(options), Workspace(cache_folder()), rows=options.rows)
    if options.json:
        print(json.dumps(view, ensure_ascii=False))
    else:
        for grid in (view, *view["plus"]):
            _print_preview(grid)
    return 0


def _print_preview(view: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    volumes = view["volumes"]
    what = "" if view["objective"] == "sft" else f" ({view['objective']})"
    table = Table(title=f"{view['name']}{what}: tokens, trained ones below; slices of seed {view['seed']}", box=None)
    table.add_column("ability", no_wrap=True)
    table.add_column("pool", justify="right")
    for volume in volumes:
        table.add_column(str(volume), justify="right", overflow="fold")  # a number is never cut
    for row in view["abilities"]:
        cells = [f"{_short(cell['tokens'])}\n[green]{_short(cell['trained'])}[/]" for cell in row["volumes"]]
        table.add_row(row["ability"], f"{row['pool']:,}", *cells)
    console.print(table)
    for name, count in view["counts"].items():
        console.print(f"{name}: {count:,}")
    for line in view["differences"]:
        console.print(f"not as published: {line}", markup=False)
    console.print("\nsample rows (what is [bold green]trained[/] on stands in green and between ⟦ ⟧)")
    for sample in view["samples"]:
        line = Text(f"{sample['ability']:18} ", style="bold")
        reply = None  # of a pair, parts of other replies stand behind a bar
        for part in sample["parts"]:
            if part.get("reply") != reply and line.plain.strip() != sample["ability"]:
                line.append(f" | {part['reply']}: ", style="bold")
            reply = part.get("reply")
            shown = f"⟦{part['text']}⟧" if part["trained"] else part["text"]
            line.append(shown, style="bold green" if part["trained"] else "dim")
        console.print(line)


def _short(count: int) -> str:
    """'960', '10.6k', '3.1M'."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
