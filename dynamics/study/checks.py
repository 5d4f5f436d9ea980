"""What is said before anything is trained: that the runs' sources have what the runs ask for."""

from collections.abc import Sequence

from dynamics.errors import UserError
from dynamics.losses.preference import Preference
from dynamics.study.grid import Cell
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run, is_preference, stages, volumes


def check_volumes(cells: Sequence[Cell], workspace: Workspace) -> None:
    """`check_runs` of the cells of a study."""
    check_runs([cell.run for cell in cells], workspace)


def check_runs(runs: Sequence[Run], workspace: Workspace) -> None:
    """UserError when a run, or one that it starts after, asks for more records of an ability than there are.

    Or for pairs of two replies where some have one. Said before anything is trained.
    """
    most: dict[tuple[str, int, str], dict[str, int]] = {}  # (source, volume, what) -> those of the abilities with few
    for run in (one for last in runs for one in (*stages(last), last)):
        if not run.trains:
            continue
        if is_preference(run):
            _check_both_replies(run, workspace)
        if run.recipe is None and run.volume == "full":
            continue
        pool, what = workspace.pool(run), "pairs" if is_preference(run) else "records"
        there = {ability: len(set(pool.ids[ability])) for ability in run.ability_names()}
        wanted = volumes(run, there)  # a recipe says itself what it lacks
        few = {ability: there[ability] for ability, count in wanted.items() if count and there[ability] < count}
        if few and run.recipe is not None:
            raise UserError(
                f"recipe {run.recipe.name!r} takes "
                + ", ".join(f"{wanted[ability]:,} {what} of {ability}, which has {few[ability]:,}" for ability in few)
                + f"; change the recipe or add {what}"
            )
        if few and isinstance(run.volume, int):
            most.setdefault((run.source.name, run.volume, what), {}).update(few)
    if most:
        (source, volume, what), few = max(most.items(), key=lambda item: item[0][1])
        counts = ", ".join(f"{ability} {count:,}" for ability, count in sorted(few.items(), key=lambda item: item[1]))
        raise UserError(
            f"volume {volume:,} is more than source {source!r} has to train on: {counts} {what}; lower the largest "
            f"volume to {min(few.values()):,}, use 'full', or add {what}"
        )


def _check_both_replies(run: Run, workspace: Workspace) -> None:
    """UserError where the objective compares two replies and some pairs have one."""
    assert isinstance(run.objective, Preference), "others have no pairs"
    if not run.objective.needs_both:
        return
    counts = workspace.pool(run).pairs
    single = {ability: count for ability in run.ability_names() if (count := counts[ability].get("judgements", 0))}
    if single:
        told = ", ".join(f"{ability} {count:,}" for ability, count in single.items())
        raise UserError(
            f"objective {run.objective.name!r} compares two replies to a prompt, and source {run.source.name!r} has "
            f"some with one only: {told}; leave these out, or train with KTO()"
        )
