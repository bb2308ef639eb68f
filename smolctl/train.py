"""`smolctl train`: plan, start, branch and resume runs."""

import dataclasses
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import (
    RESULTS,
    STUDY,
    Data,
    Json,
    Results,
    Study,
    Tokenizer,
    Track,
    complete_run,
    complete_variant,
    is_given,
    is_typed,
)
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

- `smolctl train --variant pow2 --steps 5000 --track tensorboard`

- `smolctl train --variant pow2 --steps 4000 --from pow2-5000-s0@3200`

- `smolctl train --from hf:HuggingFaceTB/SmolLM2-135M --data mine.jsonl --steps 100 --lr 3e-4`
"""

NOTABLE_RISE = 0.1  # nats of validation loss, above what a step more or less changes
HORIZONS = ("steps", "tokens", "flops")


def train(
    context: typer.Context,
    variant: Annotated[
        str | None,
        typer.Option(
            help="orig, orig-174m, pow2, pow2-135m, moe-160m, a short form such as "
            "pow2:n_kv_heads=8, or a TOML file; default the model that --from names.",
            rich_help_panel="Model",
            autocompletion=complete_variant,
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
            help="Tokens in a sequence; default 2048, nano 256, at most the model's context.",
            rich_help_panel="Recipe",
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
        typer.Option(
            help="Steps between validations; default a twentieth of the run, at least 10.",
            rich_help_panel="Evaluation",
        ),
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
            "--compile/--no-compile",
            help="The layers, which takes up to half a minute. Default: on a GPU, and on a CPU in "
            "runs of 300,000 tokens at full size or 10 million at nano scale.",
            rich_help_panel="Machine",
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
        typer.Option(
            metavar="RUN",
            help="Continue an unfinished run.",
            rich_help_panel="Where",
            autocompletion=complete_run,
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Start from the final weights of a run, of a Hugging Face folder (./NAME) or of "
            "hf:ORG/NAME; or continue the weights, optimizer and step of a run's checkpoint at "
            "STEP to another horizon.",
            rich_help_panel="Where",
        ),
    ] = None,
    track: Track = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, measured on this machine; train not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a variant, or a trained model further, and write the run's directory,
    `results/STUDY/RUN`.

    Stop it with Ctrl-C whenever you like: it says how to resume, and a resumed run ends with the
    same weights and the same rows as one that was never stopped.
    """
    from smolctl.resume import reopen

    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, not {checkpoint_every}.")
    keep = frozenset(keep_step or ())
    if resume is not None:
        if any(is_typed(context, option) for option in ("from_", "name", "dry_run")):
            raise UserError("--resume goes with neither --from, --name nor --dry-run.")
        if not is_typed(context, "keep_step"):
            keep = frozenset()  # in a file of defaults it is for new runs; this one has its own
        asked = asked_of(context, is_typed)
        run, tokens_of_run = reopen(results, study, resume, asked)
        last, saved = run.protocol.steps, run.checkpoints.steps()
        check_keep_steps(keep - set(saved), max(saved, default=0), last)
    else:
        if variant is None and from_ is None:
            raise UserError(
                "Say which model to train: --variant pow2, for example, or --from a trained one."
            )
        asked = without_displaced(context, asked_of(context, is_given))
        if from_ is not None and not is_typed(context, "variant"):
            if is_typed(context, "scale"):
                raise UserError("--scale is of --variant; the model that --from names has its own.")
            # In a file of defaults these are for models that begin from nothing.
            for option in ("variant", "scale", "tokenizer"):
                if not is_typed(context, option):
                    asked.pop(option, None)
        prepared = prepare_run(asked, results, study, name, from_, keep, dry_run, as_json)
        if prepared is None:  # a dry run
            return
        run, tokens_of_run = prepared
    execute(run, tokens_of_run, checkpoint_every, keep, track, as_json)


def asked_of(
    context: typer.Context, is_asked: Callable[[typer.Context, str], bool]
) -> dict[str, Any]:
    """The fields of a `Request` whose options are asked for.

    Args:
        is_asked: `is_given`, or `is_typed` for a run that is resumed: it keeps its configuration,
            of which the user's defaults say nothing.
    """
    from smollm2.protocol import Request

    names = [field.name for field in dataclasses.fields(Request) if field.name in context.params]
    asked = {name: context.params[name] for name in names if is_asked(context, name)}
    if is_asked(context, "set_"):
        asked["settings"] = tuple(context.params["set_"])
    return asked


def without_displaced(context: typer.Context, asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` without the defaults of a file that say something else of what is typed: another
    horizon, or a field by its option and by --set."""
    from smollm2.config import split_setting

    typed = asked_of(context, is_typed)
    displaced = {split_setting(text)[0] for text in typed.get("settings", ())}
    if not typed.keys().isdisjoint(HORIZONS):
        displaced.update(HORIZONS)
    kept = {name: asked[name] for name in asked if name in typed or name not in displaced}
    if "settings" in kept and "settings" not in typed:
        kept["settings"] = tuple(s for s in kept["settings"] if split_setting(s)[0] not in typed)
    return kept


def check_keep_steps(keep_steps: frozenset[int], first: int, last: int) -> None:
    """Raise `UserError` for a step that training from `first` to `last` never comes to."""
    for step in sorted(keep_steps):
        if step < first:
            raise UserError(f"--keep-step {step} is before the step that it starts from, {first}.")
        if step > last:
            raise UserError(f"--keep-step {step} is after the last step, {last}.")


def prepare_run(
    asked: dict[str, Any],
    results: Path,
    study: str,
    name: str | None,
    from_: str | None,
    keep_steps: frozenset[int],
    dry_run: bool,
    as_json: bool,
) -> "tuple[Run, TokenData] | None":
    """Everything before the first step; no run is made unless all of it holds.

    Args:
        asked: fields of a `Request`; without a variant the model is that of `from_`.
    """
    from smolctl.importing import start_of
    from smolctl.plan import show_plan
    from smolctl.targets import require_new, starting_point
    from smolctl.tokens import prepared, tokens_of
    from smollm2.protocol import Request, default_run_name, has_plain_name, resolve
    from smollm2.runs import create_run, run_path

    def new(name: str) -> str:
        """`name`, refused if there is such a run: before torch is imported and tokens are made,
        where it is known by then."""
        path = run_path(results, study, name)
        if not dry_run:
            require_new(path)
        return name

    if name is not None:
        new(name)
    trunk: Run | None = None  # a run that is gone on with, on its own data
    if from_ is None:
        request = Request(**asked)
        draft, start = resolve(request), None
        if name is None and has_plain_name(request):
            name = new(default_run_name(request, draft))
    else:
        parent, step = start_of(from_, results, study)
        if step is not None and "data" not in asked:
            trunk, asked = parent, asked | {"data": parent.manifest["request"]["data"]}
        request, draft = resolve_from(parent, asked)
        start = starting_point(parent, step, draft)
    check_keep_steps(keep_steps, start.checkpoint.step if start else 0, draft.steps)
    vocab_size = draft.model.vocab_size
    default_tokenizer = start.tokenizer if start else f"train:{vocab_size}"
    if trunk is not None:
        data = tokens_of(trunk, None, None)
    else:
        data = prepared(request.data, request.tokenizer, default_tokenizer, max_vocab=vocab_size)
    if start is not None:
        start.require_same_tokens(data)
    protocol = draft.on(data)
    checkpoint, label, origin = None, None, None
    if start is not None:
        checkpoint, label, origin = start.checkpoint, start.label, start.run.origin
    weights = f"{start.label} {start.checkpoint.sha256}" if start else None
    name = name or new(default_run_name(request, protocol, weights))
    if dry_run:
        first = checkpoint.step if checkpoint else 0
        show_plan(protocol, data, f"{results}/{study}/{name}", first, as_json)
        return None
    run = create_run(
        results, study, name, request, protocol, data.tokenizer, checkpoint, label, origin
    )
    return run, data


def resolve_from(parent: "Run", asked: dict[str, Any]) -> "tuple[Request, Protocol]":
    """What was asked for, resolved; without a variant the model is the parent's."""
    from smollm2.config import replace_fields, split_setting
    from smollm2.protocol import Request, resolve, resolve_recipe

    if "variant" in asked:
        request = Request(**asked)
        return request, resolve(request)
    own = parent.protocol
    request = Request(**asked | {"variant": own.variant, "scale": own.scale})
    _, fields = resolve_recipe(request)  # those of the model, which may not differ: it is trained
    return request, resolve(request, replace_fields(own.model, dict(map(split_setting, fields))))


def execute(
    run: "Run",
    data: "TokenData",
    checkpoint_every: int | None,
    keep_steps: frozenset[int],
    track: str | None,
    as_json: bool,
) -> None:
    """Train to the end under signal handlers, then print what came out."""
    from smolctl.console import say
    from smolctl.progress import TrainingProgress
    from smolctl.targets import resume_command
    from smolctl.tracking import tracked
    from smollm2.train import Stopped, train

    with TrainingProgress(run) as progress, tracked(progress, run, track) as observer:
        try:
            train(run, data, observer, checkpoint_every=checkpoint_every, keep_steps=keep_steps)
        except Stopped:
            progress.close()
            and_track = "" if track is None else f" --track {track}"
            say(f"Stopped and saved. Continue with: {resume_command(run)}{and_track}")
            raise typer.Exit(128 + (progress.signal or signal.SIGINT)) from None
    show_result(run, as_json)


def show_result(run: "Run", as_json: bool) -> None:
    import json

    from smolctl.console import count, duration, facts, say, warn
    from smollm2.cost import parameters

    for sentence in doubts(run):
        warn(sentence)

    scores = run.test_scores()
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
    speed_text = "speed not measured: too few steps"
    if speed == speed:
        speed_text = f"{duration(seconds)} timed, {speed:,.0f} tokens/s (median)"
    facts(
        f"{run.name} is finished",
        [
            ("model", f"{protocol.variant}, {protocol.scale}, {size.total:,} parameters"),
            ("trained on", f"{count(protocol.steps * protocol.tokens_per_step)} tokens"),
            ("test loss", f"{scores['loss']:.4f} nats a token"),
            ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
            ("accuracy", f"{scores['accuracy']:.2%} of next tokens"),
            ("training", speed_text),
            ("files", str(run.path)),
        ],
    )
    where = "" if run.study == STUDY else f" --study {run.study}"
    say(f"Next: smolctl eval {run.name}{where}, or train another variant and smolctl compare them.")


def doubts(run: "Run") -> list[str]:
    """What is odd about the losses of a finished run, in sentences."""
    from smollm2.data import epochs

    protocol, validation = run.protocol, run.table("val").set_index("step")["loss"]
    loss, found = float(run.test_scores()["loss"]), []
    if loss > (guessing := math.log(protocol.model.vocab_size)):
        found.append(
            f"{run.name} did worse than guessing among all tokens ({guessing:.2f} nats): the "
            "training diverged or was too short; try a lower --lr, or more --steps."
        )
    elif (rise := validation.iloc[-1] - validation.min()) > NOTABLE_RISE:
        tokens = protocol.steps * protocol.tokens_per_step
        read = epochs(protocol.data.train_tokens, protocol.seq_len, tokens) if protocol.data else 0
        found.append(
            f"The validation loss rose by {rise:.2f} after step {validation.idxmin()}; the text "
            f"was read {read:.3g} times: fewer --steps, more text or a lower --lr may do better."
        )
    return found
