"""A study, read from a TOML file: arms, seeds and one protocol.

seeds = [0, 1, 2]
looks = [2, 3]                      # optional: at how many seeds the results are looked at
blocked = true                      # optional: whether arms are compared within seeds
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

[tune]                              # each arm's learning rate, on validation: see `rate_grid`
lr = 2e-3                           # a grid of five rates around it
seeds = [100, 101, 102]

[eval]
tasks = "arc_easy,hellaswag"
limit = 500

[quantize]                          # of the final runs, by the names of `smolctl quantize`
models = ["int8", "int4-g64"]

[speed]                             # of training, the arms in turns; after the runs
rounds = 5

[ladder]                            # the study at several sizes: see `ladder`
sizes = ["0.5M", "1M", "2M"]
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolctl.analysis.ladder_notes import LadderNotes, ladder_notes_of
from smolctl.analysis.study_notes import StudyNotes, notes_of
from smolctl.analysis.study_plan import KEPT
from smolctl.studies.arm_plan import ArmPlan, arm_plans, share_orders
from smolctl.studies.rate_grid import Tuning, sweep_of, tune_of
from smolctl.studies.speed_plan import SpeedPlan, speed_plan_of
from smolctl.studies.study_keys import (
    errors_of,
    fields_of,
    refuse_unknown_keys,
    strings,
    subtable,
    toml,
    toml_lines,
    typed_fields,
    whole_numbers,
)
from smolctl.talk import say
from smollm2.device import resolve_dtype
from smollm2.errors import UserError, did_you_mean, first_few
from smollm2.evaluation.tasks import TASKS, task_names
from smollm2.files import absolute
from smollm2.model.config import typed
from smollm2.parse import MissingFile, Unreadable, read_toml, with_underscores
from smollm2.protocol.run_config import OLDER_NAMES, RunConfig, with_current_names
from smollm2.quantize.quant_config import VALIDATION_TOKENS, QuantConfig
from smollm2.runs.names import require_plain
from smollm2.runs.packed import is_packed

EQUAL = ("tokens", "flops", "seconds")


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
    looks: tuple[int, ...] | None
    blocked: bool | None
    tuning: Tuning | None
    evaluation: Evaluation | None
    quantization: Quantization | None
    notes: StudyNotes
    speed: SpeedPlan | None = None
    ladder: LadderNotes | None = None

    @property
    def planned_looks(self) -> tuple[int, ...]:
        """The numbers of seeds at which the results are looked at; by default when all have
        finished."""
        return self.looks or (max(len(arm.seeds) for arm in self.arms),)

    @property
    def is_blocked(self) -> bool:
        """Whether arms are compared within seeds; by default where all take equal steps and share
        the order of the data with the first."""
        if self.blocked is not None:
            return self.blocked
        return self.equal == "tokens" and share_orders(self.arms)

    @property
    def runs_of_an_arm(self) -> int:
        """The runs of the first arm that are planned: those of the tuning and the final ones."""
        tuning = len(self.tuning.lr) * len(self.tuning.seeds) if self.tuning else 0
        return tuning + len(self.arms[0].seeds)

    def with_options(self, **options: Any) -> "Study":
        """The study with other options of [train], the same in every arm."""
        arms = [replace(arm, config=replace(arm.config, **options)) for arm in self.arms]
        return replace(self, arms=tuple(arms))


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
        table = read_toml(path, "study", dict)
    except Unreadable as error:
        if not (isinstance(error, MissingFile) or path.is_dir()):
            raise
        files = [str(file) for file in path.parent.glob("*.toml")]
        own = [file for file in (f"{path}.toml", str(path / KEPT)) if Path(file).is_file()]
        if path.is_dir() and not own:
            raise MissingFile(
                f"{str(path)!r} is a folder; name a study file, such as gqa.toml.{kept_in(path)}",
                error.reason,
            ) from None
        hint = f" Did you mean {own[0]!r}?" if own else did_you_mean(str(path), files)
        raise MissingFile(f"There is no study file {str(path)!r}.{hint}", error.reason) from None
    with errors_of(path):
        return study_of(table, study_name(path))


def kept_in(results: Path) -> str:
    """A sentence that names the study files in a folder of results; empty without any."""
    kept = sorted(map(str, results.glob(f"*/{KEPT}")))
    return f" There are {first_few(kept)}." if kept else ""


def study_name(path: Path) -> str:
    """The name of a study file, or of the folder of runs that it is kept in as `study.toml`."""
    folder = absolute(path).parent
    is_kept = path.name == KEPT and (any(folder.glob("*/run.json")) or is_packed(folder))
    return folder.name if is_kept else path.stem


def study_of(table: Mapping[str, Any], name: str) -> Study:
    """See `read_study`; keys may have `-` for `_`."""
    table = with_underscores(table)
    keys = ["arms", "seeds", "equal", "looks", "blocked"]
    tables = ["train", "tune", "sweep", "eval", "quantize", "speed", "ladder"]
    refuse_unknown_keys(table, [*keys, *fields_of(StudyNotes), *tables], "a study")
    require_plain("study", name)
    equal = table.get("equal", "tokens")
    if equal not in EQUAL:
        raise UserError(f"equal takes {', '.join(EQUAL)}, not {equal!r}.")
    seeds = whole_numbers("seeds", table.get("seeds", [0, 1, 2]))
    shared = train_options(subtable(table, "train"))
    refuse_unknown_keys(shared, sorted(OPTIONS - OF_A_RUN), "[train]")
    refuse_unknown_keys(subtable(table, "eval"), fields_of(Evaluation), "[eval]")
    refuse_unknown_keys(subtable(table, "quantize"), fields_of(Quantization), "[quantize]")
    refuse_unknown_keys(subtable(table, "speed"), fields_of(SpeedPlan), "[speed]")
    plans = arm_plans(table.get("arms", {}), shared, seeds)
    return Study(
        name=name,
        arms=plans,
        equal=equal,
        looks=announced_looks(table["looks"], plans) if "looks" in table else None,
        blocked=given_design(table["blocked"], plans) if "blocked" in table else None,
        tuning=tuning_of(table, plans),
        evaluation=evaluation_of(subtable(table, "eval")) if "eval" in table else None,
        quantization=quantization_of(subtable(table, "quantize")) if "quantize" in table else None,
        notes=notes_of(table),
        speed=speed_plan_of(subtable(table, "speed")) if "speed" in table else None,
        ladder=ladder_notes_of(subtable(table, "ladder")) if "ladder" in table else None,
    )


def train_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of [train], those of older versions by their names of today."""
    for older in OLDER_NAMES.keys() & values.keys():
        say(f"[train] has {older}, which is now called {OLDER_NAMES[older]}.")
    return with_current_names(values)


def announced_looks(value: Any, plans: tuple[ArmPlan, ...]) -> tuple[int, ...]:
    """The looks of a study file.

    Raises:
        UserError: they are not ascending numbers from 2 whose last is the planned number of seeds.
    """
    planned = max(len(plan.seeds) for plan in plans)
    numbers = value if isinstance(value, list) and all(type(n) is int for n in value) else []
    if not numbers or numbers != sorted({*numbers}) or numbers[0] < 2 or numbers[-1] != planned:
        raise UserError(
            f"looks are ascending numbers of seeds, from 2 to the {planned} that an arm has at the "
            f"end, such as {[*range(2, planned, 2), planned]}, not {value!r}."
        )
    return tuple(numbers)


def given_design(value: Any, plans: tuple[ArmPlan, ...]) -> bool:
    """Whether arms are compared within seeds.

    Raises:
        UserError: it is no truth value, or true where arms share no seeds.
    """
    blocked = bool(typed("blocked", value, bool))
    if blocked and not share_orders(plans):
        raise UserError(
            "blocked = true compares arms within seeds, and every arm must share at least two with "
            "the first arm; give them the same seeds, or data_seeds."
        )
    return blocked


def tuning_of(table: Mapping[str, Any], plans: tuple[ArmPlan, ...]) -> Tuning | None:
    """The tuning of a study file: its [tune], or the older [sweep]."""
    if {"tune", "sweep"} <= table.keys():
        raise UserError("[sweep] is the older form of [tune]: give only [tune].")
    if "sweep" in table:
        say(
            "[sweep] is read as before: its rates only, however far apart. [tune] tries a finer "
            "grid, with three seeds, that grows where the best rate may lie beyond it."
        )
        return sweep_of(subtable(table, "sweep"), plans)
    return tune_of(subtable(table, "tune"), plans) if "tune" in table else None


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """The evaluation of [eval]; checked now, since it runs only after the training."""
    if "tasks" not in values:
        raise UserError('[eval] needs tasks = "arc_easy,hellaswag", for example.')
    if not isinstance(values["tasks"], str):
        raise UserError(
            f'tasks takes a list such as "arc_easy,hellaswag", not {values["tasks"]!r}.'
        )
    checked = typed_fields(
        Evaluation, {k: v for k, v in values.items() if k != "data_dir"}, "[eval]"
    )
    folder = values.get("data_dir")
    folder = None if folder is None else Path(typed("data_dir of [eval]", folder, str))
    evaluation = Evaluation(**checked, data_dir=folder)
    resolve_dtype(evaluation.dtype, "cpu")  # a name is valid on every device or on none
    if evaluation.limit is not None and evaluation.limit < 1:
        raise UserError(f"limit of [eval] must be at least 1, not {evaluation.limit}.")
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
    tokens = typed("tokens of [quantize]", values.get("tokens", VALIDATION_TOKENS), int)
    if tokens < 1:
        raise UserError(f"tokens of [quantize] must be at least 1, not {tokens}.")
    return Quantization(tuple(QuantConfig.of(name) for name in dict.fromkeys(models)), tokens)


def to_toml(study: Study) -> str:
    """A study file for `study`, with files and folders by their base names.

    `study_of` reads the same study from it.
    """
    configs = [plan.config.without_paths() for plan in study.arms]
    # What each arm has of its own; its model's fields are in `settings`.
    own = ("variant", "seed", "settings", "lr")
    shared = {k: v for k, v in dataclasses.asdict(configs[0]).items() if k not in own}
    keys = {"equal": study.equal, "looks": study.looks, "blocked": study.blocked}
    lines = toml_lines(keys | dataclasses.asdict(study.notes))
    for plan, config in zip(study.arms, configs, strict=True):
        values: dict[str, Any] = {"variant": config.variant}
        values |= {"set": config.settings or None, "lr": config.lr, "seeds": plan.seeds}
        values["data_seeds"] = plan.data_seeds
        lines += ["", f"[arms.{toml(plan.name)}]", *toml_lines(values)]
    lines += ["", "[train]", *toml_lines(shared)]
    if study.tuning:
        lines += ["", f"[{study.tuning.table}]", *toml_lines(study.tuning.keys)]
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
    if study.ladder:
        lines += ["", "[ladder]", *toml_lines(dataclasses.asdict(study.ladder))]
    return "\n".join(lines) + "\n"
