"""`dynamics model info|import|export` and `dynamics version`."""

import argparse
import dataclasses
import difflib
import json
import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dynamics.cli.stopping import orderly_on_sigterm
from dynamics.errors import UserError
from dynamics.versions import versions

if TYPE_CHECKING:
    from dynamics.data.template import Template
    from dynamics.model.convert import Params, Written
    from dynamics.model.llama import LlamaConfig

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def version(options: argparse.Namespace) -> int:
    """The versions that results depend on."""
    found = versions()
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))
    return 0


def info(options: argparse.Namespace) -> int:
    """Shapes, parameters and bytes of a named size, of all of them, of a model folder or of a .gguf file."""
    from dynamics.model.llama import SIZES

    given = options.model
    if given is not None and given not in SIZES and Path(given).exists():
        return _show(options, _describe_weights(options))
    if options.verify:
        raise UserError("--verify compares the tensors of a folder with their digests; give a model folder")
    if given is not None and given not in SIZES:
        near = difflib.get_close_matches(given, SIZES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no size, folder or file is named {given!r}{hint}; known sizes: {', '.join(SIZES)}")
    if given is not None:
        return _show(options, _describe_size(given, options.vocab))
    rows = [_describe_size(name, options.vocab) for name in SIZES]
    if options.json:
        print(json.dumps(rows))
    else:
        _table(rows)
    return 0


def import_(options: argparse.Namespace) -> int:
    """Make a model folder of Hugging Face safetensors or of a .gguf file."""
    from dynamics.model.convert import import_model

    template = None if options.template is None else _template(options.template)
    with orderly_on_sigterm(), _Bytes("importing") as progress:
        done = import_model(
            options.source,
            options.folder,
            template=template,
            vocab_multiple=options.vocab_multiple,
            dtype=options.dtype,
            max_shard=_num_bytes(options.max_shard_size),
            on_bytes=progress,
        )
    return _report(options, done)


def export(options: argparse.Namespace) -> int:
    """Write a folder that transformers and llama.cpp's converter read."""
    from dynamics.model.convert import export_model, is_model_folder

    source = Path(options.source)
    is_run = not is_model_folder(source) and (source / "run.json").exists()
    with orderly_on_sigterm(), _Bytes("exporting") as progress:
        done = export_model(
            _run_params(source) if is_run else source,
            options.folder,
            dtype=options.dtype,
            max_shard=_num_bytes(options.max_shard_size),
            on_bytes=progress,
        )
    return _report(options, done)


def _run_params(folder: Path) -> "Params":
    """The parameters of a finished run, each read when its turn comes."""
    from dynamics.model.convert import Params
    from dynamics.model.llama import abstract
    from dynamics.study.prepare import Workspace, cache_folder
    from dynamics.study.single import finished_run
    from dynamics.train.checkpoint import load_array, read_manifest
    from dynamics.tree import named_leaves

    workspace = Workspace(cache_folder())
    run, _ = finished_run(folder, workspace)
    saved = read_manifest(folder / "parameters").arrays
    config = workspace.model_shape(run)
    for name, leaf in named_leaves(abstract(config)).items():
        if name not in saved or tuple(saved[name]["shape"]) != leaf.shape:
            there = f"has the shape {saved[name]['shape']}" if name in saved else "is not there"
            raise UserError(
                f"{folder / 'parameters'} does not hold the model of its run.json: {name} {there}, not "
                f"{list(leaf.shape)}; export it with the version that trained it"
            )
    return Params(
        config=dataclasses.replace(config, param_dtype=saved["embedding"]["dtype"]),
        array=lambda name: load_array(folder / "parameters", name),
        tokenizer=workspace.tokenizer(run),
        max_length=run.batch.length,
        place=str(folder),
    )


def _template(name: str) -> "Template":
    from dynamics.data.template import TEMPLATES

    known = {template.name: template for template in TEMPLATES}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no template is named {name!r}{hint}; known: {', '.join(known)}")
    return known[name]


def _num_bytes(text: str) -> int:
    """'500MB' as 500,000,000; 1 MiB is 2^20 bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if found is None or found[2] not in _UNITS or float(found[1]) * _UNITS[found[2]] < 1:
        raise UserError(f"--max-shard-size {text}: give a number with a unit, such as 500MB, 5GB or 2GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _report(options: argparse.Namespace, done: "Written") -> int:
    if done.sliding_window is not None:
        window = f"{done.sliding_window:,} tokens"
        print(f"note: the model's own attention sees {window}; rows beyond that are refused here", file=sys.stderr)
    if options.json:
        from dynamics.config import to_plain

        print(json.dumps({**dataclasses.asdict(done), "config": to_plain(done.config)}))
        return 0
    print(
        f"{done.folder}: {done.num_tensors} tensors, {_size(done.num_bytes)}, {done.config.param_dtype}, "
        f"{sum(name.endswith('.safetensors') for name in done.files)} files of weights"
    )
    if done.num_verified:
        print(f"digests compared: {done.num_verified}, all right")
    if done.num_new_rows:
        print(f"new rows of embedding and head, the mean of the old: {done.num_new_rows:,}")
    if done.left_out:
        print(f"left out, of no use to the model: {len(done.left_out)} ({', '.join(done.left_out[:3])})")
    return 0


def _describe_size(name: str, vocab: int | None) -> dict[str, Any]:
    from dynamics.model.llama import SIZES

    config = SIZES[name]
    if vocab is not None:
        config = dataclasses.replace(config, vocab_size=vocab)
    return {"size": name, **_shape(config)}


def _describe_weights(options: argparse.Namespace) -> dict[str, Any]:
    """A model folder or a .gguf file, checked: its tensors are those of its shape."""
    from dynamics.model.convert import verify
    from dynamics.model.weight_sources import open_source

    if options.vocab is not None:
        raise UserError("--vocab is for named sizes; the rows of weights are what they are: leave it out")
    found = open_source(options.model)
    described = {"size": found.config.name, **_shape(found.config)}
    described |= {"rope_theta": found.config.rope_theta, "rms_eps": found.config.rms_eps}
    if found.config.rope_scaling is not None:
        scaling = dataclasses.asdict(found.config.rope_scaling)
        described["rope_scaling"] = f"{type(found.config.rope_scaling).__name__} {scaling}"
    kinds = sorted({str(tensor.dtype) for tensor in found.tensors.values()})
    described |= {"stored_as": " ".join(kinds), "num_tensors": len(found.tensors), "left_out": len(found.harmless)}
    described |= {"sliding_window": found.sliding_window, "tokenizer": " ".join(sorted(found.files)) or None}
    described["digests"] = len(found.digests)
    if options.verify:
        with orderly_on_sigterm(), _Bytes("verifying") as progress:
            described["verified"] = verify(options.model, on_bytes=progress)
    return described


def _shape(config: "LlamaConfig") -> dict[str, Any]:
    import jax

    from dynamics import tree
    from dynamics.model.llama import abstract

    shapes = abstract(config)
    param_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return {
        "parameters": tree.num_parameters(shapes),
        "d_model": config.d_model,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "d_ff": config.d_ff,
        "vocab_size": config.vocab_size,
        "tied_head": config.tied_head,
        "param_bytes": param_bytes,
        # Parameters, gradients and AdamW's two moments, all in the parameters' type; activations come on top.
        "train_bytes": 4 * param_bytes,
    }


def _show(options: argparse.Namespace, described: dict[str, Any]) -> int:
    if options.json:
        print(json.dumps(described))
    else:
        print("\n".join(f"{key:16} {_shown(value)}" for key, value in described.items()))
    return 0


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _size(num_bytes: int) -> str:
    """'13.5 GB', '269.1 MB', '12.0 kB'."""
    for size, unit in ((10**9, "GB"), (10**6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for key in rows[0]:
        table.add_column(key, justify="left" if key == "size" else "right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    Console().print(table)


class _Bytes:
    """Progress on standard error: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, what: str, *, interval: float = 5.0) -> None:
        from rich.console import Console

        self._what = what
        self._interval = interval
        self._last = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(self._what, *columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._what, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            print(f"{self._what}: {done / total:.0%} of {_size(total)}", file=sys.stderr)
