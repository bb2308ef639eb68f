"""`smolctl train`: plan, start, branch and resume runs."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from smolctl.cli.train_result import show_result
from smolctl.cli.train_run import Ready, TrainOptions, execute
from smolctl.command_line import RESULTS, STUDY
from smollm2.errors import UserError
from smollm2.model.config import split_setting
from smollm2.protocol.optimizers import OPTIMIZERS
from smollm2.protocol.processes import processes, require_processes
from smollm2.protocol.run_config import OLDER_NAMES, RunConfig

if TYPE_CHECKING:
    from smolctl.studies.new_run import NewRun

EXAMPLES = """
**Examples**

- `smolctl train --variant pow2 --scale nano --steps 300`

- `smolctl train --variant pow2:n_kv_heads=8 --steps 5000 --data novels.jsonl.gz --dry-run`

- `smolctl train --variant mine.toml --steps 500 --lr 2e-3 --set weight_decay=0.1 --seed 1`

- `smolctl train --resume pow2-nano-300-s0`

- `smolctl train --variant pow2 --steps 5000 --track tensorboard`

- `smolctl train --variant pow2 --steps 4000 --from pow2-5000-s0@3200`

- `smolctl train --from hf:HuggingFaceTB/SmolLM2-135M --data mine.jsonl --steps 100 --lr 3e-4`

- `torchrun --nproc-per-node 4 -m smolctl train --variant pow2 --steps 5000 --grad-accum 4 --go-on`
"""

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
    go_on: Annotated[
        bool,
        typer.Option(
            "--go-on",
            help="Make the run, or continue it if it is there: for a line that is typed again "
            "after a crash, or that torchrun or Slurm repeats.",
            rich_help_panel=CONTINUE,
        ),
    ] = False,
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
    parallel: Annotated[
        str | None,
        typer.Option(
            help="fsdp: processes under torchrun divide the weights too, for a model that does not "
            "fit one device (default: each has all weights, and the result does not depend on "
            "their number).",
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
    that was never stopped, and so does one that several processes train under torchrun.
    """
    for older, option in OLDER_NAMES.items():
        take_older(context, older, option)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, not {checkpoint_every}.")
    options = TrainOptions(results, study, frozenset(keep_step or ()), checkpoint_every, track)

    def ready() -> Ready | None:
        """The run to train; None if there is nothing to train."""
        from smolctl.studies.go_on import existing

        if resume is not None:
            return resumed(context, resume, options)
        new = new_run(context, options)
        if dry_run:
            from smolctl.cli.dry_run import show_plan

            show_plan(new, as_json)
            return None
        if go_on and (run := existing(new)):
            if run.is_finished:
                show_result(run, as_json)
                return None
            return Ready(run, new.data, options.keep_steps)
        return Ready(new.create(), new.data, options.keep_steps)

    if processes() == 1:
        if made := ready():
            execute(made, options)
            show_result(made.run, as_json)
        return
    from smolctl.cli.train_together import train_together

    train_together(ready, options, data, tokenizer, device, as_json, is_sharded=is_sharded(context))


def resumed(context: typer.Context, name: str, options: TrainOptions) -> Ready:
    """The unfinished run of --resume."""
    from smolctl.studies.new_run import check_keep_steps
    from smolctl.studies.resume import reopen

    if any(is_typed(context, option) for option in ("from_", "name", "dry_run", "go_on")):
        raise UserError("--resume cannot be combined with --from, --name, --dry-run or --go-on.")
    # The user's defaults apply to new runs only.
    keep = options.keep_steps if is_typed(context, "keep_step") else frozenset[int]()
    run, data = reopen(options.results, options.study, name, asked_of(context, is_typed))
    require_processes(run.protocol, is_sharded(context))
    saved = run.checkpoints.steps()
    check_keep_steps(keep - set(saved), max(saved, default=0), run.protocol.steps)
    return Ready(run, data, keep)


def new_run(context: typer.Context, options: TrainOptions) -> "NewRun":
    """The new run that is asked for."""
    from smolctl.studies.new_run import plan_run

    given = context.params
    if given["variant"] is None and given["from_"] is None:
        raise UserError(
            "Name the model to train: --variant pow2, for example, or --from a trained one."
        )
    asked = without_displaced(context, asked_of(context, is_given))
    if given["from_"] is not None and not is_typed(context, "variant"):
        if is_typed(context, "scale"):
            raise UserError("--scale applies to --variant; the model of --from has its own scale.")
        # In a file of defaults these are for models with new weights.
        for option in ("variant", "scale", "tokenizer"):
            if not is_typed(context, option):
                asked.pop(option, None)
    new = plan_run(
        *(asked, options.results, options.study, given["name"], given["from_"]),
        options.keep_steps,
        may_exist=given["dry_run"] or given["go_on"],
    )
    require_processes(new.resolved, is_sharded(context))
    return new


def is_sharded(context: typer.Context) -> bool:
    """Whether processes are to divide the weights too."""
    parallel = context.params["parallel"]
    if parallel not in (None, "fsdp"):
        raise UserError(f"--parallel is fsdp, or omitted, not {parallel!r:.40}.")
    return parallel == "fsdp"


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
