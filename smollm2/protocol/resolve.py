"""Fills in every default of a `RunConfig`: variant, recipe, horizon, evaluation and machine."""

import dataclasses
import math
from pathlib import Path

from smollm2.errors import UserError, did_you_mean
from smollm2.model.config import (
    ModelConfig,
    is_file_spec,
    replace_fields,
    split_setting,
    split_spec,
    variant,
)
from smollm2.model.cost import training_flops_per_token
from smollm2.protocol.recipe import NANO_LR, RECIPES, Recipe
from smollm2.protocol.run_config import (
    FEISTEL,
    SPREAD,
    WORDS,
    ResolvedConfig,
    RunConfig,
    round_down,
)

# A run on a CPU is compiled from this many tokens on, those of an arm's runs in a study taken
# together: a process compiles a shape once, in half a minute, and steps become 1.1 times as fast at
# full size and up to 1.5 at nano scale (benchmarks/README.md). The model does not matter: runs of
# equal length would not be comparable if only some were compiled.
COMPILE_TOKENS = {"full": 300_000, "nano": 2_000_000}

# Far beyond any training so far: what exceeds these is a slip.
MOST_STEPS = 10**12
MOST_TOKENS_PER_STEP = 2**28


def resolve(request: RunConfig, model: ModelConfig | None = None) -> ResolvedConfig:
    """Fill in every default. The result has no data yet: see `ResolvedConfig.on`.

    Args:
        model: the architecture, if it is known; then the variant file need not exist.

    Raises:
        UserError: a value is wrong, or values contradict each other.
    """
    recipe, model_settings = resolve_recipe(request)
    model = model or variant(request.variant, request.scale, model_settings)
    micro_batch_size = request.micro_batch_size if request.micro_batch_size is not None else 4
    usual_seq_len = min(default_seq_len(request.scale), model.max_seq_len)
    seq_len = request.seq_len if request.seq_len is not None else usual_seq_len
    for name, value in (("micro_batch_size", micro_batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise UserError(f"`{name}` must be at least 1, not {value}.", field=name)
    if seq_len > model.max_seq_len:
        raise UserError(
            f"`seq_len={seq_len}` is longer than the model's context of {model.max_seq_len}; "
            f"use a shorter one, or `max_seq_len={seq_len}`.",
            field="seq_len",
        )
    for name, seed in (("seed", request.seed), ("data_seed", request.data_seed or 0)):
        if not 0 <= seed < 2**63:
            raise UserError(f"`{name}` must be from 0 to 2^63 - 1, not {seed}.", field=name)
    offset = request.batch_offset or 0
    if not 0 <= offset <= MOST_STEPS:
        raise UserError(
            f"`batch_offset` must be from 0 to {MOST_STEPS:,}, not {offset}.", field="batch_offset"
        )
    tokens_per_step = micro_batch_size * recipe.grad_accum * seq_len
    if tokens_per_step > MOST_TOKENS_PER_STEP:
        raise UserError(
            f"A step of {micro_batch_size} × {recipe.grad_accum} sequences of {seq_len} has more "
            f"than {MOST_TOKENS_PER_STEP:,} tokens; reduce `micro_batch_size` or `grad_accum`.",
            field="micro_batch_size",
        )
    steps = resolve_steps(request, model, seq_len, tokens_per_step)
    held_out_windows = word_of("held_out_windows", request.held_out_windows, SPREAD)
    data_order = word_of("data_order", request.data_order, FEISTEL)
    # Evaluations never cost more than the training: short runs get short ones. The last one of a
    # small model scores all of the test, or as much as the run is trained on, over all documents.
    val_tokens = tokens_per_step * clamp(steps // 40, 1, 8)
    val_tokens = scored_tokens("val_tokens", request.val_tokens, seq_len, val_tokens)
    test_tokens = tokens_per_step * clamp(steps // 5, 1, 64)
    test_tokens = scored_tokens("test_tokens", request.test_tokens, seq_len, test_tokens)
    if request.test_tokens is None and request.scale != "full" and held_out_windows == SPREAD:
        test_tokens = tokens_per_step * steps
    # Twenty validations in a long run, fewer in a run of less than 200 steps.
    validation_every = min(steps, max(10, steps // 20))
    validation_every = positive("val_every", request.val_every, validation_every)

    # Last, as it imports torch, which takes seconds: a typo is refused at once.
    from smollm2.device import resolve_device, resolve_dtype

    device = resolve_device(request.device)
    protocol = ResolvedConfig(
        variant=variant_label(request.variant, model_settings),
        scale=request.scale,
        model=model,
        recipe=recipe,
        steps=steps,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        validation_every=validation_every,
        validation_tokens=val_tokens,
        test_tokens=test_tokens,
        seed=request.seed,
        data_seed=request.seed if request.data_seed is None else request.data_seed,
        device=device,
        dtype=resolve_dtype(request.dtype, device),
        compile=bool(request.compile),
        batch_offset=offset,
        held_out_windows=held_out_windows,
        data_order=data_order,
    )
    if request.compile is None:
        return dataclasses.replace(protocol, compile=pays_to_compile(protocol))
    return protocol


def pays_to_compile(protocol: ResolvedConfig, n_runs: int = 1) -> bool:
    """Whether compiling the layers saves time: on a GPU always, on a CPU with a compiler if
    `n_runs` such runs are long enough together."""
    from smollm2.device import compiler

    if protocol.device == "cpu":
        n_tokens = n_runs * protocol.steps * protocol.tokens_per_step
        least = COMPILE_TOKENS.get(protocol.scale, max(COMPILE_TOKENS.values()))
        return n_tokens >= least and compiler().runs
    return protocol.device == "cuda"


def default_seq_len(scale: str) -> int:
    """The default number of tokens in a sequence."""
    return 256 if scale == "nano" else 2048


def resolve_recipe(request: RunConfig) -> tuple[Recipe, list[str]]:
    """The recipe with the requested changes, and the settings that belong to the model."""
    if request.recipe not in RECIPES:
        raise UserError(
            f"Unknown recipe {request.recipe!r}.{did_you_mean(request.recipe, list(RECIPES))} "
            f"Available: {', '.join(RECIPES)}."
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
                f"Unknown field {name!r} in `settings`.{did_you_mean(name, known)} "
                f"Available: {', '.join(known)}."
            )
    changes = {name: value for name, value in settings.items() if name in recipe_fields}
    for name in ("lr", "optimizer", "schedule", "grad_accum"):
        if (value := getattr(request, name)) is not None:
            if name in changes:
                raise UserError(
                    f"`{name}={value}` and `settings={name}={changes[name]}` both set {name}; give "
                    "one of them.",
                    field=name,
                )
            changes[name] = value
    return replace_fields(recipe, changes), [
        f"{name}={value}" for name, value in settings.items() if name in model_fields
    ]


def resolve_steps(
    request: RunConfig, model: ModelConfig, seq_len: int, tokens_per_step: int
) -> int:
    """The horizon in optimizer updates, from exactly one of steps, tokens and flops."""
    given = {
        name: value
        for name in ("steps", "tokens", "flops")
        if (value := getattr(request, name)) is not None
    }
    if len(given) != 1:
        said = " and ".join(f"`{name}`" for name in given) or "none"
        raise UserError(
            f"Give one of `steps`, `tokens` or `flops`, not {said}: for example `steps=5000`."
        )
    ((name, value),) = given.items()
    if not 0 < value < math.inf:
        needed = "more than 0" if abs(value) < math.inf else "finite"
        raise UserError(f"`{name}` must be {needed}, not {value}.", field=name)
    per_step = {
        "steps": 1.0,
        "tokens": float(tokens_per_step),
        "flops": tokens_per_step * training_flops_per_token(model, seq_len),
    }[name]
    if value > MOST_STEPS * per_step:
        raise UserError(
            f"`{name}={value:g}` would be more than {MOST_STEPS:,} steps; give less.", field=name
        )
    return int(value) if name == "steps" else max(1, round(value / per_step))


def positive(name: str, value: int | None, default: int) -> int:
    """`value`, by default `default`; `UserError` if it is below 1."""
    if value is not None and value < 1:
        raise UserError(f"`{name}` must be at least 1, not {value}.", field=name)
    return default if value is None else value


def word_of(name: str, value: str | None, default: str) -> str:
    """`value`, by default `default`; `UserError` if it is not one of `WORDS`."""
    if value is not None and value not in WORDS[name]:
        raise UserError(f"`{name}` takes {' or '.join(WORDS[name])}, not {value!r:.60}.")
    return default if value is None else value


def scored_tokens(name: str, value: int | None, seq_len: int, default: int) -> int:
    """A number of tokens rounded down to whole sequences, at least one."""
    return max(seq_len, round_down(positive(name, value, default), seq_len))


def clamp(n: int, low: int, high: int) -> int:
    """`n`, at least `low` and at most `high`."""
    return max(low, min(n, high))


def variant_label(spec: str, settings: list[str]) -> str:
    """The variant's short form with its settings: `pow2:n_kv_heads=8`, `mine` for mine.toml."""
    name, inline = split_spec(spec)
    if is_file_spec(name):
        name = Path(name).stem
    fields = dict(split_setting(part) for part in [*inline.split(","), *settings] if part)
    text = ",".join(f"{field}={fields[field]}" for field in sorted(fields))
    return f"{name}:{text}" if fields else name
