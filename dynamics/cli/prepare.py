"""`dynamics data prepare`: tokenizers and token shards made before any training."""

import argparse
import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamics.cli.options import load_run, load_study
from dynamics.cli.stopping import orderly_on_sigterm
from dynamics.errors import UserError

if TYPE_CHECKING:
    from dynamics.study.run import Run

_COLUMNS = (
    ("records", "records"),
    ("tokens", "tokens"),
    ("trained", "trained"),
    ("truncated", "truncated"),
    ("dropped", "dropped"),
    ("no_trained_token", "no target"),
    ("rejected", "rejected"),
)
_OF_PAIRS = (("same_replies", "same replies"),)


def prepare(options: argparse.Namespace) -> int:
    """Make what the config's runs read, or one share of it, and print what it holds."""
    from dynamics.study.prepare import Workspace, cache_folder, prepare_runs

    share = _share(options.shard)
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}; give 1 or more processes")
    with orderly_on_sigterm():
        workspace = Workspace(cache_folder(), workers=options.workers)
        told = prepare_runs(_runs(options), workspace, share=share)
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(told, options.shard)
    return 0


def _runs(options: argparse.Namespace) -> Sequence["Run"]:
    """Every run of a study, or the one of a config that has a run() only."""
    try:
        tree = ast.parse(Path(options.config).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    except (OSError, SyntaxError, UnicodeDecodeError):
        names = set()  # what is wrong is told when the file is loaded
    if "run" in names and "study" not in names:
        return [load_run(options)]
    return load_study(options).runs()


def _share(text: str | None) -> tuple[int, int]:
    """(number from 0, of how many) of '2/4', which counts from 1."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"--shard {text}; give I/N, such as 1/4, 2/4, 3/4 and 4/4 for four processes")
    return number - 1, of


def _print(told: dict[str, Any], shard: str | None) -> None:
    for tokenizer in told["tokenizers"]:
        print(f"tokenizer {tokenizer['fingerprint']}: {tokenizer['ids']:,} ids")
    for store in told["stores"]:
        _print_store(store, shard)
    for one in told["evaluation"]:
        counts = ", ".join(f"{ability} {count:,}" for ability, count in one["abilities"].items())
        rejected = f"; {one['rejected']:,} lines rejected" if one["rejected"] else ""
        print(f"{one['source']}, {one['split']}: {sum(one['abilities'].values()):,} records ({counts}){rejected}")


def _print_store(store: dict[str, Any], shard: str | None) -> None:
    head = f"{store['source']}, {store['split']}: {store['state']}"
    if "documents" not in store:
        print(
            f"{head}: shard {shard} is made in {store['seconds']:.1f} s; when all are, the last one completes the store"
        )
        return
    records = sum(one.get("records", 0) for one in store["abilities"].values())
    if store["state"] == "prepared":
        head += f" in {store['seconds']:.1f} s, {records / max(store['seconds'], 1e-9):,.0f} records a second"
    settings = store["settings"]
    template = f", template {settings['template'].get('name')}" if "template" in settings else ""
    policy = f", longer ones: {settings['over_long']}" if "over_long" in settings else ""
    print(f"{head}\n  {store['folder']}")
    size = f"{store['documents']:,} documents of at most {settings['length']:,} tokens"
    print(f"  {store['shards']} shards, {size}{policy}")
    print(f"  tokenizer {settings['tokenizer']}{template}, fingerprint {store['fingerprint']}")
    rows = [(name or "plain text", counts) for name, counts in store["abilities"].items()]
    columns = (*_COLUMNS, *(one for one in _OF_PAIRS if any(one[0] in counts for _, counts in rows)))
    if len(rows) > 1:
        rows.append(("all", {key: sum(one.get(key, 0) for _, one in rows) for key, _ in columns}))
    print(f"  {'':18}" + "".join(f"{title:>{_width(title)}}" for _, title in columns))
    for name, counts in rows:
        print(f"  {name:18}" + "".join(f"{counts.get(key, 0):>{_width(title)},}" for key, title in columns))


def _width(title: str) -> int:
    return max(len(title) + 2, 14 if title in ("tokens", "trained") else 0)
