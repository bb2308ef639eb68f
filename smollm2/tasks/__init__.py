"""Multiple-choice tasks: questions in, in the words of lm-evaluation-harness.

`load_items` makes questions of a task's rows; `multiple_choice` scores them.
"""

from smollm2.tasks.items import Item, items_fingerprint, question
from smollm2.tasks.load import TaskItems, load_items
from smollm2.tasks.registry import TASKS, Task, find_task

__all__ = [
    "TASKS",
    "Item",
    "Task",
    "TaskItems",
    "find_task",
    "items_fingerprint",
    "load_items",
    "question",
]
