"""Bad input: a sentence and exit code 2, in bounded time and memory, and nothing left behind."""

import functools
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from soak import child, damage
from soak.scenes import QUANTIZE, TASKS, TRAIN, copied
from soak.state import difference, state
from soak.trial import Result, Setup, last_line, unclean

BATCH = 22  # inputs that hypothesis generates together
PEAK = 2**30  # bytes
SHORT = [*TRAIN, "--steps", "1", "--name", "new"]
BASE = "results/runs/base"


def corpus(name: str) -> list[str]:
    """The training with another corpus."""
    return [name if word == "corpus.jsonl" else word for word in SHORT]


@dataclass(frozen=True)
class Kind:
    """A file that is damaged, and the commands that read it.

    Args:
        source: a good file of the template. The damaged one takes its place, or that of `target`.
    """

    template: str
    source: str
    damaged: damage.Damage
    commands: list[list[str]]
    target: str | None = None


READ_RUN = [
    ["runs"],
    ["runs", "show", "base"],
    ["report", "--out", "CARD.md"],
    ["generate", "base", "--prompt", "a", "--max-new-tokens", "2"],
    ["export", "base", "made", "--to", "hf"],
    ["eval", "base", *TASKS],
]
READ_STUDY = [
    ["runs", "--study", "small"],
    ["compare", "two", "one", "--study", "small"],
    ["report", "--study", "small"],
]
READ_MODEL = [
    ["generate", "./hf", "--prompt", "a", "--max-new-tokens", "2"],
    ["train", "--from", "./hf", *SHORT[3:]],
    ["quantize", "./hf", *QUANTIZE, "--data", "corpus.jsonl"],
]
READ_GGUF = [
    ["generate", "./bad.gguf", "--prompt", "a", "--max-new-tokens", "2"],
    ["export", "./bad.gguf", "made", "--to", "hf"],
]
TABLE = "results/small/two-s0"
KINDS = {
    "study": Kind("empty", "small.toml", damage.damaged_toml, [["study", "small.toml"]]),
    "variant": Kind("empty", "tiny.toml", damage.damaged_toml, [SHORT]),
    "defaults": Kind(
        "run", "smolctl.toml", damage.damaged_toml, [["runs"], SHORT[:-2], READ_RUN[3]]
    ),
    "manifest": Kind("run", f"{BASE}/run.json", damage.damaged_json, READ_RUN),
    "weights-sidecar": Kind(
        "run", f"{BASE}/checkpoints/final.json", damage.damaged_json, READ_RUN[3:]
    ),
    "weights": Kind(
        "run", f"{BASE}/checkpoints/final.safetensors", damage.damaged_safetensors, READ_RUN[3:]
    ),
    "study-manifest": Kind("study", f"{TABLE}/run.json", damage.damaged_json, READ_STUDY),
    "training-table": Kind("study", f"{TABLE}/train.csv", damage.damaged_csv, READ_STUDY),
    "scores-table": Kind("study", f"{TABLE}/eval.csv", damage.damaged_csv, READ_STUDY),
    "quantize-table": Kind("study", f"{TABLE}/quantize.csv", damage.damaged_csv, READ_STUDY),
    "quantized": Kind(
        "study",
        f"{TABLE}/quantized/int4-g32/model.json",
        damage.damaged_json,
        [
            [
                "generate",
                "two-s0+int4-g32",
                "--study",
                "small",
                "--prompt",
                "a",
                "--max-new-tokens",
                "2",
            ]
        ],
    ),
    "config": Kind("run", "hf/config.json", damage.damaged_json, READ_MODEL),
    "model-weights": Kind("run", "hf/model.safetensors", damage.damaged_safetensors, READ_MODEL),
    "model-tokenizer": Kind("run", "hf/tokenizer.json", damage.damaged_json, READ_MODEL[:2]),
    "tokenizer-config": Kind(
        "run", "hf/tokenizer_config.json", damage.damaged_json, READ_MODEL[:2]
    ),
    "gguf": Kind(
        "run",
        "base.gguf",
        damage.damaged_bytes,
        READ_GGUF,
        "bad.gguf",
    ),
    "tokenizer": Kind(
        "run",
        "hf/tokenizer.json",
        damage.damaged_json,
        [["prepare", "--data", "corpus.jsonl", "--tokenizer", "hf", "--out", "made"]],
    ),
    "prepared": Kind(
        "run",
        "prepared/data.json",
        damage.damaged_json,
        [[*corpus("prepared")[:5], *corpus("prepared")[7:]]],
    ),
    "jsonl": Kind(
        "empty", "corpus.jsonl", damage.damaged_lines, [corpus("bad.jsonl")], "bad.jsonl"
    ),
    "gzip": Kind(
        "empty", "corpus.jsonl", damage.damaged_gzip, [corpus("bad.jsonl.gz")], "bad.jsonl.gz"
    ),
    "text": Kind("empty", "corpus.jsonl", damage.damaged_text, [corpus("bad.txt")], "bad.txt"),
    "parquet": Kind(
        "empty", "corpus.jsonl", damage.damaged_parquet, [corpus("bad.parquet")], "bad.parquet"
    ),
    "questions": Kind(
        "run", "questions/piqa_validation.jsonl", damage.damaged_lines, [READ_RUN[5]]
    ),
}


def option_values() -> st.SearchStrategy[list[str]]:
    """Commands with odd values of their options and names."""
    values = (damage.odd_texts | st.sampled_from(damage.NUMBERS).map(str)).map(
        lambda text: text.replace("\0", "").encode("utf-8", "ignore").decode()
    )
    options = {
        tuple(SHORT[:-2]): [
            *("--steps", "--lr", "--seed", "--set", "--optimizer", "--micro-batch-size"),
            *("--seq-len", "--tokens", "--name", "--study", "--from", "--resume"),
        ],
        ("eval", "base", *TASKS): ["--limit", "--tokens", "--dtype", "--batch-size", "--data-dir"],
        ("quantize", "base", *QUANTIZE[2:]): ["--bits", "--backend", "--method", "--embedding"],
        ("generate", "base", "--prompt", "a"): ["--max-new-tokens", "--top-p", "--top-k", "--seed"],
        ("export", "base", "made", "--to", "gguf"): ["--dtype", "--study", "--to"],
        ("report", "--study"): [""],
        ("runs", "show"): [""],
        ("prepare", "--out", "made", "--tokenizer", "train:320", "--data"): [""],
        ("compare", "base"): [""],
        ("report",): ["--section", "--also", "--check"],
    }  # fmt: skip
    return st.sampled_from(list(options)).flatmap(
        lambda command: st.builds(
            lambda option, value: [*command, *([option] if option else []), value],
            st.sampled_from(options[command]),
            values,
        )
    )


SUBJECTS = (*KINDS, "options")


def template(subject: str) -> str:
    """The name of the template that the trials of a subject copy."""
    return KINDS[subject].template if subject in KINDS else "run"


def run(
    setup: Setup, subject: str, number: int, rng: random.Random, seed: int, folder: Path
) -> Result:
    """Give a command the input of that number."""
    result = Result()
    kind, made = KINDS.get(subject), generated(setup, subject, number, seed)
    work = copied(setup.templates[template(subject)], folder)
    if kind is None:
        arguments = made
    else:
        (work / (kind.target or kind.source)).write_bytes(made)
        arguments = rng.choice(kind.commands)
    before = state(work, parse=False)
    ended = child.command(arguments, work, cpu_seconds=child.CPU_SECONDS)
    result.counts["bad inputs"] += 1
    result.counts[f"exit code {ended.code}"] += 1
    result.steps.append(f"smolctl {shlex.join(arguments)}")
    result.problem = wrong(ended)
    if result.problem is None and ended.code:
        left = difference(before, state(work, parse=False))
        result.problem = left and f"exit code {ended.code}, but {left}"
    return result


def wrong(ended: child.Ended) -> str | None:
    """What is wrong with how a command ended that was given bad input."""
    if problem := unclean(ended):
        return problem
    if ended.code not in (0, 2):
        return f"exit code {ended.code}: {last_line(ended)}"
    if ended.was_killed or ended.cpu > child.CPU_SECONDS:
        return f"it took more than {child.CPU_SECONDS} s"
    if ended.peak > PEAK:
        return f"it took {ended.peak / 2**20:.0f} MB"
    return None


def generated(setup: Setup, subject: str, number: int, seed: int) -> Any:
    """A file's bytes or, for options, the arguments: the value of that number among those that
    hypothesis draws with this seed."""
    if subject in KINDS:
        kind = KINDS[subject]
        content = (setup.templates[kind.template] / kind.source).read_bytes()
        values = batch(kind.damaged, (content,), f"{seed}/{number // BATCH}")
    else:
        values = batch(option_values, (), f"{seed}/{number // BATCH}")
    return values[number % BATCH % len(values)]


@functools.cache
def batch(strategy: Callable[..., Any], arguments: tuple[Any, ...], seed: str) -> list[Any]:
    """Values of a strategy, of which the first is the plainest."""
    values = []

    @seeded(seed)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(*arguments))
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values
