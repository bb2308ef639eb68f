"""`smolctl quantize`: quantize finished runs, and measure what that changes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Data, Json, Results, Study, complete_target, is_typed
from smollm2.errors import RunError, UserError

if TYPE_CHECKING:
    from smolctl.comparison import Comparison
    from smollm2.quantize.config import QuantConfig
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl quantize --bits 4`

- `smolctl quantize orig pow2 --bits 4 --group-size 32 --embedding 4`

- `smolctl quantize pow2 --sweep --tasks arc_easy --data-dir eval/`

- `smolctl quantize orig pow2 --dimensions`

- `smolctl quantize hf:HuggingFaceTB/SmolLM2-135M --bits 4 --data novels.jsonl.gz`
"""


def quantize(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs, variants, Hugging Face folders (./NAME) or hf:ORG/NAME; default the latest "
            "finished run of each variant.",
            autocompletion=complete_target,
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 4,
    backend: Annotated[str, typer.Option(help="torchao or bitsandbytes.")] = "torchao",
    method: Annotated[str, typer.Option(help="rtn (to nearest) or hqq, at 4 bits.")] = "rtn",
    group_size: Annotated[
        int | None,
        typer.Option(
            help="32, 64, 128 or 256 weights share a scale at 4 bits; default 64.",
            show_default=False,
        ),
    ] = None,
    embedding: Annotated[
        str,
        typer.Option(
            help="The embedding and the head, one matrix unless the model has two: 8 (by row), 4 "
            "(in groups as the rest, at --bits 8 of 64) or none."
        ),
    ] = "8",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Both backends, 8 bits and 4, every group size.")
    ] = False,
    dimensions: Annotated[
        bool,
        typer.Option(
            "--dimensions", help="Only which groups and kernels fit the variants; needs no run."
        ),
    ] = False,
    scale: Annotated[str, typer.Option(help="With --dimensions: full or nano.")] = "full",
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Validation tokens that the loss is measured on; default those of the rows that "
            "the run has, else 16,384.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Score these tasks too; see smolctl eval.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' questions; default the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of a task.")] = None,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Time prefill and decoding, at full size.")
    ] = True,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Time compiled decoding as well.")
    ] = True,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default the run's.")] = None,
    data: Data = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Quantize finished runs; measure bytes, validation loss and speed beside the original in bf16.

    What is saved in the run's quantized/ folder is a target of `smolctl eval` and
    `smolctl generate`, as RUN+NAME. The rows go to the run's quantize.csv.
    """
    import json
    import sys

    from smolctl.console import say
    from smolctl.models import Model
    from smolctl.quantizing import Quantizer, What, one_line
    from smolctl.scoring import questions, require_machine
    from smollm2.runs import final_weights

    def typed(*options: str) -> bool:
        return any(is_typed(context, option) for option in options)

    if sweep and typed("bits", "backend", "group_size"):
        raise UserError("--sweep tries every --bits, --backend and --group-size; leave them out.")
    if dimensions:
        if sweep or typed("group_size", "tokens", "tasks"):
            raise UserError("--dimensions measures nothing; give variants and --scale alone.")
        show_dimensions(targets, scale, as_json)
        return
    if typed("scale") and scale != "full":
        raise UserError("--scale is for --dimensions; a run has its own.")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {tokens}.")
    if tasks is None and typed("data_dir", "limit"):
        raise UserError("--data-dir and --limit are for tasks; name some with --tasks.")
    if sweep:
        bits, backend, group_size = 4, "torchao", None
    elif bits == 8 and not typed("group_size"):
        group_size = None  # in a file of defaults it is for 4 bits
    config = configuration(bits, backend, method, group_size, embedding)
    require_machine(device, None)
    runs = chosen(targets or [], results, study)
    configs = config.grid() if sweep else [config]
    if not sweep:
        require_fit(runs, config)
    asked = () if tasks is None else tuple(questions(tasks, data_dir, limit))
    if tasks is not None and not asked:
        raise UserError("--tasks takes multiple-choice tasks here: --tasks arc_easy, for example.")
    what = What(tokens, asked, speed, compiled)
    models = [Model(run, final_weights(run)) for run in runs]  # all of them before hours of work
    rows: list[dict[str, Any]] = []
    try:
        for model in models:
            quantizer = Quantizer(model, what, device=device, source=data)
            if quantizer.untimed:
                say(quantizer.untimed)
            for row in quantizer.measure(configs):
                rows.append({"study": model.run.study, "run": model.run.name} | row)
                say(one_line(model.run, row))
    except KeyboardInterrupt:
        say(
            "Stopped. The rows so far are in quantize.csv; the same command measures the rest, and "
            "the scores are kept."
        )
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"What was measured could not be written: {error}.") from error
    finally:
        if as_json and rows:
            json.dump(rows, sys.stdout)
            sys.stdout.write("\n")
        elif rows:
            show(runs, results, study)
    if all(row["name"] == "bf16" or "loss" not in row for row in rows):
        raise RunError("No configuration could be measured; the table says why.")


def configuration(
    bits: int, backend: str, method: str, group_size: int | None, embedding: str
) -> "QuantConfig":
    """The one that the options ask for; at 4 bits groups are of 64 unless they are given."""
    from smollm2.quantize.config import QuantConfig

    if embedding not in ("8", "4", "none"):
        raise UserError(f"--embedding takes 8, 4 or none, not {embedding}.")
    if bits == 4 and group_size is None:
        group_size = 64
    return QuantConfig(
        bits, backend, method, group_size, None if embedding == "none" else int(embedding)
    )


def chosen(targets: list[str], results: Path, study: str) -> "list[Run]":
    """The runs that are meant; without targets the latest finished run of each arm."""
    from smolctl.console import say
    from smolctl.importing import runs_or_imported
    from smolctl.models import split_quantized
    from smolctl.targets import finished_runs

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
        where = "" if study == STUDY else f" --study {study}"
        raise UserError(
            f"{already[0]} is quantized already; give the run that it was made of: "
            f"smolctl quantize {split_quantized(already[0])[0]}{where}"
        )
    runs = [run for target in targets for run in runs_or_imported(target, results, study)]
    return list({run.path.resolve(): run for run in runs}.values())


def require_fit(runs: "list[Run]", config: "QuantConfig") -> None:
    """Raise `UserError` if the configuration's backend is not installed or it fits no layer of any
    run."""
    from importlib.util import find_spec

    from smollm2.quantize.dimensions import GROUP_SIZES, weights

    if find_spec(config.backend) is None:
        raise UserError(
            f"{config.backend} is not installed: pip install {config.backend}, or choose another "
            "--backend."
        )
    size = config.group_size
    widths = {weight.n_in for run in runs for weight in weights(run.protocol.model)}
    if size is None or any(width % size == 0 for width in widths):
        return
    names = ", ".join(run.name for run in runs)
    fits = [str(size) for size in GROUP_SIZES if any(width % size == 0 for width in widths)]
    remedy = f"give --group-size {' or '.join(fits)}" if fits else "no group size does: --bits 8"
    raise UserError(
        f"Groups of {size} divide no layer of {names} (widths "
        f"{', '.join(map(str, sorted(widths)))}); {remedy}."
    )


def show(runs: "list[Run]", results: Path, study: str) -> None:
    """The tables of what the runs have in quantize.csv, what differs between arms, and a figure;
    an imported run is compared with no other."""
    from smolctl.console import say
    from smolctl.selection import compare_arms, only
    from smollm2.quantize.store import quantized_names

    arms: dict[str, list[Run]] = {}
    for run in runs:
        if not run.is_imported:
            arms.setdefault(run.arm, []).append(run)
    found = [compare_arms(study, arms)] if arms else []
    for comparison in found + [only(run) for run in runs if run.is_imported]:
        show_quantized(comparison, results, study)
    where = "" if study == STUDY else f" --study {study}"
    if arms:
        say(f"Next: smolctl report{where} --out {results / study / 'MODEL_CARD.md'}")
    for name in quantized_names(runs[0])[:1]:
        generate = f'smolctl generate {runs[0].name}+{name} --prompt "Once upon a time"{where}'
        say(f"{'      ' if arms else 'Next: '}{generate}")


def show_quantized(comparison: "Comparison", results: Path, study: str) -> None:
    """The tables and the figure of the arms of a comparison."""
    import sys

    from smolctl.console import say, table, warn
    from smolctl.quantization import quantized
    from smolctl.quantization_plots import quantization_figure
    from smolctl.quantization_tables import (
        configurations_table,
        notes_table,
        pairs_table,
        quantized_tasks_table,
    )
    from smolctl.quantization_words import quantization_conclusion
    from smollm2.evaluate import FEW_DOCUMENTS
    from smollm2.protocol import plain_name
    from smollm2.runs import LONGEST_NAME

    found = quantized(comparison)
    for sentence in (*found.comparison.left_out, *found.left_out, *found.task_notes):
        warn(sentence)
    tables = [configurations_table(arm, configs) for arm, configs in found.arms.items()]
    tables += [notes_table(found.arms), pairs_table(found), quantized_tasks_table(found)]
    for part in tables:
        if part.rows:
            table(part.title, part.header, part.rows, part.n_words)
    clusters = [one.mean("clusters") for configs in found.arms.values() for one in configs.values()]
    fewest = min(clusters, default=FEW_DOCUMENTS)
    if fewest == 1:
        say("One document has no standard error.")
    elif fewest < FEW_DOCUMENTS:
        say(f"Errors over documents are rough: there are only {fewest:.0f}.")
    for sentence in quantization_conclusion(found) if len(found.arms) > 1 else ():
        sys.stdout.write(f"- {sentence}\n")
    name = plain_name("-vs-".join(found.arms))[:LONGEST_NAME]
    path = results / study / "figures" / name / "quantization.png"
    say(f"Figure: {quantization_figure(found, path)}")


def show_dimensions(variants: list[str] | None, scale: str, as_json: bool) -> None:
    """Which groups and kernels fit the weights of variants, by default of all."""
    import json
    import sys

    from smolctl.console import table
    from smolctl.quantization_tables import dimensions_table, weights_table
    from smolctl.quantization_words import dimension_sentences
    from smollm2.config import VARIANTS, variant
    from smollm2.quantize.dimensions import dimension_rows

    configs = {spec: variant(spec, scale) for spec in variants or VARIANTS}
    if as_json:
        rows = [
            {"variant": spec} | row
            for spec, config in configs.items()
            for row in dimension_rows(config)
        ]
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return
    of_each = [weights_table(name, configs[name]) for name in variants or ()]
    for part in [*of_each, dimensions_table(configs)]:
        table(part.title, part.header, part.rows, part.n_words)
    for sentence in dimension_sentences(configs):
        sys.stdout.write(f"- {sentence}\n")
