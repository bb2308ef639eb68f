"""`smolctl eval`: score finished runs on held-out text."""

from typing import Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Data, Json, Results, Study
from smollm2.errors import UserError

EXAMPLES = """
**Examples**

- `smolctl eval pow2`

- `smolctl eval pow2-nano-300-s0 --split validation --tokens 50000 --json`
"""


def evaluate(
    targets: Annotated[list[str], typer.Argument(help="Runs, variants or run directories.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to score; default those of the run's protocol.")
    ] = None,
    data: Data = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Loss, accuracy, perplexity and bits per byte on held-out text, written to eval.csv."""
    import json
    import sys

    from smolctl.console import table
    from smolctl.targets import runs_of

    if split not in ("validation", "test"):
        raise UserError(f"Unknown split {split!r}; choose validation or test.")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {tokens}.")
    runs = [run for target in targets for run in runs_of(target, results, study)]
    rows: list[dict[str, Any]] = []
    for run in runs:
        rows += [{"run": run.name} | row for row in score(run, split, tokens, data)]
    if as_json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return
    by_run = {row["run"]: {r["metric"]: r for r in rows if r["run"] == row["run"]} for row in rows}
    metrics = ("loss", "accuracy", "perplexity", "bits_per_byte")
    table(
        f"Held-out text ({split})",
        ("run", "tokens", *metrics),
        (
            (name, f"{cells['loss']['n']:,}", *(f"{cells[m]['value']:.4f}" for m in metrics))
            for name, cells in by_run.items()
        ),
    )


def score(run: Any, split: str, tokens: int | None, source: str | None) -> list[dict[str, Any]]:
    """Evaluate one run and replace its rows of this split and number of tokens in eval.csv."""
    from smolctl.console import progress, warn
    from smolctl.tokens import tokens_of
    from smollm2.device import resolve_device, resolve_dtype
    from smollm2.evaluate import held_out, held_out_rows
    from smollm2.runs import load_model

    protocol = run.protocol
    data = tokens_of(run, source, None)
    default = protocol.test_tokens if split == "test" else protocol.validation_tokens
    n_tokens = default if tokens is None else tokens
    device, dtype = protocol.device, protocol.dtype
    try:
        resolve_device(device)
    except UserError:
        device = resolve_device(None)
        dtype = resolve_dtype(None, device)
        warn(
            f"{run.name} was trained on {protocol.device}; it is evaluated on {device} in {dtype}."
        )
    model = load_model(run, device, dtype)
    with run.writing(), progress() as bar:
        task = bar.add_task(f"{run.name} {split}", total=n_tokens)
        scores = held_out(
            model,
            data,
            split,
            n_tokens,
            protocol.seq_len,
            protocol.batch_size,
            lambda done: bar.update(task, completed=done),
        )
        rows = held_out_rows(split, scores, data.fingerprint, protocol.seq_len)
        # Rows over another number of tokens are other measurements and stay.
        key = (split, str(scores.n_tokens))
        kept = [row for row in run.rows("eval") if (row["task"], row["n"]) != key]
        run.replace("eval", kept + rows)
    return rows
