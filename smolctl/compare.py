"""`smolctl compare`: finished runs of two or more arms, with a verdict or the lack of one."""

from pathlib import Path
from typing import Annotated

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study, complete_target
from smollm2.errors import UserError

EXAMPLES = """
**Examples**

- `smolctl compare orig pow2`

- `smolctl compare pow2 pow2:n_kv_heads=8 pow2:n_kv_heads=1 --study gqa --verbose`

- `smolctl compare orig pow2 moe-160m --study demo --json`
"""


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            help="Arms, variants or runs; the first is the base.", autocompletion=complete_target
        ),
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Every run's numbers as well.")
    ] = False,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the figures; default figures/ARM-vs-ARM in the study.",
            show_default=False,
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Compare arms on the final test loss, with intervals over seeds; one seed decides nothing.

    Only runs that share everything but the model (and the learning rate) are compared; others are
    named and left out. A verdict needs at least two runs of each arm.
    """
    import json
    import sys

    from smolctl.comparison import to_dict
    from smolctl.console import say, table, warn
    from smolctl.selection import compare_arms
    from smolctl.tables import (
        arms_table,
        runs_table,
        secondary_table,
        sweep_table,
        task_differences_table,
        tasks_table,
        verdicts_table,
        views_table,
    )
    from smolctl.targets import runs_of
    from smolctl.words import conclusion
    from smollm2.protocol import plain_name
    from smollm2.runs import LONGEST_NAME

    if len(set(arms)) < 2:
        raise UserError("Name at least two different arms: smolctl compare orig pow2.")
    runs = {arm: runs_of(arm, results, study, with_imported=False) for arm in arms}
    found = compare_arms(study, runs)
    for sentence in found.notes:
        warn(sentence)
    if as_json:
        json.dump(to_dict(found) | {"conclusion": conclusion(found)}, sys.stdout)
        sys.stdout.write("\n")
        return
    from smolctl.plots import comparison_figures

    tables = [arms_table, verdicts_table, secondary_table, views_table]
    tables += [tasks_table, task_differences_table, sweep_table]
    for make in [*tables, *([runs_table] if verbose else [])]:
        if (part := make(found)).rows:
            table(part.title, part.header, part.rows, part.n_words)
    if found.tasks.empty:
        say(
            f"Tasks: not measured. smolctl eval {' '.join(arms)} --tasks arc_easy,hellaswag "
            f"--study {study}"
        )
    for sentence in conclusion(found):
        sys.stdout.write(f"- {sentence}\n")
    # A folder of their own: those of the model card show every arm of the study.
    name = plain_name("-vs-".join(arms))[:LONGEST_NAME]
    folder = figures or results / study / "figures" / name
    try:
        for path in comparison_figures(found, folder):
            say(f"Figure: {path}")
    except OSError as error:
        raise UserError(
            f"Cannot write figures to {folder}: {error.strerror}; choose another --figures."
        ) from None
