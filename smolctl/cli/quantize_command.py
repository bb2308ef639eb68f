"""`smolctl quantize`: quantize finished runs, and measure what that changes."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.options import Json, Results, Study, TextOfRun, complete_target, is_typed
from smolctl.cli.quantize_options import (
    configuration,
    has_groups,
    require_fit,
    without_repeats,
)
from smolctl.command_line import RESULTS, STUDY, command
from smollm2.errors import RunError, UserError
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.registry import BACKENDS, DEFAULT_BACKEND

if TYPE_CHECKING:
    from smollm2.runs.run import Run

EXAMPLES = """
**Examples**

- `smolctl quantize --bits 4`

- `smolctl quantize orig pow2 --bits 4 --group-size 32 --embedding 4`

- `smolctl quantize pow2 --method gptq --calibration novels.jsonl.gz`

- `smolctl quantize pow2 --sweep --tasks arc_easy --data-dir eval/`

- `smolctl quantize orig pow2 --dimensions`

- `smolctl quantize hf:HuggingFaceTB/SmolLM2-135M --bits 4 --data novels.jsonl.gz`
"""

METHOD, MEASUREMENT, WITHOUT_RUNS = "Method", "Measurement", "Without runs"  # panels of the help
MAX_KL = 0.05  # nats/token, within which a configuration is recommended


def quantize(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs, variants, Hugging Face folders (./NAME), GGUF files (./model.gguf) or "
            "hf:ORG/NAME (default: the latest finished run of each variant).",
            autocompletion=complete_target,
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits per weight: 8 or 4.")] = QuantConfig.bits,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale: 32, 64, 128 or 256 at 4 bits (default: 64), 32 at 8 "
            "bits (default: a whole row). With torchao the last group of a row may be "
            "shorter.",
            show_default=False,
        ),
    ] = None,
    embedding: Annotated[
        str,
        typer.Option(
            help="Bits per weight of the embedding and the head: 8 (one scale per row), 4 (in "
            "groups of --group-size, or 64), or none to keep them in bf16."
        ),
    ] = "8",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Every backend, number of bits and group size.")
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(help="Also score these tasks; see smolctl eval.", show_default=False),
    ] = None,
    as_json: Json = False,
    backend: Annotated[
        str,
        typer.Option(
            help=f"Library that quantizes: {' or '.join(BACKENDS)}.", rich_help_panel=METHOD
        ),
    ] = DEFAULT_BACKEND,
    method: Annotated[
        str | None,
        typer.Option(
            help="How codes are chosen. At 4 bits with torchao: clip (the default: the part of "
            "each group's range with the least error on calibration text), gptq (slower: later "
            "weights make up for the error of earlier ones), hqq, or rtn (round to nearest). "
            "Else rtn.",
            rich_help_panel=METHOD,
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text for clip and gptq: a file, a folder or a corpus as for --data (default: "
            "half from the training text of the run, or of --data, half from the built-in text).",
            rich_help_panel=METHOD,
            show_default=False,
        ),
    ] = None,
    v8: Annotated[
        bool,
        typer.Option(
            "--v8", help="Keep value projections at 8 bits (4 bits only).", rich_help_panel=METHOD
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Validation tokens to compare with bf16 on (default: as in the run's "
            "quantize.csv, else 16,384).",
            rich_help_panel=MEASUREMENT,
            show_default=False,
        ),
    ] = None,
    max_kl: Annotated[
        float,
        typer.Option(
            help="Recommend the smallest configuration within this KL divergence, nats/token.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = MAX_KL,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Score only the first N questions of each task.", rich_help_panel=MEASUREMENT
        ),
    ] = None,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed/--no-speed",
            help="Time prefill and decoding (full size only).",
            rich_help_panel=MEASUREMENT,
        ),
    ] = True,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Also time compiled decoding.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = True,
    data: TextOfRun = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the tasks' questions (default: the Hugging Face Hub).",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu or cuda (default: the run's, if available).",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    dimensions: Annotated[
        bool,
        typer.Option(
            "--dimensions",
            help="Only check which groups and kernels fit the variants; needs no run.",
            rich_help_panel=WITHOUT_RUNS,
        ),
    ] = False,
    scale: Annotated[
        str,
        typer.Option(help="With --dimensions: full or nano.", rich_help_panel=WITHOUT_RUNS),
    ] = "full",
    study: Study = STUDY,
    results: Results = RESULTS,
) -> None:
    """Quantize finished runs to 8 or 4 bits; measure fidelity, size and speed against bf16.

    The quantized model goes to the run's quantized/ folder; `smolctl eval` and `smolctl generate`
    take it as RUN+NAME. The rows go to the run's quantize.csv.
    """
    from smolctl.cli.console import say
    from smolctl.cli.quantize_output import show_dimensions, show_runs
    from smolctl.studies.machine import require_machine
    from smolctl.studies.models import Model
    from smolctl.studies.quantizer import MeasureOptions, Quantizer, row_summary
    from smolctl.studies.scorer import questions
    from smollm2.runs.links import require_own
    from smollm2.runs.load_run import final_weights

    def typed(*options: str) -> bool:
        return any(is_typed(context, option) for option in options)

    if sweep and typed("bits", "backend", "group_size"):
        raise UserError("--sweep tries every --bits, --backend and --group-size; omit them.")
    if dimensions:
        if sweep or typed("group_size", "tokens", "tasks", "max_kl"):
            raise UserError("--dimensions measures nothing; give variants and --scale alone.")
        show_dimensions(targets, scale, as_json)
        return
    if typed("scale") and scale != "full":
        raise UserError("--scale is for --dimensions; a run has its own.")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {tokens}.")
    if not max_kl > 0:
        raise UserError(f"--max-kl must be above 0, not {max_kl:g}.")
    if tasks is None and typed("data_dir", "limit"):
        raise UserError("--data-dir and --limit are for tasks; name some with --tasks.")
    if sweep:
        bits, backend, group_size = QuantConfig.bits, DEFAULT_BACKEND, None
    elif not typed("group_size") and not has_groups(backend, bits):
        group_size = None  # in a file of defaults it is for 4 bits
    config = configuration(bits, backend, method, group_size, embedding, v8)
    if calibration is not None and not config.is_calibrated:
        raise UserError("--calibration is for --method clip and gptq at 4 bits; omit it.")
    require_machine(device, None)
    require_own(results / study, "figures")
    runs = chosen(targets or [], results, study)
    configs = config.grid() if sweep else [config]
    if not sweep:
        require_fit(runs, config)
    asked = () if tasks is None else tuple(questions(tasks, data_dir, limit))
    if tasks is not None and not asked:
        raise UserError("--tasks takes multiple-choice tasks here: --tasks arc_easy, for example.")
    options = MeasureOptions(tokens, asked, speed, compiled, calibration)
    models = [Model(run, final_weights(run)) for run in runs]  # all of them before hours of work
    rows: list[dict[str, Any]] = []
    try:
        for model in models:
            quantizer = Quantizer(model, options, device=device, source=data)
            if quantizer.untimed:
                say(quantizer.untimed)
            distinct, repeats = without_repeats(configs, model.run) if sweep else (configs, [])
            for sentence in repeats:
                say(sentence)
            for row in quantizer.measure(distinct):
                rows.append({"study": model.run.study, "run": model.run.name} | row)
                say(row_summary(model.run, row))
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # by SIGINT, by SIGTERM
        if is_stopped:
            say("Stopped. The rows so far are in quantize.csv; the scores of tasks are kept.")
        if rows:
            # A full disk stops the figure as well: the first error is the one to report.
            with contextlib.suppress(UserError, RunError, OSError):
                show_runs(runs, rows, results, study, max_kl, as_json, is_whole=False)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(error, OSError):
            raise RunError(f"What was measured could not be written: {error}.") from error
        raise
    if rows:
        show_runs(runs, rows, results, study, max_kl, as_json)
    if all(row["name"] == "bf16" or "loss" not in row for row in rows):
        raise RunError("No configuration could be measured; the table says why.")


def chosen(targets: list[str], results: Path, study: str) -> "list[Run]":
    """The runs that are meant; without targets the latest finished run of each arm."""
    from smolctl.cli.console import say
    from smolctl.studies.import_model import runs_or_imported
    from smolctl.studies.models import split_quantized
    from smolctl.studies.targets import finished_runs

    if not targets:
        runs = sorted(
            finished_runs(results, study), key=lambda run: str(run.manifest["finished_at"])
        )
        latest = {run.arm: run for run in runs}
        if len(latest) < len(runs):
            names = ", ".join(run.name for run in latest.values())
            say(f"The latest run of each arm: {names}; for all {len(runs)} name the arms.")
        return list(latest.values())
    if already := [target for target in targets if split_quantized(target)[1] is not None]:
        base, _ = split_quantized(already[0])
        raise UserError(
            f"{already[0]} is quantized already; give the run that it was made of: "
            f"{command('quantize', base, study=study, results=results)}"
        )
    runs = [run for target in targets for run in runs_or_imported(target, results, study)]
    return list({run.path.resolve(): run for run in runs}.values())
