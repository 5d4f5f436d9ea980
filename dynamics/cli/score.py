"""`dynamics score`."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from dynamics.cli.options import mesh_shape
from dynamics.cli.stopping import orderly_on_sigterm

if TYPE_CHECKING:
    from dynamics.eval.documents import Documents

_SHOWN = 3  # bad lines that are shown, of all that are counted


def score(options: argparse.Namespace) -> int:
    """Log-probability of every document of a file under a model."""
    from dynamics.study.prepare import Workspace, cache_folder
    from dynamics.study.score import Scoring, plan_pass, score_to_file

    scoring = Scoring(
        file=options.records or options.tokens,
        kind="records" if options.records else "tokens",
        template=options.template,
        length=options.length,
        rows=options.rows,
        over_long=options.over_long,
        on_bad_record=options.on_bad_record,
        mesh=mesh_shape(options.mesh),
    )
    with orderly_on_sigterm():
        planned = plan_pass(options.model, scoring, Workspace(cache_folder()))
        for note in planned.subject.notes:
            print(f"note: {note}", file=sys.stderr)
        _tell_left_out(planned.documents)
        packing = planned.packing
        print(
            f"{packing.num_documents:,} documents in {packing.num_batches:,} batches of {packing.rows} x "
            f"{packing.length} tokens, {packing.fill:.0%} full",
            file=sys.stderr,
        )
        progress = _Progress(int(packing.num_tokens.sum()) / packing.num_documents)
        if options.output is not None:
            num_kept = score_to_file(planned, options.output, progress)
            _summary(options, planned.documents, num_kept)
            return 0
        done = 0
        try:
            for lines in planned.lines():
                print("\n".join(line.text() for line in lines), flush=True)
                done += len(lines)
                progress(done, packing.num_documents)
        except KeyboardInterrupt as stop:
            stop.args = (f"stopped after {done:,} documents; with --output FILE the next call would go on from there",)
            raise
    return 0


def _left_out(documents: "Documents") -> dict[str, int]:
    return {
        "bad": len(documents.bad),
        "repeated": documents.num_repeated,
        "truncated": documents.num_truncated,
        "dropped": documents.num_dropped,
    }


def _tell_left_out(documents: "Documents") -> None:
    for message in documents.bad[:_SHOWN]:
        print(f"left out: {message}", file=sys.stderr)
    meanings = {
        "bad": "bad lines left out",
        "repeated": "records that repeat an earlier one, scored once",
        "truncated": "documents cut to the length of a row",
        "dropped": "documents left out for being too long",
    }
    for name, count in _left_out(documents).items():
        if count:
            print(f"{meanings[name]}: {count:,}", file=sys.stderr)


def _summary(options: argparse.Namespace, documents: "Documents", num_kept: int) -> None:
    count = len(documents.documents)
    if options.json:
        told = {"output": options.output, "documents": count, "found_done": num_kept, **_left_out(documents)}
        print(json.dumps(told))
    else:
        went_on = f", {num_kept:,} of them found done" if num_kept else ""
        print(f"{options.output}: {count:,} documents{went_on}")


class _Progress:
    """How far a pass is, a line now and then on standard error."""

    def __init__(self, mean_tokens: float, *, interval: float = 5.0) -> None:
        self._mean_tokens = mean_tokens
        self._interval = interval
        self._began: tuple[float, int] | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        if now - self._last < self._interval:
            return
        self._last = now
        spent, fresh = now - self._began[0], done - self._began[1]
        rate = f", {fresh * self._mean_tokens / spent:,.0f} tokens/s" if fresh else ""
        left = f", about {spent / fresh * (total - done):.0f} s left" if fresh else ""
        print(f"{done:,} of {total:,} documents{rate}{left}", file=sys.stderr)
