"""The scoring pass: the log-probability of every document of a file under a model, to a file that can be resumed.

scores.jsonl                 one line a document, in the input's order, appended batch by batch
scores.jsonl.settings.json   what decides those numbers; a pass with other settings does not go on there
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from dynamics import config
from dynamics.data.packing import OverLong, PackingPlan
from dynamics.data.sources import file_digest
from dynamics.data.template import TEMPLATES, Template, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.documents import Document, Documents, OnBadRecord, read_records, read_token_lists
from dynamics.eval.logprobs import logprob_sums, plan_documents
from dynamics.model.convert import check_length, is_model_folder, load_model, read_config, tokenizer_path
from dynamics.model.llama import LlamaConfig, abstract
from dynamics.model.sharding import MeshShape, make_mesh, num_row_shards, shardings_for
from dynamics.study.folder import claim, read_json, write_json
from dynamics.study.identity import RESULTS_VERSION
from dynamics.study.prepare import Workspace
from dynamics.study.single import finished_run
from dynamics.train.checkpoint import load_params, read_manifest

LONGEST = 2048  # tokens of a row where no length is given: the context of the first LLaMA
SHORTEST = 128
BATCH_TOKENS = 8192  # positions of a batch on each shard of its rows, where no number of rows is given
VOCABULARY_MULTIPLE = 64  # so that embedding tables split evenly over devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored, and how it is batched. None: chosen from the data."""

    file: str
    kind: Literal["records", "tokens"]
    mesh: MeshShape
    template: str | None = None
    length: int | None = None  # tokens of a row
    rows: int | None = None  # of a batch
    over_long: OverLong = "error"
    on_bad_record: OnBadRecord = "error"

    def __post_init__(self) -> None:
        if self.kind == "tokens" and self.template is not None:
            raise UserError("--template has no use with --tokens, which are ids already; leave it out")
        if self.length is not None and self.length < 2:
            raise UserError(f"--length {self.length}: rows have at least 2 tokens")
        if self.rows is not None and self.rows < 1:
            raise UserError(f"--rows {self.rows}: a batch has at least 1 row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The model of a pass: known by its settings, read only when everything else is in order."""

    config: LlamaConfig
    tokenizer: Tokenizer | None  # None where the documents are ids already
    template: Template | None
    identity: dict[str, Any]  # what decides its numbers
    load: Callable[[Mesh | None], Any]
    check_length: Callable[[int], None]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """The score of one document."""

    id: str | int
    logprob_sum: float  # nats
    num_tokens: int  # that were scored

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """A planned scoring pass: nothing is computed yet, and every mistake in the input has been told."""

    subject: Subject
    documents: Documents
    packing: PackingPlan
    mesh: Mesh | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the lines, as plain JSON data. Not the mesh: another one gives the same to float tolerance."""
        tokenizer, template = self.subject.tokenizer, self.subject.template
        return {
            "version": RESULTS_VERSION,
            "model": self.subject.identity,
            "data": file_digest(self.documents.path)[:16],
            "template": None if template is None else config.to_plain(template),
            "tokenizer": None if tokenizer is None else tokenizer.fingerprint,
            "rows": self.packing.rows,
            "length": self.packing.length,
            "documents": self.packing.num_documents,
            "batches": self.packing.fingerprint,
        }

    def _check_finite(self, places: Iterable[Any], sums: Iterable[Any]) -> None:
        for place, total in zip(places, sums, strict=True):
            if not math.isfinite(total):
                raise UserError(
                    f"document {self.documents.documents[place].id!r} has log-probability {total}: the weights hold "
                    "numbers that are none, or overflow in their type; look with dynamics model info MODEL --verify"
                )

    def lines(self, first_batch: int = 0) -> Iterator[list[Line]]:
        """The scores of the documents, in order, batch by batch."""
        if first_batch >= self.packing.num_batches:
            return
        model = self.subject.load(self.mesh)
        encoded = self.documents.encoded
        for places, sums in logprob_sums(model, encoded, self.packing, first_batch=first_batch, mesh=self.mesh):
            self._check_finite(places, sums)
            yield [
                Line(
                    id=self.documents.documents[place].id,
                    logprob_sum=float(total),
                    num_tokens=int(self.packing.num_trained[place]),
                )
                for place, total in zip(places, sums, strict=True)
            ]


def plan_pass(model: str | Path, scoring: Scoring, workspace: Workspace) -> Pass:
    """Read and check everything but the weights. Raises UserError with file and line for a document that is bad."""
    subject = open_subject(model, scoring, workspace)
    path = Path(scoring.file)
    if scoring.kind == "tokens":
        read = read_token_lists(path, vocab_size=subject.config.vocab_size, on_bad_record=scoring.on_bad_record)
    else:
        assert subject.tokenizer is not None
        assert subject.template is not None
        read = read_records(path, subject.tokenizer, subject.template, on_bad_record=scoring.on_bad_record)
    if not read.documents:
        raise UserError(f"{path} has no document to score: all of its lines are bad, the first: {read.bad[0]}")
    length = scoring.length or _length(read)
    subject.check_length(length)
    fitted = read.fitted(length=length, over_long=scoring.over_long)
    if not fitted.documents:
        raise UserError(f"{path} has no document of at most {length} tokens; give a larger --length")
    mesh = make_mesh(scoring.mesh)
    shards = num_row_shards(mesh)
    rows = scoring.rows or _rows(sum(map(len, fitted.encoded)), length, shards)
    if rows % shards:
        raise UserError(f"--rows {rows} cannot be split over the mesh's {shards} row shards; use a multiple of them")
    packing = plan_documents(fitted.encoded, rows=rows, length=length)
    return Pass(subject=subject, documents=fitted, packing=packing, mesh=None if mesh.size == 1 else mesh)


def _length(documents: Documents) -> int:
    """Rows for the longest document: SHORTEST times a power of two, at most LONGEST."""
    length = SHORTEST
    while length < min(documents.longest, LONGEST):
        length *= 2
    return length


def _rows(num_tokens: int, length: int, shards: int) -> int:
    """Rows of a batch: BATCH_TOKENS a shard, fewer where the whole file needs fewer; a multiple of the shards."""
    needed = -(-num_tokens // (length * shards))
    return shards * max(1, min(BATCH_TOKENS // length, needed))


def open_subject(model: str | Path, scoring: Scoring, workspace: Workspace, *, compute: str | None = None) -> Subject:
    """The model of a model folder, or of the folder of a finished run or cell; `compute`: the type of its products."""
    if is_model_folder(model):
        return _folder_subject(Path(model), scoring, compute)
    if (Path(model) / "run.json").exists():
        return _run_subject(Path(model), scoring, workspace, compute)
    raise UserError(
        f"{model} is neither a model folder (no config.json) nor the folder of a run (no run.json); "
        "give one that `dynamics model import` or `dynamics train` wrote"
    )


def _folder_subject(folder: Path, scoring: Scoring, compute: str | None) -> Subject:
    shape, notes = _computed(read_config(folder), compute), []
    tokenizer = template = None
    if scoring.kind == "records":
        template = _template(scoring.template)
        tokenizer = Tokenizer.load(tokenizer_path(folder), specials=tokenizer_specials(template))
        if tokenizer.vocab_size > shape.vocab_size:
            more = tokenizer.vocab_size - shape.vocab_size
            notes.append(
                f"{folder} has {shape.vocab_size:,} vocabulary rows and template {template.name!r} needs {more} more: "
                "they are the mean of the others, which the model was never trained on"
            )
            shape = dataclasses.replace(shape, vocab_size=tokenizer.padded_vocab_size(VOCABULARY_MULTIPLE))
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return Subject(
        config=shape,
        tokenizer=tokenizer,
        template=template,
        identity={"files": {path.name: file_digest(path)[:16] for path in files}, "compute": shape.compute_dtype},
        load=lambda mesh: load_model(folder, shape, mesh=mesh),
        check_length=lambda length: check_length(folder, length),
        notes=tuple(notes),
    )


def _run_subject(folder: Path, scoring: Scoring, workspace: Workspace, compute: str | None) -> Subject:
    run, _ = finished_run(folder, workspace)
    if scoring.template not in (None, run.template.name):
        raise UserError(
            f"--template {scoring.template}: {folder} was trained with template {run.template.name!r} and knows no "
            "other's special tokens; leave the option out"
        )
    shape = _computed(workspace.model_shape(run), compute)
    manifest = read_manifest(folder / "parameters")
    digest = config.fingerprint({name: described["digest"] for name, described in manifest.arrays.items()}, length=16)

    def load(mesh: Mesh | None) -> Any:
        target = abstract(shape)
        if mesh is not None:
            placed = zip(jax.tree.leaves(target), jax.tree.leaves(shardings_for(target, mesh)), strict=True)
            leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where) for leaf, where in placed]
            target = jax.tree.unflatten(jax.tree.structure(target), leaves)
        return load_params(folder / "parameters", target)[0]

    is_records = scoring.kind == "records"
    return Subject(
        config=shape,
        tokenizer=workspace.tokenizer(run) if is_records else None,
        template=run.template if is_records else None,
        identity={"parameters": digest, "compute": shape.compute_dtype},
        load=load,
        check_length=lambda length: None,
    )


def _computed(shape: LlamaConfig, compute: str | None) -> LlamaConfig:
    """Computed in the weights' own type where that is fast; on CPU in float32. Logits and their norm are float32."""
    if compute is not None:
        return dataclasses.replace(shape, compute_dtype=compute)
    if shape.param_dtype == "bfloat16" and jax.default_backend() != "cpu":
        return dataclasses.replace(shape, compute_dtype="bfloat16")
    return shape


def _template(name: str | None) -> Template:
    known = {template.name: template for template in TEMPLATES}
    if name is None:
        raise UserError(f"--records of a model folder need --template NAME; known: {', '.join(known)}")
    if name not in known:
        raise UserError(f"no template is named {name!r}; known: {', '.join(known)}")
    return known[name]


def score_to_file(planned: Pass, output: str | Path, report: Callable[[int, int], None]) -> int:
    """Write the lines to `output`, going on where an earlier pass stopped; returns how many stood there already.

    `report` is told (documents done, documents there are) after each batch. However a pass was cut short, the file
    ends as if it had not been. Raises UserError when the file is of other settings, or another process writes to it.
    """
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --output") from None
    with claim(path.with_name(f".{path.name}.lock")) as mine:
        if not mine:
            raise UserError(f"another process writes to {path}; wait for it or give another --output")
        first_batch, kept_bytes, num_kept = _resumed(planned, path)
        done = num_kept
        report(done, planned.packing.num_documents)
        with Appender(path, kept_bytes) as appender:
            for lines in planned.lines(first_batch):
                appender.write("".join(line.text() + "\n" for line in lines).encode())
                done += len(lines)
                report(done, planned.packing.num_documents)
    return num_kept


def _resumed(planned: Pass, path: Path) -> tuple[int, int, int]:
    """(batch to go on with, bytes of the file to keep, lines in them); begins the file where there is none."""
    settings_file = path.with_name(f"{path.name}.settings.json")
    identity = json.loads(json.dumps(planned.identity))
    if not path.exists() or (path.stat().st_size == 0 and not settings_file.exists()):
        write_json(settings_file, identity)
        return 0, 0, 0
    noted = read_json(settings_file)
    if not isinstance(noted, dict):
        raise UserError(f"{path} is there and was not begun by this command (no {settings_file.name}); remove it")
    if noted != identity:
        changed = [name for name in identity if noted.get(name) != identity[name]]
        shown = ", ".join(f"{name} ({_brief(noted.get(name))}, now {_brief(identity[name])})" for name in changed)
        raise UserError(
            f"{path} was begun with other settings: {shown}; put them back, give another --output, or remove the file"
        )
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end was torn by a kill
    starts = planned.packing.starts
    batch = int((starts <= len(lines)).sum()) - 1
    kept = lines[: int(starts[batch])]
    _check_ids(path, kept, planned.documents.documents)
    return batch, sum(len(line) + 1 for line in kept), len(kept)


def _check_ids(path: Path, lines: list[bytes], documents: tuple[Document, ...]) -> None:
    for number, (line, document) in enumerate(zip(lines, documents, strict=False), start=1):
        try:
            same = json.loads(line)["id"] == document.id
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{path}:{number} is not the score of {document.id!r}, whose place it has: the file was changed; "
                "remove it to score anew"
            )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else config.fingerprint(value)


class Appender:
    """Appends whole lines, each write on the disk before the next one is computed; what is half written goes again."""

    def __init__(self, path: Path, kept_bytes: int) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another --output") from None
        os.ftruncate(self._descriptor, kept_bytes)
        os.lseek(self._descriptor, kept_bytes, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        size = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                raise OSError(28, "No space left on device")
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; free space and run the same command again to go on"
            ) from error

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
