"""A study, read from a TOML file: arms, seeds and one protocol.

seeds = [0, 1, 2]
equal = "tokens"                    # or "flops", "seconds": what the arms get the same of
margin = 0.01                       # optional: nats/token that do not matter; a band in figures
license = "apache-2.0"              # optional: of the trained weights
claims = "pow2"                     # optional: judge the claims of a published card

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

[quantize]                          # of the final runs, by the names of `smolctl quantize`
models = ["int8", "int4-g64"]

[speed]                             # of training, the arms in turns; after the runs
rounds = 5
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolctl.analysis.study_notes import StudyNotes, notes_of
from smolctl.studies.speed_plan import SpeedPlan, speed_plan_of
from smolctl.talk import say
from smollm2.device import resolve_dtype
from smollm2.errors import UserError, did_you_mean
from smollm2.evaluation.tasks import TASKS, task_names
from smollm2.files import absolute
from smollm2.model.config import checked_fields, settings_of, split_setting, typed, variant
from smollm2.parse import Missing, Unreadable, read_toml, with_underscores
from smollm2.protocol.resolve import resolve_recipe
from smollm2.protocol.run_config import OLDER_NAMES, RunConfig, plain_name, with_current_names
from smollm2.quantize.quant_config import VALIDATION_TOKENS, QuantConfig
from smollm2.runs.names import require_plain
from smollm2.runs.packed import is_packed

EQUAL = ("tokens", "flops", "seconds")
KEPT = "study.toml"  # the study file next to the runs that follow from it


@dataclass(frozen=True)
class ArmPlan:
    """An arm: its configuration, apart from the seed, and its seeds."""

    name: str
    config: RunConfig
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """Learning rates to try, with seeds that no final run has; the best on validation is used."""

    lr: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What every final run is scored on, by the options of `smolctl eval`."""

    tasks: str
    limit: int | None = None
    data_dir: Path | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Quantization:
    """How every final run is quantized, and the number of validation tokens on which the change of
    the loss is measured."""

    models: tuple[QuantConfig, ...]
    tokens: int = VALIDATION_TOKENS


@dataclass(frozen=True)
class Study:
    """A study file with every default filled in."""

    name: str
    arms: tuple[ArmPlan, ...]
    equal: str
    sweep: Sweep | None
    evaluation: Evaluation | None
    quantization: Quantization | None
    notes: StudyNotes
    speed: SpeedPlan | None = None

    def on_data(self, source: str) -> "Study":
        """The study on another text."""
        arms = [replace(arm, config=replace(arm.config, data=source)) for arm in self.arms]
        return replace(self, arms=tuple(arms))


MOST_SEEDS = 1000  # of an arm or a sweep
MOST_ARMS = 1000
# Options of `smolctl train`, by their names in a study file.
OPTIONS = {field.name for field in dataclasses.fields(RunConfig)} - {"settings"} | {"set"}
OF_A_RUN = {"variant", "seed", "batch_offset"}  # which a study gives each of its runs


def read_study(path: Path) -> Study:
    """The study that a TOML file describes; its name is the file's. The file that a study keeps
    next to its runs is called `study.toml`, and its study as the folder.

    Paths in it are relative to the current directory, as on the command line.

    Raises:
        UserError: the file cannot be read; it has an unknown key, a value of the wrong type, fewer
            than two arms, arms with the same runs, or an invalid sweep or evaluation.
    """
    try:
        return read_toml(path, "study", lambda table: study_of(table, study_name(path)))
    except Unreadable as error:
        if not (isinstance(error, Missing) or path.is_dir()):
            raise
        files = [str(file) for file in path.parent.glob("*.toml")]
        own = [file for file in (f"{path}.toml", str(path / KEPT)) if Path(file).is_file()]
        hint = f" Did you mean {own[0]!r}?" if own else did_you_mean(str(path), files)
        raise Missing(f"There is no study file {str(path)!r}.{hint}", error.reason) from None


def study_name(path: Path) -> str:
    """The name of a study file, or of the folder of runs that it is kept in as `study.toml`."""
    folder = absolute(path).parent
    is_kept = path.name == KEPT and (any(folder.glob("*/run.json")) or is_packed(folder))
    return folder.name if is_kept else path.stem


def study_of(table: Mapping[str, Any], name: str) -> Study:
    """See `read_study`; keys may have `-` for `_`."""
    table = with_underscores(table)
    parts = ["train", "sweep", "eval", "quantize", "speed"]
    known = ["arms", "seeds", "equal", *fields_of(StudyNotes), *parts]
    refuse_unknown_keys(table, known, "a study")
    require_plain("study", name)
    equal = table.get("equal", "tokens")
    if equal not in EQUAL:
        raise UserError(f"equal takes {', '.join(EQUAL)}, not {equal!r}.")
    seeds = whole_numbers("seeds", table.get("seeds", [0, 1, 2]))
    shared, sweep = train_options(subtable(table, "train")), subtable(table, "sweep")
    refuse_unknown_keys(shared, sorted(OPTIONS - OF_A_RUN), "[train]")
    refuse_unknown_keys(sweep, ["lr", "seeds"], "[sweep]")
    refuse_unknown_keys(subtable(table, "eval"), fields_of(Evaluation), "[eval]")
    refuse_unknown_keys(subtable(table, "quantize"), fields_of(Quantization), "[quantize]")
    refuse_unknown_keys(subtable(table, "speed"), fields_of(SpeedPlan), "[speed]")
    arms = table.get("arms", {})
    if isinstance(arms, list):
        if len(set(map(str, arms))) < len(arms):
            raise UserError(f"arms has a duplicate name: {', '.join(map(str, arms))}.")
        arms = {str(variant): {"variant": variant} for variant in arms}
    if not isinstance(arms, dict) or len(arms) < 2:
        raise UserError('a study has at least two arms: arms = ["orig", "pow2"], for example.')
    if len(arms) > MOST_ARMS:
        raise UserError(f"arms has {len(arms):,} names; give at most {MOST_ARMS:,}.")
    for label in arms:
        require_label(label)
    if len({plain_name(label) for label in arms}) < len(arms):
        raise UserError(f"two arms would have runs of the same names: {', '.join(arms)}.")
    plans = tuple(arm_plan(label, spec, shared, seeds) for label, spec in arms.items())
    refuse_twins(plans)
    return Study(
        name=name,
        arms=plans,
        equal=equal,
        sweep=sweep_of(sweep, plans) if "sweep" in table else None,
        evaluation=evaluation_of(subtable(table, "eval")) if "eval" in table else None,
        quantization=quantization_of(subtable(table, "quantize")) if "quantize" in table else None,
        notes=notes_of(table),
        speed=speed_plan_of(subtable(table, "speed")) if "speed" in table else None,
    )


def train_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of [train], those of older versions by their names of today."""
    for older in OLDER_NAMES.keys() & values.keys():
        say(f"[train] has {older}, which is now called {OLDER_NAMES[older]}.")
    return with_current_names(values)


def arm_plan(name: str, spec: Any, shared: Mapping[str, Any], seeds: tuple[int, ...]) -> ArmPlan:
    """The arm `name = "pow2"` or `name = { variant = "pow2", lr = 2e-3, seeds = [3, 4] }`."""
    own = with_underscores(spec) if isinstance(spec, dict) else {"variant": spec}
    refuse_unknown_keys(own, ["variant", "set", "lr", "seeds"], f"arm {name!r}")
    if "seeds" in own:
        seeds = whole_numbers(f"seeds of arm {name!r}", own.pop("seeds"))
    values = {"variant": name} | dict(shared) | own
    settings = tuple(
        text for values in (shared, own) for text in settings_of(values.get("set", []))
    )
    values.pop("set", None)
    return ArmPlan(name, RunConfig(**checked_fields(RunConfig, values), settings=settings), seeds)


def require_label(label: str) -> None:
    """Raise `UserError` if an arm's label cannot be typed as an argument; a path is not a label."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:,=-]*", label):
        name, file = plain_name(Path(label).stem) or "mine", label if "/" in label else "mine.toml"
        raise UserError(
            f"{label!r} is not a valid name for an arm; use letters, digits and . _ : , = -. "
            f'To name your own variant: arms.{name} = "{file}".'
        )


def sweep_of(values: Mapping[str, Any], plans: tuple[ArmPlan, ...]) -> Sweep:
    """The sweep of [sweep].

    Raises:
        UserError: rates or seeds are invalid, a seed is also one of a final run, or an arm has a
            rate already.
    """
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
                f"seed {common[0]} is in [sweep] and in arm {plan.name!r}: the rate would be "
                "chosen on a run that is compared; give the sweep other seeds."
            )
        if plan.config.lr is not None or "lr" in set_fields(plan):
            raise UserError("give either lr or [sweep]: the sweep chooses the learning rate.")
        recipe, _ = resolve_recipe(plan.config)
        if others := [rate for rate in recipe.rates if rate != "lr"]:
            raise UserError(
                f"[sweep] tunes lr only, and arm {plan.name!r} ({recipe.optimizer}) also trains at "
                f'{", ".join(others)}; sweep with optimizer = "adamw", or remove [sweep].'
            )
    return Sweep(rates, seeds)


def set_fields(plan: ArmPlan) -> set[str]:
    return {split_setting(text)[0] for text in plan.config.settings}


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """The evaluation of [eval]; checked now, since it runs only after the training."""
    if "tasks" not in values:
        raise UserError('[eval] needs tasks = "arc_easy,hellaswag", for example.')
    if not isinstance(values["tasks"], str):
        raise UserError(
            f'tasks takes a list such as "arc_easy,hellaswag", not {values["tasks"]!r}.'
        )
    folder = values.get("data_dir")
    checked = checked_fields(Evaluation, {k: v for k, v in values.items() if k != "data_dir"})
    evaluation = Evaluation(
        **checked, data_dir=None if folder is None else Path(typed("data_dir", folder, str))
    )
    resolve_dtype(evaluation.dtype, "cpu")  # a name is valid on every device or on none
    if evaluation.limit is not None and evaluation.limit < 1:
        raise UserError(f"limit must be at least 1, not {evaluation.limit}.")
    for name in task_names(evaluation.tasks):
        if name not in TASKS:
            raise UserError(
                f"{name!r} is not a task for [eval]: every training run scores held-out text."
            )
    return evaluation


def quantization_of(values: Mapping[str, Any]) -> Quantization:
    """The quantization of [quantize]."""
    example = '["int8", "int4-g64"]'
    models = strings("models", values.get("models", []), example)
    if not models:
        raise UserError(f"[quantize] needs models = {example}, for example.")
    tokens = typed("tokens", values.get("tokens", VALIDATION_TOKENS), int)
    if tokens < 1:
        raise UserError(f"tokens of [quantize] must be at least 1, not {tokens}.")
    return Quantization(tuple(QuantConfig.of(name) for name in dict.fromkeys(models)), tokens)


def refuse_twins(plans: tuple[ArmPlan, ...]) -> None:
    """Raise `UserError` if two arms would be the same run: same model, recipe and seed."""
    resolved = []
    for plan in plans:
        recipe, settings = resolve_recipe(plan.config)
        model = variant(plan.config.variant, plan.config.scale, settings)
        resolved.append((plan, (model, recipe)))
    for number, (plan, trained) in enumerate(resolved):
        for other, others in resolved[:number]:
            common = sorted(set(plan.seeds) & set(other.seeds))
            if trained == others and common:
                fresh = [max(other.seeds) + 1 + i for i in range(len(plan.seeds))]
                raise UserError(
                    f"arms {other.name!r} and {plan.name!r} are the same model with the same "
                    f"seeds, and so the same runs; give one of them other seeds: {plan.name} = "
                    f'{{ variant = "{plan.config.variant}", seeds = {fresh} }}.'
                )


def to_toml(study: Study) -> str:
    """A study file for `study`, with files and folders by their base names.

    `study_of` reads the same study from it.
    """
    configs = [plan.config.without_paths() for plan in study.arms]
    # What each arm has of its own; its model's fields are in `settings`.
    own = ("variant", "seed", "settings", "lr")
    shared = {k: v for k, v in dataclasses.asdict(configs[0]).items() if k not in own}
    lines = toml_lines({"equal": study.equal, **dataclasses.asdict(study.notes)})
    for plan, config in zip(study.arms, configs, strict=True):
        values: dict[str, Any] = {"variant": config.variant}
        values |= {"set": config.settings or None, "lr": config.lr, "seeds": plan.seeds}
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
    if study.speed:
        lines += ["", "[speed]", *toml_lines(dataclasses.asdict(study.speed))]
    return "\n".join(lines) + "\n"


def toml_lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {toml(value)}" for name, value in values.items() if value is not None]


def toml(value: Any) -> str:
    """A value in TOML, which for the types of a study file is JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def refuse_unknown_keys(values: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key {key!r} in {where}.{did_you_mean(key, known)} "
                f"Available: {', '.join(known)}."
            )


def subtable(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a table: write [{name}] and its keys below.")
    return with_underscores(value)


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > MOST_SEEDS:
        raise UserError(f"{name} has {len(value):,} numbers; give at most {MOST_SEEDS:,}.")
    good = isinstance(value, list) and value and all(type(n) is int and n >= 0 for n in value)
    if not good or len(set(value)) < len(value):
        raise UserError(
            f"{name} takes a list of different whole numbers such as [0, 1, 2], not {value!r}."
        )
    return tuple(value)


def strings(name: str, value: Any, example: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name} takes a list such as {example}, not {value!r}.")
    return value


def fields_of(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
