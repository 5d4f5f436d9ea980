"""What is written down of a run beside its scores: its budget as resolved, its length, its time."""

from typing import Any

from dynamics.study.course import Course
from dynamics.train.loop import Trained


def budget_record(course: Course | None) -> dict[str, Any]:
    """The budget as resolved, for run.json; before training."""
    if course is None:
        return {"steps": 0}
    return {
        "steps": course.steps, "tokens": course.tokens, "epochs": course.epochs, "documents": course.documents,
        "bound_by": course.bound_by, "fill": course.batches.plan.fill, "batches": course.batches.fingerprint,
    }  # fmt: skip


def course_record(course: Course | None) -> dict[str, Any]:
    """How long a run was, for its scores; all zero where nothing was trained."""
    if course is None:
        return {"steps": 0, "tokens": 0, "epochs": 0.0, "bound_by": "", "fill": None}
    return {
        "steps": course.steps, "tokens": course.tokens, "epochs": course.epochs, "bound_by": course.bound_by,
        "fill": course.batches.plan.fill,
    }  # fmt: skip


def time_record(trained: Trained | None) -> dict[str, float]:
    """What training took, in seconds without hooks, and its share of waiting for batches."""
    return {
        "train_seconds": 0.0 if trained is None else trained.seconds - trained.hook_seconds,
        "first_seconds": 0.0 if trained is None else trained.first_seconds,
        "wait_share": 0.0 if trained is None else trained.wait_share,
    }
