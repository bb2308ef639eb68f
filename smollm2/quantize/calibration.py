"""What the inputs of a model's matrices look like on calibration text: their second moments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from smollm2.device import machine_bytes
from smollm2.errors import UserError
from smollm2.model.feedforward import swiglu
from smollm2.model.moe import MoE
from smollm2.model.transformer import SmolLM2

BATCH = 4  # windows per forward pass
Moments = dict[str, Tensor]


@torch.no_grad()
def second_moments(
    model: SmolLM2,
    windows_WT: Tensor,
    *,
    full: bool,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Moments:
    """E[x²] (n_in,), or with `full` E[x xᵀ] (n_in, n_in), of the inputs of each matrix, in fp32 by
    the names of `QuantizedState.quantized`: `blocks.0.attn.qkv`, of an expert
    `blocks.0.mlp.gate_up.3`, and of the head `embed` or `lm_head`.

    An expert that no token chose has none.

    Args:
        windows_WT: token ids, W windows of T tokens.
        on_progress: called with the number of windows so far.

    Raises:
        UserError: the moments can never fit into memory.
    """
    if full:
        require_moments_fit(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: Tensor, full: bool = full) -> None:
        x_NI = x.flatten(0, -2).float()
        found = x_NI.T @ x_NI if full else x_NI.square().sum(0)
        sums[name] = sums[name].add_(found) if name in sums else found
        counts[name] = counts.get(name, 0) + len(x_NI)

    with watching(model, add):
        for start in range(0, len(windows_WT), BATCH):
            batch = windows_WT[start : start + BATCH].to(model.device)
            hidden_BTD, _ = model.hidden(batch)
            # A table's rows are embeddings as well: only how much each input counts is used.
            add("embed" if model.lm_head is None else "lm_head", hidden_BTD, full=False)
            on_progress(min(start + BATCH, len(windows_WT)))
    return {name: total / counts[name] for name, total in sums.items()}


def require_moments_fit(model: SmolLM2) -> None:
    """Raise `UserError` if E[x xᵀ] of all inputs can never fit; they are kept until the end."""
    config = model.config
    of_experts = config.n_experts * (config.d_model**2 + config.d_ff**2)
    needed = 4 * config.n_layers * (2 * config.d_model**2 + of_experts)
    there = machine_bytes(model.device.type)
    if needed > there:
        raise UserError(
            f"gptq keeps second moments of {needed / 1e9:,.1f} GB for this model, and the machine "
            f"has {there / 1e9:,.1f} GB of memory; choose the method clip.",
            field="method",
        )


@contextmanager
def watching(model: SmolLM2, add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """In this context `add` gets the inputs of every matrix of the layers, with its name."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            hooks.append(module.register_forward_pre_hook(partial(add_experts, name, add)))
        elif isinstance(module, nn.Linear) and not name.endswith(".router"):
            hooks.append(module.register_forward_pre_hook(partial(add_inputs, name, add)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def add_inputs(
    name: str, add: Callable[[str, Tensor], None], module: nn.Linear, inputs: tuple[Tensor, ...]
) -> None:
    """A hook for a matrix."""
    add(name, inputs[0])


def add_experts(
    name: str, add: Callable[[str, Tensor], None], module: MoE, inputs: tuple[Tensor, ...]
) -> None:
    """A hook for a layer of experts, whose stacked matrices are no modules: each expert gets the
    tokens that choose it."""
    x_ND = inputs[0].flatten(0, -2)
    chosen_Nk = module.router(x_ND).float().topk(module.n_active, dim=-1).indices
    for x, (gate_up, _) in enumerate(zip(module.gate_up, module.down, strict=True)):
        rows = x_ND[(chosen_Nk == x).any(dim=-1)]
        if len(rows):
            add(f"{name}.gate_up.{x}", rows)
            add(f"{name}.down.{x}", swiglu(rows @ gate_up.T))
