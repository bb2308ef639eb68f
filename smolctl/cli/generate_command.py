"""`smolctl generate`: continue a text with a run."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.cli.console import print_at_once, print_json, say, warn
from smolctl.cli.options import Json, Results, Study, complete_target, is_typed
from smolctl.command_line import RESULTS, STUDY
from smollm2.errors import UserError
from smollm2.runs.load_run import stop_tokens

if TYPE_CHECKING:
    from smolctl.studies.models import Loaded

EXAMPLES = """
**Examples**

- `smolctl generate pow2-5000-s0 --prompt "Once upon a time"`

- `smolctl generate pow2-5000-s0 --prompt "The sea" --temperature 0.8 --top-p 0.95 --seed 1`

- `smolctl generate pow2-5000-s0 --max-new-tokens 256 --stats < chapter.txt`

- `smolctl generate hf:HuggingFaceTB/SmolLM2-135M --prompt "Once upon a time"`
"""


# New tokens of `pow2`, in one text or several, from which compiling and then decoding is faster
# than decoding eagerly: 800 in bf16 and 1,700 in int4 (benchmarks/README.md).
COMPILING_PAYS = 1500


def generate(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run, a variant with one finished run, a run directory, RUN+NAME (a quantized "
            "model), a Hugging Face folder (./NAME), a GGUF file (./model.gguf) or hf:ORG/NAME.",
            autocompletion=complete_target,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to continue (default: stdin, without its last line break).",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Stop after this many tokens, or earlier if the text ends.")
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option(
            help="0 takes the most likely token; 1 samples from the model's distribution."
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            help="Sample from the most likely tokens that together have this probability."
        ),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Sample from this many most likely tokens; 0 means all.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Drop the start of a prompt that is too long.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or mps (default: the run's, if available).", rich_help_panel="Machine"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32 or bf16 (default: the run's).", rich_help_panel="Machine"),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the decoding step first (17 to 26 s). On a CPU this pays off from "
            f"{COMPILING_PAYS} new tokens. The code is kept, and used from then on by default.",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print the speed to stderr.")] = False,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Continue a text with a trained run or an imported model.

    Only the continuation goes to stdout, token by token. Without --temperature the most likely
    token is always taken, so the text is the same each time with the same code: eager or compiled.
    Compiled code rounds differently and may choose another token where two are nearly equal. On a
    terminal, control characters are shown as escapes; a file or a program gets the text as it is.
    """
    from smolctl.studies.models import load_one
    from smollm2.inference.compiled_step import has_kept_step
    from smollm2.inference.decoder import Decoder, Sampling, TextStream
    from smollm2.inference.decoder import generate as decode

    sampling = Sampling(temperature, top_p, top_k, seed)
    if temperature == 0 and any(is_typed(context, name) for name in ("top_p", "top_k", "seed")):
        warn("--top-p, --top-k and --seed do nothing at --temperature 0.")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {max_new_tokens}.")
    text = read_prompt(prompt)
    loaded = load_one(target, results, study, device, dtype)
    tokens = prompt_tokens(text, loaded, max_new_tokens, truncate)
    kept = compiled is not False and has_kept_step(loaded.model)
    if compiled and not kept:
        say("Compiling the decoding step ...")
        if loaded.model.device.type == "cpu" and max_new_tokens < COMPILING_PAYS:
            warn(
                f"On a CPU, compiling takes longer than it saves below about {COMPILING_PAYS} new "
                "tokens. Its code is kept, so later texts count as well."
            )
    decoder = Decoder(loaded.model, len(tokens) + max_new_tokens, compiled)
    if decoder.compiled and compiled is None:
        say("Decoding with code compiled earlier; --no-compile does without.")
    stream, times, new = TextStream(loaded.tokenizer), [time.perf_counter()], []
    ends = stop_tokens(loaded.source.run, loaded.tokenizer)
    try:
        for token in decode(
            decoder, tokens, max_new_tokens=max_new_tokens, sampling=sampling, ends=ends
        ):
            times.append(time.perf_counter())
            new.append(token)
            if piece := stream.add(token):
                show_piece(piece, as_json)
        show_piece(stream.rest() + "\n", as_json)
    except KeyboardInterrupt:
        show_piece("\n", as_json)
        raise typer.Exit(130) from None
    speeds = speed(len(tokens), times)
    if as_json:
        record = {
            "study": loaded.source.run.study,
            "run": loaded.source.label,
            "prompt": text,
            "prompt_tokens": len(tokens),
            "text": loaded.tokenizer.decode(new),
            "tokens": new,
            "stopped_by": "end-of-text" if len(new) < max_new_tokens else "max-new-tokens",
            "prefill_tokens_per_second": speeds[0],
            "decode_tokens_per_second": speeds[1],
            "device": loaded.model.device.type,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "compiled": decoder.compiled,
        }
        print_json(record)
    if stats:
        say(f"Prompt: {said(len(tokens), speeds[0])}. New: {said(len(new), speeds[1])}.")


def read_prompt(prompt: str | None) -> str:
    """The text of --prompt, or else stdin.

    Raises:
        UserError: it is empty or not UTF-8.
    """
    try:
        if prompt is None and sys.stdin.isatty():
            raise UserError('There is nothing to continue; give --prompt "Once upon a time".')
        text = sys.stdin.read().removesuffix("\n").removesuffix("\r") if prompt is None else prompt
        text.encode()
    except UnicodeError:
        raise UserError("The prompt is not UTF-8 text; convert it first.") from None
    if not text:
        raise UserError('The prompt is empty; give some text, such as --prompt "Once upon a time".')
    return text


def prompt_tokens(text: str, loaded: "Loaded", max_new_tokens: int, truncate: bool) -> list[int]:
    """The tokens of `text`; with `truncate`, the last ones that fit, with a warning.

    Raises:
        UserError: they do not fit into the model's context.
    """
    from smollm2.data import encode_text

    context = loaded.model.config.max_seq_len
    room = context - max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens; give at most {context - 1}."
        )
    tokens = encode_text(loaded.tokenizer, text)
    if len(tokens) > room:
        numbers = (
            f"The prompt has {len(tokens)} tokens, but only {room} fit into the model's "
            f"context of {context} with --max-new-tokens {max_new_tokens}"
        )
        if not truncate:
            raise UserError(f"{numbers}; shorten it, or drop its start with --truncate.")
        warn(f"{numbers}: the first {len(tokens) - room} are dropped.")
        tokens = tokens[-room:]
    run = loaded.source.run
    if run.is_imported:  # its training is unknown
        return tokens
    if len(tokens) + max_new_tokens > (seen := run.protocol.seq_len):
        warn(
            f"{run.name} was trained on sequences of {seen} tokens; expect worse text beyond that."
        )
    return tokens


def show_piece(piece: str, as_json: bool) -> None:
    """Print at once, unless JSON follows."""
    if not as_json:
        print_at_once(piece)


def speed(n_prompt: int, times: list[float]) -> tuple[float | None, float | None]:
    """Tokens per second of the prompt and of the new tokens; None if not measured.

    Args:
        times: clock readings in seconds, at the start and at each new token.
    """
    if len(times) < 2:
        return None, None
    start, first, last = times[0], times[1], times[-1]
    return n_prompt / (first - start), (len(times) - 2) / (last - first) if last > first else None


def said(n: int, tokens_per_second: float | None) -> str:
    """`12 tokens, 345.6 tokens/s`."""
    rate = "not measured" if tokens_per_second is None else f"{tokens_per_second:,.1f} tokens/s"
    return f"{n} tokens, {rate}"
