"""A study as a value: axes around one run, and the cells they span."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from typing import Any, Literal

from dynamics import config
from dynamics.data.mixture import Order
from dynamics.data.sources import Source
from dynamics.errors import UserError
from dynamics.losses.objective import Objective
from dynamics.losses.sft import SFT
from dynamics.model.llama import LlamaConfig
from dynamics.study.identity import cell_id
from dynamics.study.run import After, Base, Budget, Run, trainable

_AXES = ("sizes", "volumes", "ability_sets", "seeds", "sources", "orders", "budgets", "objectives", "bases")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid: its name, where it lies, and what to run."""

    id: str
    coords: dict[str, Any]
    run: Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Every combination of the axes, each a variation of `run`. An axis left empty stays as `run` has it.

    The cells of the grids in `plus` are added in the same folder, each cell once: a study whose parts differ in more
    than one setting at a time, such as human records against synthetic ones and mixtures of both.
    """

    name: str  # also the name of the study's folder
    run: Run
    sizes: tuple[str | LlamaConfig, ...] = ()
    volumes: tuple[int | Literal["full"], ...] = ()
    ability_sets: tuple[tuple[str, ...], ...] = ()  # () inside means every ability
    seeds: tuple[int, ...] = ()
    sources: tuple[Source, ...] = ()
    orders: tuple[Order, ...] = ()
    budgets: tuple[Budget, ...] = ()
    objectives: tuple[Objective, ...] = ()
    # Where runs start. The size and the seed of a cell go into the run that it starts after, where these are axes.
    bases: tuple[Base | After | str | None, ...] = ()
    base_cells: bool = True  # also score what each run starts from, untrained: volume 0
    measure_speedup: bool = True  # time the population of workers against one run after another
    plus: tuple["Study", ...] = ()  # more grids; the name and measure_speedup of the first one count for all

    def __post_init__(self) -> None:
        config.check_fields(self)
        for axis in _AXES:
            values = getattr(self, axis)
            twice = [value for index, value in enumerate(values) if value in values[:index]]
            if twice:
                raise UserError(f"the axis {axis} holds {twice[0]!r} twice; name each point once")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise UserError(f"a study is named {self.name!r}; use letters, digits, '.', '_' and '-': it names a folder")

    def cells(self) -> tuple[Cell, ...]:
        """All cells, each once, in the order of the axes, grid after grid.

        A run that several grids hold with other benchmarks is trained once and reads them all. Raises UserError for two
        runs that differ in something that no coordinate names: a report could not tell them apart.
        """
        runs: dict[str, Run] = {}  # by the name without benchmarks
        for run in self.runs():
            bare = cell_id(dataclasses.replace(run, benchmarks=()))
            runs[bare] = _with_benchmarks_of(runs[bare], run) if bare in runs else run
        budgets = any(grid.budgets for grid in self.grids()) or len({run.budget for run in runs.values()}) > 1
        objectives = any(not isinstance(run.objective, SFT) for run in runs.values())
        starts = any(grid.bases for grid in self.grids()) or any(_follows(run) for run in runs.values())
        cells: dict[str, Cell] = {}  # by coordinates
        for run in runs.values():
            coords = coordinates(run) | ({"budget": budget_name(run.budget)} if budgets else {})
            coords |= {"objective": objective_name(run.objective)} if objectives else {}
            coords |= {"after": start_name(run)} if starts else {}
            place = json.dumps(coords, sort_keys=True)
            if place in cells:
                raise UserError(_told_apart_by_nothing(self.name, cells[place], run))
            cells[place] = Cell(id=cell_id(run), coords=coords, run=run)
        return tuple(cells.values())

    def grids(self) -> tuple["Study", ...]:
        """This grid and all in `plus`, theirs included, each without its own `plus`."""
        return dataclasses.replace(self, plus=()), *(grid for other in self.plus for grid in other.grids())

    def runs(self) -> list[Run]:
        """Every combination of the axes of every grid, before cells are named; reads no data."""
        return [run for grid in self.grids() for run in grid._runs()]

    def _runs(self) -> list[Run]:
        sources = self.sources or (self.run.source,)
        sizes = self.sizes or (self.run.size,)
        runs = [
            self._at(
                base, size, seed, source=source, volume=volume, abilities=abilities, order=order, budget=budget,
                objective=objective,
            )
            for source, size, objective, base, order, budget, abilities, volume, seed in itertools.product(
                sources,
                sizes,
                self.objectives or (self.run.objective,),
                self.bases or (self.run.base,),
                self.orders or (self.run.order,),
                self.budgets or (self.run.budget,),
                self.ability_sets or (self.run.abilities,),
                self.volumes or (self.run.volume,),
                self.seeds or (self.run.seed,),
            )
        ]  # fmt: skip
        starts = [base for base in self.bases or (self.run.base,) if base is not None]
        if self.base_cells and starts:
            untrained = [
                self._at(base, size, seed, source=source, volume=0, recipe=None, abilities=())
                for source, size, base in itertools.product(sources, sizes, starts)
                for seed in self._seeds_of(base)
            ]
            runs = [*untrained, *(run for run in runs if run.trains)]
        return runs

    def _at(self, base: Base | After | str | None, size: str | LlamaConfig, seed: int, **fields: Any) -> Run:
        """The run at a point of the axes, and at the same size and seed the runs that it starts after."""
        if isinstance(base, After):
            base = self._stage_at(base, size, seed)
        fields.setdefault("objective", (self.objectives or (self.run.objective,))[0])
        return dataclasses.replace(self.run, base=base, size=size, seed=seed, **fields)

    def _stage_at(self, after: After, size: str | LlamaConfig, seed: int) -> After:
        run = after.run
        run = dataclasses.replace(run, size=size if self.sizes else run.size, seed=seed if self.seeds else run.seed)
        if isinstance(run.base, After):
            run = dataclasses.replace(run, base=self._stage_at(run.base, size, seed))
        return After(run=run)

    def _seeds_of(self, base: Base | After | str) -> tuple[int, ...]:
        """A base model does not depend on the cell's seed, so one cell is enough; what a run ended with does."""
        if not isinstance(base, After):
            return (0,)
        return self.seeds or (self.run.seed,)

    def map_runs(self, change: Callable[[Run], Run]) -> "Study":
        """The study with every run changed alike, its sources included, and those that runs start after."""

        def with_stages(run: Run) -> Run:
            run = change(run)
            return dataclasses.replace(run, base=_changed_stage(run.base, with_stages))

        changed = with_stages(self.run)
        sources = tuple(change(dataclasses.replace(self.run, source=source)).source for source in self.sources)
        plus = tuple(grid.map_runs(change) for grid in self.plus)
        bases = tuple(_changed_stage(base, with_stages) for base in self.bases)
        return dataclasses.replace(self, run=changed, sources=sources, bases=bases, plus=plus)


def _changed_stage(base: Any, change: Callable[[Run], Run]) -> Any:
    return After(run=change(base.run)) if isinstance(base, After) else base


def _with_benchmarks_of(one: Run, other: Run) -> Run:
    """The same run with the benchmarks of both, read wherever one of them reads."""
    if not (one.benchmarks and other.benchmarks):
        return one if one.benchmarks else other
    return dataclasses.replace(
        one,
        benchmarks=tuple(dict.fromkeys(one.benchmarks + other.benchmarks)),
        benchmark_at=tuple(sorted({*one.benchmark_at, *other.benchmark_at})),
    )


def _told_apart_by_nothing(study: str, there: Cell, run: Run) -> str:
    differ = [
        field.name for field in dataclasses.fields(Run) if getattr(run, field.name) != getattr(there.run, field.name)
    ]
    where = ", ".join(f"{name} {value}" for name, value in there.coords.items() if value is not None)
    return (
        f"study {study!r} holds two runs at {where}, which differ in {', '.join(differ)}; no axis is of these, so a "
        "report could not tell them apart: put them into two studies, or give their sources other names"
    )


def coordinates(run: Run) -> dict[str, Any]:
    """Where a run lies on the axes, in plain values. `params` is filled in once the vocabulary is known.

    `mixture` is the recipe's name, or "even" where every ability has `volume` records.
    """
    names = run.ability_names()
    return {
        "size": run.size_name,
        "params": None,
        "volume": run.volume if run.recipe is None else run.recipe.name,  # its number follows from the data
        "mixture": "even" if run.recipe is None else run.recipe.name,
        "abilities": "all" if names == trainable(run) else "+".join(names),
        "seed": run.seed,
        "source": run.source.name,
        "order": order_name(run.order),
    }


def order_name(order: Order) -> str:
    """How reports call the order; two orders that differ are called differently."""
    return order.name


def objective_name(objective: Objective) -> str:
    """'sft', or 'dpo beta=0.5' when settings differ from the class's own; how it is computed is left out."""
    changed = [
        f"{field.name}={value}"
        for field in dataclasses.fields(objective)
        if field.name != "chunk" and (value := getattr(objective, field.name)) != field.default
    ]
    return " ".join([getattr(objective, "name", type(objective).__name__.lower()), *changed])


def start_name(run: Run) -> str | None:
    """What a run starts from: 'sft 64 interleaved', or how a base model came about; None for random parameters.

    Size and seed are left out: they are those of the cell.
    """
    base = run.base
    if isinstance(base, After):
        stage = base.run
        source = [] if stage.source.name == run.source.name else [f"of {stage.source.name}"]
        amount = stage.volume if stage.recipe is None else stage.recipe.name
        before = [f"after {start_name(stage)}"] if _follows(stage) else []
        return " ".join([objective_name(stage.objective), str(amount), *source, order_name(stage.order), *before])
    if isinstance(base, Base):
        return f"base of {base.tokens} tokens"
    return None if base is None else base.rstrip("/").rpartition("/")[2]


def _follows(run: Run) -> bool:
    return isinstance(run.base, After)


def budget_name(budget: Budget) -> str:
    """'epochs 4', or 'updates 100 at least 150' with a floor."""
    name, value = next((n, v) for n in ("epochs", "updates", "tokens") if (v := getattr(budget, n)) is not None)
    return f"{name} {value}" + (f" at least {budget.min_updates}" if budget.min_updates else "")
