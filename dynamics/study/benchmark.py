"""Benchmarks put to one model, in a folder that can be gone on with.

items.jsonl    one line a question, appended batch by batch: what was answered, what is right, the letters' logits
settings.json  what decides those lines, for each benchmark and number of shots; one with other settings is refused
scores.json    means, standard errors and chance of each benchmark and number of shots, and of every task
scores.csv     the same, a row a task
<test>.png     tasks by their accuracy, beside chance

A pass may ask for more or fewer benchmarks and shots than the folder has: what is there of the others stays.
"""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dynamics import config
from dynamics.data.doit import CEVAL_NAMES, Doit
from dynamics.data.template import TEMPLATES
from dynamics.errors import UserError
from dynamics.eval.ability_eval import ItemResult, evaluate_prepared, prepare
from dynamics.eval.benchmark_eval import Answer, PreparedTest, answers, entry, prepare_benchmark, task_rows
from dynamics.eval.benchmarks import FAMILY, Benchmark
from dynamics.eval.scores import aggregate, published_average
from dynamics.eval.settings import PUBLISHED, Evaluation
from dynamics.model.convert import is_model_folder
from dynamics.model.sharding import MeshShape, make_mesh, num_row_shards
from dynamics.record import ABILITY_NAMES, Record, ability_name
from dynamics.study.folder import claim, read_json, write_json
from dynamics.study.prepare import Workspace
from dynamics.study.score import Appender, Scoring, Subject, open_subject

LINES_VERSION = 1  # raised when the same model and prompts would give other lines

Key = tuple[str, int | None, str]  # benchmark, shots, id of the question
Report = Callable[[int, int], None]  # (questions done, questions there are)
DOIT = "doit"  # the test files that the DoIT study publishes, answered by generation and not by letters
LINES, SETTINGS, SCORES, TABLE = "items.jsonl", "settings.json", "scores.json", "scores.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoitTest:
    """The published test files of one ability."""

    ability: str
    records: tuple[Record, ...]
    settings: Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPass:
    """A planned pass: every file is read and every mistake in it told, no weight is loaded yet."""

    subject: Subject
    tests: tuple[PreparedTest, ...]
    doit: tuple[DoitTest, ...]
    doit_counts: dict[str, int]  # records of the published files that are not asked, by reason
    mesh: Mesh | None
    batch_tokens: int | None

    @property
    def num_questions(self) -> int:
        return sum(len(test.questions) for test in self.tests) + sum(len(test.records) for test in self.doit)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the lines, as plain JSON data. Not the mesh: another one gives the same to float tolerance."""
        subject = self.subject
        assert subject.tokenizer is not None
        records = [(test.ability, test.settings, [record.id for record in test.records]) for test in self.doit]
        return {
            "version": LINES_VERSION,
            "model": subject.identity,
            "template": config.to_plain(subject.template),
            "tokenizer": subject.tokenizer.fingerprint,
            "batch_tokens": self.batch_tokens,
            **{f"{test.benchmark} {test.shots}": test.fingerprint() for test in self.tests},
            **({DOIT: config.fingerprint([config.to_plain(list(one)) for one in records])} if records else {}),
        }


def find_benchmarks(names: Sequence[str], data_dir: str, tasks: Sequence[str], **given: Any) -> tuple[Benchmark, ...]:
    """The benchmarks of these names under `data_dir`: in the folder of their name, or in `data_dir` itself.

    `given`: settings that replace a benchmark's own (shots, limit, letters, max_length). `tasks` may belong to any of
    the benchmarks; one that belongs to none is a UserError.
    """
    known = {member.__name__.lower(): member for member in FAMILY}
    found, remaining = [], set(tasks)
    for name in names:
        folder = Path(data_dir) / name
        benchmark = known[name](data_dir=str(folder if folder.is_dir() else data_dir), **given)
        if tasks:
            there = {question.task for question in benchmark.read().questions}
            own = tuple(task for task in tasks if task in there)
            remaining -= there
            if not own:
                continue
            benchmark = dataclasses.replace(benchmark, tasks=own)
        found.append(benchmark)
    if remaining:
        raise UserError(
            f"--tasks {' '.join(sorted(remaining))}: no such task in {', '.join(names)} under {data_dir}; leave the "
            "option out to see all tasks in scores.csv"
        )
    return tuple(found)


def doit_tests(
    data_dir: str, tasks: Sequence[str], *, published: bool, limit: int | None
) -> tuple[tuple[DoitTest, ...], dict[str, int]]:
    """The published test files, ability by ability, and what of them is not asked, by reason."""
    folder = Path(data_dir) / DOIT
    source = Doit(data_dir=str(folder if (folder / "curated").is_dir() else data_dir), on_bad_record="skip")
    # As published, answers may run past max_length: C-Eval's five examples leave less room than one may take.
    settings = PUBLISHED if published else dataclasses.replace(PUBLISHED, rules="ours", ties="share")
    there = {ability for ability, _ in source.found(("test",)).files}  # the other splits need not be there
    wanted = {ability_name(task) for task in tasks} or there
    chosen = [ability for ability in (*ABILITY_NAMES, *CEVAL_NAMES) if ability in there and ability in wanted]
    loaded = {ability: source.load(ability, "test") for ability in chosen}
    tests = tuple(
        DoitTest(ability=ability, records=tuple(one.records[:limit]), settings=settings)
        for ability, one in loaded.items()
        if one.records
    )
    rejected = sum(len(one.rejected) for one in loaded.values())
    beyond = sum(len(one.records[limit:]) for one in loaded.values()) if limit is not None else 0
    counts = {"left_out": rejected + beyond, **({"beyond_limit": beyond} if beyond else {})}
    return tests, counts


def plan_benchmarks(
    model: str | Path,
    benchmarks: Sequence[Benchmark],
    workspace: Workspace,
    *,
    mesh: MeshShape,
    template: str | None = None,
    doit: tuple[tuple[DoitTest, ...], dict[str, int]] | None = None,
    batch_tokens: int | None = None,
    compute: str | None = None,
) -> BenchmarkPass:
    """Everything but the weights, read and checked. `compute`: the type of the model's products, else its own."""
    if template is None and is_model_folder(model):
        names = ", ".join(one.name for one in TEMPLATES)
        raise UserError(
            f"{model} does not say how its conversations are written; give the template that it was trained with, "
            f"--template NAME: {names}"
        )
    scoring = Scoring(file=str(model), kind="records", template=template, mesh=mesh)
    subject = open_subject(model, scoring, workspace, compute=compute)
    assert subject.tokenizer is not None
    assert subject.template is not None
    tests = tuple(
        test
        for benchmark in benchmarks
        for test in prepare_benchmark(benchmark, tokenizer=subject.tokenizer, template=subject.template)
    )
    if tests:
        subject.check_length(max(test.longest for test in tests))
    made = make_mesh(mesh)
    asked, not_asked = doit or ((), {})
    return BenchmarkPass(
        subject=subject, tests=tests, doit=asked, doit_counts=not_asked, mesh=None if made.size == 1 else made,
        batch_tokens=batch_tokens,
    )  # fmt: skip


def run_benchmarks(planned: BenchmarkPass, folder: str | Path | None, report: Report) -> list[dict[str, Any]]:
    """The entries of all tests; in `folder`, what was answered before is not asked again and all files are written.

    Raises UserError when the folder is of other settings, or another process writes there.
    """
    if folder is None:
        return _entries(planned, {}, lambda lines: None, report)
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{home} cannot be written: {error.strerror or error}; choose another --output") from None
    with claim(home / ".lock") as mine:
        if not mine:
            raise UserError(f"another process writes to {home}; wait for it or give another --output")
        found, kept_bytes = _resumed(planned, home)
        with Appender(home / LINES, kept_bytes) as appender:

            def write(lines: Sequence[Mapping[str, Any]]) -> None:
                appender.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

            entries = _entries(planned, found, write, report)
        written = _with_earlier(entries, home)
        write_json(home / SCORES, written)
        (home / TABLE).write_text(table(written), encoding="utf-8")
        _draw(entries, home)
    return entries


def _with_earlier(entries: Sequence[dict[str, Any]], home: Path) -> list[dict[str, Any]]:
    """The entries, and before them those of earlier passes that this one did not ask for."""
    others = (read_json(home / SETTINGS) or {}).keys() - {_name(one) for one in entries}
    return [one for one in read_json(home / SCORES) or () if _name(one) in others] + list(entries)


def _name(one: Mapping[str, Any]) -> str:
    """Of a test in settings.json."""
    return DOIT if one["shots"] is None else f"{one['benchmark']} {one['shots']}"


def _draw(entries: Sequence[Mapping[str, Any]], home: Path) -> None:
    from dynamics.study.benchmark_figures import save_tasks_figure  # matplotlib takes a second to load

    for one in entries:
        shots = "" if one["shots"] is None else f"-{one['shots']}"
        save_tasks_figure(one, home / f"{one['benchmark']}{shots}.png")


def _resumed(planned: BenchmarkPass, home: Path) -> tuple[dict[Key, dict[str, Any]], int]:
    """The lines that are there already, and the bytes that hold them; begins the folder where it is new."""
    identity = json.loads(json.dumps(planned.identity))
    path, noted = home / LINES, read_json(home / SETTINGS)
    if not path.exists() or (path.stat().st_size == 0 and noted is None):
        write_json(home / SETTINGS, identity)
        return {}, 0
    if not isinstance(noted, dict):
        raise UserError(f"{path} is there and was not begun by this command (no {SETTINGS}); remove it")
    changed = sorted(name for name in identity.keys() & noted.keys() if noted[name] != identity[name])
    if changed:
        raise UserError(
            f"{home} was begun with other settings ({', '.join(changed)} differ); put them back, give another "
            "--output, or remove the folder"
        )
    if not identity.keys() <= noted.keys():
        write_json(home / SETTINGS, noted | identity)
    whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end was torn by a kill
    found: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(whole, start=1):
        try:
            data = json.loads(line)
            found[data["benchmark"], data["shots"], data["id"]] = data
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number} is no line of this command: remove {path} to begin anew") from None
    return found, sum(len(line) + 1 for line in whole)


def _entries(
    planned: BenchmarkPass,
    found: Mapping[Key, dict[str, Any]],
    write: Callable[[Sequence[Mapping[str, Any]]], None],
    report: Report,
) -> list[dict[str, Any]]:
    total, done, entries = planned.num_questions, 0, []
    model: list[Any] = []  # loaded at the first question that is asked, and once

    def load() -> Any:
        if not model:
            model.append(planned.subject.load(planned.mesh))
        return model[0]

    for test in planned.tests:
        began, earlier = time.monotonic(), _earlier(test, found)
        seconds = sum(line.get("seconds", 0.0) for line in found.values() if _of(line, test))
        given = dict(earlier)
        write([_line(test, answer, 0.0) for answer in _never_asked(test, found)])
        report(done + len(given), total)
        if len(given) < len(test.asked):
            for batch in answers(
                load(), test, mesh=planned.mesh, batch_tokens=planned.batch_tokens, done=earlier.keys()
            ):
                fresh = [one for one in batch if one[0] not in given]
                spent = time.monotonic() - began
                write([_line(test, answer, spent if n == 0 else 0.0) for n, (_, answer) in enumerate(fresh)])
                began += spent
                seconds += spent
                given.update(fresh)
                report(done + len(given), total)
        done += len(test.questions)
        entries.append(entry(test, given, seconds=seconds))
    if planned.doit:
        entries.append(_doit_entry(planned, load, found, write, lambda n: report(done + n, total)))
    report(total, total)
    return entries


def _of(line: Mapping[str, Any], test: PreparedTest) -> bool:
    return (line["benchmark"], line["shots"]) == (test.benchmark, test.shots)


def _never_asked(test: PreparedTest, found: Mapping[Key, dict[str, Any]]) -> list[Answer]:
    """Questions that are too long and have no line yet."""
    places = set(range(len(test.questions))).difference(test.asked)
    questions = [test.questions[place] for place in sorted(places)]
    return [Answer(question=one, option=None) for one in questions if (test.benchmark, test.shots, one.id) not in found]


def _earlier(test: PreparedTest, found: Mapping[Key, dict[str, Any]]) -> dict[int, Answer]:
    earlier = {}
    for place in test.asked:
        question = test.questions[place]
        line = found.get((test.benchmark, test.shots, question.id))
        if line is not None:
            earlier[place] = Answer(
                question=question, option=line["answer"], logits=tuple(line["logits"]), tied=line["tied"]
            )
    return earlier


def _line(test: PreparedTest, answer: Answer, seconds: float) -> dict[str, Any]:
    question = answer.question
    return {
        "benchmark": test.benchmark, "shots": test.shots, "task": question.task, "id": question.id,
        "gold": question.gold, "answer": answer.option, "correct": answer.correct, "tied": answer.tied,
        "logits": [round(one, 6) for one in answer.logits], "seconds": round(seconds, 4),
    }  # fmt: skip


def _doit_entry(
    planned: BenchmarkPass,
    load: Callable[[], Any],
    found: Mapping[Key, dict[str, Any]],
    write: Callable[[Sequence[Mapping[str, Any]]], None],
    report: Callable[[int], None],
) -> dict[str, Any]:
    """The published test files, answered ability by ability; its items have scores, not right or wrong."""
    subject = planned.subject
    assert subject.tokenizer is not None
    assert subject.template is not None
    results: list[ItemResult] = []
    seconds = 0.0
    for test in planned.doit:
        lines = [found.get((DOIT, None, f"{test.ability}/{record.id}")) for record in test.records]
        known = [line for line in lines if line is not None]
        if len(known) < len(lines):
            began = time.monotonic()
            shards = 1 if planned.mesh is None else num_row_shards(planned.mesh)
            items = prepare(test.records, subject.tokenizer, subject.template, test.settings, row_shards=shards)
            scored = evaluate_prepared(load(), items, mesh=planned.mesh)
            spent = (time.monotonic() - began) / len(scored)
            known = [_doit_line(test, result, spent) for result in scored]
            write([line for line, there in zip(known, lines, strict=True) if there is None])
        results += [ItemResult(**line["result"]) for line in known]
        seconds += sum(line["seconds"] for line in known)
        report(len(results))
    overall = aggregate(results)
    abilities = overall.abilities.values()
    rules = planned.doit[0].settings.rules
    return {
        "benchmark": DOIT,
        "shots": None,
        "rules": rules,
        **({"published_average": published_average(results).average} if rules == "published" else {}),
        "num_items": len(results),
        "macro": overall.score,
        "micro": sum(result.score for result in results) / len(results),
        "chance_macro": overall.chance,
        "chance_micro": sum(result.chance for result in results) / len(results),
        "macro_se": overall.standard_error,
        "micro_se": None,
        "counts": {
            "too_long": sum(one.num_too_long for one in abilities),
            "unparsed": sum(one.num_unparsed for one in abilities),
            "truncated": sum(one.num_truncated for one in abilities),
            **planned.doit_counts,
        },
        "tasks": {
            one.ability: {
                "scores": [result.score for result in results if result.ability == one.ability],
                "chance": one.chance,
            }
            for one in abilities
        },
        "seconds": round(seconds, 3),
    }


def _doit_line(test: DoitTest, result: ItemResult, seconds: float) -> dict[str, Any]:
    return {
        "benchmark": DOIT, "shots": None, "task": test.ability, "id": f"{test.ability}/{result.id}",
        "result": dataclasses.asdict(result), "seconds": round(seconds, 4),
    }  # fmt: skip


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """scores.csv: a row for each task, and the two means of each test after its tasks."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["benchmark", "shots", "task", "n", "accuracy", "chance", "standard_error"])
    for one in entries:
        shots = "" if one["shots"] is None else one["shots"]
        rows = [*task_rows(one)]
        for name, mean in (("macro", "mean of tasks"), ("micro", "mean of items")):
            row = {"accuracy": one[name], "chance": one[f"chance_{name}"], "se": one[f"{name}_se"]}
            rows.append({"task": mean, "n": one["num_items"], **row})
        for row in rows:
            error = "" if row["se"] is None else f"{row['se']:.5f}"
            numbers = [f"{row['accuracy']:.5f}", f"{row['chance']:.5f}", error]
            writer.writerow([one["benchmark"], shots, row["task"], row["n"], *numbers])
    return file.getvalue()
