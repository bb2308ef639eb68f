"""Whether the tables of a run have every row that its steps wrote."""

from collections.abc import Iterator

from smollm2.runs.run import Run


def missing_rows(run: Run, step: int, *, ended: bool = False) -> str:
    """What the tables lack of the rows until the checkpoint of `step`, which were on disk before
    it: `a/train.csv lacks the row of step 41`. Empty if they lack nothing.

    Args:
        ended: whether the validation at `step` has been, as at the end of the training.
    """
    protocol = run.protocol
    every, last, first = protocol.validation_every, protocol.steps, start_step(run)
    validations = [at for at in range(first, step + ended) if at % every == 0 or at == last]
    wanted = {"train": list(range(first + 1, step + 1)), "val": validations}
    if protocol.model.is_moe:
        rows = protocol.model.n_layers * protocol.model.n_experts
        at = [at for at in range(first + 1, step + 1) if at % every == 0 or at == last]
        wanted["experts"] = [step for step in at for _ in range(rows)]
    for table, steps in wanted.items():
        left = row_steps(run, table)
        for expected in steps:
            if next(left, None) != expected:
                return f"{run.name}/{table}.csv lacks the row of step {expected}"
    return ""


def start_step(run: Run) -> int:
    """The step at which a run branches from another; 0 if it starts with weights alone."""
    start = str(run.manifest["started_from"] or "")
    step = start.partition("@")[2]
    # The name of an imported model has a slash and may have an @, as `./llama@2`.
    return int(step) if step.isdecimal() and "/" not in start else 0


def row_steps(run: Run, table: str) -> Iterator[int | None]:
    """The step of each row of a table; None for a row of another length."""
    path = run.path / f"{table}.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    header, *rows = text[: text.rfind("\n") + 1].splitlines() or [""]
    for row in rows:
        step, *cells = row.split(",")
        is_whole = step.isdecimal() and len(cells) == header.count(",")
        yield int(step) if is_whole else None
