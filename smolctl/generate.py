"""`smolctl generate`: a run continues a text."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study, complete_target, is_typed
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.models import Loaded

EXAMPLES = """
**Examples**

- `smolctl generate pow2-5000-s0 --prompt "Once upon a time"`

- `smolctl generate pow2-5000-s0 --prompt "The sea" --temperature 0.8 --top-p 0.95 --seed 1`

- `smolctl generate pow2-5000-s0 --max-new-tokens 256 --stats < chapter.txt`

- `smolctl generate hf:HuggingFaceTB/SmolLM2-135M --prompt "Once upon a time"`
"""


# New tokens of `pow2` that take as long to write eagerly as compiling and writing them does:
# 1,300 to 2,000 with the width of its weights (benchmarks/README.md).
COMPILING_PAYS = 1500


def generate(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="A run, a variant with one finished run, a run's directory, RUN+NAME for a "
            "quantized one, a Hugging Face folder (./NAME) or hf:ORG/NAME.",
            autocompletion=complete_target,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue; default what comes on stdin, without its last line break.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Stop after so many, or before at the end of the text.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token, 1 draws from the model.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most likely tokens that together have this share.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Drop the beginning of a prompt that is too long.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; default the run's, if it is here.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default the run's.")] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile a step first: some 13 s, which on a CPU pay from "
            f"{COMPILING_PAYS} new tokens on.",
        ),
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say the speed, on stderr.")] = False,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Continue a text, token by token, with a trained run or an imported model.

    The continuation alone goes to stdout, as it is made. Without --temperature it is the same each
    time: the most likely token, always.
    """
    import json

    from smolctl.console import say, warn
    from smolctl.models import load_one
    from smollm2.generate import Decoder, Sampling, TextStream
    from smollm2.generate import generate as decode
    from smollm2.runs import text_bounds

    sampling = Sampling(temperature, top_p, top_k, seed)
    if temperature == 0 and any(is_typed(context, name) for name in ("top_p", "top_k", "seed")):
        warn("--top-p, --top-k and --seed do nothing at --temperature 0.")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {max_new_tokens}.")
    text = read_prompt(prompt)
    loaded = load_one(target, results, study, device, dtype)
    tokens = prompt_tokens(text, loaded, max_new_tokens, truncate)
    if compiled:
        say("Compiling a step ...")
        if loaded.model.device.type == "cpu" and max_new_tokens < COMPILING_PAYS:
            warn(
                f"On a CPU compiling takes longer than it saves below some {COMPILING_PAYS} new "
                f"tokens; without --compile these {max_new_tokens} come sooner."
            )
    decoder = Decoder(loaded.model, len(tokens) + max_new_tokens, compiled)
    stream, times, new = TextStream(loaded.tokenizer), [time.perf_counter()], []
    ends = text_bounds(loaded.source.run, loaded.tokenizer).ends
    try:
        for token in decode(
            decoder, tokens, max_new_tokens=max_new_tokens, sampling=sampling, ends=ends
        ):
            times.append(time.perf_counter())
            new.append(token)
            if piece := stream.add(token):
                show(piece, as_json)
        show(stream.rest() + "\n", as_json)
    except KeyboardInterrupt:
        show("\n", as_json)
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
            "compiled": compiled,
        }
        json.dump(record, sys.stdout)
        sys.stdout.write("\n")
    if stats:
        say(f"Prompt: {said(len(tokens), speeds[0])}. New: {said(len(new), speeds[1])}.")


def read_prompt(prompt: str | None) -> str:
    """The text of --prompt, else of stdin.

    Raises:
        UserError: there is none, or it is no text.
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
    """The tokens of `text`, of which the first are dropped with a warning if `truncate` and there
    is no room for all.

    Raises:
        UserError: there is no room for all of them, or for any.
    """
    from smolctl.console import warn

    context = loaded.model.config.max_seq_len
    room = context - max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens; give at most {context - 1}."
        )
    tokens = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    if len(tokens) > room:
        numbers = (
            f"The prompt has {len(tokens)} tokens, and {room} have room beside --max-new-tokens "
            f"{max_new_tokens} in the model's context of {context}"
        )
        if not truncate:
            raise UserError(f"{numbers}; shorten it, or drop its beginning with --truncate.")
        warn(f"{numbers}: the first {len(tokens) - room} are dropped.")
        tokens = tokens[-room:]
    run = loaded.source.run
    if run.is_imported:  # how it was trained is not known
        return tokens
    if len(tokens) + max_new_tokens > (seen := run.protocol.seq_len):
        warn(f"{run.name} was trained on {seen} tokens at a time; beyond them expect less.")
    return tokens


def show(piece: str, as_json: bool) -> None:
    """Print at once, unless JSON is to come."""
    if not as_json:
        sys.stdout.write(piece)
        sys.stdout.flush()


def speed(n_prompt: int, times: list[float]) -> tuple[float | None, float | None]:
    """Tokens a second until the first new one and after it, of the clock at the start and at each
    new token; None where there is nothing to measure."""
    if len(times) < 2:
        return None, None
    start, first, last = times[0], times[1], times[-1]
    return n_prompt / (first - start), (len(times) - 2) / (last - first) if last > first else None


def said(n: int, tokens_per_second: float | None) -> str:
    """`12 tokens, 345.6 tokens/s`."""
    rate = "not measured" if tokens_per_second is None else f"{tokens_per_second:,.1f} tokens/s"
    return f"{n} tokens, {rate}"
