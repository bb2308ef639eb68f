"""`smolctl runs`: list runs, show one, remove some."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study, complete_run, is_typed
from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl runs`, or `smolctl runs --study gqa --json`

- `smolctl runs show pow2-nano-300-s0`

- `smolctl runs remove pow2-nano-300-s0 pow2-nano-300-s1`
"""

app = typer.Typer(
    invoke_without_command=True, rich_markup_mode="markdown", subcommand_metavar="[COMMAND]"
)


@app.callback(epilog=EXAMPLES)
def runs(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Option(help="Only this one; default all.", rich_help_panel="Where"),
    ] = None,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """List runs: their state, steps, test loss and size; `show` one, `remove` some."""
    from smolctl.console import print_json, say, size, table

    typed = [name for name in ("study", "results", "as_json") if is_typed(context, name)]
    if context.invoked_subcommand is not None:
        if typed:
            raise UserError(f"Give options behind the word {context.invoked_subcommand}.")
        return
    if "study" not in typed:  # a default is for commands that work in one study
        study = None
    rows = [summary(run) for run in found(results, study)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"There are no runs in {results if study is None else results / study} yet.")
        return
    header = ("study", "run", "variant", "data", "state", "steps", "test loss", "size", "age")
    table("Runs", header, map(cells, rows), n_words=5)
    runs_here = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    say(f"{runs_here}, {size(sum(row['bytes'] for row in rows))} in {results}.")


def found(results: Path, study: str | None) -> "Iterator[Run]":
    """The runs of a study, or of all; a directory that is broken is named and left out.

    Raises:
        UserError: there is no such study.
    """
    from smolctl.targets import runs_in

    paths = sorted(path.parent.name for path in results.glob("*/*/"))
    studies = [name for name in dict.fromkeys(paths) if not name.startswith(".")]
    if study is not None and study not in studies:
        there = f" It has {', '.join(studies)}." if studies else ""
        raise UserError(f"{results} has no study {study!r}.{did_you_mean(study, studies)}{there}")
    for name in studies if study is None else [study]:
        yield from runs_in(results, name)


def summary(run: "Run") -> dict[str, Any]:
    """A run's line in the list; `step` is where it stands or, if it is not running, is saved."""
    from smolctl.targets import saved_step, state_of

    protocol, state, step = run.protocol, state_of(run), saved_step(run)
    if run.is_finished:
        step = protocol.steps
    elif state == "running" and (rows := run.rows("train")):
        step = int(number(rows[-1].get("step")) or step)
    return {
        "study": run.study,
        "run": run.name,
        "variant": protocol.variant,
        "arm": run.arm,
        "role": run.manifest["role"],
        "scale": protocol.scale,
        "data": protocol.data and protocol.data.source,
        "state": state,
        "step": step,
        "steps": protocol.steps,
        "test_loss": test_loss(run),
        "bytes": run.disk_bytes,
        "created_at": run.manifest.get("created_at"),
        "finished_at": run.manifest.get("finished_at"),
        "path": str(run.path),
    }


def test_loss(run: "Run") -> float | None:
    """Of the end of training; None before that."""
    for row in run.rows("eval"):
        if (row.get("protocol"), row.get("metric")) == (run.protocol.final_test, "loss"):
            return number(row.get("value"))
    return None


def number(text: str | None) -> float | None:
    """The finite number in a cell of a table; None if it holds none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # JSON has no other


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A run's line as it is printed."""
    from smolctl.console import size

    is_ended = row["state"] in ("finished", "imported")
    return (
        *(row["study"], row["run"], row["variant"] + " (nano)" * (row["scale"] == "nano")),
        row["data"] or "–",
        row["state"] + ("" if is_ended else f" at step {row['step']:,}"),
        "–" if row["state"] == "imported" else f"{row['steps']:,}",
        "–" if row["test_loss"] is None else f"{row['test_loss']:.4f}",
        size(row["bytes"]),
        age(row["created_at"]),
    )


def age(created_at: str | None) -> str:
    """`40 s`, `12 min`, `5 h`, `3 d` since an ISO time."""
    from datetime import UTC, datetime

    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(str(created_at))).total_seconds()
    except (ValueError, TypeError):  # no time, or one without a zone
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_run)],
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Show what a run is, its scores, and what it keeps on disk."""
    from smolctl.console import facts, print_json, size, table

    run = opened(results, study, name)
    numbers = ("value", "stderr", "n", "total", "clusters", "chance")
    scores = [row | {key: number(row.get(key)) for key in numbers} for row in run.rows("eval")]
    weights = run.weights_bytes()
    if as_json:
        more = {"weights_bytes": weights, "scores": scores, "manifest": run.manifest}
        print_json(summary(run) | more)
        return
    try:
        pairs = in_words(run)
    except KeyError as error:
        raise UserError(f"{name}/run.json lacks {error}; --json shows what it has.") from None
    facts(f"{run.name}, of study {run.study}", pairs)
    if scores:
        header = ("task", "protocol", "metric", "value", "stderr", "scored", "of", "fingerprint")
        table("Scores", header, map(score_cells, scores), n_words=3)
    if weights:
        rows = ((name, size(n_bytes)) for name, n_bytes in weights.items())
        table("Weights on disk", ("weights", "size"), rows)


def opened(results: Path, study: str, name: str) -> "Run":
    """A run of a study.

    Raises:
        UserError: there is none; the message names other studies that have one.
    """
    from smollm2.runs import open_run

    try:
        return open_run(results, study, name)
    except UserError as error:
        others = [run.study for run in found(results, None) if run.name == name]
        if not others:
            raise
        raise UserError(f"{error} Study {others[0]} has one: --study {others[0]}.") from None


def in_words(run: "Run") -> list[tuple[str, str]]:
    """The manifest for a reader."""
    from smolctl.console import size

    protocol, manifest = run.protocol, run.manifest
    model, n_parameters = protocol.model, manifest["parameters"]
    experts = f", {model.n_active_experts} of {model.n_experts} experts" if model.is_moe else ""
    machine = manifest["environment"]
    pairs = [
        (
            "model",
            f"{protocol.variant}, {protocol.scale}: {n_parameters['total']:,} parameters, "
            f"{n_parameters['active']:,} active, {n_parameters['embedding']:,} in the embedding",
        ),
        (
            "shape",
            f"width {model.d_model}, {model.n_heads} heads ({model.n_kv_heads} of keys and "
            f"values), {model.n_layers} layers, d_ff {model.d_ff}{experts}, vocabulary "
            f"{model.vocab_size:,}, context {model.max_seq_len:,}",
        ),
        *(imported_in_words(run) if run.is_imported else training_in_words(run)),
        (
            "versions",
            f"smolctl {machine['smolctl']} ({machine['git_commit'] or 'no commit'}), "
            f"torch {machine['torch']}, Python {machine['python']}, {machine['platform']}",
        ),
        ("created", manifest["created_at"]),
        ("files", f"{run.path}, {size(run.disk_bytes)}"),
    ]
    return [(name, str(text)) for name, text in pairs if text]


def imported_in_words(run: "Run") -> list[tuple[str, str | None]]:
    """Where a model comes from that was trained elsewhere."""
    source = run.manifest["source"]
    return [("state", f"imported from {source['name']} ({source['dtype']})")]


def training_in_words(run: "Run") -> list[tuple[str, str | None]]:
    """How a run is trained and where it stands."""
    from smolctl.console import count
    from smolctl.targets import unfinished

    protocol, manifest = run.protocol, run.manifest
    recipe, data, machine = protocol.recipe, protocol.data, manifest["environment"]
    rate = f"{recipe.lr:g}" + (f", muon {recipe.muon_lr:g}" if recipe.optimizer == "muon" else "")
    tokens = protocol.steps * protocol.tokens_per_step
    return [
        ("state", f"finished at {manifest['finished_at']}" if run.is_finished else unfinished(run)),
        ("error", manifest["error"]),
        (
            "data",
            data
            and f"{data.source}: {data.train_tokens:,} training tokens (fingerprint "
            f"{data.fingerprint}, tokenizer {data.tokenizer_fingerprint})",
        ),
        (
            "recipe",
            f"{manifest['request']['recipe']}: {recipe.optimizer}, {recipe.schedule}, "
            f"learning rate {rate}, weight decay {recipe.weight_decay:g}",
        ),
        (
            "horizon",
            f"{protocol.steps:,} steps of {protocol.tokens_per_step:,} tokens "
            f"({recipe.grad_accum} × {protocol.batch_size} sequences of {protocol.seq_len}): "
            f"{count(tokens)} tokens, {protocol.steps * protocol.flops_per_step:.2e} FLOPs",
        ),
        ("seeds", f"weights {protocol.seed}, order of the data {protocol.data_seed}"),
        ("started from", manifest["started_from"]),
        ("arm", f"{run.arm} ({manifest['role']}, equal {manifest['equal']})"),
        (
            "machine",
            f"{machine['device_name']}, {protocol.device}, {protocol.dtype}, "
            f"threads: {machine['threads']}" + (", compiled" if protocol.compile else ""),
        ),
    ]


def score_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of eval.csv as it is printed."""
    words = (str(row.get(name, "")) for name in ("task", "protocol", "metric"))
    value, error = (
        "–" if row[name] is None else f"{row[name]:.4f}" for name in ("value", "stderr")
    )
    n, total = ("–" if row[name] is None else f"{row[name]:,.0f}" for name in ("n", "total"))
    return (*words, value, error, n, total, row.get("fingerprint") or "–")


@app.command(epilog=EXAMPLES)
def remove(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", autocompletion=complete_run)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, for scripts.")] = False,
    study: Study = STUDY,
    results: Results = RESULTS,
) -> None:
    """Delete runs of a study with all their files; asks before that."""
    import sys

    from smolctl.console import say, size

    doomed = [opened(results, study, name) for name in dict.fromkeys(names)]
    for run in doomed:  # all of them, before one of them is gone
        run.require_removable()
    what = ", ".join(f"{run.name} ({size(run.disk_bytes)})" for run in doomed)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("Nobody is there to be asked; a script says --yes.")
        if not typer.confirm(f"Remove {what} from {results / study} for good?", err=True):
            say("Nothing was removed.")
            raise typer.Exit(1)
    for run in doomed:
        say(f"Removed {run.name}: {size(run.remove())} freed.")
