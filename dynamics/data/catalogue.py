"""The catalogue: which published data sets there are, from where, under which licence and how large.

`Entry.certainty` says of every fact how sure it is (see dynamics.data.entry).
"""

import difflib
from typing import Any

from dynamics.data import checksums, shapes
from dynamics.data.entry import FACTS, Certainty, Entry
from dynamics.errors import UserError


def entry(name: str) -> Entry:
    """The entry of that name; UserError with the nearest one."""
    for one in CATALOGUE:
        if one.name == name:
            return one
    names = [one.name for one in CATALOGUE]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"the catalogue has no entry {name!r}{hint}; it has {', '.join(names)}")


def describe(one: Entry) -> dict[str, Any]:
    """An entry as plain JSON data, as `dynamics data list --json` prints it."""
    plain = ("name", "title", "kind", "hub", "git", "revision", "licence", "num_records", "num_bytes", "note")
    return {
        **{name: getattr(one, name) for name in plain},
        "files": list(one.files),
        "splits": {split: list(patterns) for split, patterns in one.splits.items()},
        "shape": one.shape.name if one.shape else None,
        "checksums": len(one.checksums),
        "certainty": dict(one.certainty),
    }


def size_text(num_bytes: int | None) -> str:
    """'31 MB', '?'; 1 MB is 10^6 bytes."""
    if num_bytes is None:
        return "?"
    size, unit = next(
        ((size, unit) for size, unit in ((10**9, "GB"), (10**6, "MB")) if num_bytes >= size), (1000, "kB")
    )
    return f"{num_bytes / size:.3g} {unit}"


def marked(one: Entry, fact: str, text: str) -> str:
    """The text of a fact with a mark that says how certain it is, none where it was read."""
    return text + {"read": "", "card": " ᶜ", "memory": " ᵐ", "unknown": ""}[one.certainty[fact]]


def markdown_table() -> str:
    """The catalogue as the table of docs/guide/catalogue.md; a mark says how certain a fact is when it was not read."""
    head = ("name", "what", "licence", "records", "size", "from", "shape")
    rows = [head, tuple("---" for _ in head)]
    for one in CATALOGUE:
        records = "?" if one.num_records is None else f"{one.num_records:,}"
        rows.append(
            (
                f"`{one.name}`",
                f"{one.title} ({one.kind})",
                marked(one, "licence", one.licence),
                marked(one, "num_records", records),
                marked(one, "num_bytes", size_text(one.num_bytes)),
                (f"[{one.hub}](https://huggingface.co/datasets/{one.hub})" if one.hub else f"[git]({one.git})")
                + f" at `{one.revision[:12]}`",
                f"`{one.shape.name}`" if one.shape else "benchmark",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _certain(**facts: Certainty) -> dict[str, Certainty]:
    """Everything was read but for these."""
    return {**dict.fromkeys(FACTS, "read"), **facts}


_AGIEVAL = tuple(name for name in checksums.AGIEVAL if name.endswith(".jsonl"))

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="doit",
        title="DoIT: ten abilities in Chinese, by hand, and 40,960 synthetic records",
        kind="instructions",
        hub="ChiyuSONG/dynamics-of-instruction-tuning",
        revision="main",
        licence="MIT",
        num_records=43_490 + 40_960 + 120,
        num_bytes=None,
        files=("curated/*", "synthetic/*"),
        splits={
            "1000": ("curated/1000/*",),
            "full": ("curated/full/*",),
            "valid": ("curated/valid/*",),
            "test": ("curated/test/*", "curated/ceval_*", "ceval_*"),
            "synthetic": ("synthetic/40960/*",),
        },
        marks=("curated/1000/*", "curated/full/*", "curated/test/*", "synthetic/40960/*"),
        shape=shapes.DOIT,
        certainty=_certain(num_records="card", num_bytes="unknown"),
        note="43,490 curated records by the card's table, 100 of each ability in valid and in test; 3 C-Eval parts of "
        "40 in test. `1000` is part of `full` and not counted twice. Role-play's valid and test were corrected on "
        "2023-12-01, so take a later revision.",
    ),
    Entry(
        name="conifer",
        title="Conifer: complex constraints, easy to hard",
        kind="instructions",
        hub="ConiferLM/Conifer",
        revision="6b5e0bf530e2a88fdddb89824de6485913c25c03",
        licence="Apache-2.0",
        num_records=13_606,
        num_bytes=31_000_000,
        files=("data/train_sft-*",),
        splits={"train": ("data/train_sft-*", "train_sft*")},
        shape=shapes.MESSAGES,
        certainty=_certain(num_records="card"),
        note="The size is the hub's, in round megabytes. Its preference companion is `ultrafeedback`.",
    ),
    Entry(
        name="ultrafeedback",
        title="UltraFeedback, binarized: two replies to a prompt",
        kind="preferences",
        hub="HuggingFaceH4/ultrafeedback_binarized",
        revision="2a3fb934ee563e5441bf211adaf5215c3fa508dd",
        licence="MIT",
        num_records=61_135 + 2_000,
        num_bytes=226_000_000 + 7_290_000,
        files=("data/train_prefs-*", "data/test_prefs-*"),
        splits={"train": ("data/train_prefs-*", "train_prefs*"), "test": ("data/test_prefs-*", "test_prefs*")},
        shape=shapes.PREFERENCES,
        certainty=_certain(),
        note="The sft and gen splits of the repository are not fetched.",
    ),
    Entry(
        name="alpaca",
        title="Alpaca: instructions written by text-davinci-003",
        kind="instructions",
        hub="tatsu-lab/alpaca",
        revision="ad0d1bfba0420c623c7adafce3482ded744d4e21",
        licence="CC BY-NC 4.0",
        num_records=52_002,
        num_bytes=24_200_000,
        files=("data/train-*",),
        splits={"train": ("data/train-*", "alpaca_data*")},
        marks=("alpaca_data*",),
        shape=shapes.ALPACA,
        certainty=_certain(num_records="memory"),
        note="alpaca_data.json of the authors' git repository is read too.",
    ),
    Entry(
        name="dolly",
        title="Dolly 15k: instructions written by Databricks' staff",
        kind="instructions",
        hub="databricks/databricks-dolly-15k",
        revision="main",
        licence="CC BY-SA 3.0",
        num_records=15_011,
        num_bytes=13_100_000,
        files=("databricks-dolly-15k.jsonl",),
        splits={"train": ("databricks-dolly-15k*",)},
        marks=("databricks-dolly-15k*",),
        shape=shapes.DOLLY,
        certainty=_certain(licence="card", num_records="card", num_bytes="card", files="card", revision="card"),
        note="Count and size are those of copies.",
    ),
    Entry(
        name="sharegpt",
        title="ShareGPT, cleaned and split: conversations that users of ChatGPT shared",
        kind="instructions",
        hub="anon8231489123/ShareGPT_Vicuna_unfiltered",
        revision="main",
        licence="Apache-2.0 (by its card)",
        num_records=94_145,
        num_bytes=673_000_000,
        files=("ShareGPT_V3_unfiltered_cleaned_split.json",),
        splits={"train": ("ShareGPT_V3_unfiltered_cleaned_split*", "sharegpt*")},
        marks=("ShareGPT_V3_unfiltered_cleaned_split*",),
        shape=shapes.SHAREGPT,
        certainty=_certain(num_records="memory", num_bytes="memory"),
        note="Users' texts and ChatGPT's replies: whether the card's licence holds is disputed. Conversations that "
        "begin with the assistant, or end with the user, are rejected and counted. One JSON list: reading it takes "
        "about five times its size in memory.",
    ),
    Entry(
        name="belle",
        title="BELLE 0.5M: Chinese instructions in the manner of Alpaca",
        kind="instructions",
        hub="BelleGroup/train_0.5M_CN",
        revision="efcb807b8c8411a294995125e5bcfee4e9d216ef",
        licence="GPL-3.0, research only",
        num_records=519_255,
        num_bytes=286_000_000,
        files=("Belle_open_source_0.5M.json",),
        splits={"train": ("Belle_open_source_0.5M*",)},
        marks=("Belle_open_source_0.5M*",),
        shape=shapes.BELLE,
        certainty=_certain(num_records="memory"),
    ),
    Entry(
        name="belle_multiturn",
        title="BELLE multi-turn chat 0.8M: the source of DoIT's role-play",
        kind="instructions",
        hub="BelleGroup/multiturn_chat_0.8M",
        revision="dc32eb8955e10ae1cd4189a50a566ef8f8254a65",
        licence="GPL-3.0, research only",
        num_records=831_036,
        num_bytes=990_000_000,
        files=("multiturn_chat_0.8M.json",),
        splits={"train": ("multiturn_chat_0.8M*",)},
        marks=("multiturn_chat_0.8M*",),
        shape=shapes.BELLE,
        certainty=_certain(num_records="card"),
    ),
    Entry(
        name="ultrachat",
        title="UltraChat 200k: dialogues of ChatGPT with itself, filtered",
        kind="instructions",
        hub="HuggingFaceH4/ultrachat_200k",
        revision="main",
        licence="MIT",
        num_records=207_865 + 23_110,
        num_bytes=None,
        files=("data/train_sft-*", "data/test_sft-*"),
        splits={"train": ("data/train_sft-*", "train_sft*"), "test": ("data/test_sft-*", "test_sft*")},
        shape=shapes.MESSAGES,
        certainty=_certain(num_bytes="unknown"),
        note="All four splits of the repository are 1.62 GB; the two of gen are not fetched.",
    ),
    Entry(
        name="cmmlu",
        title="CMMLU: 67 subjects in Chinese",
        kind="benchmark",
        git="https://github.com/haonan-li/CMMLU",
        revision="d6e7b716d8ac694f38969a6c0407437d1fded799",
        licence="CC BY-NC-SA 4.0",
        num_records=335 + 11_582,
        num_bytes=sum(size for _, size in checksums.CMMLU.values()),
        files=("data/dev/*", "data/test/*"),
        strip=("data/",),
        splits={"dev": ("dev/*.csv",), "test": ("test/*.csv",)},
        marks=tuple(checksums.CMMLU),
        checksums=checksums.CMMLU,
        certainty=_certain(),
        note="dev has the five worked examples of each subject.",
    ),
    Entry(
        name="agieval",
        title="AGIEval: the ten Chinese sets of multiple choice",
        kind="benchmark",
        git="https://github.com/ruixiangcui/AGIEval",
        revision="5c77d073fda993f1652eaae3cf5d04cc5fd21d40",
        licence="MIT; each set has its own (LICENSE)",
        num_records=4_299,
        num_bytes=sum(size for _, size in checksums.AGIEVAL.values()),
        files=(*(f"data/v1/{name}" for name in _AGIEVAL), "data/v1/LICENSE", "data/few_shot_prompts.csv"),
        strip=("data/v1/", "data/"),
        splits={"test": _AGIEVAL},
        marks=_AGIEVAL,
        checksums=checksums.AGIEVAL,
        certainty=_certain(),
        note="few_shot_prompts.csv has the worked examples, a column a set.",
    ),
    Entry(
        name="ceval",
        title="C-Eval: 52 subjects in Chinese",
        kind="benchmark",
        hub="ceval/ceval-exam",
        revision="ae3bf126dd16b939885931a8c5ef4cea47bf1f2c",
        licence="CC BY-NC-SA 4.0",
        num_records=13_948,
        num_bytes=1_550_000,
        files=("ceval-exam.zip",),
        archive="ceval-exam.zip",
        splits={"dev": ("*_dev.csv",), "val": ("*_val.csv",), "test": ("*_test.csv",)},
        marks=("ceval-exam.zip", "val/physician_val.csv", "dev/physician_dev.csv"),
        certainty=_certain(),
        note="That revision has one zip file of CSV files, later ones a parquet file for each subject. The answers of "
        "test are not published: val is what is scored.",
    ),
)
