"""`smolctl eval`: score finished runs on held-out text and multiple-choice tasks."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Data, Json, Results, Study, complete_target, is_typed
from smolctl.scoring import SPLITS
from smollm2.errors import RunError, UserError

EXAMPLES = """
**Examples**

- `smolctl eval pow2`

- `smolctl eval orig pow2 --tasks hellaswag,arc_easy --limit 500`

- `smolctl eval pow2-5000-s0 --tasks all --data-dir eval/ --dtype fp32 --json`

- `smolctl eval hf:HuggingFaceTB/SmolLM2-135M ./mine --data novels.jsonl.gz`
"""

TEXT_METRICS = ("loss", "accuracy", "perplexity", "bits_per_byte")


def evaluate(
    context: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Runs, variants, run directories, RUN+NAME for a quantized one, Hugging Face "
            "folders (./NAME) or hf:ORG/NAME.",
            autocompletion=complete_target,
        ),
    ],
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
            help="Questions or windows in a forward pass; changes no score beyond rounding. "
            "Default: for questions what suits the device, for windows the run's.",
            show_default=False,
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
    from smolctl.models import models_of
    from smolctl.scoring import Scorer, questions, require_machine, task_names

    for option, value in (("--limit", limit), ("--tokens", tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, not {value}.")
    names = task_names(tasks or ("all" if is_typed(context, "data_dir") else "test"))
    splits = [name for name in names if name in SPLITS]
    refuse_idle(context, ("tokens", "data"), "held-out text", bool(splits))
    refuse_idle(context, ("limit", "data_dir"), "tasks", len(splits) < len(names))
    require_machine(device, dtype)
    models = {
        model.tables.path.resolve(): model
        for target in targets
        for model in models_of(target, results, study)
    }
    # All of them now, rather than after hours with the first.
    scorers = [
        Scorer(
            model,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            with_text=bool(splits),
            source=data,
        )
        for model in models.values()
    ]
    asked = questions(",".join(names), data_dir, limit)
    rows: list[dict[str, Any]] = []
    try:
        for scorer in scorers:
            names_it = {"study": scorer.model.run.study, "run": scorer.model.label}
            for scored in scorer.score(scorer.load(), splits, asked, tokens):
                rows += [names_it | row for row in scored]
    except KeyboardInterrupt:
        say("Stopped. What is scored is kept: give the same command again to go on.")
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"The scores could not be written: {error}.") from error
    finally:  # what is scored is shown, whatever came after it
        if as_json and rows:
            json.dump(rows, sys.stdout)
            sys.stdout.write("\n")
        elif rows:
            show(rows)


def refuse_idle(
    context: typer.Context, options: tuple[str, ...], what: str, is_scored: bool
) -> None:
    """Raise `UserError` if one of `options` is typed and what it is for is not scored."""
    for name in options:
        if is_typed(context, name) and not is_scored:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is for {what}, of which --tasks names none.")


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
            n_words=2,
        )
        if len({cells["loss"]["fingerprint"] for cells in texts.values()}) > 1:
            say("The runs have different texts or tokenizers: their losses do not compare.")
        fewest = min(cells["loss"]["clusters"] for cells in texts.values())
        if fewest == 1:
            say("One document has no standard error.")
        elif fewest < FEW_DOCUMENTS:
            say(f"± is a standard error over documents: rough, for there are only {fewest}.")
    if tasks:
        table(
            "Multiple choice, as lm-evaluation-harness scores it with 0 shots",
            (
                "run",
                "task",
                "split",
                "questions",
                "acc",
                "acc_norm",
                "chance",
                "bits/byte",
            ),
            (
                (
                    *key,
                    cells["acc"]["protocol"].split(", ")[2].removesuffix(" split"),
                    extent(cells["acc"]),
                    cell(cells["acc"]),
                    cell(cells.get("acc_norm")),
                    f"{cells['acc']['chance']:.4f}",
                    cell(cells["bits_per_byte"]),
                )
                for key, cells in tasks.items()
            ),
            n_words=3,
        )
        say(
            "bits/byte is what the right answer costs. ± is a standard error over questions; it "
            "does not contain the noise of training."
        )


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
