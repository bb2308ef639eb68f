"""`smolctl generate`: continue a text with a run, or talk to one."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.console import print_json, say, warn
from smolctl.cli.options import Json, Results, Study, complete_target, is_typed
from smolctl.cli.prompts import prompt_tokens, read_prompt, require_utf8
from smolctl.cli.text_writer import (
    COMPILING_PAYS,
    TextWriter,
    decode_rate,
    prefill_rate,
    said_speed,
)
from smolctl.command_line import RESULTS, STUDY
from smollm2.errors import UserError
from smollm2.runs.load_run import stop_tokens

if TYPE_CHECKING:
    from smollm2.inference.text_stream import Continuation

EXAMPLES = """
**Examples**

- `smolctl generate pow2-5000-s0 --prompt "Once upon a time"`

- `smolctl generate pow2-5000-s0 --prompt "The sea" --temperature 0.8 --top-p 0.95 --seed 1 --n 3`

- `smolctl generate pow2-5000-s0 --max-new-tokens 256 --stats < chapter.txt`

- `smolctl generate hf:HuggingFaceTB/SmolLM2-135M --prompt "Q: How far is it?" --stop "Q:"`

- `smolctl generate ./SmolLM2-135M-Instruct --chat --prompt "What is the capital of France?"`

- `smolctl generate ./SmolLM2-135M-Instruct --chat --system "Answer in one sentence."`
"""

MOST_TEXTS = 1000  # of one prompt


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
            help="Text to continue, or with --chat a message (default: stdin, as it is).",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Put the prompt into the model's chat template, as a message of the user. On a "
            "terminal without --prompt: a conversation.",
        ),
    ] = False,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The system's message before a chat (default: what the template says).",
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
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="End the text before this one; may be repeated.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "--n", help="Texts to draw, with the seeds --seed, --seed + 1 and so on.", metavar="N"
        ),
    ] = 1,
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
        typer.Option(
            help="fp32 or bf16 (default: the run's; of a quantized model bf16, where that is "
            "native).",
            rich_help_panel="Machine",
        ),
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
    from smolctl.cli.conversation import chat_template_of, converse, opening
    from smolctl.studies.models import load_one
    from smollm2.data import special_ids
    from smollm2.inference.decoder import Sampling
    from smollm2.inference.text_stream import Ending

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {max_new_tokens}.")
    require_texts(n, temperature)
    samplings = [Sampling(temperature, top_p, top_k, seed + number) for number in range(n)]
    if temperature == 0 and any(is_typed(context, name) for name in ("top_p", "top_k", "seed")):
        warn("--top-p, --top-k and --seed do nothing at --temperature 0.")
    stops = stop or []
    if "" in stops:
        raise UserError("--stop must not be empty; give the text to stop before.")
    is_talk = chat and prompt is None and sys.stdin.isatty()
    require_chat_options(chat, is_talk, system, truncate, as_json, n)
    text = "" if is_talk else read_prompt(prompt)

    loaded = load_one(target, results, study, device, dtype)
    template = chat_template_of(loaded.source) if chat else None
    eos = template.special_tokens.get("eos_token", "") if template else ""
    ends = {
        *stop_tokens(loaded.source.run, loaded.tokenizer),
        *special_ids(loaded.tokenizer, [*stops, eos]),
    }
    writer = TextWriter(loaded, max_new_tokens, samplings, ends, stops, compiled, as_json)
    if template and is_talk:
        converse(writer, template, system, stats)
        return
    messages = [*opening(system), {"role": "user", "content": text}]
    written = template.prompt(messages) if template else text
    tokens = prompt_tokens(written, writer, truncate, chat)
    texts = []
    for each in writer.write(tokens):
        if each.ending is Ending.INTERRUPT:
            raise typer.Exit(130)
        texts.append(each)
    if as_json:
        about = {"prompt": text, "chat": chat, "system": system}
        print_json(about | json_record(writer, tokens, texts))
    if stats:
        say(said_speed(len(tokens), texts))


def require_texts(n: int, temperature: float) -> None:
    """Raise `UserError` unless `n` texts can be drawn."""
    if not 1 <= n <= MOST_TEXTS:
        raise UserError(f"--n must be from 1 to {MOST_TEXTS}, not {n}.")
    if n > 1 and temperature == 0:
        raise UserError(
            f"--n {n} at --temperature 0 would give the same text {n} times; give a --temperature, "
            "such as 0.8."
        )


def require_chat_options(
    chat: bool, is_talk: bool, system: str | None, truncate: bool, as_json: bool, n: int
) -> None:
    """Raise `UserError` if options of a chat, or of a conversation (`is_talk`), do not go
    together."""
    if system is not None and not chat:
        raise UserError("--system is the first message of a chat; give --chat as well.")
    if system is not None:
        require_utf8(system, "--system")
    if chat and truncate:
        raise UserError(
            "--truncate drops the start of the prompt, which with --chat is that of the template; "
            "omit it, and shorten the message."
        )
    if is_talk and (as_json or n > 1):
        option = "--json" if as_json else f"--n {n}"
        raise UserError(
            f'{option} is for one message, not for a conversation; give --prompt "Who are you?".'
        )


def json_record(
    writer: TextWriter, prompt: list[int], texts: "list[Continuation]"
) -> dict[str, Any]:
    """What --json prints of the texts. The fields of the first are those of the record as well."""
    continuations = [
        {
            "seed": sampling.seed,
            "text": text.text,
            "tokens": text.tokens,
            "stopped_by": text.ending,
        }
        for sampling, text in zip(writer.samplings, texts, strict=True)
    ]
    model, source = writer.loaded.model, writer.loaded.source
    return {
        "study": source.run.study,
        "run": source.label,
        "prompt_tokens": len(prompt),
        "prompt_ids": prompt,
        **continuations[0],
        "continuations": continuations,
        "prefill_tokens_per_second": prefill_rate(len(prompt), texts),
        "decode_tokens_per_second": decode_rate(texts),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "compiled": writer.decoder is not None and writer.decoder.compiled,
    }
