"""`smolctl train`: plan, start, branch and resume runs."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Data, Json, Results, Study, Tokenizer
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.protocol import Protocol, Request
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl train --variant pow2 --scale nano --steps 300`

- `smolctl train --variant pow2:n_kv_heads=8 --steps 5000 --data novels.jsonl.gz --dry-run`

- `smolctl train --variant mine.toml --steps 500 --lr 2e-3 --set weight_decay=0.1 --seed 1`

- `smolctl train --resume pow2-nano-300-s0`

- `smolctl train --variant pow2 --steps 4000 --from pow2-5000-s0@3200`
"""


def train(
    context: typer.Context,
    variant: Annotated[
        str | None,
        typer.Option(
            help="orig, orig-174m, pow2, pow2-135m, moe-160m, a short form such as "
            "pow2:n_kv_heads=8, or a TOML file.",
            rich_help_panel="Model",
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="full, or nano: a quarter as wide.", rich_help_panel="Model")
    ] = "full",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the architecture or the recipe.",
            rich_help_panel="Model",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer updates.", rich_help_panel="Horizon")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Training tokens instead.", rich_help_panel="Horizon")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Training FLOPs instead.", rich_help_panel="Horizon")
    ] = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="smollm2 (AdamW, warm-up, constant, decay) or seed (what the code behind the "
            "published power-of-two study did).",
            rich_help_panel="Recipe",
        ),
    ] = "smollm2",
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of AdamW.", rich_help_panel="Recipe"),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw or muon.", rich_help_panel="Recipe")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="wsd or cosine.", rich_help_panel="Recipe")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Sequences in a micro-batch; default 4.", rich_help_panel="Recipe"),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a sequence; default 2048, nano 256.", rich_help_panel="Recipe"
        ),
    ] = None,
    grad_accum: Annotated[
        int | None, typer.Option(help="Micro-batches in a step.", rich_help_panel="Recipe")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the initial weights.", rich_help_panel="Recipe")
    ] = 0,
    data_seed: Annotated[
        int | None,
        typer.Option(help="Of the order of the data; default --seed.", rich_help_panel="Recipe"),
    ] = None,
    val_every: Annotated[
        int | None,
        typer.Option(help="Steps between validations.", rich_help_panel="Evaluation"),
    ] = None,
    val_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens scored in each validation.", rich_help_panel="Evaluation"),
    ] = None,
    test_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens scored at the end.", rich_help_panel="Evaluation"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or mps; default a GPU if any.", rich_help_panel="Machine"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="fp32 or bf16 (with fp32 masters); default bf16 where it is native.",
            rich_help_panel="Machine",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Default: on a GPU.", rich_help_panel="Machine"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the run; default such as pow2-nano-300-s0.", rich_help_panel="Where"),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints; default every five minutes.", rich_help_panel="Where"
        ),
    ] = None,
    keep_step: Annotated[
        list[int] | None,
        typer.Option(
            help="Keep the checkpoint of this step, to branch --from it.", rich_help_panel="Where"
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Continue an unfinished run.", rich_help_panel="Where"),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Start from a run's final weights, or continue the weights, optimizer and step "
            "of its checkpoint at STEP to another horizon.",
            rich_help_panel="Where",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, measured on this machine; train not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a variant and write its run directory, `results/STUDY/RUN`.

    Stop it with Ctrl-C whenever you like: it says how to resume, and a resumed run ends with the
    same weights and the same rows as one that was never stopped.
    """
    from smollm2.protocol import Request

    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, not {checkpoint_every}.")
    asked = {
        field.name: context.params[field.name]
        for field in dataclasses.fields(Request)
        if field.name in context.params and is_given(context, field.name)
    }
    if set_:
        asked["settings"] = tuple(set_)
    keep = frozenset(keep_step or ())
    if resume is not None:
        if from_ is not None or name is not None or dry_run:
            raise UserError("--resume goes with neither --from, --name nor --dry-run.")
        run, tokens_of_run = reopen(results, study, resume, asked)
    else:
        if variant is None:
            raise UserError("Say which model to train: --variant pow2, for example.")
        request = Request(**asked)
        run_or_plan = prepare_run(request, results, study, name, from_, dry_run, as_json)
        if run_or_plan is None:
            return
        run, tokens_of_run = run_or_plan
    execute(run, tokens_of_run, checkpoint_every, keep, as_json)


def is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def prepare_run(
    request: "Request",
    results: Path,
    study: str,
    name: str | None,
    from_: str | None,
    dry_run: bool,
    as_json: bool,
) -> "tuple[Run, TokenData] | None":
    """Everything before the first step; nothing is written unless all of it holds."""
    from smolctl.prepare import prepared
    from smollm2.protocol import default_run_name, resolve
    from smollm2.runs import create_run, run_path

    draft = resolve(request)
    if name is not None and run_path(results, study, name).exists() and not dry_run:
        raise UserError(f"Run {name!r} exists. Resume it (--resume {name}) or choose another name.")
    source = starting_point(results, study, from_, draft) if from_ is not None else None
    default_tokenizer = f"train:{draft.model.vocab_size}"
    data = prepared(request.data, request.tokenizer, default_tokenizer)
    protocol = draft.on(data)
    name = name or default_run_name(request, protocol)
    if dry_run:
        show_plan(protocol, data, f"{results}/{study}/{name}", as_json)
        return None
    run = create_run(results, study, name, manifest(request, protocol, source))
    if source is not None:
        source.copy_to(run)
    data.tokenizer.save(str(run.path / "tokenizer.json"))
    return run, data


def manifest(
    request: "Request", protocol: "Protocol", source: "StartingPoint | None"
) -> dict[str, Any]:
    """What run.json holds from the start; sources by base name, never by path."""
    from smollm2.cost import parameters, training_flops_per_token
    from smollm2.device import environment

    assert protocol.data is not None
    named = dataclasses.replace(request, data=protocol.data.source)
    if named.tokenizer is not None and not named.tokenizer.startswith(("train:", "hub:")):
        named = dataclasses.replace(named, tokenizer=Path(named.tokenizer).name)
    if named.variant.endswith(".toml"):
        named = dataclasses.replace(named, variant=Path(named.variant).name)
    return {
        "finished_at": None,
        "error": None,
        "started_from": source and source.label,
        "request": dataclasses.asdict(named),
        "protocol": protocol.to_dict(),
        "parameters": dataclasses.asdict(parameters(protocol.model)),
        "training_flops_per_token": training_flops_per_token(protocol.model, protocol.seq_len),
        "environment": environment(protocol.device),
    }


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """A checkpoint that a new run starts from."""

    label: str
    path: Path
    step: int
    seconds: float

    def copy_to(self, run: "Run") -> None:
        """Make it the new run's first checkpoint, so that the run can be resumed by itself."""
        from safetensors.torch import load_file

        run.save_checkpoint(f"step-{self.step}", load_file(self.path), self.step, self.seconds)


def starting_point(results: Path, study: str, spec: str, draft: "Protocol") -> StartingPoint:
    """RUN (its final weights, at step 0) or RUN@STEP (weights and optimizer, at STEP).

    Raises:
        UserError: no such run or checkpoint, another architecture, or a horizon already passed.
    """
    from smollm2.runs import Run, open_run, verified

    target, at, step_text = spec.partition("@")
    is_path = "/" in target
    run = Run(Path(target)) if is_path else open_run(results, study, target)
    if run.protocol.model != draft.model:
        fields = differing(vars(run.protocol.model), vars(draft.model))
        raise UserError(f"{run.name} is another architecture: {fields}.")
    if not at:
        if not run.final_weights.exists():
            raise UserError(
                f"Run {run.name!r} has no final weights; name one of its checkpoints "
                f"({checkpoints_of(run)})."
            )
        return StartingPoint(run.name, verified(run.final_weights).path, 0, 0.0)
    if not step_text.isdigit() or int(step_text) not in run.checkpoint_steps():
        raise UserError(
            f"Run {run.name!r} has no checkpoint at step {step_text!r}; it has "
            f"{checkpoints_of(run)}. A run keeps one for later with --keep-step."
        )
    if int(step_text) >= draft.steps:
        raise UserError(
            f"The new run ends at step {draft.steps}, and step {step_text} is not before that; "
            "give more --steps (they count from the start of the first run)."
        )
    checkpoint = verified(run.path / "checkpoints" / f"step-{step_text}.safetensors")
    label = f"{run.name}@{checkpoint.step}"
    return StartingPoint(label, checkpoint.path, checkpoint.step, checkpoint.seconds)


def checkpoints_of(run: "Run") -> str:
    steps = run.checkpoint_steps()
    return ", ".join(f"{run.name}@{step}" for step in steps) if steps else "none"


def differing(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str:
    """The fields that differ, `lr: 0.001 there, 0.003 asked for`; nested ones dotted."""
    lines = []
    for key, old in saved.items():
        new = asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differing(old, new, f"{prefix}{key}."):
                lines.append(inner)
        elif old != new:
            lines.append(f"{prefix}{key}: {old} there, {new} asked for")
    return "; ".join(lines)


def reopen(results: Path, study: str, name: str, asked: dict[str, Any]) -> "tuple[Run, TokenData]":
    """An unfinished run with its tokens, to be continued as it was.

    Raises:
        UserError: it is finished, something else was asked for, or its tokens are not to be had.
    """
    from smollm2.protocol import Request, resolve
    from smollm2.runs import open_run

    run = open_run(results, study, name)
    protocol = run.protocol
    if run.is_finished:
        raise UserError(
            f"Run {name!r} is finished. To train on from its weights, start a new run with "
            f"--from {name}."
        )
    data = tokens_of(run, asked.pop("data", None), asked.pop("tokenizer", None))
    if asked:
        saved = run.manifest["request"]
        request = Request(**saved | {"settings": tuple(saved["settings"])} | asked)
        same_model = asked.keys().isdisjoint(("variant", "scale", "settings"))
        other = resolve(request, protocol.model if same_model else None).on(data)
        if fields := differing(protocol.to_dict(), other.to_dict()):
            raise UserError(
                f"A resumed run keeps its configuration, and this differs: {fields}. Leave these "
                f"options out, or start a new run under another --name."
            )
    return run, data


def tokens_of(run: "Run", source: str | None, tokenizer: str | None) -> "TokenData":
    """The tokens a run was trained on: from the cache, else prepared again from `source`."""
    from smolctl.prepare import prepared
    from smollm2.data import find_prepared, open_prepared

    wanted = run.protocol.data
    assert wanted is not None
    if source is None:
        cached = find_prepared(wanted.fingerprint)
        if cached is not None:
            return open_prepared(cached)
        if wanted.source != "builtin":
            raise UserError(
                f"The tokens of run {run.name!r} are no longer in the cache; give its --data "
                f"({wanted.source}) again."
            )
        source = "builtin"
    data = prepared(source, tokenizer, str(run.path / "tokenizer.json"))
    if data.fingerprint != wanted.fingerprint:
        raise UserError(
            f"--data {Path(source).name} is not what run {run.name!r} was trained on: its "
            f"fingerprint is {data.fingerprint}, the run's {wanted.fingerprint} ({wanted.source})."
        )
    return data


def execute(
    run: "Run",
    data: "TokenData",
    checkpoint_every: int | None,
    keep_steps: frozenset[int],
    as_json: bool,
) -> None:
    """Train to the end under signal handlers, then print what came out."""
    from smolctl.console import say
    from smolctl.progress import TrainingProgress
    from smollm2.train import Stopped, train

    with run.writing(), TrainingProgress(run) as progress:
        try:
            train(run, data, progress, checkpoint_every=checkpoint_every, keep_steps=keep_steps)
        except Stopped:
            progress.close()
            say(f"Stopped and saved. Continue with: {resume_command(run)}")
            raise typer.Exit(128 + (progress.signal or signal.SIGINT)) from None
    show_result(run, as_json)


def resume_command(run: "Run") -> str:
    """The command that continues a run, with what is not the default of where it lies."""
    where = "" if run.study == STUDY else f" --study {run.study}"
    results = run.path.parent.parent
    where += "" if results == RESULTS else f" --results {results}"
    return f"smolctl train --resume {run.name}{where}"


def show_result(run: "Run", as_json: bool) -> None:
    from smolctl.console import count, duration, facts, say
    from smollm2.cost import parameters

    scores = run.table("eval").set_index("metric")["value"]
    steps = run.table("train")
    seconds = float(steps["seconds"].iloc[-1])
    protocol = run.protocol
    speed = steps["tokens_per_second"].median()
    if as_json:
        summary = {
            "run": run.name,
            "path": str(run.path),
            "steps": protocol.steps,
            "tokens": protocol.steps * protocol.tokens_per_step,
            "seconds": seconds,
            "tokens_per_second": None if speed != speed else speed,  # NaN: too few steps
            "test": {name: float(value) for name, value in scores.items()},
        }
        json.dump(summary, sys.stdout)
        sys.stdout.write("\n")
        return
    size = parameters(protocol.model)
    speed_text = "not measured (too few steps)" if speed != speed else f"{speed:,.0f} tokens/s"
    facts(
        f"{run.name} is finished",
        [
            ("model", f"{protocol.variant}, {protocol.scale}, {size.total:,} parameters"),
            ("trained on", f"{count(protocol.steps * protocol.tokens_per_step)} tokens"),
            ("test loss", f"{scores['loss']:.4f} nats a token"),
            ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
            ("accuracy", f"{scores['accuracy']:.2%} of next tokens"),
            ("training", f"{duration(seconds)} timed, {speed_text} (median)"),
            ("files", str(run.path)),
        ],
    )
    say(f"Next: smolctl eval {run.name}, or train another variant and smolctl compare them.")


def show_plan(protocol: "Protocol", data: "TokenData", path: str, as_json: bool) -> None:
    """What a run would do and cost here; two sequences are trained to know."""
    from smolctl.console import count, duration, facts, say
    from smollm2.cost import parameters, training_flops_per_token, training_state_bytes
    from smollm2.data import epochs
    from smollm2.device import device_name
    from smollm2.train import probe

    size, recipe = parameters(protocol.model), protocol.recipe
    tokens = protocol.steps * protocol.tokens_per_step
    say("Measuring a step on this machine ...")
    measured = probe(protocol, data)
    eta = measured.step_seconds * protocol.steps
    state = training_state_bytes(protocol.model, recipe.optimizer, protocol.dtype)
    repeats = epochs(len(data.train), protocol.seq_len, tokens)
    flops = training_flops_per_token(protocol.model, protocol.seq_len)
    if as_json:
        plan = {
            "path": path,
            "protocol": protocol.to_dict(),
            "parameters": dataclasses.asdict(size),
            "tokens": tokens,
            "epochs": repeats,
            "training_flops_per_token": flops,
            "state_bytes": state,
            "activation_bytes": measured.activation_bytes,
            "step_seconds": measured.step_seconds,
            "eta_seconds": eta,
        }
        json.dump(plan, sys.stdout)
        sys.stdout.write("\n")
        return
    active = f", {size.active:,} active" if size.active != size.total else ""
    gb = 1e9
    memory = (
        f"{(state + measured.activation_bytes) / gb:.2f} GB: weights, gradients, optimizer "
        f"{state / gb:.2f}, activations {measured.activation_bytes / gb:.2f}"
    )
    facts(
        f"Plan: {protocol.variant} ({protocol.scale}) for {protocol.steps:,} steps",
        [
            ("parameters", f"{size.total:,}{active}, {size.embedding:,} embedding"),
            ("FLOPs", f"{count(flops)} a token, {tokens * flops:.2e} in all"),
            (
                "a step",
                f"{protocol.tokens_per_step:,} tokens: {recipe.grad_accum} × "
                f"{protocol.batch_size} sequences of {protocol.seq_len}",
            ),
            ("tokens", f"{tokens:,}"),
            (
                "corpus",
                f"{data.source}: {len(data.train):,} training tokens, read {repeats:.2f} times",
            ),
            (
                "scored",
                f"{protocol.validation_tokens:,} validation tokens every "
                f"{protocol.validation_every} steps, {protocol.test_tokens:,} test tokens",
            ),
            ("schedule", schedule_text(protocol)),
            ("machine", f"{device_name(protocol.device)}, {protocol.dtype}"),
            ("memory", f"about {memory}"),
            (
                "time",
                f"about {duration(eta)} of training ({measured.step_seconds:.2f} s a step"
                f"{', not compiled' if protocol.compile else ''})",
            ),
            ("run", path),
        ],
    )


def schedule_text(protocol: "Protocol") -> str:
    """`adamw, wsd: to 1.0e-03 by step 250, constant to 4000, then to 0 at 5000`."""
    from smollm2.optim import decay_start, warmup_steps

    recipe, steps = protocol.recipe, protocol.steps
    peak = f"{recipe.lr:.1e}" + (
        f" (muon {recipe.muon_lr:.1e})" if recipe.optimizer == "muon" else ""
    )
    text = f"{recipe.optimizer}, {recipe.schedule}: to {peak} by step {warmup_steps(recipe, steps)}"
    if recipe.schedule == "wsd":
        text += f", constant to {decay_start(recipe, steps)}"
    end = round(steps * recipe.schedule_length)
    cut = f" (the run ends at {steps})" if end > steps else ""
    return f"{text}, then to {recipe.final_lr * recipe.lr:g} at {end}{cut}"
