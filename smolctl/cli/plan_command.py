"""`smolctl plan`: how many seeds, runs and hours a study takes, before its first run."""

import contextlib
import itertools
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.options import Json, Results, complete_study, nats_per_token
from smolctl.command_line import RESULTS, command
from smolctl.units import duration

if TYPE_CHECKING:
    from smolctl.analysis.arms import Arm
    from smolctl.analysis.planning import Family, Spread
    from smolctl.studies.runner import Session
    from smolctl.studies.study_file import Study
    from smollm2.runs.run import Run
    from smollm2.training.loop import Observer

EXAMPLES = """
**Examples**

- `smolctl plan gqa.toml --detect 0.01`, which trains a short pilot first

- `smolctl plan gqa.toml --detect 0.01 --pilot earlier`, from the spread of a study that has run
"""


def plan_study(
    file: Annotated[Path, typer.Argument(help="TOML file of the study.")],
    detect: Annotated[
        float,
        typer.Option(
            parser=nats_per_token,
            metavar="FLOAT",
            help="The true difference of the test loss to find, in nats/token; 0.01 is 1 % of "
            "perplexity.",
        ),
    ],
    pilot: Annotated[
        str | None,
        typer.Option(
            help="A study whose finished runs show how much the loss varies over seeds (default: "
            "a pilot of its own, STUDY-pilot).",
            autocompletion=complete_study,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Where the study's text is, if not where the file says.",
            rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Say how many seeds, runs and hours a study takes to find a difference.

    The number of seeds finds a true difference of that size four times in five. It follows from
    how much the loss varies over seeds: in the runs of `--pilot`, or in a pilot that is trained
    first, three seeds of two arms at a quarter of the steps.
    """
    from smolctl.analysis.planning import Family, require_difference, spread_for
    from smolctl.cli.console import print_json, say
    from smolctl.studies.ladder import read_rungs, sessions_of
    from smolctl.studies.study_warnings import warn_of_one_seed

    require_difference(detect)
    smallest, *larger = read_rungs(file)
    warn_of_one_seed(smallest)
    arms, source = pilot_arms(smallest, pilot, results, data)
    family = Family(smallest.is_blocked, len(smallest.arms) - 1, len(smallest.planned_looks))
    spread = spread_for(family, arms)
    sessions = list(sessions_of(file, results, source=data))
    found = [numbers(one, detect, spread, family) | {"pilot": source} for one in sessions]
    is_late = [warn_of_results(session) for session in sessions]
    warn_of_regime(arms)
    if as_json:
        print_json({"rungs": found} if larger else found[0])
        return
    for one in found:
        show_numbers(one)
    say_spread(found[0], spread)
    if pilot is None:
        of_size = f", of {smallest.name}" if larger else ""
        say(f"The pilot is short and of few runs{of_size}: take these numbers as rough.")
    else:
        say_if_unlike(arms[0], sessions[0])
    if larger:
        seconds = 3600 * sum(one["present"]["hours"] for one in found)
        say(f"All sizes as they are: {duration(seconds)} on this machine.")
    say_next(file, smallest, found[0], results, is_late=any(is_late))


def warn_of_results(session: "Session") -> bool:
    """Warn if a study has results: then it is late to plan. Whether it has."""
    from smolctl.analysis.study_plan import read_ledger
    from smolctl.cli.console import warn

    if (ledger := read_ledger(session.folder)) and ledger.results:
        warn(
            f"study {session.study.name!r} has {len(ledger.results)} results: seeds that are added "
            "now make its verdicts exploratory."
        )
        return True
    return False


def warn_of_regime(arms: "tuple[Arm, ...]") -> None:
    """Warn of the arms of a pilot that a trigram model beats: seeds do not mend that."""
    from statistics import fmean

    from smolctl.analysis.run_metrics import LOSS
    from smolctl.cli.console import warn

    for arm in arms:
        loss, floor = fmean(arm.values(LOSS)), arm.floor("trigram")
        if floor is not None and loss >= floor:
            warn(
                f"after the pilot's {arm.protocol.steps:,} steps {arm.name} has a test loss of "
                f"{loss:.3f}, and a trigram model counted on as many tokens {floor:.3f}. If that "
                "is so at the end of the study, its verdicts are inconclusive, whatever the "
                "seeds: it takes more steps or a larger model."
            )


def pilot_arms(
    study: "Study", pilot: str | None, results: Path, data: str | None
) -> "tuple[tuple[Arm, ...], str]":
    """The arms whose runs show the spread over seeds, and the name of their study.

    Raises:
        UserError: there is no study of the pilot's name, or it has no finished runs.
        RunError: a run of the study's own pilot failed.
    """
    from smolctl.analysis.selection import study_comparison
    from smolctl.cli.console import say, warn
    from smolctl.cli.progress import observed
    from smolctl.cli.run_list import require_study
    from smolctl.report.wording import briefly
    from smolctl.studies.pilot import pilot_of
    from smolctl.studies.runner import Session
    from smolctl.studies.targets import finished_runs
    from smollm2.errors import RunError

    if pilot is not None:
        require_study(results, pilot)
    else:

        def observe(run: "Run") -> "AbstractContextManager[Observer]":
            return observed(run, None, "The same command continues the pilot.")

        short = pilot_of(study)
        session = Session(short, results, observe, data)
        say(f"The pilot trains {len(session.planned())} short runs in {session.folder}.")
        session.run()
        if session.failed:
            raise RunError(f"The pilot failed: {next(iter(session.failed.values()))}")
        pilot = short.name
    found = study_comparison(pilot, finished_runs(results, pilot))
    for sentence in briefly(found.excluded):
        warn(sentence)
    return found.arms, pilot


def numbers(
    session: "Session", detect: float, spread: "Spread", family: "Family"
) -> dict[str, Any]:
    """Seeds, runs, hours and the minimum detectable effect: of the file as it is, and as it would
    have to be."""
    from smolctl.analysis.planning import (
        detectable_with,
        seeds_needed,
        seeds_with_tuning,
        tuning_cost,
    )
    from smolctl.cli.study_dry_run import seconds_of
    from smolctl.studies import step_times
    from smollm2.errors import UserError

    study = session.study
    tuning, deviation = session.tuned().runs, spread.deviation
    tried = len({run.resolved.seed for run in tuning})
    cells = len(tuning) // max(1, tried)  # models times rates

    def fewest(deviation: float) -> tuple[int, int]:
        if tuning:
            return seeds_with_tuning(detect, deviation, family, cells / len(study.arms))
        return seeds_needed(detect, deviation, family), 0

    needed, if_upper = fewest(deviation), None
    with contextlib.suppress(UserError):  # it takes more than there may be
        if_upper = fewest(spread.upper)
    step_seconds = session.step_seconds or step_times.measure(study, session.data)

    def seconds(runs: list[Any]) -> float:
        return sum(seconds_of(run, step_seconds[run.arm], run.resolved.steps) for run in runs)

    one_each = {run.arm: run for run in session.final}.values()
    seeds = min(len(arm.seeds) for arm in study.arms)

    def design_with(n: int, tuning_seeds: int) -> dict[str, Any]:
        effect, share = detectable_with(n, deviation, family), tuning_seeds / max(1, tried)
        found = {
            "seeds": n,
            "tuning_seeds": tuning_seeds,
            "final_runs": n * len(study.arms),
            "tuning_runs": cells * tuning_seeds,
            "hours": (n * seconds([*one_each]) + share * seconds(tuning)) / 3600,
            "minimum_detectable": effect,
            "detectable_with_tuning": None,
        }
        if tuning and effect is not None:
            cost = tuning_cost(tuning_seeds, deviation, family)
            found["detectable_with_tuning"] = effect + cost
        return found

    return {
        "study": study.name,
        "detect": detect,
        "blocked": family.blocked,
        "looks": family.looks,
        "spread": spread.deviation,
        "spread_upper": spread.upper,
        "spread_degrees_of_freedom": spread.df,
        "seeds_if_spread_is_upper": if_upper and if_upper[0],
        "tuning_seeds_if_spread_is_upper": if_upper and if_upper[1],
        "present": design_with(seeds, tried),
        "needed": design_with(*needed),
    }


def show_numbers(found: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    from smolctl.cli.console import print_table

    columns = (found["present"], found["needed"])

    def effects(key: str) -> list[str]:
        return ["–" if each[key] is None else f"{each[key]:.4f}" for each in columns]

    print_table(
        f"Plan of study {found['study']}: to find a difference of {found['detect']:g} nats/token",
        ("", "the file as it is", f"to find {found['detect']:g}"),
        (
            ("seeds an arm", *(f"{each['seeds']:,}" for each in columns)),
            ("seeds of [tune]", *(f"{each['tuning_seeds'] or '–'}" for each in columns)),
            ("minimum detectable effect", *effects("minimum_detectable")),
            ("the same with the tuning gaps", *effects("detectable_with_tuning")),
            ("final runs", *(f"{each['final_runs']:,}" for each in columns)),
            ("tuning runs, at least", *(f"{each['tuning_runs']:,}" for each in columns)),
            ("time on this machine", *(duration(each["hours"] * 3600) for each in columns)),
        ),
    )


def say_spread(found: dict[str, Any], spread: "Spread") -> None:
    """Say what the numbers rest on."""
    from smolctl.analysis.power import MOST_SEEDS
    from smolctl.cli.console import say

    what = "difference within a seed" if found["blocked"] else "loss of an arm over seeds"
    degrees = "1 degree" if spread.df == 1 else f"{spread.df} degrees"
    seeds = found["seeds_if_spread_is_upper"]
    many = f"more than {MOST_SEEDS:,} seeds" if seeds is None else f"{seeds:,} seeds"
    if of_tuning := found["tuning_seeds_if_spread_is_upper"]:
        many += f" and {of_tuning} of [tune]"
    say(
        f"In {found['pilot']} the standard deviation of the {what} is {spread.deviation:.4f} "
        f"({degrees} of freedom). If it is {spread.upper:.4f}, which such runs do not rule out, "
        f"{many} are needed."
    )


def say_if_unlike(arm: "Arm", session: "Session") -> None:
    """Say in what the runs of a pilot differ from those of the study."""
    from smolctl.cli.console import say
    from smollm2.protocol.run_config import differing

    theirs, ours = arm.protocol, session.final[0].resolved
    one, two = ({"steps": run.steps} | run.controlled() for run in (theirs, ours))
    if fields := differing(one, two, ("there", "here")):
        say(f"The runs of the pilot are of another kind, and may vary otherwise: {fields}.")


def say_next(
    file: Path, study: "Study", found: dict[str, Any], results: Path, *, is_late: bool
) -> None:
    """Say what to write into the study file and what to type.

    Args:
        is_late: whether the study has results, so that other seeds take a file of another name.
    """
    from smolctl.cli.console import say

    present, wanted = found["present"], found["needed"]
    needed, tuning = wanted["seeds"], wanted["tuning_seeds"]
    if is_late and (needed > present["seeds"] or tuning > present["tuning_seeds"]):
        file = file.with_name(f"{file.stem}-2{file.suffix}")
        say(f"Copy the file to {file} first: other seeds take a study of another name.")
    run = command("study", str(file), results=results)
    if not tuning:
        say("The file has no [tune], so these numbers hold only for arms at equally good rates.")
    taken = {seed for arm in study.arms for seed in arm.seeds}
    if study.tuning:
        seeds = with_free_seeds(study.tuning.seeds, tuning, taken)
        taken |= {*seeds}
        if tuning > present["tuning_seeds"]:
            say(f"Write seeds = {seeds} below [tune] into {file}.")
    if needed <= present["seeds"]:
        say(f"The file has enough final seeds. Next: {run}")
        return
    first = study.arms[0].seeds
    if all(arm.seeds == first for arm in study.arms):
        seeds = with_free_seeds(first, needed, taken)
        say(f"Next: write seeds = {seeds} into {file}, then {run}")
    else:
        say(f"Next: give every arm {needed} seeds in {file}, then {run}")


def with_free_seeds(present: Sequence[int], number: int, taken: Collection[int]) -> list[int]:
    """`present`, with the next seeds that are not `taken` until there are `number`."""
    free = (seed for seed in itertools.count(max(present) + 1) if seed not in taken)
    return [*present, *itertools.islice(free, max(0, number - len(present)))]
