"""`smolctl train`: plan, start, branch and resume runs."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.console import print_facts, print_json, say, warn
from smolctl.cli.options import (
    Data,
    HeldOut,
    Json,
    Results,
    Study,
    Tokenizer,
    Track,
    complete_run,
    complete_variant,
    is_given,
    is_typed,
    take_older,
)
from smolctl.command_line import RESULTS, STUDY, command, results_of, resume_command
from smolctl.studies.targets import comparison_command
from smolctl.units import count, duration
from smollm2.errors import UserError
from smollm2.model.config import split_setting
from smollm2.model.cost import parameters
from smollm2.protocol.optimizers import OPTIMIZERS
from smollm2.protocol.run_config import OLDER_NAMES, RunConfig
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smollm2.data import TokenData

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

NOTABLE_RISE = 0.1  # nats/token of validation loss; one step changes it by less
HORIZONS = ("steps", "tokens", "flops")
CONTINUE, RECIPE = "Continue", "Recipe"  # panels of the help


def train(
    context: typer.Context,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Model to train: orig, orig-174m, pow2, pow2-135m, moe-160m, a short form such as "
            "pow2:n_kv_heads=8, or a TOML file. Default: the model of --from.",
            autocompletion=complete_variant,
            show_default=False,
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="full, or nano (a quarter as wide).")] = "full",
    steps: Annotated[int | None, typer.Option(help="Number of optimizer updates.")] = None,
    data: Data = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of AdamW (default: 3e-3 at nano scale, else 1e-3).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
    name: Annotated[
        str | None,
        typer.Option(help="Run name (default: VARIANT[-nano]-STEPS-sSEED).", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan without training, with times measured on this machine.",
        ),
    ] = False,
    as_json: Json = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Continue an unfinished run.",
            rich_help_panel=CONTINUE,
            autocompletion=complete_run,
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Start from the final weights of a run, a Hugging Face folder (./NAME), a GGUF "
            "file (./model.gguf) or hf:ORG/NAME. RUN@STEP continues a checkpoint (weights, "
            "optimizer, step) to another horizon.",
            rich_help_panel=CONTINUE,
        ),
    ] = None,
    keep_step: Annotated[
        list[int] | None,
        typer.Option(
            help="Keep this step's checkpoint, to branch from it with --from; may be repeated.",
            rich_help_panel=CONTINUE,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints (default: every five minutes).",
            rich_help_panel=CONTINUE,
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Set any field of the architecture or the recipe; may be repeated.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="smollm2 (AdamW; warm-up, constant, decay) or seed (what the code behind the "
            "published power-of-two study did).",
            rich_help_panel=RECIPE,
        ),
    ] = "smollm2",
    optimizer: Annotated[
        str | None, typer.Option(help=f"{' or '.join(OPTIMIZERS)}.", rich_help_panel=RECIPE)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="wsd or cosine.", rich_help_panel=RECIPE)
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Sequences per micro-batch (default: 4).",
            rich_help_panel=RECIPE,
            show_default=False,
        ),
    ] = None,
    grad_accum: Annotated[
        int | None, typer.Option(help="Micro-batches per step.", rich_help_panel=RECIPE)
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="Tokens per sequence (default: 2048, nano 256, at most the model's context).",
            rich_help_panel=RECIPE,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(help="Training tokens, instead of --steps.", rich_help_panel=RECIPE),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(help="Training FLOPs, instead of --steps.", rich_help_panel=RECIPE),
    ] = None,
    tokenizer: Tokenizer = None,
    held_out: HeldOut = None,
    data_seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the order of the data (default: --seed).",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    batch_offset: Annotated[
        int | None,
        typer.Option(help="Batches of the data to skip first.", rich_help_panel="Data"),
    ] = None,
    val_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between validations (default: a twentieth of the run, at least 10).",
            rich_help_panel="Evaluation",
            show_default=False,
        ),
    ] = None,
    val_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens scored per validation.", rich_help_panel="Evaluation"),
    ] = None,
    test_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens scored at the end.", rich_help_panel="Evaluation"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or mps (default: a GPU if there is one).",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="fp32, or bf16 with fp32 master weights (default: bf16 where it is native).",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the layers first (up to half a minute). Default: on a GPU; on a CPU "
            "from 300,000 tokens at full size, 2 million at nano scale.",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    track: Track = None,
    batch_size: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a model and write its run directory, `results/STUDY/RUN`.

    The model is a variant, or a trained model to start from. Stop with Ctrl-C at any time: the
    command prints how to resume. A resumed run ends with the same weights and the same rows as one
    that was never stopped.
    """
    from smolctl.studies.new_run import check_keep_steps, plan_run
    from smolctl.studies.resume import reopen

    for older, option in OLDER_NAMES.items():
        take_older(context, older, option)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, not {checkpoint_every}.")
    keep = frozenset(keep_step or ())
    if resume is not None:
        if any(is_typed(context, option) for option in ("from_", "name", "dry_run")):
            raise UserError("--resume cannot be combined with --from, --name or --dry-run.")
        if not is_typed(context, "keep_step"):
            keep = frozenset()  # the user's defaults apply to new runs only
        asked = asked_of(context, is_typed)
        run, data_of_run = reopen(results, study, resume, asked)
        last, saved = run.protocol.steps, run.checkpoints.steps()
        check_keep_steps(keep - set(saved), max(saved, default=0), last)
    else:
        if variant is None and from_ is None:
            raise UserError(
                "Name the model to train: --variant pow2, for example, or --from a trained one."
            )
        asked = without_displaced(context, asked_of(context, is_given))
        if from_ is not None and not is_typed(context, "variant"):
            if is_typed(context, "scale"):
                raise UserError(
                    "--scale applies to --variant; the model of --from has its own scale."
                )
            # In a file of defaults these are for models with new weights.
            for option in ("variant", "scale", "tokenizer"):
                if not is_typed(context, option):
                    asked.pop(option, None)
        new = plan_run(asked, results, study, name, from_, keep, may_exist=dry_run)
        if dry_run:
            from smolctl.cli.dry_run import show_plan

            show_plan(new, as_json)
            return
        run, data_of_run = new.create(), new.data
    execute(run, data_of_run, checkpoint_every, keep, track, as_json)


def asked_of(
    context: typer.Context, is_asked: Callable[[typer.Context, str], bool]
) -> dict[str, Any]:
    """The fields of a `RunConfig` whose options the user gave.

    Args:
        is_asked: `is_given`; for a resumed run `is_typed`, as it keeps its configuration and the
            user's defaults are for new runs.
    """
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name in context.params]
    asked = {name: context.params[name] for name in names if is_asked(context, name)}
    if is_asked(context, "set_"):
        asked["settings"] = tuple(context.params["set_"])
    return asked


def without_displaced(context: typer.Context, asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` without those defaults of a file that contradict what was typed: another horizon, or
    the same field by its option and by --set."""
    typed = asked_of(context, is_typed)
    displaced = {split_setting(text)[0] for text in typed.get("settings", ())}
    if not typed.keys().isdisjoint(HORIZONS):
        displaced.update(HORIZONS)
    kept = {name: asked[name] for name in asked if name in typed or name not in displaced}
    if "settings" in kept and "settings" not in typed:
        kept["settings"] = tuple(s for s in kept["settings"] if split_setting(s)[0] not in typed)
    return kept


def execute(
    run: Run,
    data: "TokenData",
    checkpoint_every: int | None,
    keep_steps: frozenset[int],
    track: str | None,
    as_json: bool,
) -> None:
    """Train to the end under signal handlers, then print the result."""
    from smolctl.cli.progress import observed
    from smolctl.studies.machine import warn_if_busy
    from smollm2.training.loop import train

    warn_if_busy()
    and_track = "" if track is None else f" --track {track}"
    with observed(run, track, f"Continue with: {resume_command(run)}{and_track}") as observer:
        train(run, data, observer, checkpoint_every=checkpoint_every, keep_steps=keep_steps)
    show_result(run, as_json)


def show_result(run: Run, as_json: bool) -> None:
    """Print the scores and the speed of a finished run, with warnings on doubtful losses."""
    for sentence in doubts(run):
        warn(sentence)
    scores = run.final_scores()
    split = "validation" if run.role is Role.SWEEP else "test"
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
            split: {name: float(value) for name, value in scores.items()},
        }
        print_json(summary)
        return
    size, speed_text = parameters(protocol.model), "speed not measured: too few steps"
    if speed == speed:
        speed_text = f"{duration(seconds)} timed, {speed:,.0f} tokens/s (median)"
    print_facts(
        f"{run.name} is finished",
        [
            ("model", f"{protocol.variant}, {protocol.scale}, {size.total:,} parameters"),
            ("trained on", f"{count(protocol.steps * protocol.tokens_per_step)} tokens"),
            (f"{split} loss", f"{scores['loss']:.4f} nats/token"),
            ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
            ("accuracy", f"{scores['accuracy']:.2%} of next tokens"),
            ("training", speed_text),
            ("files", str(run.path)),
        ],
        is_result=False,
    )
    score = command("eval", run.name, study=run.study, results=results_of(run))
    say(f"Next: {score}")
    say(f"      {comparison_command(run) or 'or train another variant, to compare the two'}")


def doubts(run: Run) -> list[str]:
    """Warnings about the losses of a finished run."""
    from smollm2.data import epochs

    protocol, validation = run.protocol, run.table("val").set_index("step")["loss"]
    loss, found = float(run.final_scores()["loss"]), []
    if loss > (guessing := math.log(protocol.model.vocab_size)):
        found.append(
            f"{run.name} did worse than guessing among all tokens ({guessing:.2f} nats/token): the "
            "training diverged or was too short; try a lower --lr, or more --steps."
        )
    elif (rise := validation.iloc[-1] - validation.min()) > NOTABLE_RISE:
        tokens = protocol.steps * protocol.tokens_per_step
        read = epochs(protocol.data.train_tokens, protocol.seq_len, tokens) if protocol.data else 0
        found.append(
            f"The validation loss rose by {rise:.2f} after step {validation.idxmin()}; the text "
            f"was read {read:.3g} times. Try fewer --steps, more text or a lower --lr."
        )
    return found
