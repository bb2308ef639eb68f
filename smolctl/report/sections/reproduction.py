"""What repeats the runs: study files, commands, environments, fingerprints."""

import contextlib
import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_arms import Quantized
from smolctl.analysis.run_metrics import FinishedRun, siblings
from smolctl.analysis.task_rows import Row, task_scores
from smolctl.analysis.task_scores import eval_options
from smolctl.command_line import command
from smolctl.report.document import Code, Section, Table, paragraph, section
from smolctl.report.evidence import Evidence
from smollm2.errors import UserError
from smollm2.evaluation.tasks import task_names
from smollm2.parse import parse_toml, read_toml
from smollm2.quantize.quant_config import QuantConfig
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run
from smollm2.runs.tables import TableFolder


def reproduction_section(evidence: Evidence) -> Section | None:
    """Study files, commands, environments and fingerprints of every study."""
    files = {study.study: file for study in evidence.studies if (file := study_file(study))}
    lines = [line for one in evidence.quantized_of.values() for line in commands(one)]
    lines += [evidence.command] * bool(evidence.command)
    return section(
        "Reproduction",
        [
            *(
                block
                for name, file in files.items()
                for block in (paragraph(f"`{name}.toml`:"), Code("toml", file))
            ),
            Code("sh", "".join(f"{line}\n" for line in lines)),
            environment_table(evidence),
            files_table(evidence),
        ],
    )


def study_file(comparison: Comparison) -> str | None:
    """The study file that the runs follow from; None where they were trained one by one.

    Raises:
        UserError: it is there and cannot be read.
    """
    path = comparison.base.runs[0].run.study_path / "study.toml"
    return read_toml(path, "study", lambda _: path.read_text("utf-8")) if path.exists() else None


def content_of_study_file(study: str, file: str | None) -> dict[str, Any]:
    """The content of a study file, as far as `commands` reads it.

    Raises:
        UserError: a part of it has another type.
    """
    plan = parse_toml(file or "")
    arms, models = plan.get("arms", {}), plan.get("quantize", {})
    tasks = plan.get("eval", {"tasks": []})
    is_whole = (
        isinstance(arms, dict)
        and all(isinstance(values, dict) for values in arms.values())
        and all(is_list_of(int, values.get("seeds", [])) for values in arms.values())
        and isinstance(models, dict)
        and is_list_of(str, models.get("models", []))
        and isinstance(tasks, dict)
        and (isinstance(tasks.get("tasks"), str) or is_list_of(str, tasks.get("tasks")))
        and isinstance(tasks.get("limit"), int | None)
        and isinstance(tasks.get("dtype"), str | None)
    )
    if not is_whole:
        raise UserError(f"{study}/study.toml is damaged: it is not as `smolctl study` wrote it.")
    return plan


def is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def commands(found: Quantized) -> list[str]:
    """What repeats every run, its quantized models and the scores of both; files by their base
    names."""
    comparison = found.comparison
    file = study_file(comparison)
    plan = content_of_study_file(comparison.study, file)
    lines = [command("study", f"{comparison.study}.toml")] * (file is not None)
    planned = {
        (arm, seed)
        for arm, values in plan.get("arms", {}).items()
        for seed in values.get("seeds", [])
    }
    by_plan = {
        finished.name
        for arm in comparison.arms
        for finished in arm.runs
        if (arm.name, finished.protocol.seed) in planned
    }
    lines += [
        train_command(finished.run) for finished in comparison.runs if finished.name not in by_plan
    ]
    models = plan.get("quantize", {}).get("models", [])
    lines += quantize_commands(found, models)
    return lines + eval_commands(comparison, plan.get("eval"), by_plan)


def eval_commands(
    comparison: Comparison, plan: dict[str, Any] | None, by_plan: set[str]
) -> list[str]:
    """The commands for every score of a task that the study file does not ask for.

    Args:
        plan: the file's section on evaluation.
        by_plan: the runs that the file asks for.
    """
    tasks: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for target, finished, rows in scored(comparison):
        for row in rows:
            if target not in by_plan or not is_planned(plan, finished, row):
                options = eval_options(finished, row, is_quantized=target != finished.name)
                by_target = tasks.setdefault(options, {})
                found = by_target.setdefault(target, [])
                found += [row["task"]] * (row["task"] not in found)
    lines: dict[tuple[str, ...], list[str]] = {}
    for options, by_target in tasks.items():
        for target, found in by_target.items():
            lines.setdefault(("--tasks", ",".join(found), *options), []).append(target)
    return [
        command("eval", *targets, *options, study=comparison.study)
        for options, targets in lines.items()
    ]


def scored(comparison: Comparison) -> Iterator[tuple[str, FinishedRun, list[Row]]]:
    """The runs and their quantized models with the scores of their tasks, by the names that
    `smolctl eval` gives them; files that cannot be read are named elsewhere."""
    for finished in comparison.runs:
        yield finished.name, finished, finished.tasks
        for path in sorted(finished.run.path.glob("quantized/[!.]*/eval.csv")):
            tables = TableFolder(path.parent)
            with contextlib.suppress(UserError):
                yield f"{finished.name}+{tables.name}", finished, task_scores(tables)


def is_planned(plan: dict[str, Any] | None, finished: FinishedRun, row: Row) -> bool:
    """Whether a study's evaluation makes this row of eval.csv."""
    if plan is None or row["task"] not in task_names(plan["tasks"]):
        return False
    from smollm2.device import resolve_dtype  # with torch

    # A name of a dtype is the same on every device.
    n = min(plan.get("limit") or row["total"], row["total"])
    dtype = resolve_dtype(plan.get("dtype") or finished.protocol.dtype, "cpu")
    return (row["n"], dtype) == (n, row["dtype"])


def quantize_commands(found: Quantized, planned: list[str]) -> list[str]:
    """The commands for every configuration that is not in the study file; a whole sweep of the same
    runs is one command."""
    names: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in (name for name in found.names if name not in planned):
        measured = [arm[name] for arm in found.arms.values() if name in arm]
        runs = tuple(str(run) for one in measured for run in one.rows["run"])
        n_tokens = next((n for one in measured for n in one.values("n")), None)
        tokens = () if n_tokens is None else ("--tokens", f"{n_tokens:.0f}")
        names.setdefault((runs, tokens), []).append(name)
    return [
        command("quantize", *runs, *options, *tokens, study=found.comparison.study)
        for (runs, tokens), those in names.items()
        for options in (
            sweep_options(those) or [quantize_options(QuantConfig.of(name)) for name in those]
        )
    ]


def sweep_options(names: list[str]) -> list[tuple[str, ...]]:
    """The options of the sweep that makes the configurations `names`; none if no sweep does."""
    usual = QuantConfig()
    for method in usual.format.methods:
        sweep = dataclasses.replace(usual, method=method).grid()
        if {config.name for config in sweep} == set(names):
            is_default = method == usual.format.default_method
            return [("--sweep",) if is_default else ("--sweep", "--method", method)]
    return []


def quantize_options(config: QuantConfig) -> tuple[str, ...]:
    """The options of `smolctl quantize` that ask for `config`; defaults are omitted."""
    usual = QuantConfig()
    words = ["--bits", str(config.bits)]
    if config.backend != usual.backend:
        words += ["--backend", config.backend]
    if config.group_size is not None:
        words += ["--group-size", str(config.group_size)]
    if config.method != config.format.default_method:
        words += ["--method", config.method]
    if config.value_bits is not None:
        words.append("--v8")
    if config.embedding_bits != usual.embedding_bits:
        words += ["--embedding", str(config.embedding_bits or "none")]
    return tuple(words)


def train_command(run: Run) -> str:
    """The `smolctl train` command that repeats a run."""
    request = run.manifest["request"]
    words = ["train"]
    # The model is that of the run or the weights which it started from.
    implied = {"variant", "scale"} if run.manifest["started_from"] else set()
    # Options have no name for these: they follow from the trunk, the study or the version.
    implied |= {"data_order", "held_out_windows"}
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
    return command(*words, "--study", run.study, "--name", run.name)


DEFAULTS = {("scale", "full"), ("data", "builtin"), ("recipe", "smollm2")}


def versions(evidence: Evidence) -> str:
    """The versions of smolctl that made the runs: the one that writes a card changes no number."""
    found = {
        str(finished.run.manifest["environment"].get("smolctl"))
        for study in evidence.studies
        for finished in study.runs
    }
    return ", ".join(sorted(found))


def environment_table(evidence: Evidence) -> Table:
    """Where the runs were made, each distinct environment of a study once."""
    names = ("device_name", "threads", "torch", "python", "platform", "smolctl", "git_commit")
    found: dict[tuple[str, ...], int] = {}
    for study in evidence.studies:
        for finished in study.runs:
            environment = finished.run.manifest["environment"]
            row = (study.study, *(str(environment.get(name)) for name in names))
            found[row] = found.get(row, 0) + 1
    rows = [(study, str(count), *row) for (study, *row), count in found.items()]
    return Table("Environment", ("study", "runs", *names), rows)


def files_table(evidence: Evidence) -> Table:
    """A fingerprint of the files of each run: when a cell changes, so does the card."""
    rows = []
    for study in evidence.studies:
        arms = {arm.name for arm in study.arms}
        runs = [finished.run for finished in study.runs]
        runs += [run for run in siblings(runs[0]) if is_of_sweep(run, arms)]
        rows += [(study.study, run.name, fingerprint(run)) for run in runs]
    return Table(
        "Fingerprints",
        ("study", "run", "SHA-256 of its manifest, tables and items"),
        rows,
        n_words=2,
    )


def is_of_sweep(run: Run, arms: set[str]) -> bool:
    """Whether a run belongs to the sweep of one of the arms."""
    return run.role is Role.SWEEP and run.arm in arms


def fingerprint(run: Run) -> str:
    """16 hex digits of a SHA-256 over the manifest, tables and items of a run and of its quantized
    models."""
    digest = hashlib.sha256()
    patterns = ["*.csv", "items/*.csv.gz"]
    patterns += [f"quantized/[!.]*/{pattern}" for pattern in patterns]
    found = [path for pattern in patterns for path in sorted(run.path.glob(pattern))]
    tables = [path for path in found if path.is_file()]  # what else is there, no section reads
    for path in [run.path / "run.json", *tables]:
        name = path.relative_to(run.path).as_posix()
        digest.update(name.encode() + b"\0" + content(path) + b"\0")
    return digest.hexdigest()[:16]


def content(path: Path) -> bytes:
    """What a file holds, uncompressed: versions of zlib compress the same text differently."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):  # damaged; the section of its task says so
        return data
