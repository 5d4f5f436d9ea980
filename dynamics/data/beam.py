"""Apache Beam over an existing runner: rows for TFDS builders, and token stores. Needs the extra `beam`.

Whatever the runner and the number of its workers, the same files are written as without Beam.

Rows: workers read pieces of the files; what concerns a whole file or a whole split (line numbers, repeated content,
the number of a row, its shard) is settled by grouping, never by the order in which elements arrive.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]  # the extra `beam`, in an environment of its own
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.utils import shard_utils

from dynamics.data.encoding import Item, Work
from dynamics.data.inputs import Input, Parsed, ReadPiece, Row, pieces, read_piece, rejected, repeated
from dynamics.data.preparation import prepare
from dynamics.data.store import DOCUMENTS_PER_SHARD, TokenStore
from dynamics.data.tokenizer import Tokenizer

_SHARD = 1 << 40  # far more rows than a shard ever has, and room for 2^23 shards
_Place = tuple[int, int, int]  # file of the split, piece of the file, line of the piece


def prepare_tokens(
    folder: str | Path,
    items: Iterable[Item],
    work: Work,
    *,
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
    shares: int,
    runner: Any = None,
    options: Any = None,
    items_per_part: int = DOCUMENTS_PER_SHARD,
    notes: Callable[[], dict[str, dict[str, int]]] = dict,
) -> None:
    """`dynamics.data.preparation.prepare` over a Beam runner, as so many shares: the same bytes in `folder`.

    `folder` and what `items` reads must be the same files for every worker, and `items` must pickle: TrainRecords of
    a source does. A worker reads all of the source and encodes its share. Finished parts are kept, so that a run after
    an interruption makes what is missing. This process completes the store, and asks `notes`.
    """
    job = _Shares(
        folder=str(folder),
        items=items,
        work=work,
        tokenizer=tokenizer.model,
        specials=tuple(tokenizer.specials),
        manifest=manifest,
        shares=shares,
        items_per_part=items_per_part,
    )
    if not (Path(folder) / "manifest.json").is_file():
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            _ = pipeline | beam.Create(range(shares)) | beam.Reshuffle() | beam.Map(_make_share, job)
        prepare(
            folder,
            items,
            work,
            tokenizer=tokenizer,
            manifest=manifest,
            items_per_part=items_per_part,
            notes=notes,
        )
    TokenStore.open(folder, manifest=manifest)  # refuses one of other settings


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """What a worker needs to make its share of the parts."""

    folder: str
    items: Iterable[Item]
    work: Work
    tokenizer: bytes
    specials: tuple[str, ...]
    manifest: dict[str, Any]
    shares: int
    items_per_part: int


class _LeftToTheCaller(Exception):
    """The parts of a share are there."""


@contextlib.contextmanager
def _leave() -> Iterator[None]:
    """Workers do not complete a store: two could at once."""
    raise _LeftToTheCaller
    yield


def _make_share(number: int, job: _Shares) -> None:
    with contextlib.suppress(_LeftToTheCaller):
        prepare(
            job.folder,
            job.items,
            job.work,
            tokenizer=Tokenizer.from_bytes(job.tokenizer, specials=job.specials),
            manifest=job.manifest,
            share=(number, job.shares),
            items_per_part=job.items_per_part,
            completing=_leave,
        )


class Rows(beam.PTransform):
    """[] -> (key, row) for `GeneratorBasedBuilder`: the rows of a split's inputs, each once and in their order.

    Keys are such that TFDS's Beam writer cuts shards where its plain writer does: it puts a row into a shard by the
    size of its key, so a key is the number of the shard times a large number, plus the row's place in it.

    `report` is the file that {counts: {ability: rows}, rejected: [...]} is written to.
    """

    def __init__(self, inputs: list[Input], *, features: Any, num_shards: int | None, report: str, piece: int) -> None:
        super().__init__()
        self._inputs = inputs
        self._features = features
        self._num_shards = num_shards
        self._report = report
        self._pieces = pieces(inputs, size=piece)

    def expand(self, pcoll: Any) -> Any:
        inputs = self._inputs
        read = (
            pcoll
            | "Pieces" >> beam.Create(self._pieces)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.Map(read_piece)
        )
        lines = beam.pvalue.AsSingleton(
            read | "LinesOfPiece" >> beam.Map(_lines_of) | "AllLines" >> beam.combiners.ToList()
        )
        parsed = read | "Parsed" >> beam.FlatMap(_placed)
        kept = (
            parsed
            | "Good" >> beam.Filter(_is_good)
            | "ByContent" >> beam.Map(_by_content)
            | "SameContent" >> beam.GroupByKey()
            | "Once" >> beam.FlatMap(_once, inputs, lines).with_outputs("rejected", main="rows")
        )
        bad = parsed | "Bad" >> beam.Filter(_is_bad) | "Rejected" >> beam.Map(_rejected, inputs, lines)
        in_pieces = kept.rows | "OfPiece" >> beam.Map(_by_piece) | "InPiece" >> beam.GroupByKey()
        counted = in_pieces | "RowsOfPiece" >> beam.Map(_rows_of) | "AllRows" >> beam.combiners.ToList()
        sizes = (
            kept.rows | "Size" >> beam.Map(_size, self._features) | "Sizes" >> beam.CombineGlobally(sum)
            if self._num_shards is None
            else pcoll | "NoSizes" >> beam.Create([0])
        )
        _ = (
            (bad, kept.rejected)
            | "AllRejected" >> beam.Flatten()
            | "RejectedList" >> beam.combiners.ToList()
            | "Report" >> beam.Map(_write_report, self._report, inputs, beam.pvalue.AsSingleton(counted))
        )
        return in_pieces | "Number" >> beam.FlatMap(
            _keyed, beam.pvalue.AsSingleton(counted), beam.pvalue.AsSingleton(sizes), self._num_shards
        )


def _lines_of(read: ReadPiece) -> tuple[int, int, int]:
    return read.file, read.number, read.num_lines


def _placed(read: ReadPiece) -> Iterator[tuple[_Place, Parsed]]:
    for parsed in read.parsed:
        yield (read.file, read.number, parsed.line), parsed


def _is_good(placed: tuple[_Place, Parsed]) -> bool:
    return placed[1].row is not None


def _is_bad(placed: tuple[_Place, Parsed]) -> bool:
    return placed[1].row is None


def _line(place: _Place, lines: Iterable[tuple[int, int, int]]) -> int:
    """The number of a line in its file: those of the pieces before come on top."""
    file, piece, line = place
    return line + sum(count for of_file, number, count in lines if of_file == file and number < piece)


def _by_content(placed: tuple[_Place, Parsed]) -> tuple[tuple[int, str], tuple[_Place, Parsed]]:
    place, parsed = placed
    return (place[0], parsed.id), (place, parsed)


def _once(
    same: tuple[tuple[int, str], Iterable[tuple[_Place, Parsed]]],
    inputs: list[Input],
    lines: list[tuple[int, int, int]],
) -> Iterator[Any]:
    """The first line of those with one content; the others are rejected."""
    (place, first), *others = sorted(same[1], key=lambda placed: placed[0])
    yield place, first.row
    for other, parsed in others:
        one = repeated(inputs[other[0]], parsed, line=_line(other, lines), earlier=_line(place, lines))
        yield beam.pvalue.TaggedOutput("rejected", ((other[0], one.line), vars(one)))


def _rejected(placed: tuple[_Place, Parsed], inputs: list[Input], lines: list[tuple[int, int, int]]) -> Any:
    place, parsed = placed
    one = rejected(inputs[place[0]], _line(place, lines), parsed.reason, parsed.text)
    return (place[0], one.line), vars(one)


def _by_piece(placed: tuple[_Place, Row]) -> tuple[tuple[int, int], tuple[int, Row]]:
    (file, piece, line), row = placed
    return (file, piece), (line, row)


_Rows = tuple[tuple[int, int], Iterable[tuple[int, Row]]]
_Counted = tuple[tuple[int, int], dict[str, int]]


def _rows_of(in_piece: _Rows) -> _Counted:
    """How many rows of each ability a piece has."""
    piece, rows = in_piece
    return piece, dict(Counter(row["ability"] for _, row in rows))


def _size(placed: tuple[_Place, Row], features: Any) -> int:
    """Bytes of a row as TFDS writes it, by which it chooses the number of shards."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return len(serializer.serialize_example(features.encode_example(placed[1])))


def _keyed(in_piece: _Rows, counted: list[_Counted], size: int, num_shards: int | None) -> Iterator[tuple[int, Row]]:
    piece, rows = in_piece
    start = sum(sum(counts.values()) for other, counts in counted if other < piece)
    total = sum(sum(counts.values()) for _, counts in counted)
    shards = num_shards or shard_utils.ShardConfig.calculate_number_shards(size, total)
    ends = shard_utils.get_shard_boundaries(total, shards)
    shard = 0
    for number, (_, row) in enumerate(sorted(rows, key=lambda one: one[0]), start):
        while number >= ends[shard]:
            shard += 1
        before = ends[shard - 1] if shard else 0
        yield shard * _SHARD + number - before, row


def _write_report(found: list[Any], path: str, inputs: list[Input], counted: list[_Counted]) -> None:
    from etils import epath

    counts = dict.fromkeys((one.ability for one in inputs), 0)
    for _, of_piece in counted:
        for ability, count in of_piece.items():
            counts[ability] = counts.get(ability, 0) + count
    ordered = [one for _, one in sorted(found, key=lambda one: one[0])]
    epath.Path(path).write_text(json.dumps({"counts": counts, "rejected": ordered}, ensure_ascii=False))
