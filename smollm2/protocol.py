"""What a run is: a request, resolved once into the frozen protocol that its manifest keeps.

`Request` is what a user types, with None for every default; `resolve` fills the defaults in and
`Protocol.on` ties the result to tokens. Two runs can be compared when their `controlled()` agrees.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.config import (
    ModelConfig,
    is_file_spec,
    replace_fields,
    split_setting,
    split_spec,
    variant,
)
from smollm2.cost import training_flops_per_token
from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.data import TokenData

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("wsd", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from how long and on what.

    The defaults follow the published training of SmolLM2-135M (AdamW, WSD; huggingface/smollm),
    except for the peak learning rate: that one was for a million tokens a step, `lr` here was
    chosen for a few thousand (see the README).
    """

    optimizer: str = "adamw"  # muon: Muon for the matrices of the layers, AdamW for the rest
    lr: float = 1e-3  # peak, AdamW
    muon_lr: float = 0.02  # peak, Muon
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01  # matrices under AdamW; norms and Muon's matrices have none
    momentum: float = 0.95  # Muon
    grad_clip: float = 1.0  # global norm of the gradient
    grad_accum: int = 1  # micro-batches a step
    balance_weight: float = 0.01  # of the experts' balance loss (Fedus et al. 2021)
    schedule: str = "wsd"  # linear warm-up, then constant and linear to final_lr; or cosine
    warmup: float = 0.05  # share of the schedule
    max_warmup_steps: int = 2000
    decay: float = 0.2  # share of the schedule, wsd only
    final_lr: float = 0.0  # share of the peak
    schedule_length: float = 1.0  # in horizons; above 1 the run ends before its schedule does

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"Unknown {name} {getattr(self, name)!r}; choose {' or '.join(choices)}."
                )
        for names, fits, wanted in (
            (("lr", "muon_lr", "eps", "grad_clip"), lambda x: 0 < x < math.inf, "positive"),
            (("beta1", "beta2", "momentum"), lambda x: 0 <= x < 1, "from 0 to less than 1"),
            (("warmup", "decay", "final_lr"), lambda x: 0 <= x <= 1, "from 0 to 1"),
            (("weight_decay", "balance_weight"), lambda x: 0 <= x < math.inf, "0 or more"),
            (("grad_accum", "schedule_length"), lambda x: 1 <= x < math.inf, "at least 1"),
            (("max_warmup_steps",), lambda x: x >= 0, "0 or more"),
        ):
            for name in names:
                value = getattr(self, name)
                if not fits(value):  # also where it is nan
                    needed = wanted if abs(value) < math.inf else "finite"
                    raise UserError(f"{name} must be {needed}, not {value}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The peak learning rate, and Muon's where it is used."""
        return (self.lr, self.muon_lr) if self.optimizer == "muon" else (self.lr,)


RECIPES: dict[str, Recipe] = {
    "smollm2": Recipe(),
    # What the public code behind the power-of-two study did: 12 micro-batches an update, and a
    # cosine whose length counted micro-batches but which moved once an update, so that it hardly
    # decays and warms up for 60 % of the run. Its dropout, QK-norm and scaled embeddings are
    # architecture and not part of this.
    "seed": Recipe(
        optimizer="muon",
        lr=3e-3,
        beta2=0.999,
        weight_decay=0.2,
        grad_accum=12,
        schedule="cosine",
        max_warmup_steps=10**9,
        final_lr=0.1,
        schedule_length=12.0,
    ),
}


# Narrower models want larger steps; `smollm2` at the nano scale.
NANO_LR = 3e-3
# From so many tokens on a run on a CPU is compiled: that takes 4 to 20 s, and makes steps up to a
# fifth faster and no slower (benchmarks/README.md). On two cores they take a quarter of an hour and
# half an hour. The model has no say, for runs of one length would not be comparable if only some
# were compiled.
COMPILE_TOKENS = {"full": 300_000, "nano": 10_000_000}


@dataclass(frozen=True)
class Request:
    """A run as asked for; None stands for the default of the variant, scale, recipe or device.

    settings: `field=value` for any field of `ModelConfig` or `Recipe`.
    """

    variant: str
    scale: str = "full"
    data: str = "builtin"
    tokenizer: str | None = None
    recipe: str = "smollm2"
    steps: int | None = None
    tokens: float | None = None
    flops: float | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    grad_accum: int | None = None
    optimizer: str | None = None
    schedule: str | None = None
    lr: float | None = None
    device: str | None = None
    dtype: str | None = None
    compile: bool | None = None
    seed: int = 0
    data_seed: int | None = None
    val_every: int | None = None
    val_tokens: int | None = None
    test_tokens: int | None = None
    settings: tuple[str, ...] = ()

    def without_paths(self) -> "Request":
        """With files and folders by their base names, for a manifest."""

        def base(text: str) -> str:
            return text if text.startswith(("hub:", "train:")) else Path(text).name

        return dataclasses.replace(
            self,
            variant=base(self.variant),
            data=base(self.data),
            tokenizer=self.tokenizer and base(self.tokenizer),
        )


@dataclass(frozen=True)
class DataRef:
    """The tokens of a run: base names and fingerprints, never a machine's path."""

    source: str
    fingerprint: str
    tokenizer_fingerprint: str
    train_tokens: int


@dataclass(frozen=True)
class Protocol:
    """A run resolved: with the same protocol on the same machine comes the same run, bit for bit.

    batch_size: sequences in a micro-batch. steps: optimizer updates.
    validation_tokens, test_tokens: scored tokens, from the start of each split.
    """

    variant: str
    scale: str
    model: ModelConfig
    recipe: Recipe
    steps: int
    batch_size: int
    seq_len: int
    validation_every: int
    validation_tokens: int
    test_tokens: int
    seed: int
    data_seed: int
    device: str
    dtype: str
    compile: bool
    data: DataRef | None = field(default=None)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.recipe.grad_accum

    @property
    def tokens_per_step(self) -> int:
        return self.rows_per_step * self.seq_len

    @property
    def flops_per_step(self) -> float:
        return self.tokens_per_step * training_flops_per_token(self.model, self.seq_len)

    def on(self, data: "TokenData") -> "Protocol":
        """This protocol on `data`, its validation and test tokens cut to what the splits hold.

        Raises:
            UserError: a tokenizer too large for the model, or a split too small for one sequence.
        """
        from smollm2.data import require_vocab

        require_vocab(data.vocab_size, self.model.vocab_size)
        # An epoch of training starts up to a sequence late: see `data.batches`.
        needed = {
            "train": 2 * self.seq_len,
            "validation": self.seq_len + 1,
            "test": self.seq_len + 1,
        }
        for split, n_needed in needed.items():
            n_tokens = len(getattr(data, split))
            if n_tokens < n_needed:
                raise UserError(
                    f"The {split} split of {data.source} has {n_tokens} tokens, and sequences of "
                    f"{self.seq_len} need {n_needed}; use more text or a shorter --seq-len."
                )
        return dataclasses.replace(
            self,
            validation_tokens=min(
                self.validation_tokens, whole(len(data.validation) - 1, self.seq_len)
            ),
            test_tokens=min(self.test_tokens, whole(len(data.test) - 1, self.seq_len)),
            data=DataRef(
                data.source, data.fingerprint, data.tokenizer_fingerprint, len(data.train)
            ),
        )

    @property
    def final_test(self) -> str:
        """What eval.csv calls the scoring at the end of training."""
        return f"{text_protocol(self.seq_len, self.dtype, self.device)}, at the end of training"

    def controlled(self) -> dict[str, Any]:
        """What two runs must share to be compared."""
        recipe = dataclasses.asdict(self.recipe)
        for name in ("lr", "muon_lr", "grad_accum"):
            del recipe[name]
        return recipe | {
            "scale": self.scale,
            "data": self.data and self.data.fingerprint,
            "tokenizer": self.data and self.data.tokenizer_fingerprint,
            "tokens_per_step": self.tokens_per_step,
            "seq_len": self.seq_len,
            "validation_tokens": self.validation_tokens,
            "test_tokens": self.test_tokens,
            "device": self.device,
            "dtype": self.dtype,
            "compile": self.compile,
        }

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Protocol":
        """The inverse of `to_dict`.

        Raises:
            UserError: `values` are not those of a protocol.
        """
        try:
            return cls(
                **values
                | {
                    "model": ModelConfig(**values["model"]),
                    "recipe": Recipe(**values["recipe"]),
                    "data": values["data"] and DataRef(**values["data"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"This is not a protocol of this version: {error}.") from None


def text_protocol(seq_len: int, dtype: str, device: str) -> str:
    """How held-out text is scored, in the words of eval.csv."""
    return f"windows of {seq_len}, {dtype}, {device}"


def resolve(request: Request, model: ModelConfig | None = None) -> Protocol:
    """Fill in every default. The result has no data yet: see `Protocol.on`.

    Args:
        model: the architecture, where it is known and the request's variant file may be gone.

    Raises:
        UserError: anything in the request that cannot be done.
    """
    recipe, model_settings = resolve_recipe(request)
    model = model or variant(request.variant, request.scale, model_settings)
    batch_size = request.batch_size if request.batch_size is not None else 4
    usual_seq_len = min(default_seq_len(request.scale), model.max_seq_len)
    seq_len = request.seq_len if request.seq_len is not None else usual_seq_len
    for name, value in (("--batch-size", batch_size), ("--seq-len", seq_len)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if seq_len > model.max_seq_len:
        raise UserError(
            f"--seq-len {seq_len} is longer than the model's context of {model.max_seq_len}; "
            f"use a shorter one, or --set max_seq_len={seq_len}."
        )
    for option, seed in (("--seed", request.seed), ("--data-seed", request.data_seed or 0)):
        if not 0 <= seed < 2**63:
            raise UserError(f"{option} must be from 0 to 2^63 - 1, not {seed}.")
    tokens_per_step = batch_size * recipe.grad_accum * seq_len
    steps = resolve_steps(request, model, seq_len, tokens_per_step)
    # Short runs get short evaluations, so that these never cost more than the training.
    val_tokens = tokens_per_step * clamp(steps // 40, 1, 8)
    val_tokens = scored_tokens("--val-tokens", request.val_tokens, seq_len, val_tokens)
    test_tokens = tokens_per_step * clamp(steps // 5, 1, 64)
    test_tokens = scored_tokens("--test-tokens", request.test_tokens, seq_len, test_tokens)
    # Twenty validations in a long run, fewer in one of less than 200 steps.
    validation_every = min(steps, max(10, steps // 20))
    validation_every = positive("--val-every", request.val_every, validation_every)

    # Last, as it imports torch, which takes seconds: a typo is refused at once.
    from smollm2.device import resolve_device, resolve_dtype

    device = resolve_device(request.device)
    protocol = Protocol(
        variant=variant_label(request.variant, model_settings),
        scale=request.scale,
        model=model,
        recipe=recipe,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        validation_every=validation_every,
        validation_tokens=val_tokens,
        test_tokens=test_tokens,
        seed=request.seed,
        data_seed=request.seed if request.data_seed is None else request.data_seed,
        device=device,
        dtype=resolve_dtype(request.dtype, device),
        compile=bool(request.compile),
    )
    if request.compile is None:
        return dataclasses.replace(protocol, compile=pays_to_compile(protocol))
    return protocol


def pays_to_compile(protocol: Protocol) -> bool:
    """Whether compiling the layers makes the run end earlier: on a GPU, and if it is long enough on
    a CPU with a compiler."""
    from smollm2.device import compiler

    if protocol.device == "cpu":
        n_tokens = protocol.steps * protocol.tokens_per_step
        least = COMPILE_TOKENS.get(protocol.scale, max(COMPILE_TOKENS.values()))
        return n_tokens >= least and compiler().runs
    return protocol.device == "cuda"


def default_seq_len(scale: str) -> int:
    """Tokens in a sequence unless others are asked for."""
    return 256 if scale == "nano" else 2048


def resolve_recipe(request: Request) -> tuple[Recipe, list[str]]:
    """The recipe with the request's changes, and those settings that are the model's."""
    if request.recipe not in RECIPES:
        raise UserError(
            f"Unknown recipe {request.recipe!r}.{did_you_mean(request.recipe, list(RECIPES))} "
            f"There are {', '.join(RECIPES)}."
        )
    recipe = RECIPES[request.recipe]
    if request.scale == "nano" and request.recipe == "smollm2":
        recipe = dataclasses.replace(recipe, lr=NANO_LR)
    recipe_fields = {f.name for f in dataclasses.fields(Recipe)}
    model_fields = {f.name for f in dataclasses.fields(ModelConfig)}
    settings = dict(split_setting(text) for text in request.settings)
    for name in settings:
        if name not in recipe_fields | model_fields:
            known = sorted(recipe_fields | model_fields)
            raise UserError(
                f"Unknown field {name!r} in --set.{did_you_mean(name, known)} "
                f"There are {', '.join(known)}."
            )
    changes = {name: value for name, value in settings.items() if name in recipe_fields}
    for name in ("lr", "optimizer", "schedule", "grad_accum"):
        if (value := getattr(request, name)) is not None:
            if name in changes:
                option = "--" + name.replace("_", "-")
                raise UserError(
                    f"{option} {value} and --set {name}={changes[name]} both set {name}; give one "
                    "of them."
                )
            changes[name] = value
    return replace_fields(recipe, changes), [
        f"{name}={value}" for name, value in settings.items() if name in model_fields
    ]


def resolve_steps(request: Request, model: ModelConfig, seq_len: int, tokens_per_step: int) -> int:
    """The horizon in optimizer updates, from exactly one of steps, tokens and flops."""
    given = {
        name: value
        for name in ("steps", "tokens", "flops")
        if (value := getattr(request, name)) is not None
    }
    if len(given) != 1:
        said = " and ".join(f"--{name}" for name in given) or "none"
        raise UserError(
            f"How long to train takes one of --steps, --tokens or --flops, not {said}: "
            "for example --steps 5000."
        )
    ((name, value),) = given.items()
    if not 0 < value < math.inf:
        needed = "more than 0" if abs(value) < math.inf else "finite"
        raise UserError(f"--{name} must be {needed}, not {value}.")
    if name == "steps":
        return int(value)
    per_step = float(tokens_per_step)
    if name == "flops":
        per_step = tokens_per_step * training_flops_per_token(model, seq_len)
    return max(1, round(value / per_step))


def positive(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise UserError(f"{option} must be at least 1, not {value}.")
    return default if value is None else value


def scored_tokens(option: str, value: int | None, seq_len: int, default: int) -> int:
    """A number of tokens as whole sequences, at least one."""
    return max(seq_len, whole(positive(option, value, default), seq_len))


def whole(n: int, unit: int) -> int:
    """`n` rounded down to whole units."""
    return n // unit * unit


def clamp(n: int, low: int, high: int) -> int:
    return max(low, min(n, high))


def variant_label(spec: str, settings: list[str]) -> str:
    """The variant's short form, `--set` included: `pow2:n_kv_heads=8`, `mine` for mine.toml."""
    name, inline = split_spec(spec)
    if is_file_spec(name):
        name = Path(name).stem
    fields = dict(split_setting(part) for part in [*inline.split(","), *settings] if part)
    text = ",".join(f"{field}={fields[field]}" for field in sorted(fields))
    return f"{name}:{text}" if fields else name


def differing(
    one: dict[str, Any],
    other: dict[str, Any],
    names: tuple[str, str] = ("there", "asked for"),
    prefix: str = "",
) -> str:
    """The fields that differ, as `lr: 0.001 there, 0.003 asked for`; nested ones dotted."""
    lines = []
    for key, old in one.items():
        new = other.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differing(old, new, names, f"{prefix}{key}."):
                lines.append(inner)
        elif old != new:
            lines.append(f"{prefix}{key}: {old} {names[0]}, {new} {names[1]}")
    return "; ".join(lines)


def default_run_name(request: Request, protocol: Protocol, start: str | None = None) -> str:
    """`pow2-5000-s0`, `pow2-nano-300-s1`; with other settings than the defaults six characters of
    the hash of what runs share are appended, so that comparable runs end alike.

    Args:
        start: what the run starts from, such as `trunk@10` and the checksum of its weights, if not
            from scratch; it is hashed too.
    """
    scale = "" if protocol.scale == "full" else f"-{protocol.scale}"
    name = f"{plain_name(protocol.variant)}{scale}-{protocol.steps}-s{protocol.seed}"
    if start is None and has_plain_name(request):
        return name
    shared = protocol.controlled() | {
        "lr": protocol.recipe.lr,
        "muon_lr": protocol.recipe.muon_lr,
        "data_seed": protocol.data_seed - protocol.seed,
    }
    if start is not None:
        shared["start"] = start
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:6]}"


def plain_name(label: str) -> str:
    """A variant's label with only the characters of a run's name."""
    kept = (c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in label.lower())
    return "".join(kept).strip(".-_")


def has_plain_name(request: Request) -> bool:
    """Whether the default name of a run from scratch is without a hash, so that it does not depend
    on the data."""
    plain = Request(request.variant, request.scale, steps=request.steps, seed=request.seed)
    return request == plain
