"""`dynamics plan`, with the real compiler on tiny programs: what it prints, keeps, refuses and assumes."""

import dataclasses
import json
import textwrap

import pytest

from dynamics.cli import main
from dynamics.study import compiled
from dynamics.study.compiled import ENVIRONMENT, Compiler, has_compiler, refusal
from dynamics.study.program import Program

from .test_plan_estimate import PROGRAM, TINY, WORK

# Wide enough that no array is padded on a chip, so that bytes can be compared.
WIDE = dataclasses.replace(
    PROGRAM, shape=dataclasses.replace(TINY, d_model=1024, num_heads=8, num_kv_heads=8, head_dim=128, d_ff=1024)
)

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed (pip install 'dynamics[plan]')")

CONFIG = """
    from dynamics.data.sources import Files
    from dynamics.model.llama import LlamaConfig
    from dynamics.model.sharding import MeshShape
    from dynamics.study.grid import Study
    from dynamics.study.run import Batch, Budget, Run
    from dynamics.train.optimizer import DOIT

    SIZE = LlamaConfig(
        name="tiny", vocab_size=256, d_model=1024, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=128, d_ff=1024,
        compute_dtype="bfloat16", remat="dots", scan_layers=True,
    )

    def study():
        return Study(
            name="planned",
            run=Run(source=Files(data_dir="nowhere"), size=SIZE, batch=Batch(rows=16, length=256), optimizer=DOIT,
                    budget=Budget(epochs=3), mesh=MeshShape(fsdp=-1)),
            volumes=(100, 1000), seeds=(0, 1),
        )
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(cache, tmp_path, monkeypatch, capsys):
    """Run the command on a config's text; (exit code, the JSON or the output, errors)."""
    monkeypatch.setenv("DYNAMICS_CACHE", str(cache))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(*options, text=CONFIG):
        path = tmp_path / "planned.py"
        path.write_text(textwrap.dedent(text))
        try:
            code = main(["plan", str(path), *options])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in options and out else out, err

    return run


@pytest.fixture(scope="module")
def compiled_tiny(cache):
    lines = []
    compiler = Compiler(cache, on_progress=lines.append)
    return compiler, compiler(WIDE, "tiny"), lines


@needs_compiler
def test_the_compiler_and_the_estimate_agree_on_the_state_and_the_products(compiled_tiny):
    from dynamics.study import estimate

    _, found, _ = compiled_tiny
    assert found.fits
    needs = estimate.memory(WIDE)
    assert found.arguments == pytest.approx(needs.arguments, rel=0.01)
    assert found.counts.unread_loops == 0
    assert found.counts.matmul_flops * 8 == pytest.approx(estimate.flops(WIDE, WORK).products, rel=0.02)
    assert any("splash" in name or name == "tpu_custom_call" for name in found.counts.kernels)
    assert found.xla_flops < found.counts.matmul_flops, "XLA counts the body of a loop once"
    assert sum(one.wire_bytes for one in found.counts.traffic) > 0


@needs_compiler
def test_a_program_is_compiled_once(compiled_tiny, cache):
    first, found, lines = compiled_tiny
    assert first.compiled == 1
    assert lines[0] == "compiling tiny"
    again = Compiler(cache, on_progress=lines.append)
    assert again(WIDE, "tiny") == found
    assert (again.compiled, again.kept) == (0, 1)


@needs_compiler
def test_cells_that_differ_in_data_share_a_program(plan, compiled_tiny):
    code, found, err = plan("--topology", "v5e:2x4", "--json", "--price", "1.5")
    assert (code, err) == (0, ""), "nothing was left to compile"
    (machine,) = found["machines"]
    (program,) = machine["programs"]
    assert program["how"] == "compiled"
    assert program["volumes"] == ["100", "1000"]
    assert {"used", "had", "arguments", "temporaries", "state", "estimated"} == set(program["memory"])
    assert program["memory"]["had"] == 15.75 * 2**30
    assert program["largest_rows"] > 16
    assert {"compute", "memory", "interconnect", "step", "serial", "bound"} == set(program["roofline"])
    assert 0 < program["mfu"] < 1
    assert {"kind", "times", "wire_bytes", "network_bytes"} == set(program["collectives"][0])
    cells = machine["cells"]
    assert [cell["volume"] for cell in cells] == [100, 100, 1000, 1000]
    assert cells[2]["steps"] > 5 * cells[0]["steps"]
    assert machine["chip_hours"] == pytest.approx(8 * machine["hours"])
    assert machine["cost"] == pytest.approx(1.5 * machine["chip_hours"])
    assert machine["hours"] == pytest.approx(sum(cell["hours"] for cell in cells))


@needs_compiler
def test_a_cell_that_does_not_fit_is_refused_with_the_numbers(plan):
    huge = ("--set", "run.batch.rows=8192", "--set", "run.batch.length=4096")
    code, found, err = plan("--topology", "v5e:2x4", "--json", *huge)
    assert code == 2
    assert "4 of 4 cells fit on none of the machines" in err
    (program,) = found["machines"][0]["programs"]
    assert not program["fits"]
    assert program["refusal"].startswith("tiny needs ")
    assert program["refusal"].endswith("GiB and a chip of v5e:2x4 has 15.75 GiB")
    assert program["nearest"]["used"] < program["nearest"]["had"]
    assert program["nearest"]["topology"] == "v5e:2x4"


def test_the_estimate_needs_no_compiler_and_plans_gpus_beside_tpus(plan, monkeypatch):
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    code, found, _ = plan("--estimate", "--json", "--topology", "v5p:2x2x2", "--topology", "h100:8", "--slices", "2")
    assert code == 0
    assert [(machine["topology"], machine["chips"]) for machine in found["machines"]] == [
        ("2 x v5p:2x2x2", 16),
        ("h100:8", 8),
    ]
    assert {program["how"] for machine in found["machines"] for program in machine["programs"]} == {"estimated"}
    assert found["machines"][0]["programs"][0]["mesh"] == "dcn=2, fsdp=8"


def test_without_the_compiler_the_way_out_is_told(plan, monkeypatch):
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    code, _, err = plan("--topology", "v5e:2x4")
    assert code == 2
    assert "libtpu" in err
    assert "--estimate" in err


def test_what_was_assumed_is_said(plan):
    _, found, _ = plan("--estimate", "--json", "--topology", "v5e:2x4", "--tokens-per-record", "64")
    assert not found["counted"]
    notes = " ".join(found["notes"])
    assert "'files' not read" in notes
    assert "64 tokens a record" in notes
    assert "vocabulary of tiny: 256" in notes
    fewer = found["machines"][0]["steps"]
    _, more, _ = plan("--estimate", "--json", "--topology", "v5e:2x4", "--tokens-per-record", "128", "--vocab", "512")
    assert 1.8 < more["machines"][0]["steps"] / fewer < 2.3
    assert more["machines"][0]["programs"][0]["vocab_size"] == 512


def test_data_that_are_there_are_counted(plan):
    text = CONFIG.replace(
        'Files(data_dir="nowhere")', "Practice(pool=32, num_valid=2, num_test=2, corpus_documents=120)"
    )
    text = text.replace("from dynamics.data.sources import Files", "from dynamics.data.practice import Practice")
    text = text.replace("volumes=(100, 1000)", "volumes=(8, 32)").replace("size=SIZE", "size=SIZE, vocab_size=420")
    _, found, _ = plan("--estimate", "--json", "--topology", "v5e:2x4", text=text)
    assert found["counted"]
    assert found["machines"][0]["programs"][0]["vocab_size"] == 448
    small, large = (found["machines"][0]["cells"][index] for index in (0, 2))
    assert large["tokens"] > 3 * small["tokens"] > 0


def test_rows_that_do_not_divide_are_refused_with_what_does(plan):
    code, found, _ = plan("--estimate", "--json", "--topology", "v5e:4x8")
    assert code == 2
    (program,) = found["machines"][0]["programs"]
    assert "16 rows cannot be split over 32 row shards" in program["refusal"]
    assert program["nearest"]["topology"] == "v5e:4x8"
    assert "fsdp=16" in program["nearest"]["mesh"] or "tensor" in program["nearest"]["mesh"]


def test_a_search_finds_a_setting_that_is_no_slower(plan):
    _, found, _ = plan("--estimate", "--search", "--json", "--topology", "v5e:2x4")
    row = found["machines"][0]["programs"][0]["search"]
    assert row["candidates"] > 10
    assert row["faster"] >= 1
    assert row["used"] <= row["had"]


def test_the_table_names_bounds_and_sums(plan):
    code, out, _ = plan("--estimate", "--topology", "v5e:2x4", "--price", "v5e=1.2")
    assert code == 0
    for word in ("GiB of GiB", "max rows", "MFU", "chip-hours", "dollars", "interconnect", "4 cells", "note: data of"):
        assert word in out


def test_a_run_is_planned_like_a_study(plan):
    text = CONFIG.replace("def study():", "def run():").replace(
        "return Study(", "return (lambda name, run, **axes: run)("
    )
    code, found, _ = plan("--estimate", "--json", "--topology", "v5e:2x4", text=text)
    assert (code, found["cells"]) == (0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--topology", "v7:2x2"), ["v7:2x2", "v5p:8x8x8"]),
        (("--topology", "v5e:3x3"), ["v5e:3x3", "16x16"]),
        (("--topology", "v5p:3x4x4"), ["v5p:3x4x4", "a multiple of 4"]),
        (("--topology", "v5p:1000x1000x1000"), ["at most 8,960 chips"]),
        (("--topology", "v5e:2x4", "--price", "cheap"), ["--price 'cheap'", "v5p=4.2"]),
        (("--topology", "v5e:2x4", "--price", "v5p=4"), ["v5p=4", "they name v5e"]),
        (("--topology", "v5e:2x4", "--tokens-per-record", "0"), ["--tokens-per-record 0"]),
        ((), ["--topology"]),
    ],
)
def test_mistakes_are_told_in_one_line(plan, options, words):
    code, _, err = plan("--estimate", *options)
    assert code == 2
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("message", "needed", "had"),
    [
        ("RESOURCE_EXHAUSTED: ... HLO temporaries (212.00G) exceeds available HBM (15.75G).", 212.0, 15.75),
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 28.70G of 15.75G hbm. "
         "Exceeded hbm capacity by 12.95G.", 28.7, 15.75),
    ],
)  # fmt: skip
def test_the_compilers_refusals_are_read(message, needed, had):
    found = refusal(message)
    assert (found["fits"], found["needed"], found["had"]) == (False, needed * 2**30, had * 2**30)


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", ["7b", "13b", "33b"])
def test_the_sizes_of_the_paper_fit_on_64_chips(size):
    """64 full rows on the shapes of configs/doit/curated.py; kept in the cache folder, else minutes to compile."""
    from dynamics.losses.sft import SFT
    from dynamics.model.llama import SIZES
    from dynamics.model.sharding import MeshShape
    from dynamics.study import estimate
    from dynamics.study.prepare import cache_folder
    from dynamics.study.run import Batch
    from dynamics.train.optimizer import DOIT

    program = Program(
        shape=dataclasses.replace(SIZES[size], vocab_size=49_984), batch=Batch(rows=64, length=2048),
        headed=64 * 2048, objective=SFT(), optimizer=DOIT, mesh=MeshShape(fsdp=-1), adapter=None,
        topology="v5p:4x4x4", slices=1,
    )  # fmt: skip
    found = Compiler(cache_folder())(program, size)
    needs = estimate.memory(program)
    assert found.fits
    assert found.arguments == pytest.approx(needs.arguments, rel=0.001)
    assert found.needed == pytest.approx(needs.total, rel=0.1)
    assert found.counts.matmul_flops * 64 == pytest.approx(estimate.flops(program, WORK).products, rel=0.01)
