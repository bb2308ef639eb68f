"""`smolctl export`: a run's weights for transformers or llama.cpp."""

import contextlib
import errno
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study
from smollm2.errors import RunError, UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from smolctl.models import Model

EXAMPLES = """
**Examples**

- `smolctl export pow2-5000-s0 --to hf pow2-hf`

- `smolctl export pow2-5000-s0 --to gguf pow2.gguf`

- `smolctl export pow2-5000-s0 --to gguf pow2-q8.gguf --dtype q8_0`
"""

TARGETS = ("hf", "gguf")
PROMPT = "Once upon a time"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # NumPy's error of a short write has none


def export(
    target: Annotated[
        str, typer.Argument(help="A run, a variant with one finished run, or a run's directory.")
    ],
    path: Annotated[Path, typer.Argument(help="The folder (hf) or file (gguf) to write; new.")],
    to: Annotated[
        str,
        typer.Option(
            help="hf, a folder for transformers with a model card, or gguf, a file for llama.cpp."
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="hf: bf16 or fp32 (the weights as they are); default the run's, as it is scored. "
            "gguf: f16 (the default), f32, bf16, q8_0 or q4_0.",
            show_default=False,
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Write a run's weights and tokenizer for transformers or llama.cpp.

    A folder for transformers has the card of the run's study as its README.md, with the figures.
    """
    import json
    import sys

    from smolctl.console import say
    from smolctl.models import one_model

    if to not in TARGETS:
        raise UserError(f"Unknown --to {to!r}.{did_you_mean(to, TARGETS)} Choose hf or gguf.")
    with writing(path):
        require_new(path, to)
    require_dtype(dtype, to)
    model = one_model(target, results, study)
    if model.quantized is not None:
        raise UserError(
            f"{model.label} is quantized for smolctl's own kernels; export the run that it was "
            f"made of, {model.run.name}, with --to gguf --dtype q8_0 for 8 bits or q4_0 for 4."
        )
    with writing(path):
        record = export_hf(model, path, dtype) if to == "hf" else export_gguf(model, path, dtype)
    if as_json:
        json.dump({"study": model.run.study, "run": model.run.name, "to": to} | record, sys.stdout)
        sys.stdout.write("\n")
        return
    if to == "hf" and dtype is None and record["dtype"] != "float32":
        say(f"Weights in {record['dtype']}, as the run is scored; --dtype fp32 rounds nothing.")
    show(model, path, to, record)


def require_new(path: Path, to: str) -> None:
    """Raise `UserError` if something would be replaced, or there is nowhere to write to."""
    is_free = to == "hf" and path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_free:
        what = "a new or an empty folder" if to == "hf" else "a new file"
        raise UserError(f"{path} exists already; name {what}.")
    if path.exists() and path.samefile(Path.cwd()):  # it is replaced, and the shell left nowhere
        raise UserError(f"{path} is the folder that you are in; name another.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder {path.parent}; make it first, or name another.")


def require_dtype(dtype: str | None, to: str) -> None:
    """Raise `UserError` if there is no such dtype, before a target is imported in vain."""
    from smollm2.device import resolve_dtype
    from smollm2.gguf import DTYPES, require_writer

    if to == "gguf":
        require_writer(dtype or DTYPES[0])
    else:
        resolve_dtype(dtype, "cpu")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in a sentence why `path` cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        sentence = f"Cannot write {path}: {error.strerror or error}."
        raise (RunError if error.errno in FULL else UserError)(sentence) from None
    except SafetensorError as error:
        raise RunError(f"Cannot write {path}: {error}.") from None


def export_hf(model: "Model", path: Path, dtype: str | None) -> dict[str, Any]:
    """Write the folder.

    Raises:
        UserError: an unknown dtype, or a file of the run that is missing or damaged.
    """
    from smolctl.run_card import write_card
    from smollm2.device import resolve_dtype
    from smollm2.files import write_folder
    from smollm2.hf import save_hf
    from smollm2.runs import absolute, load_run_tokenizer, text_bounds

    run, card = model.run, ""
    dtype = run.protocol.dtype if dtype is None else resolve_dtype(dtype, "cpu")
    bounds = text_bounds(run, load_run_tokenizer(run))
    state = model.load("cpu", dtype).state_dict()

    def write(folder: Path) -> None:
        nonlocal card
        save_hf(folder, state, run.protocol.model, run.path / "tokenizer.json", bounds)
        card = write_card(run, folder)

    write_folder(absolute(path), write)
    return described(path, dtype, state) | {"card": card}


def export_gguf(model: "Model", path: Path, dtype: str | None) -> dict[str, Any]:
    """Write the file.

    Raises:
        UserError: as `save_gguf`, or a file of the run is missing or damaged.
    """
    from smollm2.gguf import DTYPES, require_gguf, save_gguf
    from smollm2.runs import load_run_tokenizer, text_bounds

    run, dtype = model.run, dtype or DTYPES[0]
    require_gguf(run.protocol.model, dtype)
    tokenizer = load_run_tokenizer(run)
    state = model.load("cpu", "float32").state_dict()
    bounds = text_bounds(run, tokenizer)
    save_gguf(path, state, run.protocol.model, tokenizer, dtype=dtype, name=run.name, bounds=bounds)
    return described(path, dtype, state)


def described(path: Path, dtype: str, state: "Mapping[str, Tensor]") -> dict[str, Any]:
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


def show(model: "Model", path: Path, to: str, record: dict[str, Any]) -> None:
    """What was written, and how to use it."""
    import json

    from smolctl.console import facts, say

    files = record["files"]
    figures = [size for name, size in files.items() if name.startswith("figures/")]
    pairs = [("parameters", f"{record['parameters']:,}"), ("dtype", record["dtype"])]
    if to == "hf":
        pairs.append(("card", record["card"]))
    pairs += [(name, f"{files[name]:,} bytes") for name in files if "/" not in name]
    if figures:
        pairs.append(("figures/", f"{sum(figures):,} bytes in {len(figures)} files"))
    facts(f"{model.run.name} in {path}", pairs)
    if to == "gguf":
        words = ["llama-completion", "-m", str(path), "-p", PROMPT, "-n", "64", "-no-cnv"]
    else:
        load = f'pipeline("text-generation", {json.dumps(str(path))})'
        text = f'{load}("{PROMPT}", max_new_tokens=64, do_sample=False)[0]["generated_text"]'
        words = ["python", "-c", f"from transformers import pipeline; print({text})"]
    say(f"Next: {shlex.join(words)}")
