"""`smolctl eval`: score finished runs on held-out text and multiple-choice tasks."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Data, Json, Results, Study
from smollm2.errors import RunError, UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.model import SmolLM2
    from smollm2.runs import Run
    from smollm2.tasks import TaskItems

EXAMPLES = """
**Examples**

- `smolctl eval pow2`

- `smolctl eval orig pow2 --tasks hellaswag,arc_easy --limit 500`

- `smolctl eval pow2-5000-s0 --tasks all --data-dir eval/ --dtype fp32 --json`
"""

SPLITS = ("test", "validation")
TEXT_METRICS = ("loss", "accuracy", "perplexity", "bits_per_byte")


def evaluate(
    targets: Annotated[list[str], typer.Argument(help="Runs, variants or run directories.")],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: test or validation (held-out text), hellaswag, arc_easy, "
            "arc_challenge, piqa, winogrande, openbookqa, or all (these six). Default test; all "
            "with --data-dir.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of TASK_SPLIT.jsonl[.gz] files in the hub's schema; default the hub.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N questions of a task; marked as such.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Only the first N tokens of held-out text; default all.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Questions or windows in a forward pass; changes no score beyond rounding.",
            show_default="what suits the device",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; default the run's, if it is here.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32 or bf16; default the run's. Part of the record.")
    ] = None,
    data: Data = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Score finished runs on held-out text and on multiple-choice tasks.

    Tasks have the prompts and metrics of lm-evaluation-harness (0 shots). Scores go to the run's
    eval.csv and, item by item, to its items/ folder; a stopped evaluation goes on where it was.
    """
    import json
    import sys

    from smolctl.console import say
    from smolctl.targets import runs_of
    from smollm2.runs import final_weights
    from smollm2.tasks import TASKS, load_items

    for option, value in (("--limit", limit), ("--tokens", tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, not {value}.")
    names = task_names(tasks or ("test" if data_dir is None else "all"), list(TASKS))
    found = {
        run.path.resolve(): run for target in targets for run in runs_of(target, results, study)
    }
    runs = list(found.values())
    for run in runs:
        final_weights(run)  # rather now than after hours with the runs before it
    asked = {name: load_items(TASKS[name], data_dir, limit) for name in names if name in TASKS}
    rows: list[dict[str, Any]] = []
    try:
        for run in runs:
            scorer = Scorer(run, device, dtype, batch_size)
            for name in names:
                if name in asked:
                    scored = scorer.task(asked[name])
                else:
                    scored = scorer.text(name, tokens, data)
                rows += [{"study": run.study, "run": run.name} | row for row in scored]
    except KeyboardInterrupt:
        say("Stopped. What is scored is kept: give the same command again to go on.")
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"The scores could not be written: {error}.") from error
    if as_json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
    else:
        show(rows)


def task_names(text: str, tasks: list[str]) -> list[str]:
    """The tasks and splits that `text` lists, each once.

    Raises:
        UserError: one that there is not.
    """
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in (*SPLITS, *tasks, "all"):
            known = [*SPLITS, *tasks, "all"]
            raise UserError(
                f"Unknown task {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}."
            )
        names += tasks if name == "all" else [name]
    if not names:
        raise UserError("Name a task: --tasks hellaswag,arc_easy, for example.")
    return list(dict.fromkeys(names))


class Scorer:
    """A run with its model loaded, to be scored on one thing after another."""

    def __init__(
        self, run: "Run", device: str | None, dtype: str | None, batch_size: int | None
    ) -> None:
        from smollm2.runs import load_model

        self.run, self.batch_size = run, batch_size
        self.model: SmolLM2 = load_model(run, *machine(run, device, dtype))

    def text(self, split: str, n_tokens: int | None, source: str | None) -> list[dict[str, Any]]:
        from smolctl.console import counting
        from smolctl.tokens import tokens_of
        from smollm2.data import window_count
        from smollm2.scores import evaluate_text

        data = tokens_of(self.run, source, None)
        windows = window_count(getattr(data, split), self.run.protocol.seq_len, n_tokens)
        with counting(f"{self.run.name} {split}, windows", windows) as on_progress:
            return evaluate_text(
                self.run,
                self.model,
                data,
                split,
                n_tokens=n_tokens,
                batch_size=self.batch_size,
                on_progress=on_progress,
            )

    def task(self, asked: "TaskItems") -> list[dict[str, Any]]:
        from smolctl.console import counting
        from smollm2.runs import load_run_tokenizer
        from smollm2.scores import evaluate_task

        what = f"{self.run.name} {asked.task.name}, questions"
        with counting(what, len(asked.items)) as on_progress:
            return evaluate_task(
                self.run,
                self.model,
                load_run_tokenizer(self.run),
                asked,
                batch_size=self.batch_size,
                on_progress=on_progress,
            )


def machine(run: "Run", device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype to score a run with: as asked, else the run's own where it can be."""
    from smolctl.console import warn
    from smollm2.device import resolve_device, resolve_dtype

    own = run.protocol
    if device is not None:
        device = resolve_device(device)
    else:
        try:
            device = resolve_device(own.device)
        except UserError:
            device = resolve_device(None)
            warn(f"{run.name} was trained on {own.device}; it is scored on {device}.")
    return device, resolve_dtype(dtype or own.dtype, device)


def show(rows: list[dict[str, Any]]) -> None:
    """A table of what is held-out text, and one of what is a task."""
    from smolctl.console import say, table
    from smollm2.evaluate import FEW_DOCUMENTS

    measured: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        measured.setdefault((row["run"], row["task"]), {})[row["metric"]] = row
    texts = {key: cells for key, cells in measured.items() if key[1] in SPLITS}
    tasks = {key: cells for key, cells in measured.items() if key[1] not in SPLITS}
    if texts:
        table(
            "Held-out text",
            ("run", "split", "tokens", "documents", "loss", "accuracy", "perplexity", "bits/byte"),
            (
                (
                    *key,
                    extent(cells["loss"]),
                    f"{cells['loss']['clusters']:,}",
                    *(cell(cells[name]) for name in TEXT_METRICS),
                )
                for key, cells in texts.items()
            ),
        )
        few = {cells["loss"]["clusters"] for cells in texts.values()}
        if min(few) < FEW_DOCUMENTS:
            say(f"± is a standard error over documents: rough, for there are only {min(few)}.")
    if tasks:
        table(
            "Multiple choice, as lm-evaluation-harness scores it with 0 shots",
            (
                "run",
                "task",
                "questions",
                "acc",
                "acc_norm",
                "chance",
                "bits/byte of answer",
            ),
            (
                (
                    *key,
                    extent(cells["acc"]),
                    cell(cells["acc"]),
                    cell(cells.get("acc_norm")),
                    f"{cells['acc']['chance']:.4f}",
                    cell(cells["bits_per_byte"]),
                )
                for key, cells in tasks.items()
            ),
        )
        say("± is a standard error over questions; it does not contain the noise of training.")


def extent(row: dict[str, Any]) -> str:
    """`500 of 10,042`, or `10,042` for all."""
    whole = row["n"] == row["total"]
    return f"{row['n']:,}" if whole else f"{row['n']:,} of {row['total']:,}"


def cell(row: dict[str, Any] | None) -> str:
    """`5.704 ± 0.049`: two digits of the standard error, and as many of the value."""
    if row is None:
        return "–"
    if not row["stderr"]:
        return f"{row['value']:.4f}"
    places = max(0, 1 - math.floor(math.log10(row["stderr"])))
    return f"{row['value']:.{places}f} ± {row['stderr']:.{places}f}"
