"""`smolctl compare`: finished runs of two or more arms, with a verdict or the lack of one; or two
checkpoints, see `checkpoint_comparison`."""

from pathlib import Path
from typing import Annotated

import typer

from smolctl.cli.options import (
    Json,
    Results,
    Section,
    Study,
    complete_target,
    is_typed,
    nats_per_token,
)
from smolctl.cli.startup import collect_garbage_rarely
from smolctl.command_line import RESULTS, STUDY, command
from smollm2.errors import UserError

EXAMPLES = """
**Examples**

- `smolctl compare orig pow2`

- every arm of a study, in the order of its file: `smolctl compare --study gqa`

- `smolctl compare pow2 pow2:n_kv_heads=8 pow2:n_kv_heads=1 --study gqa --verbose`

- `smolctl compare orig pow2 moe-160m --study demo --json`

- `smolctl compare orig pow2 --section speed`

- `smolctl compare orig pow2 --detect 0.02`

- a fine-tune against its base, on the text it was trained on:
  `smolctl compare ./SmolLM2-135M-Instruct tuned`

- what it has forgotten of another text and of a task:
  `smolctl compare ./SmolLM2-135M-Instruct tuned --data novels.jsonl.gz --tasks arc_easy`
"""
PANEL = "Two checkpoints"
# Options that apply to one of the two things that are compared.
OF_ARMS = ("verbose", "detect", "section")
OF_CHECKPOINTS = ("data", "tasks", "data_dir", "limit", "tokens", "margin", "device", "dtype")


def compare(
    context: typer.Context,
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARM]...",
            help="Arms, variants or runs; the first is the baseline (default: all of the study). "
            "Or two checkpoints, one of them an imported model (./NAME, hf:ORG/NAME), RUN+NAME, or "
            "what started from the other.",
            autocompletion=complete_target,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print the numbers of every run.")
    ] = False,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures (default: figures/ARM-vs-ARM in the study).",
            show_default=False,
        ),
    ] = None,
    detect: Annotated[
        float | None,
        typer.Option(
            parser=nats_per_token,
            metavar="FLOAT",
            help="Also say how many seeds it would take to find this difference, in nats/token.",
            show_default=False,
        ),
    ] = None,
    section: Section = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Also score both on the held-out part of this text, as in train; may be repeated.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Also score both on these tasks, as in eval.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tasks' questions, as in eval (default: the hub).",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Score only the first N questions of each task.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Score only N tokens of each text, spread over its documents (default: as many as "
            "the final test of the trained one; all for two imported models).",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            parser=nats_per_token,
            metavar="FLOAT",
            help="A change of the loss within it, in nats/token, is equivalent.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or mps (default: the second one's).",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="fp32 or bf16 (default: that of a quantized one, else bf16 if both are, or fp32).",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Compare arms by final test loss, with confidence intervals over seeds.

    Only runs that differ in nothing but the model and the learning rate are compared; others are
    named and excluded. A verdict needs at least two runs of each arm.

    Two checkpoints, such as a model and its fine-tune, are compared on the same held-out text and
    tasks, which are scored where that is missing. The verdicts are about these two checkpoints.
    """
    collect_garbage_rarely()
    from smolctl.analysis.comparison_json import to_dict
    from smolctl.analysis.planning import require_difference, seeds_to_find
    from smolctl.analysis.rungs import ladder_dict
    from smolctl.analysis.selection import compare_arms
    from smolctl.cli.checkpoint_comparison import compared_pair, show_pair
    from smolctl.cli.console import print_json, print_lines, say, warn
    from smolctl.cli.run_list import require_study
    from smolctl.cli.terminal import say_what_is_missing, show_sections
    from smolctl.report.card import write_figures
    from smolctl.report.document import sentences_of
    from smolctl.report.evidence import Evidence
    from smolctl.report.render.json import as_json as in_json
    from smolctl.report.sections import COMPARE, names_in, sections
    from smolctl.report.wording import briefly
    from smolctl.studies.checkpoint_targets import are_checkpoints
    from smolctl.studies.compared_arms import at_least_two, finished_arms
    from smollm2.protocol.run_config import plain_name
    from smollm2.runs.links import require_own
    from smollm2.runs.names import LONGEST_NAME

    is_scoring = any(is_typed(context, name) for name in ("data", "tasks"))
    if is_scoring or (arms and are_checkpoints(arms, results, study)):
        refuse_typed(context, OF_ARMS, "compares arms of a study, and these are two checkpoints")
        from smolctl.studies.checkpoint_scores import Asked  # with torch

        asked = Asked(tuple(data or ()), tasks, data_dir, limit, tokens, device, dtype)
        pair = compared_pair(arms or [], results, study, asked, margin)
        show_pair(pair, figures, as_json)
        return
    refuse_typed(context, OF_CHECKPOINTS, "compares two checkpoints, and these are arms of a study")
    if detect is not None:
        require_difference(detect)
    if study != STUDY:
        require_study(results, study)
    arms = at_least_two(arms or [], results, study)
    names = section or [*names_in(COMPARE), *(["runs"] if verbose else [])]
    runs, left_out = finished_arms(arms, results, study)
    found = compare_arms(study, runs, left_out)
    # Before anything is printed: it may have no answer.
    seeds = None if detect is None else seeds_to_find(found, detect)
    if figures is None:
        require_own(results / study, "figures")
    for sentence in briefly(found.notes):
        warn(sentence)
    shown = sections(Evidence(found), names)
    if as_json:
        conclusion = {"conclusion": sentences_of(shown), "sections": in_json(shown)}
        conclusion["ladder"] = ladder_dict(found)
        if seeds is not None:
            final, tuning = seeds
            numbers = {"difference": detect, "seeds": final, "tuning_seeds": tuning}
            conclusion["detect"] = numbers
        print_json(to_dict(found) | conclusion)
        return
    show_sections(shown)
    say_what_is_missing(section or [], shown)
    if seeds is not None:
        final, tuning = seeds
        also = f" and {tuning} seeds of [tune]" if tuning else ", if their rates are equally good"
        print_lines(
            [
                f"To find a true difference of {detect:g} nats/token four times in five: "
                f"{final:,} seeds an arm{also}."
            ]
        )
    has_weights = not any(one.run.packed_in for one in found.runs)
    if "tasks" in names and not found.tasks and has_weights:
        words = ("eval", *runs, "--tasks", "arc_easy,hellaswag")
        say(f"Tasks: not measured. {command(*words, study=study, results=results)}")
    # A folder of their own: those of the model card show every arm of the study.
    name = plain_name("-vs-".join(runs))[:LONGEST_NAME]
    for path in write_figures(shown, figures or results / study / "figures" / name).values():
        say(f"Figure: {path}")


def refuse_typed(context: typer.Context, options: tuple[str, ...], why: str) -> None:
    """Raise `UserError` if one of `options`, which have no effect, was typed."""
    for name in options:
        if is_typed(context, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {why}; omit it.")
