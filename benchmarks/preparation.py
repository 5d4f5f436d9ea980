"""Time of preparing 43,000 DoIT-like records as token shards: 1 worker against 2, interleaved, and what each end costs.

    python benchmarks/preparation.py --tokenizer chinese_llama_plus_tokenizer.model --texts folder_of_json_texts \\
        --runs 3 --json benchmarks/results/preparation.json --plot benchmarks/results/preparation.png

The records are made here: ten abilities, half of them Chinese and half English, one to three turns, about 250 tokens on
the mean under DoIT's 49,953 pieces. Their sentences come from the JSON files of `--texts` (the folder `sft_dpo_demo` of
the sample data), or from a short list of words. Without `--tokenizer` one is trained on them. Every run prepares into
a new folder, workers included from their start. Judge a busy machine by CPU-seconds, which hold the workers' too.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dynamics.data.encoding import Conversations, TrainRecords
from dynamics.data.preparation import prepare
from dynamics.data.sources import Files, write_jsonl
from dynamics.data.store import TokenStore
from dynamics.data.template import DOIT, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.record import ABILITY_NAMES
from dynamics.versions import versions

RECORDS = 43_000
CHARACTERS = {"zh": 330, "en": 950}  # of a record, on the mean: about 250 tokens in either language
_WORDS = {
    "en": "the a model learns each ability from data at its own pace and more records help where few are known",
    "zh": "模型 从 数据 中 学习 每种 能力 的 速度 各不 相同 ， 更多 记录 有所 帮助",
}


def sentences(folder: Path | None) -> dict[str, list[str]]:
    """Sentences by language, from every text in the JSON files of a folder, or from a few words."""
    if folder is None:
        draw = random.Random(0)
        joins = {"en": " ", "zh": ""}
        return {
            language: [
                joins[language].join(draw.choices(words.split(), k=draw.randint(6, 24))) + "." for _ in range(5000)
            ]
            for language, words in _WORDS.items()
        }
    found: dict[str, dict[str, None]] = {"zh": {}, "en": {}}
    for path in sorted(folder.glob("*.json")):
        for text in _texts(json.loads(path.read_text(encoding="utf-8"))):
            for sentence in re.split(r"(?<=[.!?。！？\n])\s*", text):
                if 8 <= len(sentence) <= 400:
                    found["zh" if re.search(r"[\u4e00-\u9fff]", sentence) else "en"][sentence] = None
    return {language: list(texts) for language, texts in found.items()}


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, (list, dict)):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _texts(item)


def write_records(folder: Path, pool: dict[str, list[str]], num: int) -> int:
    """Files in DoIT's layout, the same on every call; returns their bytes."""
    for number, ability in enumerate(ABILITY_NAMES):
        draw = random.Random(ability)
        count = num // len(ABILITY_NAMES) + (number < num % len(ABILITY_NAMES))
        rows = [_record(draw, pool, ability, index) for index in range(count)]
        write_jsonl(folder / "curated" / "full" / f"{ability}_full.json", rows)
    return sum(path.stat().st_size for path in folder.rglob("*.json"))


def _record(draw: random.Random, pool: dict[str, list[str]], ability: str, index: int) -> dict[str, Any]:
    language = draw.choice(("zh", "en"))
    turns = draw.choice((1, 1, 1, 2, 3))
    size = CHARACTERS[language] * draw.lognormvariate(-0.25, 0.7)
    messages = []
    for _ in range(turns):
        for role, share in (("user", 0.35), ("assistant", 0.65)):
            text = draw.choice(pool[language])
            while len(text) < share * size / turns:
                text += (" " if language == "en" else "") + draw.choice(pool[language])
            messages.append({"role": role, "content": text})
    return {"messages": messages, "idx": index, "type": ability, "question_format": 0, "choices": [], "answer": None}


def cpu_seconds() -> tuple[float, float]:
    """(of this process, of those it has waited for), user and system."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def timed(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    wall, (own, others) = time.perf_counter(), cpu_seconds()
    result = function()
    own_after, others_after = cpu_seconds()
    seconds = {"wall": time.perf_counter() - wall, "cpu": own_after - own, "cpu_of_workers": others_after - others}
    return {name: round(value, 3) for name, value in seconds.items()}, result


def prepared(folder: Path, source: Files, tokenizer: Tokenizer, *, length: int, workers: int) -> TokenStore:
    items = TrainRecords(source)
    work = Conversations(length=length, template=DOIT, over_long="truncate")
    whole = prepare(
        folder, items, work, tokenizer=tokenizer, manifest={"benchmark": "preparation"}, workers=workers,
        notes=items.notes,
    )  # fmt: skip
    assert whole
    return TokenStore.open(folder, manifest={"benchmark": "preparation"})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = write_records(folder / "records", sentences(options.texts), options.records)
        source = Files(data_dir=str(folder / "records"))
        reading, loaded = timed(lambda: [source.load(ability, "train").records for ability in source.abilities()])
        if options.tokenizer is None:
            texts = (turn.content for records in loaded for record in records[:200] for turn in record.messages)
            tokenizer = train_tokenizer(texts, vocab_size=8_192)
        else:
            tokenizer = Tokenizer.load(options.tokenizer, specials=tokenizer_specials(DOIT))
        del loaded
        runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in options.workers}
        first: dict[str, bytes] | None = None
        for number in range(options.runs):
            for workers in options.workers:
                target = folder / f"store-{number}-{workers}"
                seconds, _ = timed(
                    lambda target=target, workers=workers: prepared(
                        target, source, tokenizer, length=options.length, workers=workers
                    )
                )
                runs[workers].append(seconds)
                first = first or content(target)
                assert content(target) == first, "the bytes depend on the number of workers"
                print(f"{workers} workers: {seconds}", flush=True)
        opening, store = timed(lambda: TokenStore.open(folder / f"store-0-{options.workers[0]}"))
        return {
            "records": len(store), "source_bytes": size, "tokens": int(store.num_tokens.sum()),
            "mean_tokens": round(float(store.num_uncut.mean()), 1), "trained": int(store.num_trained.sum()),
            "length": options.length, "truncated": int((store.num_uncut > store.num_tokens).sum()),
            "shards": len(store.shards), "store_bytes": sum(map(len, (first or {}).values())),
            "fingerprint": store.fingerprint,
            "tokenizer": {"ids": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
            "reading_alone": reading, "opening_and_checking": opening,
            "runs": {str(workers): rows for workers, rows in runs.items()},
            "medians": {str(workers): _medians(rows, len(store)) for workers, rows in runs.items()},
        }  # fmt: skip


def _medians(rows: list[dict[str, float]], records: int) -> dict[str, float]:
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    total = statistics.median(row["cpu"] + row["cpu_of_workers"] for row in rows)
    return middle | {
        "records_per_second": round(records / middle["wall"]),
        "records_per_cpu_second": round(records / total),
        "seconds_for_40000": round(40_000 * middle["wall"] / records, 2),
    }


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 2.8), layout="constrained")
    names = [f"{workers} worker{'s' * (workers != '1')}" for workers in found["medians"]]
    parts = (("wall", "seconds on the clock"), ("cpu", "CPU-s, reading process"), ("cpu_of_workers", "CPU-s, workers"))
    for (field, label), color in zip(parts, ("#4878a8", "#e0a050", "#b05030"), strict=True):
        own = [one["cpu"] if field == "cpu_of_workers" else 0.0 for one in found["medians"].values()]
        places = [place + (-0.2 if field == "wall" else 0.2) for place in range(len(names))]
        values = [one[field] for one in found["medians"].values()]
        axis.barh(places, values, 0.36, left=own, color=color, label=label)
    for place, (workers, one) in enumerate(found["medians"].items()):
        walls = [row["wall"] for row in found["runs"][workers]]
        axis.plot(walls, [place - 0.2] * len(walls), "k|", markersize=8)
        axis.annotate(
            f"{one['records_per_second']:,} records/s", (0.3, place - 0.2), va="center", fontsize=8, color="white"
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(f"preparing {found['records']:,} records of {found['mean_tokens']:.0f} tokens on the mean")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer file (default: train one of 8,192 ids)")
    parser.add_argument("--texts", type=Path, help="folder of JSON files whose texts the records are made of")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3, help="of each number of workers, interleaved")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(options)
    found |= {
        "load_average_before": round(load, 2), "cores": len(os.sched_getaffinity(0)), "cpu": platform.processor(),
        "versions": versions(), "texts": "given" if options.texts else "made of a few words",
    }  # fmt: skip
    print(json.dumps({name: found[name] for name in ("records", "mean_tokens", "reading_alone", "medians")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
