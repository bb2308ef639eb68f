"""Speed and memory of training, compared with transformers and with the model's matmuls alone.

    python benchmarks/train_speed.py [--works 1x512] [--rounds 2] [--seconds 8]
    python benchmarks/train_speed.py --device cuda --batch 8 --csv train_speed_cuda.csv

Ours is the training step of `smolctl train` in bf16, eager and compiled. Its peer is Llama or
Mixtral as transformers writes them, trained as its users do: fp32 weights, bf16 autocast, the fused
AdamW of torch, the same clipping and, for a mixture of experts, the same balance loss. It runs
eager and with its layers compiled, which was 1.29 × as fast for `pow2` (the whole model compiled:
0.95 ×, and 75 s of compilation instead of 8). Mixtral runs with both implementations of experts
that can train; `batched_mm` copies their weights for each token, 40 GB at 1 × 512. All see the same
random tokens.

For a mixture of experts, `dense` is ours with as many parameters as one token uses. `limit` is the
rate at which the model's own matrix products alone would train it: forward and both gradients of
every linear layer and the head, without attention, each at its best rate here in bf16.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import side_by_side
from side_by_side import Row

from smollm2.model.config import ModelConfig, variant
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import ResolvedConfig, RunConfig

if TYPE_CHECKING:
    from torch import Tensor

SMALL = "2.5m"  # 2.5 M parameters: shows the overhead besides the arithmetic
VARIANTS = {SMALL: ("pow2:n_layers=8", "nano")}
WORKS = ("pow2 1x512", "pow2 4x512", "orig 1x512", "orig 4x512", f"{SMALL} 8x256", "moe-160m 1x512")
DENSE = ("ours", "ours compiled", "transformers", "transformers compiled", "limit")
MOE = (
    *("ours", "ours compiled", "dense", "dense compiled"),
    *("transformers eager", "transformers grouped_mm", "transformers grouped_mm compiled", "limit"),
)
QUANTITIES = ("tokens_per_second", "first_step_seconds")
CUDA_QUANTITIES = ("peak_cuda_mb", "matmul_flops_per_second", "mfu")
FEWEST_STEPS = 2
Step = Callable[[], object]


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="sequences of 2048 tokens, on cuda")
    parser.add_argument("--seconds", type=float, default=6.0, help="timed, and at least two steps")
    parser.set_defaults(rounds=2)
    options = side_by_side.start(parser, measure)
    works, quantities = WORKS, QUANTITIES
    if options.device == "cuda":
        works = tuple(f"{model} {options.batch}x2048" for model in ("pow2", "orig", "moe-160m"))
        quantities += CUDA_QUANTITIES
    contenders = {work: MOE if work.startswith("moe") else DENSE for work in works}
    side_by_side.run(options, contenders, quantities)


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    protocol = resolve(request(work, contender, options.device))
    if contender == "limit":
        return {"tokens_per_second": protocol.tokens_per_step / matmul_seconds(protocol)}

    from smollm2.device import device_name, matmul_flops_per_second, peak_memory_mb

    make = transformers_step if contender.startswith("transformers") else our_step
    step, device = synchronized(make(protocol, contender), protocol.device), protocol.device
    first, seconds = timed(step, options.seconds)
    row = {
        "tokens_per_second": protocol.tokens_per_step / seconds,
        "first_step_seconds": first,
        "device": device_name(device),
    }
    if device == "cuda":
        row["peak_cuda_mb"] = peak_memory_mb(device)
        rate = row["matmul_flops_per_second"] = matmul_flops_per_second(device, protocol.dtype)
        row["mfu"] = protocol.flops_per_step / seconds / rate
    return row


def request(work: str, contender: str, device: str) -> RunConfig:
    """The measured training."""
    model, shape = work.split()
    name, scale = VARIANTS.get(model, (model, "full"))
    micro_batch_size, seq_len = map(int, shape.split("x"))
    if contender.startswith("dense"):
        name = dense_as(name)
    return RunConfig(
        variant=name,
        scale=scale,
        steps=1000,  # of the learning rate's schedule
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        device=device,
        dtype="bf16",
        compile=contender.endswith("compiled"),
    )


def dense_as(name: str) -> str:
    """The dense variant with as many parameters as a token of the mixture `name` uses."""
    moe = variant(name)
    return f"{name}:n_experts=1,n_active_experts=1,d_ff={moe.n_active_experts * moe.d_ff}"


def timed(step: Step, at_least: float) -> tuple[float, float]:
    """Seconds of the first step, which compiles, and of later ones: a mean over `at_least` s."""
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    n_steps, started = 0, time.perf_counter()
    while n_steps < FEWEST_STEPS or time.perf_counter() - started < at_least:
        step()
        n_steps += 1
    return first, (time.perf_counter() - started) / n_steps


def synchronized(step: Step, device: str) -> Step:
    from smollm2.device import synchronize

    def run() -> None:
        step()
        synchronize(device)

    return run


def our_step(protocol: ResolvedConfig, contender: str) -> Step:
    from smollm2.training.trainer import Trainer

    trainer = Trainer(protocol, random_tokens(protocol))
    return lambda: trainer.update(trainer.gradients())


def transformers_step(protocol: ResolvedConfig, contender: str) -> Step:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from smollm2.data import batch
    from smollm2.interop.hf import hf_config

    recipe, data, steps = protocol.recipe, random_tokens(protocol), iter(range(protocol.steps))
    content, how = hf_config(protocol.model), {}
    if protocol.model.is_moe:
        content |= {"output_router_logits": True, "router_aux_loss_coef": recipe.balance_weight}
        how["experts_implementation"] = contender.split()[1]
    config = AutoConfig.for_model(**content)
    model = AutoModelForCausalLM.from_config(config, **how).to(protocol.device).train()
    if protocol.compile:
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )

    def step() -> None:
        shape = protocol.rows_per_step, protocol.seq_len
        inputs, _ = batch(data.train, data.fingerprint, protocol.data_seed, next(steps), *shape)
        tokens = torch.from_numpy(inputs).to(protocol.device)
        with torch.autocast(protocol.device, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_tokens(protocol: ResolvedConfig) -> Any:
    """The fields of prepared data that a training step reads."""
    tokens = np.random.default_rng(0).integers(protocol.model.vocab_size, size=2_000_000)
    return SimpleNamespace(train=tokens.astype(np.uint16), fingerprint="random")


def matmul_seconds(protocol: ResolvedConfig) -> float:
    """Seconds of a step's matrix products alone, each in its fastest layout."""
    products = linear_layers(protocol.model, protocol.tokens_per_step)
    return sum(count * linear_seconds(*shape, protocol.device) for count, *shape in products)


def linear_layers(model: ModelConfig, n_tokens: int) -> Iterator[tuple[int, int, int, int]]:
    """Count, rows, inputs and outputs of the linear layers in a step of `n_tokens`; experts share
    the tokens evenly."""
    qkv = (model.n_heads + 2 * model.n_kv_heads) * model.head_dim
    yield model.n_layers, n_tokens, model.d_model, qkv
    yield model.n_layers, n_tokens, model.d_model, model.d_model
    rows = n_tokens * model.n_active_experts // model.n_experts
    n_mlps = model.n_layers * model.n_experts
    yield n_mlps, rows, model.d_model, 2 * model.d_ff
    yield n_mlps, rows, model.d_ff, model.d_model
    yield 1, n_tokens, model.d_model, model.vocab_size


def linear_seconds(rows: int, n_in: int, n_out: int, device: str) -> float:
    """Seconds of a linear layer's three products in bf16: each the shortest of five times and of
    two layouts of its weights."""
    import torch
    import torch.nn.functional as F

    from smollm2.device import best_seconds

    x, dy, w = (
        torch.randn(*shape, device=device).bfloat16()
        for shape in ((rows, n_in), (rows, n_out), (n_out, n_in))
    )
    w_t = w.T.contiguous()
    products: list[list[Callable[[], Tensor]]] = [
        [lambda: F.linear(x, w), lambda: x @ w_t],
        [lambda: dy @ w, lambda: F.linear(dy, w_t)],
        [lambda: dy.T @ x, lambda: x.T @ dy],
    ]
    return sum(min(best_seconds(way, device) for way in ways) for ways in products)


if __name__ == "__main__":
    main()
