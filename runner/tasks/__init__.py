"""The table of tasks that a head can learn: one file each, behind the types of `task`."""

from __future__ import annotations

from collections.abc import Mapping

from sihlai.conversion.v1 import task_pb2

from runner.tasks.multiclass_classification import MulticlassClassification
from runner.tasks.task import Task
from runner.trainer.failure import trainer_failure

TASKS: Mapping[int, Task] = {
    task_pb2.TASK_MULTICLASS_CLASSIFICATION: MulticlassClassification(),
}


def task_of(number: int) -> Task:
    """The task with this number of sihlai.conversion.v1.Task. Raises Failure where no head can learn it yet."""
    if number not in TASKS:
        name = task_pb2.Task.Name(task_pb2.Task.ValueType(number)).removeprefix("TASK_").lower().replace("_", " ")
        known = ", ".join(task.name for task in TASKS.values())
        raise trainer_failure(f"no head can learn {name} yet: take {known}")
    return TASKS[number]
