"""Multiple-choice tasks: declarations in a registry.

`load_items` makes questions of a task's rows; `multiple_choice` scores them.
"""

from smollm2.evaluation.tasks.items import Item, items_fingerprint, question
from smollm2.evaluation.tasks.load import TaskItems, load_items
from smollm2.evaluation.tasks.task import Task
from smollm2.evaluation.tasks.task_registry import TASKS, find_task, register, task_names

__all__ = [
    "TASKS",
    "Item",
    "Task",
    "TaskItems",
    "find_task",
    "items_fingerprint",
    "load_items",
    "question",
    "register",
    "task_names",
]
