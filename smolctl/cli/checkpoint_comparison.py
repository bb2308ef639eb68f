"""`smolctl compare BASE CHECKPOINT`: what a checkpoint has gained and lost against another.

    smolctl compare ./base tuned                          on the text that `tuned` was trained on
    smolctl compare ./base tuned --data novels.jsonl.gz   and on another: what it has forgotten
    smolctl compare ./base tuned --tasks arc_easy --data-dir eval/
    smolctl compare ./base ./other --data novels.jsonl.gz
    smolctl compare RUN RUN+int4-g64-clip

Either may be a run, an imported model or a quantized one. What is missing is scored first, with
both in the same way, and kept, so every command shows all that was scored alike so far.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from smolctl.command_line import command, results_of
from smollm2.errors import RunError, UserError

if TYPE_CHECKING:
    from smolctl.analysis.checkpoint_pair import CheckpointPair
    from smolctl.studies.checkpoint_scores import Asked


def compared_pair(
    targets: Sequence[str], results: Path, study: str, asked: "Asked", margin: float | None
) -> "CheckpointPair":
    """The two targets, scored on what was asked and compared on all that they have in common.

    Raises:
        UserError: they are not two models, a value is wrong, or there is nothing in common.
        RunError: a score cannot be computed or written.
    """
    from smolctl.analysis.checkpoint_pair import compare_checkpoints
    from smolctl.cli.console import say
    from smolctl.studies.checkpoint_scores import score_alike, scored_model, two_checkpoints
    from smolctl.studies.machine import require_machine

    for name, value in (("--limit", asked.limit), ("--tokens", asked.tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"--margin must be a number of nats/token above 0, not {margin:g}.")
    if asked.tasks is None and (asked.limit is not None or asked.data_dir is not None):
        raise UserError("--limit and --data-dir apply to tasks: name some with --tasks.")
    require_machine(asked.device, asked.dtype)
    base, other = two_checkpoints(targets, results, study)
    try:
        score_alike(base, other, asked)
    except KeyboardInterrupt:
        say("Stopped. The scores so far are kept; the same command continues.")
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"The scores could not be written: {error}.") from error
    pair = compare_checkpoints(scored_model(base), scored_model(other), margin)
    if not pair.texts and not pair.tasks:
        words = ("compare", base.label, other.label, "--data", "TEXT")
        typed = command(*words, study=base.run.study, results=results_of(base.run))
        why = " ".join(pair.problems) or (
            f"{base.label} and {other.label} were not scored on the same text or tasks."
        )
        raise UserError(f"{why} Name a text or tasks to score both on: {typed}")
    return pair


def show_pair(pair: "CheckpointPair", figures: Path | None, as_json: bool) -> None:
    """Print the comparison, and draw its figure into `figures`, by default in the study."""
    from smolctl.analysis.checkpoint_json import pair_to_dict
    from smolctl.cli.console import print_json, say
    from smolctl.cli.terminal import show_sections
    from smolctl.report.card import write_figures
    from smolctl.report.document import sentences_of
    from smolctl.report.render.json import as_json as in_json
    from smolctl.report.sections.fine_tune import pair_section
    from smollm2.protocol.run_config import plain_name
    from smollm2.runs.links import require_own
    from smollm2.runs.names import LONGEST_NAME

    study = pair.other.run.home.parent
    if figures is None:
        require_own(study, "figures")
        name = plain_name(f"{pair.base.name}-vs-{pair.other.name}")[:LONGEST_NAME]
        figures = study / "figures" / name
    shown = [pair_section(pair)]
    if as_json:
        conclusion = {"conclusion": sentences_of(shown), "sections": in_json(shown)}
        print_json(pair_to_dict(pair) | conclusion)
        return
    show_sections(shown)
    for path in write_figures(shown, figures).values():
        say(f"Figure: {path}")
