"""The configuration of a run: as requested (`RunConfig`) and resolved (`ResolvedConfig`).

`resolve` fills in the defaults, and `ResolvedConfig.on` ties it to tokens. Two runs can be
compared when their `controlled()` agrees.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError
from smollm2.files import base_name
from smollm2.model.config import ModelConfig, checked_fields
from smollm2.model.cost import training_flops_per_token
from smollm2.protocol.optimizers import rate_fields
from smollm2.protocol.recipe import Recipe

if TYPE_CHECKING:
    from smollm2.data import TokenData

FIRST, SPREAD = "first", "spread"  # values of `held_out_windows`
SHUFFLED, FEISTEL = "shuffled", "feistel"  # values of `data_order`; see `data.batches`
OLDER_NAMES = {"batch_size": "micro_batch_size"}  # of fields of both classes, in older files


@dataclass(frozen=True)
class RunConfig:
    """A run as requested; None is the default of the variant, scale, recipe or device.

    settings: `field=value` for any field of `ModelConfig` or `Recipe`.
    """

    variant: str
    scale: str = "full"
    data: str = "builtin"
    tokenizer: str | None = None
    held_out: float | None = None
    recipe: str = "smollm2"
    steps: int | None = None
    tokens: float | None = None
    flops: float | None = None
    micro_batch_size: int | None = None
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
    batch_offset: int | None = None
    data_order: str | None = None
    val_every: int | None = None
    val_tokens: int | None = None
    test_tokens: int | None = None
    held_out_windows: str | None = None
    settings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """A request as a manifest keeps it.

        Raises:
            UserError: `values` are not those of a request.
        """
        given = dict(values)
        settings = given.pop("settings", [])
        if not isinstance(settings, list) or not all(isinstance(each, str) for each in settings):
            raise UserError(f"settings takes a list of field=value, not {settings!r:.60}.")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        given = {k: v for k, v in given.items() if v is not None or defaults.get(k) is not None}
        if "variant" not in given:
            raise UserError("This is not a request of this version: it has no variant.")
        return cls(**checked_fields(cls, given), settings=tuple(settings))

    def without_paths(self) -> "RunConfig":
        """A copy with files and folders reduced to their base names, for a manifest."""

        from smollm2.data.corpora import without_secrets

        def base(text: str) -> str:
            return text if text.startswith(("hub:", "train:")) else base_name(text)

        return dataclasses.replace(
            self,
            variant=base(self.variant),
            data=without_secrets(self.data),
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
class ResolvedConfig:
    """A resolved run: the same protocol on the same machine gives the same run, bit for bit.

    micro_batch_size: sequences in a micro-batch. steps: optimizer updates.
    validation_tokens, test_tokens: scored tokens of each split.
    held_out_windows: which: `spread` over the split, or `first`, from its start. Older manifests
    lack it; theirs is `first`.
    batch_offset: step k trains on batch k + batch_offset, so that runs of different lengths can end
    on the same text. Older manifests lack it; theirs is 0.
    data_order: of the windows in an epoch: `feistel`, computed window by window, or `shuffled`, a
    list in memory. Older manifests lack it; theirs is `shuffled`.
    """

    variant: str
    scale: str
    model: ModelConfig
    recipe: Recipe
    steps: int
    micro_batch_size: int
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
    batch_offset: int = 0
    held_out_windows: str = FIRST
    data_order: str = SHUFFLED

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch_size * self.recipe.grad_accum

    @property
    def tokens_per_step(self) -> int:
        return self.rows_per_step * self.seq_len

    @property
    def flops_per_step(self) -> float:
        return self.tokens_per_step * training_flops_per_token(self.model, self.seq_len)

    def on(self, data: "TokenData") -> "ResolvedConfig":
        """This protocol on `data`, with no more validation and test tokens than the splits hold.

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
                    f"{self.seq_len} need {n_needed}; use more text or a shorter `seq_len`."
                )
        return dataclasses.replace(
            self,
            validation_tokens=min(
                self.validation_tokens, round_down(len(data.validation) - 1, self.seq_len)
            ),
            test_tokens=min(self.test_tokens, round_down(len(data.test) - 1, self.seq_len)),
            data=DataRef(
                data.source, data.fingerprint, data.tokenizer_fingerprint, len(data.train)
            ),
        )

    def controlled(self) -> dict[str, Any]:
        """What two runs must share to be compared."""
        recipe = dataclasses.asdict(self.recipe)
        for name in (*rate_fields(), "grad_accum"):
            del recipe[name]
        return recipe | {
            "scale": self.scale,
            "data": self.data and self.data.fingerprint,
            "tokenizer": self.data and self.data.tokenizer_fingerprint,
            "tokens_per_step": self.tokens_per_step,
            "seq_len": self.seq_len,
            "validation_tokens": self.validation_tokens,
            "test_tokens": self.test_tokens,
            "held_out_windows": self.held_out_windows,
            "data_order": self.data_order,
            "device": self.device,
            "dtype": self.dtype,
            "compile": self.compile,
        }

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ResolvedConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: `values` are not those of a protocol.
        """
        try:
            scalars = {key: value for key, value in values.items() if key not in PARTS}
            data = values["data"]
            protocol = cls(
                **checked_fields(cls, scalars),
                model=ModelConfig(**checked_fields(ModelConfig, values["model"])),
                recipe=Recipe(**checked_fields(Recipe, values["recipe"])),
                data=None if data is None else DataRef(**checked_fields(DataRef, data)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"This is not a protocol of this version: {error}.") from None
        protocol.require_sizes()
        return protocol

    def require_sizes(self) -> None:
        """Raise `UserError` for a size out of bounds, or a word that is not one of `WORDS`."""
        sizes = {"micro_batch_size": 1, "seq_len": 1, "validation_every": 1}
        sizes |= {"steps": 0, "validation_tokens": 0, "test_tokens": 0, "batch_offset": 0}
        for name, least in sizes.items():
            if not least <= getattr(self, name) <= MOST:
                raise UserError(f"{name} cannot be {getattr(self, name)}.")
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise UserError(f"{name} cannot be {getattr(self, name)!r:.60}.")


MOST = 2**53  # of a size: more than any machine does, and exact as a float
WORDS = {  # what a resolved run may hold
    "scale": ("full", "nano", "small"),
    "device": ("cpu", "cuda", "mps"),
    "dtype": ("float32", "bfloat16"),
    "held_out_windows": (FIRST, SPREAD),
    "data_order": (SHUFFLED, FEISTEL),
}
PARTS = ("model", "recipe", "data")  # the fields of a `ResolvedConfig` with fields of their own


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `RunConfig` or a `ResolvedConfig`, with those in `OLDER_NAMES` renamed.

    Raises:
        UserError: a field has a value under both of its names.
    """
    for older, name in OLDER_NAMES.items():
        if {older, name} <= values.keys():
            raise UserError(f"{older} is the older name of {name}: give only {name}.")
    return {OLDER_NAMES.get(name, name): value for name, value in values.items()}


def round_down(n: int, unit: int) -> int:
    """`n` rounded down to whole units."""
    return n // unit * unit


def differing(
    one: dict[str, Any],
    other: dict[str, Any],
    names: tuple[str, str] = ("there", "requested"),
    prefix: str = "",
) -> str:
    """The fields that differ, as `lr: 0.001 there, 0.003 requested`; nested ones dotted."""
    lines = []
    for key, old in one.items():
        new = other.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differing(old, new, names, f"{prefix}{key}."):
                lines.append(inner)
        elif old != new:
            lines.append(f"{prefix}{key}: {old} {names[0]}, {new} {names[1]}")
    return "; ".join(lines)


def default_run_name(request: RunConfig, protocol: ResolvedConfig, start: str | None = None) -> str:
    """`pow2-5000-s0` or `pow2-nano-300-s1`. If a setting is not the default, six characters of a
    hash of all controlled settings follow, so that comparable runs have the same suffix.

    Args:
        start: the starting point of a run that is not trained from scratch, such as `trunk@10` and
            the checksum of its weights; it is hashed too.
    """
    scale = "" if protocol.scale == "full" else f"-{protocol.scale}"
    name = f"{plain_name(protocol.variant)}{scale}-{protocol.steps}-s{protocol.seed}"
    if start is None and has_plain_name(request):
        return name
    shared = protocol.controlled()
    shared |= {rate: getattr(protocol.recipe, rate) for rate in rate_fields()}
    shared["data_seed"] = protocol.data_seed - protocol.seed
    if protocol.batch_offset:  # older names have none
        shared["batch_offset"] = protocol.batch_offset
    if protocol.data_order == SHUFFLED:  # older names have none
        del shared["data_order"]
    if start is not None:
        shared["start"] = start
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:6]}"


def plain_name(label: str) -> str:
    """A variant's label with only the characters of a run's name."""
    kept = (c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in label.lower())
    return "".join(kept).strip(".-_")


def has_plain_name(request: RunConfig) -> bool:
    """Whether the default name of a run from scratch has no hash, and so does not depend on the
    data."""
    plain = RunConfig(request.variant, request.scale, steps=request.steps, seed=request.seed)
    return request == plain
