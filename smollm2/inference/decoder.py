"""Decoding with a KV cache, for one sequence at a time.

Shape suffixes as in `model`; L is the number of positions that a cache has room for.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from smollm2.device import machine_bytes
from smollm2.errors import RunError, UserError
from smollm2.inference.compiled_step import Code, Step, can_step, compiled_step, kept_step
from smollm2.model.moe import MoE
from smollm2.model.transformer import KVCache, SmolLM2, rope_tables

Layer = Callable[[nn.Module, Tensor, tuple[Tensor, Tensor], Tensor | None, KVCache], Tensor]

# An eager step attends to the cache in units of this many positions.
UNIT = 64
# The layers of all decoders share a code object, and by default torch stops compiling one after
# eight kinds of layers.
COMPILED_KINDS = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 takes the most likely token and ignores the rest.
        top_p: keeps the most likely tokens that together reach this probability, at least one
            (Holtzman et al. 2020, arXiv:1904.09751); applied after `top_k`.
        top_k: keeps this many of the most likely tokens; 0 keeps all.
        seed: of this generation's own random numbers.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # false for nan
            raise UserError(
                f"`temperature` must be 0 (the most likely token) or more, not {self.temperature}.",
                field="temperature",
            )
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"`top_p` must be above 0 and at most 1, not {self.top_p}.", field="top_p"
            )
        if self.top_k < 0:
            raise UserError(
                f"`top_k` must be 0 (all tokens) or more, not {self.top_k}.", field="top_k"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"`seed` must be from 0 to 2^63 - 1, not {self.seed}.", field="seed")

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """The distribution of the next token, (V,) in fp64; for a temperature above 0."""
        # The largest is subtracted, so that a tiny temperature cannot overflow.
        logits_V = (logits_V.double() - logits_V.max()) / self.temperature
        if 0 < self.top_k < len(logits_V):
            kept = logits_V.topk(self.top_k)
            logits_V = torch.full_like(logits_V, -math.inf).scatter(0, kept.indices, kept.values)
        probs_V = logits_V.softmax(dim=0)
        if self.top_p == 1:
            return probs_V
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        # A token is excluded if those before it reach top_p; the first has none before it.
        sorted_V[sorted_V.cumsum(0) - sorted_V >= self.top_p] = 0
        return torch.zeros_like(probs_V).scatter(0, order_V, sorted_V / sorted_V.sum())

    def choose(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """The next token; `generator` is on the CPU.

        Raises:
            RunError: the logits are not finite.
        """
        largest, token = logits_V.max(dim=0)
        if not largest.isfinite():
            raise RunError("The model's logits are not finite: its weights are broken.")
        if self.temperature == 0:
            return int(token)
        probs_V = self.probabilities(logits_V.cpu())
        return int(torch.multinomial(probs_V, 1, generator=generator))


class Decoder:
    """A model with a KV cache for one sequence, in the model's dtype and on its device.

    Args:
        max_len: positions to make room for, at most the model's `max_seq_len`.
        compiled: compile a step now (seconds), or load what an earlier process kept of a dense
            model on a CPU (see `kept_code`); None only loads, or decodes eagerly. `prefill` stays
            eager. The weights of such a model become views of stacks; the step does not follow
            later changes of them or of the number of threads. Weights of 4 bits are copied.

    Raises:
        UserError: `max_len` is out of range, or so many positions can never fit into memory.
        RunError: the layer cannot be compiled, for instance without a C++ compiler.
    """

    def __init__(self, model: SmolLM2, max_len: int, compiled: bool | None = False) -> None:
        config = model.config
        if not 1 <= max_len <= config.max_seq_len:
            raise UserError(
                f"A decoder has room for 1 to {config.max_seq_len} tokens, the model's context, "
                f"not {max_len}."
            )
        require_room(model, max_len)
        self.model = model
        self.max_len = max_len
        code = None if compiled is False else kept_step(model)
        self.compiled = bool(compiled) or code is not None
        self.length = 0  # tokens so far
        has_step = self.compiled and can_step(model)
        # Compiled code serves every length within a unit; a step never reads the last position.
        room = -(-max_len // UNIT) * UNIT + has_step if self.compiled else max_len
        zeros = partial(torch.zeros, device=model.device, dtype=model.dtype)
        shape = (config.n_layers, 1, config.n_kv_heads, room, config.head_dim)
        self._keys, self._values = zeros(shape), zeros(shape)
        self._mask = zeros(1, 1, 1, room)  # 0 at a token, else -inf
        self._positions = torch.arange(room, device=model.device)
        self._rope = rope_tables(config, room, model.device, model.dtype)
        self._step_layer: Layer = run_layer
        self._whole_step: Step | None = None
        if has_step:
            self._whole_step = self._with_step(code)
        elif self.compiled:
            self._compile_layer()

    def _with_step(self, code: Code | None) -> Step:
        try:
            return compiled_step(self.model, self._keys, self._values, code)
        except RuntimeError as error:
            raise not_compiled(error) from error

    def _compile_layer(self) -> None:
        """Take a step, so that compilation happens, or fails, now."""
        from torch._dynamo import config, exc

        if self.model.config.is_moe and self.model.dtype != torch.bfloat16:
            raise RunError("torch compiles a mixture of experts in bf16 only.")
        if any(
            isinstance(block.mlp, MoE) and block.mlp.is_quantized for block in self.model.blocks
        ):
            raise RunError("Quantized experts are not compiled: each token takes different ones.")
        self._step_layer = torch.compile(run_layer, dynamic=False)
        self.prefill([0])
        self.length = 0
        try:
            with config.patch(recompile_limit=COMPILED_KINDS, fail_on_recompile_limit_hit=True):
                self.step(0)
        except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
            raise not_compiled(error) from error

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Start over with `tokens` (T,); returns the logits (V,) of the next token.

        Raises:
            ValueError: no tokens, or more than there is room for.
        """
        tokens_1T = torch.as_tensor(tokens, device=self.model.device).view(1, -1)
        T = tokens_1T.shape[1]
        if not 1 <= T <= self.max_len:
            raise ValueError(f"prefill takes 1 to {self.max_len} tokens, not {T}.")
        self.length = 0
        self._mask.fill_(-math.inf)[..., :T] = 0
        return self._logits(tokens_1T, T, None, run_layer)

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Append `token`; returns the logits (V,) of the next one.

        Raises:
            ValueError: the cache is full.
        """
        n = self.length + 1
        if n > self.max_len:
            raise ValueError(f"The decoder's room for {self.max_len} tokens is used up.")
        self._mask[..., n - 1] = 0
        token_11 = torch.tensor([[token]], device=self.model.device)
        if self._whole_step is not None:
            x_D, rope = self.model.embed(token_11)[0, 0], self._rope_of(n - 1, n)
            mask_S = self._mask[0, 0, 0, : -(-n // UNIT) * UNIT]
            logits = self._whole_step(x_D, self._positions[n - 1 : n], rope, mask_S)
            self.length = n
            return logits
        # Compiled code is for one shape: it attends to the whole cache, the empty part masked.
        room = self._mask.shape[-1]
        seen = room if self.compiled else min(room, -(-n // UNIT) * UNIT)
        with without_onednn():
            return self._logits(token_11, seen, self._mask[..., :seen], self._step_layer)

    def rewind(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self.length = length
        self._mask[..., length:] = -math.inf

    def _logits(self, tokens_1T: Tensor, seen: int, mask: Tensor | None, layer: Layer) -> Tensor:
        """Logits (V,) of the last of `tokens_1T`, appended; the first `seen` positions are read."""
        start, end = self.length, self.length + tokens_1T.shape[1]
        rope = self._rope_of(start, end)
        positions = self._positions[start:end]
        x_1TD = self.model.embed(tokens_1T)
        for block, keys, values in zip(self.model.blocks, self._keys, self._values, strict=True):
            cache = KVCache(keys[:, :, :seen], values[:, :, :seen], positions)
            x_1TD = layer(block, x_1TD, rope, mask, cache)
        self.length = end
        return self.model.head.logits(self.model.norm(x_1TD[:, -1:]))[0, 0]

    def _rope_of(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        return self._rope[0][start:end], self._rope[1][start:end]


def not_compiled(error: Exception) -> RunError:
    reason = str(error).strip().splitlines()[0]
    return RunError(f"The layer cannot be compiled here ({reason}); use `compile=False`.")


def require_room(model: SmolLM2, n: int) -> None:
    """Raise `UserError` if a cache and the rotary tables of `n` positions can never fit."""
    config = model.config
    cached = 2 * config.n_layers * config.n_kv_heads * config.head_dim * model.dtype.itemsize
    tables = 4 * 4 * config.head_dim  # angles, sines and cosines in fp32
    needed, there = n * (cached + tables), machine_bytes(model.device.type)
    if needed > there:
        raise UserError(
            f"A context of {n:,} tokens takes {needed / 1e9:,.1f} GB, and the machine has "
            f"{there / 1e9:,.1f} GB of memory; give fewer `max_new_tokens`.",
            field="max_new_tokens",
        )


def run_layer(
    block: nn.Module,
    x_1TD: Tensor,
    rope: tuple[Tensor, Tensor],
    mask: Tensor | None,
    cache: KVCache,
) -> Tensor:
    """A layer's output without its routing, which compiled code then need not compute."""
    y_1TD, _ = block(x_1TD, rope, mask, cache)
    return y_1TD


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """In this context torch's own kernel multiplies a bf16 matrix with one row: 1.3 to 1.6 times
    as fast on a CPU with AVX-512."""
    mkldnn: Any = torch.backends.mkldnn  # its `flags` warns of TF32, which is not used
    before = mkldnn.enabled
    mkldnn.enabled = False
    try:
        yield
    finally:
        mkldnn.enabled = before


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    ends: Collection[int],
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, up to but not including one of `ends`.

    Args:
        ends: the tokens that end a text; if empty, `max_new_tokens` are generated.

    Raises:
        UserError: at the first token: the prompt is empty, `max_new_tokens` is below 1, or the
            decoder has too little room.
        RunError: the model's logits are not finite.
    """
    yield from continuations(decoder, prompt, [sampling], max_new_tokens=max_new_tokens, ends=ends)[
        0
    ]


def continuations(
    decoder: Decoder,
    prompt: Sequence[int],
    samplings: Sequence[Sampling],
    *,
    max_new_tokens: int,
    ends: Collection[int],
) -> list[Iterator[int]]:
    """The tokens that `generate` yields with each of `samplings`.

    The prompt is read once, when the first token is asked for. Exhaust each before the next.

    Raises:
        UserError, RunError: as `generate`.
    """
    if not prompt:
        raise UserError("The prompt has no tokens; give some text to continue.")
    if max_new_tokens < 1:
        raise UserError(
            f"`max_new_tokens` must be at least 1, not {max_new_tokens}.", field="max_new_tokens"
        )
    if len(prompt) + max_new_tokens > decoder.max_len:
        raise UserError(
            f"{len(prompt)} tokens of prompt and {max_new_tokens} new ones exceed the "
            f"{decoder.max_len} tokens of the decoder."
        )

    @cache
    def prefilled() -> Tensor:
        return decoder.prefill(prompt)

    def drawn(sampling: Sampling) -> Iterator[int]:
        generator = torch.Generator().manual_seed(sampling.seed)
        token = sampling.choose(prefilled(), generator)
        decoder.rewind(len(prompt))
        for _ in range(max_new_tokens - 1):
            if token in ends:
                return
            yield token
            token = sampling.choose(decoder.step(token), generator)
        if token not in ends:
            yield token

    return [drawn(sampling) for sampling in samplings]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of reading a prompt (prefill) and of generating (decode)."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def measure_speed(decoder: Decoder, n_prompt: int = 64, n_new: int = 64) -> Speed:
    """The speed of one greedy pass, after a short one to warm up.

    Raises:
        ValueError: the decoder has too little room.
    """
    prompt = [i % decoder.model.config.vocab_size for i in range(n_prompt)]
    choose = partial(Sampling().choose, generator=torch.Generator())

    def seconds(n_steps: int) -> tuple[float, float]:
        times = [time.perf_counter()]
        token = choose(decoder.prefill(prompt))
        times.append(time.perf_counter())
        for _ in range(n_steps):
            token = choose(decoder.step(token))
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    seconds(min(n_new, 4))
    prefill, decode = seconds(n_new)
    return Speed(n_prompt / prefill, n_new / decode)
