"""What repeats the runs of a card: study files, commands, environments, fingerprints."""

import contextlib
import hashlib
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import pandas as pd

from smolctl.comparison import Comparison
from smolctl.evidence import Evidence
from smolctl.facts import RunFacts, siblings
from smolctl.quantization import Quantized
from smolctl.scoring import SPLITS, task_names
from smolctl.tables import Table
from smolctl.task_scores import eval_options
from smollm2.config import read_toml
from smollm2.errors import UserError
from smollm2.quantize.config import QuantConfig
from smollm2.runs import Run
from smollm2.tables import Tables


def study_file(comparison: Comparison) -> str | None:
    """The study file that the runs follow from; None where they were trained one by one.

    Raises:
        UserError: it is there and cannot be read.
    """
    path = comparison.base.runs[0].run.path.parent / "study.toml"
    return read_toml(path, "study", lambda _: path.read_text("utf-8")) if path.exists() else None


def commands(found: Quantized) -> list[str]:
    """What to type for every run, its quantized models and the scores of both; files by their base
    names."""
    comparison = found.comparison
    file = study_file(comparison)
    plan = tomllib.loads(file or "")
    lines = [f"smolctl study {comparison.study}.toml"] * (file is not None)
    planned = {
        (arm, seed)
        for arm, values in plan.get("arms", {}).items()
        for seed in values.get("seeds", [])
    }
    by_plan = {
        facts.name
        for arm in comparison.arms
        for facts in arm.runs
        if (arm.name, facts.protocol.seed) in planned
    }
    lines += [train_command(facts.run) for facts in comparison.runs if facts.name not in by_plan]
    models = plan.get("quantize", {}).get("models", [])
    lines += quantize_commands(found, models)
    return lines + eval_commands(comparison, plan.get("eval"), by_plan)


def eval_commands(
    comparison: Comparison, plan: dict[str, Any] | None, by_plan: set[str]
) -> list[str]:
    """What to type for every score of a task that the study file does not ask for.

    Args:
        plan: what it says of evaluation.
        by_plan: the runs that it asks for.
    """
    tasks: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for target, facts, rows in scored(comparison):
        for row in rows.drop_duplicates(["task", "n", "protocol"]).to_dict("records"):
            if target not in by_plan or not is_planned(plan, facts, row):
                by_target = tasks.setdefault(eval_options(facts, row), {})
                found = by_target.setdefault(target, [])
                found += [row["task"]] * (row["task"] not in found)
    lines: dict[tuple[str, ...], list[str]] = {}
    for options, by_target in tasks.items():
        for target, found in by_target.items():
            lines.setdefault(("--tasks", ",".join(found), *options), []).append(target)
    return [
        shlex.join(["smolctl", "eval", *targets, *options, "--study", comparison.study])
        for options, targets in lines.items()
    ]


def scored(comparison: Comparison) -> Iterator[tuple[str, RunFacts, pd.DataFrame]]:
    """The runs and their quantized models with the scores of their tasks, by the names that
    `smolctl eval` gives them; files that cannot be read are named elsewhere."""
    for facts in comparison.runs:
        yield facts.name, facts, facts.tasks
        for path in sorted(facts.run.path.glob("quantized/*/eval.csv")):
            tables = Tables(path.parent)
            with contextlib.suppress(UserError):
                rows = tables.table("eval")
                yield f"{facts.name}+{tables.name}", facts, rows[~rows["task"].isin(SPLITS)]


def is_planned(plan: dict[str, Any] | None, facts: RunFacts, row: dict[Any, Any]) -> bool:
    """Whether a study's evaluation makes this row of eval.csv."""
    from smollm2.device import resolve_dtype

    if plan is None or row["task"] not in task_names(plan["tasks"]):
        return False
    # A name of a dtype is the same on every device.
    n = min(plan.get("limit") or row["total"], row["total"])
    dtype = resolve_dtype(plan.get("dtype") or facts.protocol.dtype, "cpu")
    return (row["n"], dtype) == (n, row["protocol"].split(", ")[4])


def quantize_commands(found: Quantized, planned: list[str]) -> list[str]:
    """What to type for every configuration that is not in the study file; a whole sweep of the same
    runs is one command."""
    names: dict[tuple[str, str], list[str]] = {}
    for name in (name for name in found.names if name not in planned):
        measured = [arm[name] for arm in found.arms.values() if name in arm]
        runs = " ".join(run for one in measured for run in one.rows["run"])
        tokens = next((f" --tokens {n:.0f}" for one in measured for n in one.values("n")), "")
        names.setdefault((runs, tokens), []).append(name)
    sweep = {config.name for config in QuantConfig().grid()}
    return [
        f"smolctl quantize {runs} {options}{tokens} --study {found.comparison.study}"
        for (runs, tokens), those in names.items()
        for options in (
            ["--sweep"] if sweep == set(those) else [QuantConfig.of(name).options for name in those]
        )
    ]


def train_command(run: Run) -> str:
    """The `smolctl train` command that repeats a run."""
    request = run.manifest["request"]
    words = ["smolctl", "train"]
    # The model is that of the run or the weights which it started from.
    implied = {"variant", "scale"} if run.manifest["started_from"] else set()
    for name, value in request.items():
        if name in implied:
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "settings":
            words += [word for setting in value for word in ("--set", setting)]
        elif value is True or value is False:
            words.append(flag if value else f"--no-{name}")
        elif value is not None and (name, value) not in DEFAULTS:
            words += [flag, str(value)]
    if run.manifest["started_from"]:
        words += ["--from", run.manifest["started_from"]]
    words += ["--study", run.study, "--name", run.name]
    return shlex.join(words)


DEFAULTS = {("scale", "full"), ("data", "builtin"), ("recipe", "smollm2")}


def versions(evidence: Evidence) -> str:
    """Those of smolctl that made the runs: the one that writes the card changes no number."""
    found = {
        str(facts.run.manifest["environment"].get("smolctl"))
        for study in evidence.studies
        for facts in study.runs
    }
    return ", ".join(sorted(found))


def environment_table(evidence: Evidence) -> Table:
    """Where the runs were made, each distinct environment of a study once."""
    names = ("device_name", "threads", "torch", "python", "platform", "smolctl", "git_commit")
    found: dict[tuple[str, ...], int] = {}
    for study in evidence.studies:
        for facts in study.runs:
            environment = facts.run.manifest["environment"]
            row = (study.study, *(str(environment.get(name)) for name in names))
            found[row] = found.get(row, 0) + 1
    rows = [(study, str(count), *row) for (study, *row), count in found.items()]
    return Table("Environment", ("study", "runs", *names), rows)


def files_table(evidence: Evidence) -> Table:
    """A fingerprint of the files of each run: when a cell changes, so does the card."""
    rows = []
    for study in evidence.studies:
        arms = {arm.name for arm in study.arms}
        runs = [facts.run for facts in study.runs]
        runs += [run for run in siblings(runs[0]) if is_of_sweep(run, arms)]
        rows += [(study.study, run.name, fingerprint(run)) for run in runs]
    return Table(
        "Files", ("study", "run", "SHA-256 of its manifest, tables and items"), rows, n_words=2
    )


def is_of_sweep(run: Run, arms: set[str]) -> bool:
    return run.manifest["role"] == "sweep" and run.arm in arms


def fingerprint(run: Run) -> str:
    """16 hex digits of SHA-256 over the manifest, the tables and the items of a run, and over those
    of its quantized models."""
    digest = hashlib.sha256()
    patterns = ("*.csv", "items/*.csv.gz", "quantized/*/*.csv", "quantized/*/items/*.csv.gz")
    tables = [path for pattern in patterns for path in sorted(run.path.glob(pattern))]
    for path in [run.path / "run.json", *tables]:
        name = path.relative_to(run.path).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
