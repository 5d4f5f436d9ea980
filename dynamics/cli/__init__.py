"""The command line: `dynamics study|train|eval|score|plan|data|model|version`.

This file parses and reports; each command's work is imported only when it runs, so that `--help` answers at once.
Exit codes: 0 done, 1 a fault of ours, 2 a mistake the user can mend, 75 stopped by SIGTERM with everything saved,
130 stopped by Ctrl-C with everything saved.
"""

import argparse
import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from dynamics.cli.platform import quiet_without_accelerator
from dynamics.errors import UserError

EXIT_USER = 2
EXIT_FAULT = 1
EXIT_CTRL_C = 130


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that offer the nearest allowed word."""

    def error(self, message: str) -> NoReturn:
        given, _, allowed = message.partition("invalid choice: ")
        if allowed:
            word, _, rest = allowed.partition(" (choose from ")
            choices = [choice.strip(" '") for choice in rest.rstrip(")").split(",")]
            near = difflib.get_close_matches(word.strip("'"), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            message = f"{given}{word} is not one of {', '.join(choices)}{hint}"
        self.exit(EXIT_USER, f"{self.prog}: {message} (see {self.prog} --help)\n")


_Commands = argparse._SubParsersAction  # of _Parser; argparse has no public name for it


def _described(parent: _Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return parent.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _command(parent: _Commands, name: str, run: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A leaf command: `run` is 'module:function', imported when the command is used."""
    parser = _described(parent, name, summary, example)
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def _group(root: _Commands, name: str, summary: str, commands: str, example: str) -> _Commands:
    """A command of commands: `dynamics study ...`."""
    parser = _described(root, name, summary, example)
    return parser.add_subparsers(dest="subcommand", required=True, metavar=commands)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, for machines")


def _config(parser: argparse.ArgumentParser, kind: str, *, also: str = "") -> None:
    parser.add_argument("config", help=f"a Python file with a function {kind}(), such as configs/practice.py{also}")
    parser.add_argument("--data-dir", help="folder of the records, where the config reads files")
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        help=f"error: stop at the first bad line (default{'; skip for a name of the list' if also else ''}); skip: "
        "leave it out and count it, and where a run is made, write it with its reason to rejected.jsonl",
    )


def _study_commands(root: _Commands) -> None:
    group = _group(
        root, "study", "run a study, see how far it is, write its report", "run|status|report",
        "dynamics study status results/practice",
    )  # fmt: skip
    run = _command(
        group, "run", "study:run", "Run the cells of a study that are missing, then write its report.",
        "dynamics study run configs/practice.py --workers 2",
    )  # fmt: skip
    _config(run, "study")
    run.add_argument("--output", default="results", help="the study's folder is made in this one (default: results)")
    run.add_argument("--workers", type=int, help="worker processes (default: one a core)")
    run.add_argument(
        "--way",
        choices=("auto", "workers", "vmap", "singles"),
        default="auto",
        help="how cells share the machine: pinned processes, one vmapped step, or one after another (default: auto)",
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a number, e.g. run.batch.rows=16"
    )
    _hosts(run)
    _json(run)
    for name, summary in (
        ("status", "Show cells done, running, failed and to do, with the time left."),
        ("report", "Write the report of whatever is done so far."),
    ):
        command = _command(group, name, f"study:{name}", summary, f"dynamics study {name} results/practice")
        command.add_argument("folder", help="a study's folder, such as results/practice")
        _json(command)


def _data_commands(root: _Commands) -> None:
    group = _group(
        root, "data", "find, see, check, prepare and write data", "list|fetch|show|order|check|prepare|practice",
        "dynamics data show configs/practice.py",
    )  # fmt: skip
    _catalogue_commands(group)
    order = _command(
        group, "order", "order:order",
        "Show in which order a study reads its records: by tenth of an epoch how hard they are, of which abilities, "
        "and what repeats. Difficulties that a model gives are computed, once.",
        "dynamics data order configs/practice_orders.py --out orders.png",
    )  # fmt: skip
    _config(order, "study")
    order.add_argument("--out", metavar="PNG", help="draw the orders as well")
    order.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as in study run, e.g. run.seed=1"
    )
    _json(order)
    check = _command(
        group, "check", "data:check", "Read record files and report every bad line, with file, line and field.",
        "dynamics data check my_records.jsonl more.jsonl.gz a_folder_of_records",
    )  # fmt: skip
    check.add_argument("files", nargs="+", help="JSON-Lines files, .gz too, or folders of them laid out for a study")
    _json(check)
    _prepare_command(group)
    practice = _command(
        group, "practice", "data:practice", "Write the practice set as JSON-Lines files, one folder for each ability.",
        "dynamics data practice practice_set --records 1000 --seed 1",
    )  # fmt: skip
    practice.add_argument("folder", help="the folder to write; must be new or empty")
    practice.add_argument("--records", type=int, default=1000, help="training records for each ability (default: 1000)")
    practice.add_argument("--seed", type=int, default=0, help="another seed gives other records (default: 0)")
    _json(practice)


def _catalogue_commands(group: _Commands) -> None:
    """What is published: list it, get it, see what it holds; `show` takes a config as well."""
    listing = _command(
        group, "list", "catalogue:list_", "List the published data sets known here: licence, size, from where.",
        "dynamics data list --data-dir data",
    )  # fmt: skip
    fetch = _command(
        group, "fetch", "catalogue:fetch",
        "Download a data set of the list, or compare the files that are there with what was fetched.",
        "dynamics data fetch conifer --data-dir data",
    )  # fmt: skip
    fetch.add_argument("name", help="a name of dynamics data list")
    fetch.add_argument("--revision", help="branch, tag or commit (default: the list's; the commit is recorded)")
    for command in (listing, fetch):
        command.add_argument(
            "--data-dir", default="data", metavar="DIR", help="holds a folder for each data set (default: data)"
        )
        _json(command)
    show = _command(
        group, "show", "catalogue:show",
        "Show what a config would train on: abilities x volumes x tokens, and rows with the trained part marked; or "
        "what a data set of the list, or a file or folder of preference pairs, holds: files, records, types, lengths, "
        "what is rejected and why, sample rows.",
        "dynamics data show configs/practice.py --rows 2\n  dynamics data show conifer --data-dir data --rows 1\n  "
        "dynamics data show my_pairs.jsonl",
    )  # fmt: skip
    _config(show, "study", also=", a file or folder of pairs, or a name of dynamics data list")
    show.add_argument("--rows", type=int, default=1, help="samples for each ability, or of a benchmark (default: 1)")
    _json(show)


def _prepare_command(group: _Commands) -> None:
    prepare = _command(
        group, "prepare", "prepare:prepare",
        "Make the tokenizer and the token shards that a config's runs read, before any training; an interrupted call "
        "goes on where it stopped.",
        "dynamics data prepare configs/practice.py --workers 2",
    )  # fmt: skip
    _config(prepare, "study")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes that encode records (default: one a core)")
    prepare.add_argument(
        "--shard", metavar="I/N",
        help="make the I-th of N shares only, into a cache folder that N processes share; the last completes it",
    )  # fmt: skip
    prepare.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as in study run, e.g. run.batch.length=512"
    )
    _json(prepare)


def _eval_command(root: _Commands) -> None:
    evaluate = _command(
        root, "eval", "evaluate:evaluate", "Score a finished run on each ability, or any model on benchmarks.",
        "dynamics eval results/practice/cells/0123456789ab --split valid\n  "
        "dynamics eval weights/7b --benchmark cmmlu agieval --data-dir data --template doit --output results/7b",
    )  # fmt: skip
    evaluate.add_argument("model", help="the folder of a finished run or cell; with --benchmark a model folder too")
    evaluate.add_argument("--split", choices=("valid", "test"), default="test", help="which items (default: test)")
    evaluate.add_argument("--records", nargs="+", help="score these record files in place of the run's own split")
    evaluate.add_argument("--mesh", metavar="AXES", help="devices, e.g. data=1 or fsdp=4,tensor=2 (default: the run's)")
    evaluate.add_argument(
        "--benchmark", nargs="+", choices=("cmmlu", "agieval", "ceval", "doit"), help="published tests, one or several"
    )
    evaluate.add_argument("--data-dir", metavar="DIR", help="holds cmmlu/, agieval/, ...; or is the one that is asked")
    evaluate.add_argument("--shots", nargs="+", type=int, help="worked examples before a question (default: 0 and 5)")
    evaluate.add_argument("--tasks", nargs="+", help="only these subjects (default: all)")
    evaluate.add_argument("--limit", type=int, help="only so many questions of each subject, for a quick look")
    evaluate.add_argument(
        "--letters", choices=("bare", "answer"),
        help="compare the pieces 'A', as published, or those that an answer begins with (default: the benchmark's)",
    )  # fmt: skip
    evaluate.add_argument("--template", metavar="NAME", help="how a model folder's prompts are written; a run knows")
    evaluate.add_argument(
        "--published", action="store_true", help="the published rules, errors included, to compare with the papers"
    )
    evaluate.add_argument("--max-length", type=int, metavar="TOKENS", help="of a prompt (default: 2048)")
    evaluate.add_argument(
        "--batch-tokens", type=int, metavar="TOKENS", help="of a batch on a device (default: 2048 on CPU, else 16384)"
    )
    evaluate.add_argument(
        "--compute", choices=("float32", "bfloat16", "float16"), help="type of the products (default: the model's own)"
    )
    evaluate.add_argument("--output", metavar="DIR", help="write all answers and scores here, and be resumable")
    _json(evaluate)


def _score_command(root: _Commands) -> None:
    score = _command(
        root, "score", "score:score", "Log-probability of every record's answer under a model, one JSON line a record.",
        "dynamics score weights/7b --records my_records.jsonl --template tulu --json",
    )  # fmt: skip
    score.add_argument("model", help="a model folder (dynamics model import), or the folder of a finished run or cell")
    what = score.add_mutually_exclusive_group(required=True)
    what.add_argument("--records", metavar="FILE", help="records; what the assistant says is scored")
    what.add_argument("--tokens", metavar="FILE", help='lines {"id", "tokens"}; all ids after the first are scored')
    score.add_argument("--template", metavar="NAME", help="how a conversation is written; a run knows its own")
    score.add_argument("--output", metavar="FILE", help="write here and be resumable (default: standard output)")
    score.add_argument("--length", type=int, help="tokens of a row (default: the longest document, at most 2048)")
    score.add_argument("--rows", type=int, help="rows of a batch (default: 8192 tokens on each shard of the rows)")
    score.add_argument(
        "--over-long", choices=("error", "truncate", "drop"), default="error",
        help="what becomes of a document longer than a row: stop (default), cut it, or leave it out; both are counted",
    )  # fmt: skip
    score.add_argument(
        "--on-bad-record", choices=("error", "skip"), default="error",
        help="error: stop at the first bad line (default); skip: leave it out and count it",
    )  # fmt: skip
    score.add_argument("--mesh", metavar="AXES", default="data=-1", help="devices, e.g. data=4,fsdp=2 (default: all)")
    _json(score)


def _plan_command(root: _Commands) -> None:
    plan = _command(
        root, "plan", "plan:plan", "Tell whether a config's runs fit on a machine, how long they take, what they cost.",
        "dynamics plan configs/doit/curated.py --topology v5p:4x4x4",
    )  # fmt: skip
    plan.add_argument("config", help="a Python file with a function study() or run()")
    plan.add_argument("--data-dir", help="folder of the records, where the config reads files")
    plan.set_defaults(on_bad_record=None)
    plan.add_argument(
        "--topology", action="append", required=True, metavar="CHIP:SHAPE",
        help="a machine, such as v5p:4x4x4, v5e:16x16 or h100:64; give several to compare them",
    )  # fmt: skip
    plan.add_argument("--slices", type=int, default=1, help="TPU slices joined by the network (default: 1)")
    plan.add_argument(
        "--estimate", action="store_true", help="by arithmetic alone, in a second, where the compiler takes minutes"
    )
    plan.add_argument(
        "--search", action="store_true", help="also find the fastest remat x micro-batches x mesh that fits"
    )
    plan.add_argument(
        "--price", action="append", default=[], metavar="DOLLARS", help="a chip-hour; v5p=4.2 for one kind of chip only"
    )
    plan.add_argument(
        "--tokens-per-record", type=int, default=256, help="where the data cannot be read to count them (default: 256)"
    )
    plan.add_argument("--vocab", type=int, help="vocabulary rows (default: the tokenizer's, else the size's own)")
    plan.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a number, e.g. run.batch.rows=16"
    )
    _json(plan)


def _model_commands(root: _Commands) -> None:
    model = _group(
        root, "model", "the named sizes, and weights in and out", "info|import|export", "dynamics model info 7b"
    )
    info = _command(
        model, "info", "model:info", "Show a named size, a model folder or a .gguf file: shapes, parameters, bytes.",
        "dynamics model info weights/7b --verify",
    )  # fmt: skip
    info.add_argument("model", nargs="?", help="a named size, a folder or a .gguf file; without one, all named sizes")
    info.add_argument("--vocab", type=int, help="vocabulary rows of a named size (default: its own)")
    info.add_argument("--verify", action="store_true", help="read every tensor of the folder and compare its digest")
    _json(info)
    come = _command(
        model, "import", "model:import_", "Make a model folder of Hugging Face safetensors or of a .gguf file.",
        "dynamics model import downloads/Llama-2-7b-hf weights/7b --template doit --vocab-multiple 128",
    )  # fmt: skip
    come.add_argument("source", help="a folder with config.json and safetensors, or a .gguf file")
    come.add_argument("folder", help="the folder to write; must be new or empty")
    come.add_argument("--template", help="add the special tokens that this chat template needs and the tokenizer lacks")
    come.add_argument(
        "--vocab-multiple", type=int, default=1, metavar="N",
        help="round the rows of embedding and head up to a multiple of N, so that a mesh can split them (default: 1)",
    )  # fmt: skip
    go = _command(
        model, "export", "model:export", "Write a folder that transformers and llama.cpp's converter read.",
        "dynamics model export results/train/0123456789ab exports/mine --dtype bfloat16",
    )  # fmt: skip
    go.add_argument("source", help="a model folder, or the folder of a finished run or cell that kept its parameters")
    go.add_argument("folder", help="the folder to write; must be new or empty")
    for command in (come, go):
        command.add_argument("--dtype", help="float32, bfloat16 or float16 for every tensor (default: as they are)")
        command.add_argument(
            "--max-shard-size", default="5GB", metavar="SIZE", help="of one file, such as 500MB (default: 5GB)"
        )
        _json(command)


def _hosts(parser: argparse.ArgumentParser) -> None:
    """Options of a command that may run as one process of several, on one host or many."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 listens; all three are found on SLURM and TPU VMs"
    )
    parser.add_argument("--num-processes", type=int, metavar="N", help="processes that train together (default: found)")
    parser.add_argument("--process-id", type=int, metavar="I", help="this one's number, 0 to N - 1")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynamics",
        description="Train instruction-tuned LLaMA-style models and study how each of their abilities grows.",
        epilog="example:\n  dynamics study run configs/practice.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = "study|train|eval|score|plan|data|model|version"
    root = parser.add_subparsers(dest="command", required=True, metavar=names)
    _study_commands(root)
    train = _command(
        root, "train", "train:train", "Train one run and evaluate it; an interrupted run goes on where it stopped.",
        "dynamics train configs/train_practice.py --output results/one",
    )  # fmt: skip
    _config(train, "run")
    train.add_argument("--output", default="results/train", help="the run's folder (default: results/train)")
    train.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a number, e.g. volume=64"
    )
    _hosts(train)
    _json(train)
    _eval_command(root)
    _data_commands(root)
    _score_command(root)
    _plan_command(root)
    _model_commands(root)
    version = _command(
        root, "version", "model:version", "Show the versions that results depend on.", "dynamics version"
    )
    _json(version)
    return parser


def _load(run: str) -> Callable[[argparse.Namespace], int]:
    import importlib

    module, _, function = run.partition(":")
    return getattr(importlib.import_module(f"dynamics.cli.{module}"), function)


def _say(message: str) -> None:
    print(f"dynamics: {' '.join(message.split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on standard error."""
    options = _parser().parse_args(arguments)
    quiet_without_accelerator()
    try:
        return _load(options.run)(options)
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        _say(str(error))
        return EXIT_USER
    except KeyboardInterrupt as stop:
        _say(str(stop) or "stopped; everything finished is saved: run the same command again to go on")
        return getattr(stop, "exit_code", EXIT_CTRL_C)
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error. Python would complain once more at exit without this.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.debug:
            traceback.print_exc()
        _say(_os_error(error))
        return EXIT_USER
    except Exception as error:  # the last line of defence: name it, do not bury the user in frames
        if options.debug:
            traceback.print_exc()
        _say(f"fault in dynamics: {type(error).__name__}: {error}; run again with --debug for the traceback")
        return EXIT_FAULT


def _os_error(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again; finished work is kept",
        errno.EROFS: "the file system is read-only: give a writable folder (--output, or DYNAMICS_CACHE for the cache)",
        errno.EACCES: "no permission: give a writable folder (--output, or DYNAMICS_CACHE for the cache)",
    }.get(error.errno or 0, "")
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{'; ' + advice if advice else ''}"
