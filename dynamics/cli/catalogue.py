"""`dynamics data list|fetch`, and `data show` of a catalogue name: what is published, get it, see what it holds.

`data show` of a file or folder of preference pairs shows it in the same way.
"""

import argparse
import collections
import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamics.errors import UserError

if TYPE_CHECKING:
    from dynamics.data.entry import Entry
    from dynamics.data.sources import Rejected
    from dynamics.pair import Pair
    from dynamics.record import Record

DATA_DIR = "data"  # where entries lie unless --data-dir says otherwise
_SHOWN_CHARACTERS = 400
SHOWN_REJECTED = 20
# What differs from row to row in a reason: [3], line 3, offset 1,234, 1,234 bytes. Names keep their digits (UTF-8).
_POSITION = re.compile(
    r"(?<=\[)\d+(?=\])|(?<=\bline )\d+|(?<=\boffset )[\d,]+|(?<=\bcolumn )\d+|(?<=\bcharacter )\d+"
    r"|(?<=\bhas )[\d,]+(?= (?:bytes|texts))|(?<=\ba list of )\d+|(?<=\bof )\d+(?= turns)"
)


def list_(options: argparse.Namespace) -> int:
    """The catalogue as a table, with what of it lies under --data-dir."""
    from dynamics.data.catalogue import CATALOGUE, describe, marked, size_text

    here = {one.name: _state(one, Path(options.data_dir)) for one in CATALOGUE}
    if options.json:
        entries = [{**describe(one), "here": here[one.name]} for one in CATALOGUE]
        print(json.dumps({"data_dir": options.data_dir, "entries": entries}, ensure_ascii=False))
        return 0
    head = ("name", "kind", "licence", "records", "size", f"in {options.data_dir}", "from")
    rows: list[tuple[str, ...]] = [head]
    for one in CATALOGUE:
        records = marked(one, "num_records", "?" if one.num_records is None else f"{one.num_records:,}")
        size = marked(one, "num_bytes", size_text(one.num_bytes))
        rows.append((one.name, one.kind, marked(one, "licence", one.licence), records, size, here[one.name], one.where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    for row in rows:
        cells = [cell.rjust(width) if name in ("records", "size") else cell.ljust(width)
                 for name, cell, width in zip(head, row, widths, strict=False)]  # fmt: skip
        print("  ".join([*cells, row[-1]]))
    print("\nᶜ by another's account, ᵐ from memory; all else was read at the source. Get one: dynamics data fetch NAME")
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Get an entry's files, or compare those that are there."""
    from dynamics.data.catalogue import entry, size_text
    from dynamics.data.hub import fetch as get

    one = entry(options.name)
    folder = Path(options.data_dir)
    fetched = get(one, folder, revision=options.revision, progress=_Progress(f"fetching {one.name}"))
    home = folder / one.name
    if options.json:
        import dataclasses

        print(json.dumps({**dataclasses.asdict(fetched), "folder": str(home)}, ensure_ascii=False))
        return 0
    total = size_text(sum(file.bytes for file in fetched.files))
    done = f"{len(fetched.downloaded)} downloaded" if fetched.downloaded else "nothing to download"
    source = f"{fetched.repository} at {fetched.commit[:12]}"
    print(f"{home}: {len(fetched.files)} files, {total}, of {source}; {done}, all compared")
    print(f"licence: {one.licence}; look at it: dynamics data show {one.name} --data-dir {folder}")
    return 0


def show(options: argparse.Namespace) -> int:
    """What an entry holds, or a file of preference pairs; of a config, what it would train on."""
    from dynamics.data.catalogue import CATALOGUE, entry

    names = [one.name for one in CATALOGUE]
    given = Path(options.config)
    if options.config not in names and given.suffix != ".py" and given.exists():
        from dynamics.cli.show_pairs import show as show_pairs

        return show_pairs(options)
    if options.config not in names and given.suffix not in ("", ".py"):
        raise UserError(f"there is no file {given}; give a config, preference pairs or a name of dynamics data list")
    if options.config not in names and given.suffix == ".py":
        from dynamics.cli.data import show as show_config

        return show_config(options)
    one = entry(options.config)
    if one.kind == "benchmark" and options.on_bad_record == "skip":
        raise UserError(f"--on-bad-record skip has no use for {one.name}: a benchmark with a bad row is never read")
    seen = _seen(one, Path(options.data_dir or DATA_DIR), options.on_bad_record or "skip", options.rows)
    if options.json:
        print(json.dumps(seen, ensure_ascii=False))
    else:
        _print_seen(one, seen)
    return 0


def _state(one: "Entry", folder: Path) -> str:
    """'no', 'yes' for files that somebody put there, 'fetched' with the commit for those of `data fetch`."""
    from dynamics.data.fetched import read_record

    done = read_record(one.home(folder))
    if done is not None and done.entry == one.name:
        return f"fetched {done.commit[:8]}"
    return "yes" if one.is_there(folder) else "no"


def _checked(one: "Entry", folder: Path) -> str:
    """What the files were compared with; UserError when they differ."""
    from dynamics.data.fetched import compare_known, read_record, verify

    home = one.home(folder)
    if read_record(home) is not None:
        done = verify(home)
        return f"{len(done.files)} files are those fetched from {done.repository} at {done.commit[:12]}"
    if known := compare_known(one, folder):
        return f"{known} of {len(one.checksums)} files of the catalogue are there, and as they should be"
    return "not compared with anything: they did not come by dynamics data fetch"


def _seen(one: "Entry", folder: Path, on_bad_record: str, rows: int) -> dict[str, Any]:
    from dynamics.data.entry import fetched_entry

    if not one.is_there(folder):
        get = f"dynamics data fetch {one.name} --data-dir {folder}"
        other = fetched_entry(one.home(folder))
        why = f" (it was fetched as {other})" if other else ""
        raise UserError(f"{folder / one.name} has no files of {one.name}{why}; run {get}; {one.offline(folder)}")
    checked = _checked(one, folder)
    one.check(folder)
    there = [split for split in one.splits if one.found(folder, split)]
    seen = {"entry": one.name, "folder": str(one.home(folder)), "licence": one.licence, "checked": checked,
            "absent": [split for split in one.splits if split not in there]}  # fmt: skip
    if one.kind == "benchmark":
        splits = {split: _rows_seen(one, folder, split) for split in there}
        return {**seen, "splits": splits, "asked": _questions_seen(one, folder, rows)}
    return {**seen, "splits": {split: _records_seen(one, folder, split, on_bad_record, rows) for split in there}}


def _rows_seen(one: "Entry", folder: Path, split: str) -> dict[str, Any]:
    """Of a benchmark: how many rows each file has."""
    from dynamics.data.shapes import count_rows

    files = {path.name: count_rows(path) for path in one.found(folder, split)}
    return {"files": files, "questions": sum(files.values())}


def _questions_seen(one: "Entry", folder: Path, rows: int) -> dict[str, Any]:
    """What `dynamics eval --benchmark` asks of these files, and what it leaves out; UserError where it refuses them."""
    from dynamics.eval.benchmarks import FAMILY

    split = "val" if "val" in one.splits else "test"
    place = one.needed(folder, split)[0].parent
    data_dir = str(place.parent if place.name == split else place)
    (contents,) = (kind(data_dir=data_dir).contents() for kind in FAMILY if kind(data_dir=data_dir).name == one.name)
    return {
        "questions": len(contents.questions),
        "tasks": dict(collections.Counter(question.task for question in contents.questions)),
        "left_out": {reason: dict(tasks) for reason, tasks in contents.left_out.items()},
        "missing": list(contents.missing),
        "unknown": list(contents.unknown),
        "samples": [
            {
                "id": one.id,
                "messages": [{"role": turn.role, "content": turn.content} for turn in one.turns(0)],
                "gold": one.gold,
            }
            for one in contents.questions[:rows]
        ],
    }


def _records_seen(one: "Entry", folder: Path, split: str, on_bad_record: str, rows: int) -> dict[str, Any]:
    from dynamics.cli.pair_counts import PairCounts
    from dynamics.data.sources import Rejected
    from dynamics.pair import Pair

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    types: collections.Counter[str] = collections.Counter()
    rejected: list[Rejected] = []
    samples: list[dict[str, Any]] = []
    pairs = PairCounts()
    paths = one.found(folder, split)
    for ability, found in chain.from_iterable(_stream(one, path, on_bad_record) for path in paths):
        if isinstance(found, Rejected):
            rejected.append(found)
            counts[ability]["rejected"] += 1
            continue
        counts[ability]["records"] += 1
        if isinstance(found, Pair):
            pairs.add(found)
        else:
            types[found.type] += 1
        if counts[ability]["records"] <= rows:
            samples.append(found.to_dict())
    reasons = collections.Counter(kind_of_reason(row.reason) for row in rejected)
    return {
        "files": [path.name for path in paths],
        "records": sum(count["records"] for count in counts.values()),
        "rejected": len(rejected),
        "abilities": {name: {key: count[key] for key in ("records", "rejected")} for name, count in counts.items()},
        "types": dict(types.most_common()),
        "reasons": dict(reasons.most_common()),
        "rejected_rows": [
            {"file": row.file, "line": row.line, "reason": row.reason} for row in rejected[:SHOWN_REJECTED]
        ],
        "samples": samples,
        **({"pairs": pairs.summary()} if one.kind == "preferences" else {}),
    }


def _stream(one: "Entry", path: Path, on_bad_record: Any) -> Iterator[tuple[str, "Record | Pair | Rejected"]]:
    """(ability, row) of one file."""
    from dynamics.data import shapes

    if one.kind == "preferences":
        for found in shapes.stream_pairs(path, both=True, on_bad_record=on_bad_record):
            yield one.name, found
    elif one.shape is not None:
        ability = one.ability_of(path)
        for found in shapes.stream(path, one.shape, ability=ability, on_bad_record=on_bad_record):
            yield ability, found


def kind_of_reason(reason: str) -> str:
    """A reason without what differs from row to row."""
    return _POSITION.sub("N", re.sub(r"'[^']*'", "'...'", reason.split(";")[0]))


def _print_seen(one: "Entry", seen: dict[str, Any]) -> None:
    from dynamics.cli.pair_counts import pair_lines

    print(f"{one.title}\n{seen['folder']}: {seen['checked']}\nlicence: {seen['licence']}")
    for split, part in seen["splits"].items():
        if one.kind == "benchmark":
            print(f"\n{split}: {part['questions']:,} questions in {len(part['files'])} files")
            continue
        what = "pairs" if one.kind == "preferences" else "records"
        print(f"\n{split}: {part['records']:,} {what}, {part['rejected']:,} rejected, {len(part['files'])} files")
        for name, count in part["abilities"].items():
            bad = f", {count['rejected']:,} rejected" if count["rejected"] else ""
            print(f"  {name:18} {count['records']:>9,}{bad}")
        for line in pair_lines(part["pairs"]) if "pairs" in part else ():
            print(f"  {line}")
        kinds = ", ".join(f"{name or 'none'} {count:,}" for name, count in list(part["types"].items())[:12])
        if len(part["types"]) > 1:
            print(f"  types: {kinds}{', ...' if len(part['types']) > 12 else ''}")
        for reason, count in part["reasons"].items():
            print(f"  rejected {count:,}: {reason}")
        for row in part["rejected_rows"][:3]:
            print(f"    {row['file']}:{row['line']}: {row['reason']}")
        for sample in part["samples"]:
            print_sample(sample)
    if "asked" in seen:
        _print_asked(seen["asked"])
    if seen["absent"]:
        print(f"\nnot there: {', '.join(seen['absent'])}")


def _print_asked(asked: dict[str, Any]) -> None:
    print(f"\nasked: {asked['questions']:,} questions of {len(asked['tasks'])} tasks")
    for reason, tasks in asked["left_out"].items():
        each = ", ".join(f"{task} {count:,}" for task, count in tasks.items())
        print(f"  left out {sum(tasks.values()):,}: {reason.replace('_', ' ')} ({each})")
    for what, names in (("tasks without a file", asked["missing"]), ("files of no known task", asked["unknown"])):
        if names:
            print(f"  {what}: {', '.join(names)}")
    for sample in asked["samples"]:
        gold = {"role": "gold", "content": sample["gold"]}
        print_sample({**sample, "messages": [*sample["messages"], gold]})


def print_sample(sample: dict[str, Any]) -> None:
    if "chosen" in sample:
        turns = [*sample["chosen"][:-1], {"role": "chosen", "content": sample["chosen"][-1]["content"]},
                 {"role": "rejected", "content": sample["rejected"][-1]["content"]}]  # fmt: skip
    elif "completion" in sample:
        judged = "desirable" if sample["label"] else "undesirable"
        turns = [*sample["prompt"], {"role": judged, "content": sample["completion"][-1]["content"]}]
    else:
        turns = sample["messages"]
    print(f"  - {sample.get('ability', '')} {sample['id']}".replace("-  ", "- "))
    for turn in turns:
        text = " ".join(turn["content"].split())
        cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."
        print(f"      {turn['role']}: {cut}")


class _Progress:
    """A line on standard error now and then, none for what is quick."""

    def __init__(self, what: str, *, interval: float = 5.0) -> None:
        self._what = what
        self._interval = interval
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        from dynamics.data.catalogue import size_text

        if time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            print(f"{self._what}: {done / max(total, 1):.0%} of {size_text(total)}", file=sys.stderr)
