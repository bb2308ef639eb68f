"""`smolctl study`: run what a study file describes and what is missing of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, Json, Results, Track

if TYPE_CHECKING:
    from smolctl.session import Session
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl study gqa.toml --dry-run`

- `smolctl study gqa.toml`, then `smolctl compare pow2 mqa --study gqa`

A study file:

    seeds = [0, 1, 2]
    equal = "tokens"        # or flops, seconds
    arms.orig = "orig"
    arms.pow2 = "pow2"
    train = { scale = "nano", steps = 300, data = "novels.jsonl.gz" }
    sweep = { lr = [1e-3, 3e-3], seeds = [100, 101] }
    eval = { tasks = "arc_easy", limit = 500 }
"""


def study(
    file: Annotated[Path, typer.Argument(help="TOML file; the study is called after it.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the runs and the time they take on this machine."),
    ] = False,
    results: Results = RESULTS,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a study: every arm with every seed, interleaved, then its evaluations.

    Stop it whenever you like; the same command goes on with what is missing. Given twice at once,
    the two share the trainings. A run that fails is named and does not stop the others. Afterwards:
    smolctl compare and smolctl report.
    """
    from smolctl.session import Session
    from smollm2.study import read_study

    plan = read_study(file)
    session = Session(plan, results, track)
    if dry_run:
        show_plan(session, as_json)
        return
    session.run()
    show_result(session, as_json)


def is_finished(run: "Run | None") -> bool:
    return run is not None and run.is_finished


def state_of(run: "Run | None") -> str:
    if run is None:
        return "to do"
    states = {"finished": "finished", "failed": "failed"}
    return states.get(run.manifest["state"], "to be continued")


def show_plan(session: "Session", as_json: bool) -> None:
    """The runs, their states, and how long what is missing takes here."""
    import json
    import sys

    from smolctl.console import duration, say, table
    from smollm2.cost import parameters
    from smollm2.protocol import resolve

    step_seconds = session.step_seconds or session.measure()
    sweep = session.study.sweep
    rows: list[dict[str, Any]] = []
    for planned in session.planned():
        protocol = resolve(planned.request).on(session.data)
        run = session.existing(planned)
        steps = 0 if run is None else max(run.checkpoints.steps(), default=0)
        is_lost = planned.role == "sweep" and session.is_lost(planned, run)
        left = 0 if is_lost or is_finished(run) else protocol.steps - steps
        # A validation is a forward pass: a third of what training on its tokens costs.
        scored = protocol.validation_tokens / protocol.validation_every + (
            protocol.test_tokens / protocol.steps
        )
        scored_steps = scored / protocol.tokens_per_step / 3
        rows.append(
            {
                "run": planned.name,
                "arm": planned.arm,
                "role": planned.role,
                "steps": protocol.steps,
                "tokens": protocol.steps * protocol.tokens_per_step,
                "flops": protocol.steps * protocol.flops_per_step,
                "parameters": parameters(protocol.model).total,
                "lr": protocol.recipe.lr if planned.request.lr or not sweep else None,
                "state": state_of(run),
                "seconds_left": left * step_seconds[planned.arm] * (1 + scored_steps),
            }
        )
    total = sum(row["seconds_left"] for row in rows)
    if as_json:
        json.dump({"study": session.study.name, "runs": rows, "seconds_left": total}, sys.stdout)
        sys.stdout.write("\n")
        return
    table(
        f"Study {session.study.name}: equal {session.study.equal}",
        ("run", "arm", "parameters", "steps", "FLOPs", "lr", "state", "time left"),
        (
            (
                row["run"],
                row["arm"],
                f"{row['parameters']:,}",
                f"{row['steps']:,}",
                f"{row['flops']:.2e}",
                f"{row['lr']:g}" if row["lr"] else "from the sweep",
                row["state"],
                duration(row["seconds_left"]) if row["seconds_left"] else "–",
            )
            for row in rows
        ),
    )
    rest = ["the evaluation"] * bool(session.questions)
    rest += ["quantizing"] * (session.study.quantization is not None)
    more = f" and, not counted here, {' and '.join(rest)}" if rest else ""
    say(f"About {duration(total)} of training and validation on this machine{more}.")


def show_result(session: "Session", as_json: bool) -> None:
    """What has been run, and what to type next; exit code 1 if a final run failed."""
    import json
    import sys

    from smolctl.console import say

    runs = [(planned, session.existing(planned)) for planned in session.planned()]
    if as_json:
        rows = [
            {
                "run": planned.name,
                "arm": planned.arm,
                "role": planned.role,
                "state": state_of(run),
                "error": session.failed.get(planned.name),
            }
            for planned, run in runs
        ]
        json.dump({"study": session.study.name, "runs": rows}, sys.stdout)
        sys.stdout.write("\n")
    done = sum(is_finished(run) for _, run in runs)
    for arm, rate in session.rates().items():
        say(f"The sweep chose a learning rate of {rate:g} for {arm}.")
    arms = " ".join(f"'{p.name}'" if ":" in p.name else p.name for p in session.study.arms)
    where = "" if session.results == RESULTS else f" --results {session.results}"
    say(f"{done} of {len(runs)} runs are finished in {session.results / session.study.name}.")
    say(f"Next: smolctl compare {arms} --study {session.study.name}{where}")
    card = session.results / session.study.name / "MODEL_CARD.md"
    say(f"      smolctl report --study {session.study.name}{where} --out {card}")
    lost = [
        planned.name for planned, run in runs if planned.role == "sweep" and not is_finished(run)
    ]
    if lost:
        say(f"Failed in the sweep, and so not chosen: {', '.join(lost)}.")
    if failed := [name for name in session.failed if name not in lost]:
        say(f"Failed: {', '.join(failed)}. The same command tries them again.")
        raise typer.Exit(1)
