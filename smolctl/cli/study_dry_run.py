"""`smolctl study --dry-run`: the runs of a study and how long they take on this machine."""

from typing import TYPE_CHECKING, Any

from smolctl.analysis.ladder_notes import TRANSFER
from smolctl.cli.console import print_json, print_table, say
from smolctl.studies.targets import saved_step
from smolctl.units import duration
from smollm2.model.cost import parameters
from smollm2.runs.manifest import RunState
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smolctl.studies.plan import PlannedRun
    from smolctl.studies.runner import Session


def show_dry_run(sessions: "list[Session]", as_json: bool) -> None:
    """Print what a study would run, and how long that takes."""
    from smolctl.studies.study_warnings import warn_of_one_seed

    warn_of_one_seed(sessions[0].study)
    plans = [study_plan(one) for one in sessions]
    if as_json:
        print_rungs(plans)
    else:
        show_study_plans(sessions, plans)


def print_rungs(found: list[dict[str, Any]]) -> None:
    """Print what was found of each size of a study as JSON; of the only one by itself."""
    print_json({"rungs": found} if len(found) > 1 else found[0])


def study_plan(session: "Session") -> dict[str, Any]:
    """The runs, their states, and how long the missing ones take on this machine."""
    from smolctl.studies import step_times
    from smolctl.studies.ledger import say_if_changed

    session.refuse_changes()
    say_if_changed(session.study, session.folder)
    step_seconds = session.step_seconds or step_times.measure(session.study, session.data)
    rows = [plan_of(session, planned, step_seconds) for planned in session.planned()]
    total = sum(row["seconds_left"] for row in rows)
    return {"study": session.study.name, "runs": rows, "seconds_left": total}


def show_study_plans(sessions: "list[Session]", plans: list[dict[str, Any]]) -> None:
    """Print `study_plan` of each session, and the time of all."""
    for session, plan in zip(sessions, plans, strict=True):
        show_rows(session, plan["runs"])
    first = sessions[0]
    rest = ["the evaluation"] * bool(first.questions)
    rest += ["quantizing"] * (first.study.quantization is not None)
    rest += ["measuring the speed"] * (first.study.speed is not None)
    more = f" and, not counted here, {', '.join(rest)}" if rest else ""
    total = sum(plan["seconds_left"] for plan in plans)
    say(f"About {duration(total)} of training and validation on this machine{more}.")
    ladder = first.study.ladder
    if len(sessions) > 1 and ladder and ladder.rate == TRANSFER and not first.rates():
        say(f"The rates of the larger sizes follow from the tuning at {ladder.smallest}.")


def show_rows(session: "Session", rows: list[dict[str, Any]]) -> None:
    """Print the planned runs: a row for those that differ in their seeds alone."""
    from smolctl.report.wording import seeds_text

    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells = (
            row["arm"],
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['flops']:.2e}",
            f"{row['lr']:g}" if row["lr"] else "from tuning",
            row["state"],
        )
        alike.setdefault((row["role"], *cells), []).append(row)
    has_begun = any(row["state"] != "to do" for row in rows)
    print_table(
        f"Study {session.study.name}: equal {session.study.equal}",
        (
            *("arm", "seeds", "parameters", "steps", "FLOPs a run", "lr", "state"),
            "time left" if has_begun else "time",
        ),
        (
            (
                cells[0],
                seeds_text(row["seed"] for row in found),
                *cells[1:],
                duration(left) if (left := sum(row["seconds_left"] for row in found)) else "–",
            )
            for (_, *cells), found in alike.items()
        ),
        n_words=2,
    )


def plan_of(
    session: "Session", planned: "PlannedRun", step_seconds: dict[str, float]
) -> dict[str, Any]:
    """A planned run, and the seconds of training and validation that remain."""
    config, run = planned.resolved, session.existing(planned)
    steps_left = 0 if session.is_over(planned) else config.steps - (saved_step(run) if run else 0)
    return {
        "run": planned.name,
        "arm": planned.arm,
        "role": planned.role,
        "seed": config.seed,
        "steps": config.steps,
        "tokens": config.steps * config.tokens_per_step,
        "flops": config.steps * config.flops_per_step,
        "parameters": parameters(config.model).total,
        "lr": config.recipe.lr if planned.config.lr or not has_rates_to_come(session) else None,
        "state": progress_of(run),
        "seconds_left": seconds_of(planned, step_seconds[planned.arm], steps_left),
    }


def has_rates_to_come(session: "Session") -> bool:
    """Whether the rates of the final runs follow from a tuning: of the study, or of the smallest
    size of its ladder."""
    ladder = session.study.ladder
    is_transferred = ladder is not None and ladder.is_transferred(ladder.rung or "")
    return session.study.tuning is not None or is_transferred


def seconds_of(planned: "PlannedRun", step_seconds: float, steps: int) -> float:
    """The time that so many steps of a run take, with its validations and its final scores."""
    config = planned.resolved
    # A validation is a forward pass: a third of what training on its tokens costs.
    tokens_scored = config.validation_tokens / config.validation_every
    tokens_scored += config.test_tokens / config.steps  # of a tuning run on validation
    scoring = tokens_scored / config.tokens_per_step / 3  # in training steps, per step
    return steps * step_seconds * (1 + scoring)


def progress_of(run: Run | None) -> str:
    """`to do`, `finished`, `failed` or `to be continued`."""
    if run is None:
        return "to do"
    return run.state if run.state in (RunState.FINISHED, RunState.FAILED) else "to be continued"
