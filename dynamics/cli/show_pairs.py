"""`dynamics data show FILE`: what a file, or a folder of files, of preference pairs holds."""

import argparse
import collections
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynamics.cli import EXIT_USER
from dynamics.cli.catalogue import SHOWN_REJECTED, kind_of_reason, print_sample
from dynamics.cli.pair_counts import PairCounts, pair_lines
from dynamics.data.pair_files import PairFiles
from dynamics.data.parsed_lines import Rejected
from dynamics.data.shapes import read_rows, stream_pairs
from dynamics.data.sources import SPLITS, LoadedPairs, find_files
from dynamics.errors import UserError
from dynamics.pair import Pair

_FIELDS = ("chosen", "rejected", "label", "completion")


def show(options: argparse.Namespace) -> int:
    """Pairs, lengths of their replies, what is rejected and why, and samples; of a folder for each part and split."""
    given = Path(options.config)
    if options.data_dir is not None:
        raise UserError(f"--data-dir has no use here: {given} is shown itself; leave the option out")
    skip = options.on_bad_record or "skip"
    seen: dict[str, Any] = {"path": str(given)}
    if given.is_dir():
        for path in find_files(given).files.values():
            _check_pairs(path)
        source = PairFiles(data_dir=str(given), on_bad_record=skip)
        loaded = {(part, split): source.pairs(part, split) for part in source.paired() for split in SPLITS}
        seen["parts"] = {
            f"{part} {split}": _seen((*one.pairs, *one.rejected), options.rows)
            for (part, split), one in loaded.items()
            if one.pairs or one.rejected
        }
        seen["prompts_in_two_splits"] = _shared(loaded)
    else:
        _check_pairs(given)
        seen["parts"] = {"": _seen(stream_pairs(given, on_bad_record=skip), options.rows)}
        seen["prompts_in_two_splits"] = {}
    code = 0 if any(map(_holds_pairs, seen["parts"].values())) else EXIT_USER
    if options.json:
        print(json.dumps(seen, ensure_ascii=False))
        return code
    for name, part in seen["parts"].items():
        _print_part(f"{given} {name}".strip(), part)
    for part, count in seen["prompts_in_two_splits"].items():
        print(f"{part}: {count:,} prompts stand in two splits; leave them in one, or what is trained on is tested")
    if code:
        print(f"dynamics: no row of {given} gave a pair; a pair has 'chosen' and 'rejected'", file=sys.stderr)
    return code


def _holds_pairs(part: dict[str, Any]) -> bool:
    return any(part["pairs"][kind] for kind in ("pairs", "desirable", "undesirable"))


def _seen(rows: Iterable[Pair | Rejected], num_samples: int) -> dict[str, Any]:
    counts = PairCounts()
    rejected: list[Rejected] = []
    samples: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        counts.add(row)
        if len(samples) < num_samples:
            samples.append(row.to_dict())
    return {
        "pairs": counts.summary(),
        "rejected": len(rejected),
        "reasons": dict(collections.Counter(kind_of_reason(row.reason) for row in rejected).most_common()),
        "rejected_rows": [
            {"file": row.file, "line": row.line, "reason": row.reason} for row in rejected[:SHOWN_REJECTED]
        ],
        "samples": samples,
    }


def _shared(loaded: dict[tuple[str, str], LoadedPairs]) -> dict[str, int]:
    """{part: prompts that stand in more than one of its splits}, of the parts that have such."""
    splits: dict[str, collections.Counter[object]] = {}
    for (part, _), one in loaded.items():
        splits.setdefault(part, collections.Counter()).update({pair.prompt for pair in one.pairs})
    shared = {part: sum(count > 1 for count in counts.values()) for part, counts in splits.items()}
    return {part: count for part, count in shared.items() if count}


def _check_pairs(path: Path) -> None:
    """UserError for a file whose first row looks like anything but a preference."""
    first = next(read_rows(path), None)
    if (
        first is None
        or first.problem
        or not isinstance(first.data, dict)
        or any(name in first.data for name in _FIELDS)
    ):
        return  # what is wrong with it is counted
    fields = ", ".join(map(repr, list(first.data)[:6])) or "no field"
    raise UserError(
        f"{path} holds no preference pairs: its first row has {fields}, a pair has 'chosen' and 'rejected'; look at "
        f"records with dynamics data check {path}, and at what a config trains on with dynamics data show CONFIG.py"
    )


def _print_part(title: str, part: dict[str, Any]) -> None:
    pairs = part["pairs"]
    judged = pairs["desirable"] + pairs["undesirable"]
    kinds = f", {judged:,} replies judged alone" if judged else ""
    print(f"{title}: {pairs['pairs']:,} pairs{kinds}, {part['rejected']:,} rejected")
    for line in pair_lines(pairs) if _holds_pairs(part) else ():
        print(f"  {line}")
    for reason, count in part["reasons"].items():
        print(f"  rejected {count:,}: {reason}")
    for row in part["rejected_rows"][:3]:
        print(f"    {row['file']}:{row['line']}: {row['reason']}")
    for sample in part["samples"]:
        print_sample(sample)
