"""A study: arms, seeds and one protocol, read from a TOML file; which runs it consists of.

    seeds = [0, 1, 2]
    equal = "tokens"                    # or "flops", "seconds": what the arms get the same of

    [arms]
    orig = "orig"
    pow2 = { variant = "pow2", lr = 2e-3 }

    [train]                             # options of `smolctl train`, for every arm
    scale = "nano"
    steps = 300

    [sweep]                             # of the learning rate, on validation
    lr = [1e-3, 2e-3, 4e-3]
    seeds = [100, 101]

    [eval]
    tasks = "arc_easy,hellaswag"
    limit = 500

    [quantize]                          # the final runs, by the names that `smolctl quantize` gives
    models = ["int8", "int4-g64"]

Each run is called ARM-sSEED, in a sweep ARM-lrRATE-sSEED.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from smollm2.config import checked_fields, read_toml, split_setting, typed, variant
from smollm2.errors import UserError, did_you_mean
from smollm2.protocol import Request, differing, plain_name, resolve, resolve_recipe
from smollm2.quantize.config import VALIDATION_TOKENS, QuantConfig
from smollm2.runs import require_plain

EQUAL = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class ArmPlan:
    """An arm: what is asked for, its seeds aside."""

    name: str
    request: Request
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """Learning rates to try with seeds of their own; the best on validation is used."""

    lr: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What `smolctl eval` is to score of every final run."""

    tasks: str
    limit: int | None = None
    data_dir: Path | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Quantization:
    """How `smolctl quantize` is to quantize every final run, and on how many validation tokens the
    change of the loss is measured."""

    models: tuple[QuantConfig, ...]
    tokens: int = VALIDATION_TOKENS


@dataclass(frozen=True)
class Study:
    """What a study file says, every default filled in."""

    name: str
    arms: tuple[ArmPlan, ...]
    equal: str
    sweep: Sweep | None
    evaluation: Evaluation | None
    quantization: Quantization | None


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study; `role` is `final` or `sweep`."""

    name: str
    arm: str
    role: str
    request: Request


# What `smolctl train` takes, by the names of a study file.
OPTIONS = {field.name for field in dataclasses.fields(Request)} - {"settings"} | {"set"}


def read_study(path: Path) -> Study:
    """The study that a TOML file describes; its name is the file's.

    Paths in it are relative to where the command is given, as on the command line.

    Raises:
        UserError: the file cannot be read, has an unknown key, a value of the wrong type, fewer
            than two arms, arms that would be the same runs, a sweep whose rates or seeds would not
            do, or an evaluation that scores nothing.
    """
    return read_toml(path, "study", lambda table: study_of(table, path.stem))


def study_of(table: Mapping[str, Any], name: str) -> Study:
    """See `read_study`."""
    refuse_unknown(
        table, ["arms", "seeds", "equal", "train", "sweep", "eval", "quantize"], "a study"
    )
    require_plain("study", name)
    equal = table.get("equal", "tokens")
    if equal not in EQUAL:
        raise UserError(f"equal takes {', '.join(EQUAL)}, not {equal!r}.")
    seeds = whole_numbers("seeds", table.get("seeds", [0, 1, 2]))
    shared, sweep = section(table, "train"), section(table, "sweep")
    refuse_unknown(shared, sorted(OPTIONS - {"variant", "seed"}), "[train]")
    refuse_unknown(sweep, ["lr", "seeds"], "[sweep]")
    refuse_unknown(section(table, "eval"), fields_of(Evaluation), "[eval]")
    refuse_unknown(section(table, "quantize"), fields_of(Quantization), "[quantize]")
    arms = table.get("arms", {})
    if isinstance(arms, list):
        if len(set(map(str, arms))) < len(arms):
            raise UserError(f"arms names one of them twice: {', '.join(map(str, arms))}.")
        arms = {str(variant): {"variant": variant} for variant in arms}
    if not isinstance(arms, dict) or len(arms) < 2:
        raise UserError('a study has at least two arms: arms = ["orig", "pow2"], for example.')
    for label in arms:
        require_label(label)
    if len({plain_name(label) for label in arms}) < len(arms):
        raise UserError(f"the runs of two arms would have the same names: {', '.join(arms)}.")
    plans = tuple(arm_plan(label, spec, shared, seeds) for label, spec in arms.items())
    refuse_twins(plans)
    return Study(
        name=name,
        arms=plans,
        equal=equal,
        sweep=sweep_of(sweep, plans) if "sweep" in table else None,
        evaluation=evaluation_of(section(table, "eval")) if "eval" in table else None,
        quantization=quantization_of(section(table, "quantize")) if "quantize" in table else None,
    )


def arm_plan(name: str, spec: Any, shared: Mapping[str, Any], seeds: tuple[int, ...]) -> ArmPlan:
    """The arm `name = "pow2"` or `name = { variant = "pow2", lr = 2e-3, seeds = [3, 4] }`."""
    own = dict(spec) if isinstance(spec, dict) else {"variant": spec}
    refuse_unknown(own, ["variant", "set", "lr", "seeds"], f"arm {name!r}")
    if "seeds" in own:
        seeds = whole_numbers(f"seeds of arm {name!r}", own.pop("seeds"))
    values = {"variant": name} | dict(shared) | own
    settings = tuple(
        text
        for values in (shared, own)
        for text in strings("set", values.get("set", []), '["weight_decay=0.1"]')
    )
    values.pop("set", None)
    return ArmPlan(name, Request(**checked_fields(Request, values), settings=settings), seeds)


def require_label(label: str) -> None:
    """Raise `UserError` if an arm's label could not be typed as an argument: a path is no label."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:,=-]*", label):
        name, file = plain_name(Path(label).stem) or "mine", label if "/" in label else "mine.toml"
        raise UserError(
            f"{label!r} is no name for an arm; use letters, digits and . _ : , = -. A variant of "
            f'your own is given one so: arms.{name} = "{file}".'
        )


def sweep_of(values: Mapping[str, Any], plans: tuple[ArmPlan, ...]) -> Sweep:
    """The sweep of the arms `plans`, refused where a run of it would be another's or its rate would
    not be used."""
    rates = values.get("lr")
    if not isinstance(rates, list) or len(rates) < 2:
        raise UserError("[sweep] needs at least two rates: lr = [1e-3, 2e-3], for example.")
    rates = tuple(typed("lr", rate, float) for rate in rates)
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"the rates of [sweep] are positive and finite, not {list(rates)}.")
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise UserError(f"two rates of [sweep] are the same to six digits: {list(rates)}.")
    seeds = whole_numbers("seeds of [sweep]", values.get("seeds", [100]))
    for plan in plans:
        if common := sorted(set(seeds) & set(plan.seeds)):
            raise UserError(
                f"seed {common[0]} is of [sweep] and of arm {plan.name!r}: the rate would be "
                "chosen on a run that is compared; give the sweep seeds of its own."
            )
        if plan.request.lr is not None or "lr" in set_fields(plan):
            raise UserError("give either lr or [sweep]: the sweep chooses the learning rate.")
        if resolve_recipe(plan.request)[0].optimizer == "muon":
            raise UserError(
                f"[sweep] tries values of lr, and arm {plan.name!r} trains its matrices with Muon, "
                'at muon_lr; sweep with optimizer = "adamw", or leave [sweep] out and set muon_lr.'
            )
    return Sweep(rates, seeds)


def set_fields(plan: ArmPlan) -> set[str]:
    return {split_setting(text)[0] for text in plan.request.settings}


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """What [eval] says, refused where it would be found to be wrong only after the training."""
    from smollm2.device import resolve_dtype
    from smollm2.tasks import TASKS

    if "tasks" not in values:
        raise UserError('[eval] needs tasks = "arc_easy,hellaswag", for example.')
    folder = values.get("data_dir")
    checked = checked_fields(Evaluation, {k: v for k, v in values.items() if k != "data_dir"})
    evaluation = Evaluation(
        **checked, data_dir=None if folder is None else Path(typed("data_dir", folder, str))
    )
    resolve_dtype(evaluation.dtype, "cpu")  # a name is known on every device or on none
    if evaluation.limit is not None and evaluation.limit < 1:
        raise UserError(f"limit must be at least 1, not {evaluation.limit}.")
    known = [*TASKS, "all"]
    names = [name.strip() for name in evaluation.tasks.split(",") if name.strip()]
    for name in names or [evaluation.tasks]:
        if name not in known:
            raise UserError(
                f"{name!r} is no task for [eval].{did_you_mean(name, known)} There are "
                f"{', '.join(known)}; held-out text is scored by every training."
            )
    return evaluation


def quantization_of(values: Mapping[str, Any]) -> Quantization:
    """What [quantize] says."""
    example = '["int8", "int4-g64"]'
    models = strings("models", values.get("models", []), example)
    if not models:
        raise UserError(f"[quantize] needs models = {example}, for example.")
    tokens = typed("tokens", values.get("tokens", VALIDATION_TOKENS), int)
    if tokens < 1:
        raise UserError(f"tokens of [quantize] must be at least 1, not {tokens}.")
    return Quantization(tuple(QuantConfig.of(name) for name in dict.fromkeys(models)), tokens)


def refuse_twins(plans: tuple[ArmPlan, ...]) -> None:
    """Raise `UserError` if two arms are the same model, trained in the same way with a seed in
    common: the same run, whatever they are called."""
    resolved = []
    for plan in plans:
        recipe, settings = resolve_recipe(plan.request)
        model = variant(plan.request.variant, plan.request.scale, settings)
        resolved.append((plan, (model, recipe)))
    for number, (plan, trained) in enumerate(resolved):
        for other, others in resolved[:number]:
            common = sorted(set(plan.seeds) & set(other.seeds))
            if trained == others and common:
                fresh = [max(other.seeds) + 1 + i for i in range(len(plan.seeds))]
                raise UserError(
                    f"arms {other.name!r} and {plan.name!r} are the same model with the same "
                    f"seeds, and so the same runs; give one of them others: {plan.name} = "
                    f'{{ variant = "{plan.request.variant}", seeds = {fresh} }}.'
                )


def to_toml(study: Study) -> str:
    """A study file that says what `study` does, its seeds included; files and folders by their base
    names.

    `study_of` reads the same study from it.
    """
    requests = [plan.request.without_paths() for plan in study.arms]
    # One arm may have a rate of its own, and fields of its model are set in `settings`.
    own = ("variant", "seed", "settings", "lr")
    shared = {k: v for k, v in dataclasses.asdict(requests[0]).items() if k not in own}
    lines = [f"equal = {toml(study.equal)}"]
    for plan, request in zip(study.arms, requests, strict=True):
        values: dict[str, Any] = {"variant": request.variant}
        values |= {"set": request.settings or None, "lr": request.lr, "seeds": plan.seeds}
        lines += ["", f"[arms.{toml(plan.name)}]", *toml_lines(values)]
    lines += ["", "[train]", *toml_lines(shared)]
    if study.sweep:
        lines += ["", "[sweep]", *toml_lines(dataclasses.asdict(study.sweep))]
    if study.evaluation:
        lines += ["", "[eval]"]
        folder = study.evaluation.data_dir
        values = {"data_dir": folder and folder.resolve().name}
        lines += toml_lines(dataclasses.asdict(study.evaluation) | values)
    if study.quantization:
        names = [config.name for config in study.quantization.models]
        values = {"models": names, "tokens": study.quantization.tokens}
        lines += ["", "[quantize]", *toml_lines(values)]
    return "\n".join(lines) + "\n"


def toml_lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {toml(value)}" for name, value in values.items() if value is not None]


def toml(value: Any) -> str:
    """A value as TOML writes it: as JSON does, for what a study file holds."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def horizons(study: Study, step_seconds: Mapping[str, float]) -> dict[str, Request]:
    """The request of each arm with its number of steps, so that the arms get the same of what
    `study.equal` says as the first one, and are scored on the same text.

    Args:
        step_seconds: measured for each arm; read only where seconds are to be equal.

    Raises:
        UserError: an arm differs in more than the model and the learning rate.
    """
    first = study.arms[0].name
    base = resolve(study.arms[0].request)
    if study.equal == "seconds" and study.arms[0].request.compile is None:
        base = dataclasses.replace(base, compile=False)  # as the steps were timed
    requests = {}
    for plan in study.arms:
        steps = base.steps
        if study.equal == "flops":
            steps = round(steps * base.flops_per_step / resolve(plan.request).flops_per_step)
        elif study.equal == "seconds":
            steps = round(steps * step_seconds[first] / step_seconds[plan.name])
        requests[plan.name] = dataclasses.replace(
            plan.request,
            steps=max(1, steps),
            tokens=None,
            flops=None,
            compile=base.compile,  # all arms or none, or some could not be compared
            val_tokens=base.validation_tokens,
            test_tokens=base.test_tokens,
        )
        controlled = resolve(requests[plan.name]).controlled()
        if fields := differing(base.controlled(), controlled):
            raise UserError(
                f"Arm {plan.name!r} differs from {first!r} in more than the model: {fields}."
            )
    return requests


def sweep_runs(study: Study, requests: Mapping[str, Request]) -> list[PlannedRun]:
    """The runs of the sweep: every arm at every rate, arms interleaved."""
    sweep = study.sweep
    if sweep is None:
        return []
    return [
        PlannedRun(
            f"{plain_name(plan.name)}-lr{rate:g}-s{seed}",
            plan.name,
            "sweep",
            dataclasses.replace(requests[plan.name], lr=rate, seed=seed),
        )
        for seed in sweep.seeds
        for rate in sweep.lr
        for plan in study.arms
    ]


def final_runs(
    study: Study, requests: Mapping[str, Request], rates: Mapping[str, float]
) -> list[PlannedRun]:
    """The runs that are compared, arms interleaved by seed: a drifting machine favours nobody.

    Args:
        rates: the learning rate that the sweep chose for each arm.
    """
    rounds = zip_longest(*(plan.seeds for plan in study.arms))
    return [
        PlannedRun(
            f"{plain_name(plan.name)}-s{seed}",
            plan.name,
            "final",
            dataclasses.replace(
                requests[plan.name], lr=rates.get(plan.name, requests[plan.name].lr), seed=seed
            ),
        )
        for seeds in rounds
        for plan, seed in zip(study.arms, seeds, strict=True)
        if seed is not None
    ]


def refuse_unknown(values: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key {key!r} in {where}.{did_you_mean(key, known)} "
                f"There are {', '.join(known)}."
            )


def section(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise UserError(f"{name} is a table: write [{name}] and its keys below.")
    return value


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and value and all(type(n) is int and n >= 0 for n in value)
    if not good or len(set(value)) < len(value):
        raise UserError(f"{name} takes different whole numbers, such as [0, 1, 2], not {value!r}.")
    return tuple(value)


def strings(name: str, value: Any, example: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name} takes texts, such as {example}, not {value!r}.")
    return value


def fields_of(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
