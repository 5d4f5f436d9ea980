"""`dynamics study run|status|report`."""

import argparse
import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from dynamics.cli.options import load_study
from dynamics.cli.order import point_to_orders
from dynamics.cli.stopping import is_lead, together


def run(options: argparse.Namespace) -> int:
    """Run what is missing, write the report, and print where it lies; exit code 1 when a cell failed."""
    from dynamics.study.progress import Progress

    with together(options):
        from dynamics.study.execution import run_study
        from dynamics.study.summary import record_call

        study = load_study(options)
        point_to_orders(study, options.config)
        folder = Path(options.output) / study.name
        record = functools.partial(record_call, command=shlex.join(["dynamics", *sys.argv[1:]]))
        with Progress(sys.stderr) as progress:
            done = run_study(
                study, folder, workers=options.workers, way=options.way, on_progress=progress, on_end=record
            )
        return _report_run(options, folder, done) if is_lead() else int(bool(done.failed))


def _report_run(options: argparse.Namespace, folder: Path, done: Any) -> int:
    from dynamics.study.progress import duration
    from dynamics.study.summary import planned_results, report

    page = report(folder) if planned_results(folder) else None
    if options.json:
        print(json.dumps(done.to_dict() | {"report": page and str(page)}))
        return 1 if done.failed else 0
    for cell, reason in done.failed.items():
        print(f"failed: {cell}: {reason} (traceback in {folder / 'cells' / cell / 'failed.json'})", file=sys.stderr)
    spent = f"{done.ran} cells run, {done.skipped} were done, {len(done.failed)} failed; {duration(done.seconds)}"
    print(f"{done.name}: {spent}")
    print(f"report: {page}" if page else "report: none, since no cell is done")
    return 1 if done.failed else 0


def status(options: argparse.Namespace) -> int:
    """Cells done, running, failed and to do, with the time left."""
    from dynamics.study.status import study_status

    found = study_status(options.folder)
    if options.json:
        print(json.dumps(found.to_dict()))
        return 0
    _print_status(found)
    return 0


def _print_status(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from dynamics.study.progress import duration, label

    console = Console()
    counts = ", ".join(f"{found.count(state)} {state}" for state in ("done", "running", "failed", "to do"))
    console.print(f"{found.name}: {len(found.cells)} cells: {counts}; time left {duration(found.seconds_left)}")
    table = Table(box=None)
    for column in ("cell", "what", "state", "done", "time"):
        table.add_column(column)
    for cell in found.cells:
        if cell.state in ("running", "failed"):
            table.add_row(cell.id, label(cell.coords), cell.state, f"{cell.fraction:.0%}", duration(cell.seconds))
    if table.row_count:
        console.print(table)
    for cell in found.failed:
        console.print(f"{cell.id}: {cell.reason}", markup=False, highlight=False)


def report(options: argparse.Namespace) -> int:
    """Write the report of whatever is done so far."""
    from dynamics.study.summary import report as write

    page = write(options.folder)
    print(json.dumps({"report": str(page)}) if options.json else f"report: {page}")
    return 0
