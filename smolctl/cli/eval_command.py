"""`smolctl eval`: score finished runs on held-out text and multiple-choice tasks."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from smolctl.cli.console import print_json, print_table, say
from smolctl.cli.options import Json, Results, Study, complete_target, is_typed
from smolctl.command_line import RESULTS, STUDY
from smolctl.units import of_total
from smollm2.errors import RunError, UserError
from smollm2.runs.conditions import FEW_DOCUMENTS, FEWEST_DOCUMENTS, TEXT_SPLITS

EXAMPLES = """
**Examples**

- `smolctl eval pow2`

- `smolctl eval orig pow2 --tasks hellaswag,arc_easy --limit 500`

- `smolctl eval pow2-5000-s0 --tasks all --data-dir eval/ --dtype fp32 --json`

- another text than the run's own: `smolctl eval tuned --data novels.jsonl.gz`

- `smolctl eval hf:HuggingFaceTB/SmolLM2-135M ./mine --data novels.jsonl.gz`
"""

TEXT_METRICS = ("loss", "accuracy", "perplexity", "bits_per_byte")


def evaluate(
    context: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Runs, variants, run directories, RUN+NAME (a quantized model), Hugging Face "
            "folders (./NAME), GGUF files (./model.gguf) or hf:ORG/NAME.",
            autocompletion=complete_target,
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: test or validation (held-out text), hellaswag, arc_easy, "
            "arc_challenge, piqa, winogrande, openbookqa, or all (these six). Default: test; with "
            "--data-dir all.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Score only the first N questions of each task; this is recorded."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Score only N tokens of held-out text, spread over its documents (default: all).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text to score on, as in train (default: the run's own); needed for an imported "
            "model, or if tokens are no longer cached.",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of TASK_SPLIT.jsonl[.gz] files in the hub's schema (default: the hub).",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Questions or windows per forward pass; scores differ only by rounding. Default: "
            "chosen for the device; for windows, the run's.",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or mps (default: the run's, if available).",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="fp32 or bf16 (default: the run's; of a quantized model bf16, where that is "
            "native); part of the record.",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
) -> None:
    """Score finished runs on held-out text and multiple-choice tasks.

    Tasks use the prompts and metrics of lm-evaluation-harness, 0-shot. Scores go to the run's
    eval.csv, and scores per item to its items/ folder. The same command continues a stopped
    evaluation.
    """
    from smolctl.studies.machine import require_machine
    from smolctl.studies.models import models_of
    from smolctl.studies.scorer import Scorer, questions
    from smollm2.evaluation.tasks import task_names

    for option, value in (("--limit", limit), ("--tokens", tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, not {value}.")
    names = task_names(tasks or ("all" if is_typed(context, "data_dir") else "test"))
    splits = [name for name in names if name in TEXT_SPLITS]
    refuse_idle(context, ("tokens", "data"), "held-out text", bool(splits))
    refuse_idle(context, ("limit", "data_dir"), "tasks", len(splits) < len(names))
    require_machine(device, dtype)
    models = {
        model.tables.path.resolve(): model
        for target in targets
        for model in models_of(target, results, study)
    }
    # Check all of them now, not hours later.
    scorers = [
        Scorer(
            model,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            with_text=bool(splits),
            source=data,
            may_be_other=True,
        )
        for model in models.values()
    ]
    asked = questions(",".join(names), data_dir, limit)
    rows: list[dict[str, Any]] = []
    try:
        for scorer in scorers:
            names_it = {"study": scorer.model.run.study, "run": scorer.model.label}
            spread = tokens is not None
            for scored in scorer.score(scorer.load(), splits, asked, tokens, spread=spread):
                rows += [names_it | row for row in scored]
    except KeyboardInterrupt:
        say("Stopped. The scores so far are kept; the same command continues.")
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"The scores could not be written: {error}.") from error
    finally:  # show the scores whatever failed after them
        if as_json and rows:
            print_json(rows)
        elif rows:
            show_scores(rows)


def refuse_idle(
    context: typer.Context, options: tuple[str, ...], what: str, is_scored: bool
) -> None:
    """Raise `UserError` if one of `options` was typed but has no effect."""
    for name in options:
        if is_typed(context, name) and not is_scored:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} applies to {what}, but --tasks names none.")


def show_scores(rows: list[dict[str, Any]]) -> None:
    """Print a table of held-out text, and one of tasks."""

    measured: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        measured.setdefault((row["run"], row["task"]), {})[row["metric"]] = row
    texts = {key: cells for key, cells in measured.items() if key[1] in TEXT_SPLITS}
    tasks = {key: cells for key, cells in measured.items() if key[1] not in TEXT_SPLITS}
    if texts:
        print_table(
            "Held-out text",
            ("run", "split", "tokens", "documents", "loss", "accuracy", "perplexity", "bits/byte"),
            (
                (
                    *key,
                    of_total(cells["loss"]["n"], cells["loss"]["total"]),
                    f"{cells['loss']['clusters']:,}",
                    *(estimate_cell(cells[name]) for name in TEXT_METRICS),
                )
                for key, cells in texts.items()
            ),
            n_words=2,
        )
        if len({cells["loss"]["fingerprint"] for cells in texts.values()}) > 1:
            say("The runs have different texts or tokenizers: do not compare their losses.")
        fewest = min(cells["loss"]["clusters"] for cells in texts.values())
        if fewest < FEWEST_DOCUMENTS:
            say(f"Fewer than {FEWEST_DOCUMENTS} documents give no standard error.")
        elif fewest < FEW_DOCUMENTS:
            say(f"± is a standard error over documents; with only {fewest} it is rough.")
    if tasks:
        print_table(
            "Multiple choice, scored like lm-evaluation-harness, 0-shot",
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
                    cells["acc"]["split"],
                    of_total(cells["acc"]["n"], cells["acc"]["total"]),
                    estimate_cell(cells["acc"]),
                    estimate_cell(cells.get("acc_norm")),
                    f"{cells['acc']['chance']:.4f}",
                    estimate_cell(cells["bits_per_byte"]),
                )
                for key, cells in tasks.items()
            ),
            n_words=3,
        )
        say(
            "bits/byte is the cost of the right answer. ± is a standard error over questions; it "
            "does not include the noise of training."
        )


def estimate_cell(row: dict[str, Any] | None) -> str:
    """`5.704 ± 0.049`: two digits of the standard error, and as many of the value."""
    if row is None:
        return "–"
    if not row["stderr"]:
        return f"{row['value']:.4f}"
    places = max(0, 1 - math.floor(math.log10(row["stderr"])))
    return f"{row['value']:.{places}f} ± {row['stderr']:.{places}f}"
