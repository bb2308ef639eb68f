"""What the campaign runs: folders with small inputs, and a command of each kind in one of them."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak import child
from support.questions import ROWS, write
from support.tiny import TINY_VARIANT

TRAIN = [
    *("train", "--variant", "tiny.toml", "--data", "corpus.jsonl", "--tokenizer", "train:320"),
    *("--seq-len", "32", "--micro-batch-size", "2", "--val-every", "3", "--val-tokens", "64"),
    *("--test-tokens", "64", "--dtype", "fp32", "--no-compile", "--device", "cpu"),
]
TASKS = ["--tasks", "piqa", "--data-dir", "questions"]
QUANTIZE = ["--bits", "4", "--group-size", "32", "--tokens", "128", "--no-speed", *TASKS]
STUDY = """
seeds = [0]
[arms]
two = { variant = "pow2", set = ["n_layers=2", SIZE] }
one = { variant = "pow2", set = ["n_layers=1", SIZE] }
[train]
scale = "nano"  # whose speed is not measured, which would take a compilation
steps = 2
seq_len = 32
micro_batch_size = 2
data = "corpus.jsonl"
tokenizer = "train:320"
val_tokens = 64
test_tokens = 64
dtype = "fp32"
[eval]
tasks = "piqa"
data_dir = "questions"
[quantize]
models = ["int4-g32"]
tokens = 128
""".replace(
    "SIZE",
    '"d_model=32", "n_heads=2", "n_kv_heads=1", "d_ff=64", "vocab_size=320", "max_seq_len=64"',
)


@dataclass(frozen=True)
class Scene:
    """A command, and the template of the folder that it runs in.

    Args:
        outputs: files and folders it makes outside runs, which are whole or absent at any time.
        resumed: the run that it trains. Once that exists, the command to type is `--resume`.
    """

    template: str
    arguments: list[str]
    outputs: tuple[str, ...] = ()
    resumed: str | None = None

    def again(self, work: Path) -> list[str]:
        """What a user types after a stop."""
        if self.resumed and (work / "results/runs" / self.resumed / "run.json").exists():
            return ["train", "--resume", self.resumed, "--checkpoint-every", "2"]
        return self.arguments


SCENES = {
    "train": Scene(
        "empty",
        [*TRAIN, "--steps", "6", "--checkpoint-every", "2", "--keep-step", "4", "--name", "new"],
        resumed="new",
    ),
    "study": Scene("empty", ["study", "small.toml"]),
    "eval": Scene("run", ["eval", "base", "--tasks", "test,piqa", *TASKS[2:]]),
    "quantize": Scene("run", ["quantize", "base", *QUANTIZE]),
    "report": Scene(
        "study",
        [
            *("report", "--study", "small", "--out", "CARD.md", "--appendix", "APPENDIX.md"),
            *("--html", "page.html"),
        ],
        outputs=("CARD.md", "APPENDIX.md", "page.html"),
    ),
    "export-hf": Scene("run", ["export", "base", "made", "--to", "hf"], outputs=("made",)),
    "export-gguf": Scene(
        "run", ["export", "base", "made.gguf", "--to", "gguf"], outputs=("made.gguf",)
    ),
    "import": Scene(
        "run",
        [
            *("train", "--from", "./hf", "--data", "corpus.jsonl", "--steps", "4", "--seq-len"),
            *("32", "--micro-batch-size", "2", "--val-tokens", "128", "--test-tokens", "64"),
            *("--dtype", "fp32", "--no-compile", "--checkpoint-every", "2", "--name", "new"),
        ],
        resumed="new",
    ),
    "import-quantize": Scene("run", ["quantize", "./hf", *QUANTIZE, "--data", "corpus.jsonl"]),
    "prepare": Scene(
        "empty",
        ["prepare", "--data", "corpus.jsonl", "--tokenizer", "train:320", "--out", "made"],
        outputs=("made",),
    ),
}


def make_templates(folder: Path, scenes: set[str]) -> dict[str, Path]:
    """The folders that trials copy: `empty` with inputs alone, `run` with a run, a model and a
    prepared folder, and, if one of the scenes asks for it, `study` with a study."""
    templates = {name: folder / name / "work" for name in ("empty", "run", "study")}
    fill(templates["empty"])
    base = [*TRAIN, "--steps", "3", "--name", "base"]
    model = ["export", "base", "hf", "--to", "hf"]
    file = ["export", "base", "base.gguf", "--to", "gguf"]
    heavy = [SCENES[name].arguments for name in ("quantize", "export-gguf") if name in scenes]
    child.import_as([base, model, *heavy], copied(templates["empty"], folder / "first"))
    run = copied(templates["empty"], templates["run"].parent)
    prepared = [*SCENES["prepare"].arguments[:-1], "prepared"]
    for arguments in (base, model, file, prepared):
        done(child.command(arguments, run))
    (run / "smolctl.toml").write_text('results = "results"\nstudy = "runs"\n')
    if any(SCENES[name].template == "study" for name in scenes):
        study = copied(templates["empty"], templates["study"].parent)
        done(child.command(SCENES["study"].arguments, study))
    return templates


def fill(work: Path) -> None:
    """A corpus of made-up sentences, a variant, a study file and questions."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(100)]
    work.mkdir(parents=True)
    with (work / "corpus.jsonl").open("w") as file:
        for _ in range(60):
            text = " ".join(rng.choices(words, weights=range(1, 101), k=60))
            file.write(json.dumps({"text": f"{text}."}) + "\n")
    (work / "tiny.toml").write_text(TINY_VARIANT.replace("512", "320"))
    (work / "small.toml").write_text(STUDY)
    (work / "questions").mkdir()
    piqa: Any = ROWS["piqa"]
    rows = [piqa | {"goal": f"dry {i}", "label": i % 2} for i in range(4)]
    write(work / "questions", "piqa_validation.jsonl", rows)


def copied(template: Path, trial: Path) -> Path:
    """A copy of a template as the folder `work` of a new trial."""
    return Path(shutil.copytree(template, trial / "work", symlinks=True, dirs_exist_ok=True))


def done(ended: child.Ended) -> child.Ended:
    """Raise unless a command succeeded."""
    if ended.code:
        raise RuntimeError(f"smolctl {' '.join(ended.arguments)}: {ended.code}\n{ended.err}")
    return ended
