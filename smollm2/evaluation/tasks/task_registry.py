"""The tasks by name. `register` adds one."""

from smollm2.errors import UserError, unknown
from smollm2.evaluation.tasks.lm_eval import LM_EVAL_TASKS
from smollm2.evaluation.tasks.task import Task
from smollm2.runs.conditions import TEXT_SPLITS

OUTPUT_TYPES = ("multiple_choice",)  # which `smollm2.evaluation` can score
TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Add a task.

    Raises:
        ValueError: its name is taken, or nothing scores its output type.
    """
    if task.name in TASKS:
        raise ValueError(f"There is already a task called {task.name!r}.")
    if task.output_type not in OUTPUT_TYPES:
        raise ValueError(f"Nothing scores {task.output_type!r}; choose {', '.join(OUTPUT_TYPES)}.")
    TASKS[task.name] = task


def find_task(name: str) -> Task:
    """The task with that name.

    Raises:
        UserError: there is none; the message suggests the nearest name and lists all.
    """
    if name not in TASKS:
        raise unknown("task", name, list(TASKS), field="tasks")
    return TASKS[name]


def task_names(text: str) -> list[str]:
    """The tasks and splits in the comma-separated `text`, each once; `all` is every task.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    tasks = list(TASKS)
    known = [*TEXT_SPLITS, *tasks, "all"]
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in known:
            error = unknown("task", name, known, field="tasks")
            error.add_note("Export the model to score other tasks with lm-evaluation-harness.")
            raise error
        names += tasks if name == "all" else [name]
    if not names:
        raise UserError("Name at least one task: hellaswag,arc_easy, for example.", field="tasks")
    return list(dict.fromkeys(names))


for _task in LM_EVAL_TASKS:
    register(_task)
