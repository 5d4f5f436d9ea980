"""One cell from beginning to end: first parameters, training, evaluation on the way, the choice, the test set once."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics import config, tree
from dynamics.errors import UserError
from dynamics.eval.ability_eval import ItemResult, evaluate_prepared
from dynamics.model.llama import LlamaConfig, abstract
from dynamics.model.lora import merge, thaw
from dynamics.model.sharding import shardings_for
from dynamics.seeds import name_hash
from dynamics.study.base import (
    first_model,
    kept,
    on_device,
    on_host,
    prefetch_depth,
    row_groups,
    row_groups_here,
    run_mesh,
)
from dynamics.study.cell_benchmarks import read_benchmarks
from dynamics.study.cell_preferences import CellPreferences, check_measured
from dynamics.study.cell_record import budget_record, course_record, time_record
from dynamics.study.choice import RULES, by_ability, choose, curve_points, rule_text
from dynamics.study.course import device_batches, plan_run, pool_counts
from dynamics.study.difficulty import order_scores
from dynamics.study.folder import CellFolder, write_json
from dynamics.study.grid import Cell
from dynamics.study.identity import identity
from dynamics.study.prepare import Workspace
from dynamics.study.run import is_preference
from dynamics.train.checkpoint import Checkpointer, load_params, save_params
from dynamics.train.distributed import agree, barrier, check_shared, is_lead, several
from dynamics.train.log import Log, read_log
from dynamics.train.loop import Hook, OpenBatches, Trained, train
from dynamics.train.step import TrainState, abstract_state, init_state, make_step, whole_model

Report = Callable[[float], None]  # told the fraction that is done

_REPORT_EVERY = 1.0  # seconds


class Training:
    """A cell opened for training: state, batches, hooks and log for the loop, alone or as a member of a population.

    `finish` takes the trained state and returns the scores. The parameters of the best evaluation so far are kept on
    the host; with checkpoints they are also written beside them, so that a resumed run chooses as an unbroken one.
    Several processes open the cell together; the lead alone writes its files, but for arrays.
    """

    def __init__(self, cell: Cell, folder: CellFolder, workspace: Workspace, report: Report) -> None:
        run = cell.run
        self.cell, self.run, self.folder, self.workspace = cell, run, folder, workspace
        self.shape = workspace.model_shape(run)
        self.mesh = run_mesh(run)
        self.prepared = {
            split: workspace.evaluation(run, split, row_shards=row_groups(self.mesh)) for split in ("valid", "test")
        }
        self.curve: list[dict[str, Any]] = []  # changed in place only: it is part of every checkpoint's meta
        self.benchmarks: list[dict[str, Any]] = []  # what they gave so far; changed in place too
        self.walked_back: list[str] = []  # why checkpoints of this run were not used; in every checkpoint's meta too
        self.eval_seconds = 0.0
        self._frozen: Any = None  # the model that adapters are trained for
        self.best_step = -1
        self._best: Any = None
        self._best_results: list[ItemResult] = []
        self._report = report
        self._reported = 0.0
        self._began = time.monotonic()
        self.course, self.slices = (
            plan_run(
                run,
                workspace,
                row_parts=row_groups(self.mesh),
                scores=order_scores(run, workspace, mesh=self.mesh),
            )
            if run.trains
            else (None, None)
        )
        if several():
            self._check_together()
        self.preferences = self._opened_preferences()
        if is_lead():
            self._write_run()

    def _opened_preferences(self) -> CellPreferences | None:
        """What a run that learns from pairs does with them, its references in the batches; None for other runs."""
        if not is_preference(self.run):
            return None
        records = {split: len(prepared.items) for split, (prepared, _) in self.prepared.items()}
        check_measured(self.run, self.workspace, num_records=records)
        opened = CellPreferences(self.run, self.workspace, self.mesh, self.course)
        self.course = opened.course
        return opened

    @property
    def steps(self) -> int:
        """Updates until the end."""
        return 0 if self.course is None else self.course.steps

    def start(self) -> TrainState:
        """The state at step 0."""
        run = self.run
        model = first_model(run, self.shape, self.workspace, lambda fraction: None, self.mesh)
        key = None if run.adapter is None else jax.random.key(name_hash("adapters", run.seed) % 2**32)
        state = init_state(model, run.optimizer, total_steps=self.steps, mesh=self.mesh, adapter=run.adapter, key=key)
        self._frozen = state.frozen
        return state

    def batches(self) -> OpenBatches:
        assert self.course is not None
        batch, groups = self.run.batch, row_groups(self.mesh)
        return device_batches(
            self.course, groups=groups, micro=batch.micro, prefetch=prefetch_depth(), mine=row_groups_here(self.mesh)
        )

    def hooks(self) -> tuple[Hook, ...]:
        """Evaluation on valid at the chosen steps, and the benchmarks at some of them."""
        assert self.course is not None
        steps = self.course.evaluation_steps(self.run.evaluate_at)
        hooks = [Hook(steps=frozenset(steps), call=lambda step, state: self.evaluate(step, state.model))]
        if self.run.benchmarks:
            some = self.course.nearest_evaluations(self.run.benchmark_at, steps)
            hooks.append(Hook(steps=frozenset(some), call=lambda step, state: self.read_benchmarks(step, state.model)))
        return tuple(hooks)

    def note(self, step: int) -> None:
        """Report how far the training is, at most about once a second."""
        now = time.monotonic()
        if is_lead() and now - self._reported >= _REPORT_EVERY:
            self._reported = now
            fraction = step / self.steps
            self._report(fraction)
            write_json(self.folder.path / "progress.json", {"fraction": fraction, "seconds": now - self._began})

    def evaluate(self, step: int, trained: Any) -> None:
        """Score valid, add it to the curves, and keep what is trained if it is the best by the run's rule.

        `trained` is the model, or the adapters of the frozen one.
        """
        began = time.perf_counter()
        model, epoch = whole_model(self._frozen, trained), self._epoch(step)
        results = evaluate_prepared(model, self.prepared["valid"][0], mesh=self.mesh)
        self.curve[:] = [point for point in self.curve if point["step"] < step]
        self.curve += curve_points(results, step=step, epoch=epoch)
        if self.preferences is not None:
            self.preferences.read(step, epoch, model)
        self.eval_seconds += time.perf_counter() - began
        if agree(self._chosen() == step):
            self.best_step, self._best, self._best_results = step, kept(trained), results
            if self.run.checkpoint_every:
                save_params(self._best_folder(step), self._best, config=self.cell.id)

    def read_benchmarks(self, step: int, trained: Any) -> None:
        """Put the benchmarks to the parameters of this step."""
        began = time.perf_counter()
        found = read_benchmarks(whole_model(self._frozen, trained), self.run, self.workspace, self.mesh)
        self.benchmarks[:] = [entry for entry in self.benchmarks if entry["step"] < step]
        self.benchmarks += agree([entry | {"step": step, "epoch": self._epoch(step)} for entry in found])
        self.eval_seconds += time.perf_counter() - began

    def _epoch(self, step: int) -> float:
        return 0.0 if self.course is None else self.course.epoch_at(step)

    def _chosen(self) -> int | None:
        """The step that the evaluations so far choose; None while none counts and there are more to come."""
        after = self.run.choose_after if self.run.choose == "best_valid" else 0.0
        curve = self._judged()
        last = curve[-1]
        if last["epoch"] <= after and last["step"] < self.steps:
            return None
        return choose(curve, self.run.choose, after=after)

    def _judged(self) -> Sequence[Mapping[str, Any]]:
        """The curve that parameters are chosen by: of records, or of pairs where no record is held out."""
        return self.curve if self.curve or self.preferences is None else self.preferences.candidates()

    def finish(self, trained: Trained | None) -> dict[str, Any]:
        """Read the test set once, at the chosen parameters, and put the scores together."""
        began = time.perf_counter()
        best = whole_model(self._frozen, self._placed_best())
        if not self._best_results:  # chosen before an interruption: these parameters are scored again, as they were
            self._best_results = evaluate_prepared(best, self.prepared["valid"][0], mesh=self.mesh)
        test = evaluate_prepared(best, self.prepared["test"][0], mesh=self.mesh)
        learned = {} if self.preferences is None else {"preferences": self.preferences.told(self.best_step, best)}
        self.eval_seconds += time.perf_counter() - began
        if self.run.keep_parameters:
            self._keep_parameters()
        if not is_lead():  # what the log and the clock say is the lead's
            return agree({})
        scores = {
            "cell": self.cell.id,
            "coords": self.coords(),
            "chosen": {"step": self.best_step, "rule": self._rule()},
            "curve": self.curve,
            "test": by_ability(test),
            "valid": by_ability(self._best_results),
            "benchmarks": self.benchmarks,
            "run": self._record(trained, test),
        }
        return agree(scores | learned)

    def _rule(self) -> str:
        reached = max((point["epoch"] for point in self._judged()), default=0.0)
        best = RULES["best_valid"] if self.curve or self.preferences is None else self.preferences.rule
        return rule_text(self.run.choose, self.run.choose_after, reached=reached, best=best)

    def coords(self) -> dict[str, Any]:
        """The cell's coordinates with what is known only now: parameters, records, and the volume as a number.

        Of a recipe and of 'full' that is the mean over the abilities trained on.
        """
        volume, records = self.run.volume, 0
        if self.slices is not None:
            records = self.slices.num_records
            if volume == "full" or self.run.recipe is not None:
                volume = round(records / len(self.slices.groups))
        params = tree.num_parameters(abstract(self.shape))
        return self.cell.coords | {"params": params, "volume": volume, "records": records}

    def restored(self, checkpointer: Checkpointer) -> TrainState:
        """The state of the newest sound checkpoint, its curve and its best parameters; step 0 when there is none.

        Damaged ones are noted in `walked_back`. When the best parameters are damaged the run starts over: no later
        state gives them back, and another choice would be another result.
        """
        found = checkpointer.restore_latest(self._target())
        self.walked_back += [*found.meta.get("walked_back", ()), *found.walked_back]
        if found.state is None:
            return self.start()
        self.curve[:] = found.meta["curve"]
        self.benchmarks[:] = found.meta.get("benchmarks", ())
        if self.preferences is not None:
            self.preferences.curve[:] = found.meta["preferences"]
        chosen = self._chosen() if any(point["step"] > 0 for point in self._judged()) else None
        if chosen is not None:
            self.best_step = chosen
            try:
                self._best = self._loaded_best()
            except UserError as error:
                self.walked_back.append(f"step {found.step}: not used, and the run started over: {error}")
                self.curve.clear()
                self.benchmarks.clear()
                if self.preferences is not None:
                    self.preferences.start_over()
                if is_lead():
                    self.folder.remove_checkpoints()
                barrier("removed")
                return self.start()
        if self.run.adapter is None:
            return found.state
        return dataclasses.replace(found.state, frozen=self.start().frozen)  # no checkpoint holds what never changes

    @property
    def meta(self) -> dict[str, Any]:
        """What every checkpoint holds beside the state; the lists are changed in place."""
        meta = {"curve": self.curve, "benchmarks": self.benchmarks, "walked_back": self.walked_back}
        return meta if self.preferences is None else meta | {"preferences": self.preferences.curve}

    def _target(self) -> TrainState:
        """What a checkpoint of this run is restored to."""
        state = abstract_state(abstract(self.shape), self.run.optimizer, self.mesh, adapter=self.run.adapter)
        return state.trained()

    def _loaded_best(self) -> Any:
        """The best parameters as `kept` keeps them."""
        found, _ = load_params(self._best_folder(self.best_step), self._target().model)
        return found if several() else on_host(found)

    def _keep_parameters(self) -> None:
        """Write the chosen model; of adapters both them and the model with them added, in the types of its shape."""
        meta = {"step": self.best_step}
        whole = self._best
        if self._frozen is not None:
            save_params(self.folder.path / "adapters", self._best, meta, config=self.cell.id)
            whole = _merged(self._frozen, self._placed_best(), shape=self.shape)
        save_params(self.folder.path / "parameters", whole, meta, config=self.cell.id)

    def _placed_best(self) -> Any:
        if self.mesh is None:
            return on_device(self._best)
        if several():
            return self._best  # it never left the mesh
        return jax.device_put(self._best, shardings_for(self._best, self.mesh))

    def _check_together(self) -> None:
        """UserError where this process would train on other data than the lead, or write to another folder."""
        check_shared(self.folder.path)
        mine = [self.workspace.tokenizer(self.run).fingerprint, self.course and self.course.batches.fingerprint]
        leads = agree(mine)
        if mine != leads:
            raise UserError(
                f"the tokenizer and batches are {mine} here and {leads} in the lead: the processes read different "
                "files; give all of them the same data and the same version of dynamics"
            )

    def _best_folder(self, step: int) -> Path:
        return self.folder.path / "best" / f"{step:08d}"

    def _write_run(self) -> None:
        (self.folder.path / "progress.json").unlink(missing_ok=True)  # of an attempt that was interrupted
        write_json(
            self.folder.path / "run.json",
            {
                "cell": self.cell.id,
                "coords": self.coords(),
                "run": config.to_plain(self.run),
                "identity": identity(self.run),
                "shape": config.to_plain(self.shape),
                "tokenizer": self.workspace.tokenizer(self.run).fingerprint,
                "budget": budget_record(self.course),
                "counts": self._counts(),
            },
        )

    def _counts(self) -> dict[str, int]:
        """Everything that was left out, cut or could not be asked, besides what was read."""
        counts = {
            "records": 0, "distinct_rows": 0, "rejected": 0, "truncated": 0, "dropped": 0, "untrained": 0, "repeats": 0,
            "rejected_valid": self.prepared["valid"][1], "rejected_test": self.prepared["test"][1],
            "too_long_valid": len(self.prepared["valid"][0].too_long),
            "too_long_test": len(self.prepared["test"][0].too_long),
        }  # fmt: skip
        if self.preferences is not None:
            counts |= self.preferences.counts()
        if self.course is None or self.slices is None:
            return counts
        pool = self.workspace.pool(self.run)
        return counts | pool_counts(pool, self.slices) | {
            "distinct_rows": len(np.unique(self.course.batches.documents)),
        }  # fmt: skip

    def _record(self, trained: Trained | None, test: Sequence[ItemResult]) -> dict[str, Any]:
        """What the run was and took."""
        logged = [] if trained is None else self._logged()
        record = course_record(self.course) | time_record(trained) | {
            "eval_seconds": self.eval_seconds,
            "device": jax.default_backend(),
            "final_loss": logged[-1]["loss"] if logged else None,
            "walked_back": list(self.walked_back),
        }  # fmt: skip
        counts = {
            "unfinished_answers": sum(item.truncated for item in test),
            "empty_batches": sum(entry["weight"] == 0 for entry in logged),
            "damaged_checkpoints": len(self.walked_back),
        }
        return record | {"counts": self._counts() | counts}

    def _logged(self) -> Sequence[Mapping[str, Any]]:
        """Every step of the run, from the log: a resumed run has made only the last of them itself."""
        return read_log(self.folder.path / "metrics.jsonl").entries


@functools.partial(jax.jit, static_argnames="shape")
def _merged(frozen: Any, adapters: Any, *, shape: LlamaConfig) -> Any:
    # The frozen matrices may be kept in bfloat16 or int8: added up there, a small change would be lost.
    return merge(thaw(frozen, abstract(shape)), adapters)


def train_cell(cell: Cell, folder: CellFolder, workspace: Workspace, report: Report) -> dict[str, Any]:
    """The scores of one cell, trained alone. With `checkpoint_every` an interrupted run goes on where it was saved."""
    training = Training(cell, folder, workspace, report)
    if training.course is None:
        model = first_model(cell.run, training.shape, workspace, report, training.mesh)
        training.evaluate(0, model)
        if cell.run.benchmarks:
            training.read_benchmarks(0, model)
        return training.finish(None)
    run = cell.run
    step = make_step(run.objective, run.optimizer, training.mesh)
    with Log(folder.path / "metrics.jsonl") if is_lead() else contextlib.nullcontext() as log:
        if not run.checkpoint_every:
            trained = train(
                training.start(), training.batches(), step, until=training.steps, hooks=training.hooks(),
                log=log, on_metrics=lambda at, _: training.note(at),
            )  # fmt: skip
            return training.finish(trained)
        with Checkpointer(folder.path / "checkpoints", config=cell.id) as checkpointer:
            trained = train(
                training.restored(checkpointer), training.batches(), step, until=training.steps,
                hooks=training.hooks(), checkpointer=checkpointer, save_every=run.checkpoint_every, meta=training.meta,
                log=log, on_metrics=lambda at, _: training.note(at),
            )  # fmt: skip
    return training.finish(trained)
