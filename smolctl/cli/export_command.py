"""`smolctl export`: a run's weights for transformers or llama.cpp."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.console import print_facts, print_json, say
from smolctl.cli.options import Json, License, Results, Study
from smolctl.command_line import RESULTS, STUDY
from smolctl.units import counted
from smollm2.errors import RunError, UserError, did_you_mean
from smollm2.files import FULL, absolute, replacing
from smollm2.runs.load_run import load_run_tokenizer, text_bounds
from smollm2.runs.text_settings import chat_template, text_settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from smolctl.studies.models import Model

EXAMPLES = """
**Examples**

- `smolctl export pow2-5000-s0 --to hf pow2-hf`

- a fine-tune, with the license of its weights in the card:
  `smolctl export tuned --to hf tuned-hf --license apache-2.0`

- `smolctl export pow2-5000-s0 --to gguf pow2.gguf`

- `smolctl export pow2-5000-s0 --to gguf pow2-q8.gguf --dtype q8_0`
"""

TARGETS = ("hf", "gguf")
PROMPT = "Once upon a time"
LLAMA = "llama-completion"  # the program of llama.cpp that continues a text


def export(
    target: Annotated[
        str,
        typer.Argument(
            help="A run, a variant with one finished run, a run directory, a Hugging Face folder "
            "(./NAME), a GGUF file (./model.gguf) or hf:ORG/NAME."
        ),
    ],
    path: Annotated[
        Path, typer.Argument(help="Folder (hf) or file (gguf) to write; it must not exist.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="hf (a folder for transformers, with a model card) or gguf (a file for llama.cpp)."
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="hf: bf16 or fp32 (the weights as trained); default: the run's dtype. "
            "gguf: f16 (default), f32, bf16, q8_0 or q4_0.",
            show_default=False,
        ),
    ] = None,
    license: License = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Write a run's weights and tokenizer for transformers or llama.cpp.

    A folder for transformers contains the card of the run's study as README.md, with its figures.
    """
    from smolctl.studies.models import one_model

    if to not in TARGETS:
        raise UserError(f"Unknown --to {to!r}.{did_you_mean(to, TARGETS)} Choose hf or gguf.")
    with writing(path):
        require_new_file(path, to)
    require_dtype(dtype, to)
    if license is not None and to != "hf":
        raise UserError("--license is for the card of --to hf; omit it.")
    model = one_model(target, results, study)
    if model.quantized is not None:
        raise UserError(
            f"{model.label} is quantized for smolctl's own kernels. Export its run, "
            f"{model.run.name}, with --to gguf --dtype q8_0 (8 bits) or q4_0 (4 bits)."
        )
    with writing(path):
        if to == "hf":
            record = export_hf(model, path, dtype, license)
        else:
            record = export_gguf(model, path, dtype)
    if as_json:
        print_json({"study": model.run.study, "run": model.run.name, "to": to} | record)
        return
    if to == "hf" and dtype is None and record["dtype"] != "float32":
        say(f"Weights in {record['dtype']}, as the run is scored; --dtype fp32 keeps them exact.")
    show_export(model, path, to, record)


def require_new_file(path: Path, to: str) -> None:
    """Raise `UserError` if a file would be replaced or the parent folder is missing."""
    is_free = to == "hf" and path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_free:
        what = "a new or an empty folder" if to == "hf" else "a new file"
        raise UserError(f"{path} exists already; name {what}.")
    if path.exists() and path.samefile(
        Path.cwd()
    ):  # replacing it would leave the shell without a folder
        raise UserError(f"{path} is the current folder; name another.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder {path.parent}; create it first, or name another.")


def require_dtype(dtype: str | None, to: str) -> None:
    """Validate the dtype before a model is imported.

    Raises:
        UserError: there is no such dtype.
    """
    from smollm2.device import resolve_dtype
    from smollm2.interop.gguf import DTYPES, require_writer

    if to == "gguf":
        require_writer(dtype or DTYPES[0])
    else:
        resolve_dtype(dtype, "cpu")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context manager that reports a failure to write `path` in a sentence."""
    try:
        yield
    except OSError as error:
        sentence = f"Cannot write {path}: {error.strerror or error}."
        raise (RunError if error.errno in FULL else UserError)(sentence) from None


def export_hf(model: "Model", path: Path, dtype: str | None, license: str | None) -> dict[str, Any]:
    """Write the folder; `license` is for its card.

    Raises:
        UserError: an unknown dtype, or a file of the run that is missing or damaged.
    """
    from smolctl.report.run_card import write_card
    from smollm2.device import resolve_dtype
    from smollm2.interop.hf import save_hf

    run = model.run
    dtype = run.protocol.dtype if dtype is None else resolve_dtype(dtype, "cpu")
    bounds, settings = text_bounds(run, load_run_tokenizer(run)), text_settings_of(run)
    state = model.load("cpu", dtype).state_dict()

    with replacing(absolute(path)) as folder:
        tokenizer = run.path / "tokenizer.json"
        save_hf(folder, state, run.protocol.model, tokenizer, bounds, settings)
        card = write_card(run, folder, license)
    return export_record(path, dtype, state) | {"card": card}


def export_gguf(model: "Model", path: Path, dtype: str | None) -> dict[str, Any]:
    """Write the file.

    Raises:
        UserError: see `save_gguf`; or a file of the run is missing or damaged.
    """
    from smollm2.interop.gguf import DTYPES, require_gguf, save_gguf

    run, dtype = model.run, dtype or DTYPES[0]
    require_gguf(run.protocol.model, dtype)
    tokenizer = load_run_tokenizer(run)
    state = model.load("cpu", "float32").state_dict()
    bounds = text_bounds(run, tokenizer)
    save_gguf(
        path,
        state,
        run.protocol.model,
        tokenizer,
        dtype=dtype,
        name=run.name,
        bounds=bounds,
        template=chat_template(text_settings_of(run)),
    )
    return export_record(path, dtype, state)


def export_record(path: Path, dtype: str, state: "Mapping[str, Tensor]") -> dict[str, Any]:
    """What was written: parameters, and bytes by file."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {
        "path": str(path),
        "dtype": dtype,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "files": {
            file.relative_to(path).as_posix() if file != path else file.name: file.stat().st_size
            for file in files
            if file.is_file()
        },
    }


def show_export(model: "Model", path: Path, to: str, record: dict[str, Any]) -> None:
    """Print what was written, and how to use it."""
    files = record["files"]
    figures = [size for name, size in files.items() if name.startswith("figures/")]
    pairs = [("parameters", f"{record['parameters']:,}"), ("dtype", record["dtype"])]
    if to == "hf":
        pairs.append(("card", record["card"]))
    pairs += [(name, f"{files[name]:,} bytes") for name in files if "/" not in name]
    if figures:
        pairs.append(("figures/", f"{sum(figures):,} bytes in {counted(len(figures), 'file')}"))
    print_facts(f"{model.run.name} in {path}", pairs, is_result=False)
    if to == "gguf":
        words = [LLAMA, "-m", str(path), "-p", PROMPT, "-n", "64", "-no-cnv"]
        if shutil.which(LLAMA) is None:
            say(f"With llama.cpp, which is not installed here: {shlex.join(words)}")
            return
    else:
        load = f'pipeline("text-generation", {json.dumps(str(path))})'
        text = f'{load}("{PROMPT}", max_new_tokens=64, do_sample=False)[0]["generated_text"]'
        words = ["python", "-c", f"from transformers import pipeline; print({text})"]
    say(f"Next: {shlex.join(words)}")
