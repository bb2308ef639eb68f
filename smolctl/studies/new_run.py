"""`smolctl train` before the first step: a run is created only if all of its settings are valid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolctl.studies.import_model import start_of
from smolctl.studies.start import Start, starting_point
from smolctl.studies.targets import require_new
from smolctl.studies.tokens import is_gone, prepared, tokens_again, tokens_of, trained_on
from smolctl.talk import say
from smollm2.data import TokenData
from smollm2.errors import UserError
from smollm2.model.config import replace_fields, split_setting
from smollm2.protocol.processes import processes
from smollm2.protocol.resolve import resolve, resolve_recipe
from smollm2.protocol.run_config import ResolvedConfig, RunConfig, default_run_name, has_plain_name
from smollm2.runs.create import create_run
from smollm2.runs.names import run_path
from smollm2.runs.run import Run, list_runs


@dataclass(frozen=True)
class NewRun:
    """A run that has been checked and can be created.

    Args:
        config: as requested.
        resolved: `config` with every default filled in, on `data`.
        start: what it starts from; None for new weights.
    """

    results: Path
    study: str
    name: str
    config: RunConfig
    resolved: ResolvedConfig
    data: TokenData
    start: Start | None
    keep_steps: frozenset[int]

    @property
    def first_step(self) -> int:
        """The step at which it starts."""
        return self.start.checkpoint.step if self.start else 0

    def create(self) -> Run:
        """Create the run's directory."""
        checkpoint, parent, label, origin = None, None, None, None
        if self.start is not None:
            checkpoint, label = self.start.checkpoint, self.start.label
            parent, origin = self.start.run, self.start.run.origin
        return create_run(
            self.results,
            self.study,
            self.name,
            self.config,
            self.resolved,
            self.data.tokenizer,
            checkpoint,
            parent,
            label,
            origin,
            keep_steps=self.keep_steps,
        )


def plan_run(
    asked: dict[str, Any],
    results: Path,
    study: str,
    name: str | None,
    from_: str | None,
    keep_steps: frozenset[int],
    *,
    may_exist: bool = False,
) -> NewRun:
    """The run as requested, with its tokens.

    Args:
        asked: fields of a `RunConfig`; without a variant the model is that of `from_`.
        name: by default one that says what it is.
        from_: RUN, RUN@STEP or a model from elsewhere to start from.
        keep_steps: of checkpoints to keep; refused where the run does not reach them.
        may_exist: whether a run of that name may exist, as where none is to be created.

    Raises:
        UserError: the request cannot be met.
    """

    def new(name: str) -> str:
        """`name`, refused if a run has it: now, as importing torch and preparing tokens is slow."""
        path = run_path(results, study, name)
        if not may_exist:
            require_new(path)
        return name

    if name is not None:
        new(name)
    trunk: Run | None = None  # a run that is continued on its own data
    if from_ is None:
        config = RunConfig(**asked)
        draft, start = resolve(config), None
        if name is None and has_plain_name(config):
            name = new(default_run_name(config, draft))
    else:
        parent, step = start_of(from_, results, study)
        if step is not None:
            asked = order_of(parent, asked) | asked
        if step is not None and asked.keys().isdisjoint(("data", "held_out")):
            made = parent.manifest["request"]
            kept = {name: made[name] for name in ("data", "held_out") if name in made}
            trunk, asked = parent, asked | kept
        config, draft = resolve_from(parent, asked)
        start = starting_point(parent, step, draft)
    if not may_exist and processes() == 1:  # several divide it
        from smollm2.training.memory import require_memory  # with torch, after the cheap checks

        require_memory(draft)
    check_keep_steps(keep_steps, start.checkpoint.step if start else 0, draft.steps)
    vocab_size = draft.model.vocab_size
    default_tokenizer = start.tokenizer if start else f"train:{vocab_size}"
    if trunk is not None:
        data = tokens_of(trunk, None, None)
    elif is_gone(config.data) and (run := alike(config, start, vocab_size, results, study)):
        data = tokens_again(run, None)
    else:
        data = prepared(
            config.data,
            config.tokenizer,
            default_tokenizer,
            max_vocab=vocab_size,
            held_out=config.held_out,
        )
    if start is not None:
        start.require_same_tokens(data)
        note_rate(start, asked, draft)
    resolved = draft.on(data)
    weights = f"{start.label} {start.checkpoint.sha256}" if start else None
    name = name or new(default_run_name(config, resolved, weights))
    return NewRun(results, study, name, config, resolved, data, start, keep_steps)


def note_rate(start: Start, asked: dict[str, Any], draft: ResolvedConfig) -> None:
    """Say it if trained weights are to start at the peak rate that is the default of new ones."""
    names = [setting.partition("=")[0] for setting in asked.get("settings", ())]
    if not start.is_continued and "lr" not in (*asked, *names):
        say(
            f"Trained weights start at the peak rate of new ones, {draft.recipe.lr:g}. With a "
            "lower --lr they change, and forget, less."
        )


def order_of(trunk: Run, asked: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `RunConfig` by which a continued run reads the batches that follow those of
    its trunk. With a seed of its own it has another order, which the user asked for."""
    protocol = trunk.protocol
    found: dict[str, Any] = {"batch_offset": protocol.batch_offset or None}
    found["data_order"] = protocol.data_order
    if asked.keys().isdisjoint(("seed", "data_seed")):
        found |= {"seed": protocol.seed}
        if protocol.data_seed != protocol.seed:
            found |= {"data_seed": protocol.data_seed}
    return found


def alike(
    config: RunConfig, start: Start | None, vocab_size: int, results: Path, study: str
) -> Run | None:
    """A run of the study that was made on the same text with the same tokenizer."""
    runs = [
        run
        for run in list_runs(results, study)[0]
        if run.protocol.model.vocab_size == vocab_size
        and (run.manifest["started_from"] or None) == (start and start.label)
    ]
    return trained_on(config, runs)


def resolve_from(parent: Run, asked: dict[str, Any]) -> tuple[RunConfig, ResolvedConfig]:
    """The request, resolved; without a variant the model is the parent's."""
    if "variant" in asked:
        config = RunConfig(**asked)
        return config, resolve(config)
    own = parent.protocol
    config = RunConfig(**asked | {"variant": own.variant, "scale": own.scale})
    _, fields = resolve_recipe(config)  # settings of the model must not differ: it is trained
    return config, resolve(config, replace_fields(own.model, dict(map(split_setting, fields))))


def check_keep_steps(keep_steps: frozenset[int], first: int, last: int) -> None:
    """Raise `UserError` for a step that training from `first` to `last` never reaches."""
    for step in sorted(keep_steps):
        if step < first:
            raise UserError(f"--keep-step {step} is before step {first}, where the run starts.")
        if step > last:
            raise UserError(f"--keep-step {step} is after the last step, {last}.")
