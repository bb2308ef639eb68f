"""Causal attention on a CPU as matrix products over tiles of queries.

torch's flash attention for CPUs is slower than the same arithmetic in products of whole tiles, but
for its forward pass in bf16 on a CPU with AMX (figures in benchmarks/README.md).

Shape suffixes as in `model`; G query heads share a key-value head, N = B·K, and a tile has t
queries and sees L keys.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 128  # queries; at most this many masked keys per query are computed and discarded
# Up to this many positions, probabilities are kept for the backward pass; beyond, they are
# recomputed, since they would outweigh other activations (T / 2 per token and head).
KEPT_POSITIONS = 256
# Compiled code keeps probabilities whatever the backward pass here does, so beyond this many
# positions torch's own attention, which keeps none, is better.
COMPILED_POSITIONS = 512
HAS_AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def suits_tiles(n_positions: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `causal_attention` is faster: on a CPU, for more than one tile, and in bf16 with AMX
    only where gradients are wanted."""
    many = n_positions > COMPILED_POSITIONS and torch.compiler.is_compiling()
    is_slow = HAS_AMX and dtype == torch.bfloat16 and not torch.is_grad_enabled()
    return device.type == "cpu" and n_positions > TILE and not many and not is_slow


def hidden_keys(n_positions: int) -> Tensor:
    """What hides the keys after each query when it is added to the scores: 0 and -inf in fp32, as
    (T, 1, T)."""
    places = torch.arange(n_positions)
    mask_T1T = torch.zeros(n_positions, 1, n_positions)
    return mask_T1T.masked_fill_(places > places[:, None, None], -math.inf)


def causal_attention(
    q_BTHE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask_T1T: Tensor | None = None
) -> Tensor:
    """Each query attends to the keys up to its own position -> (B, T, H, E).

    Scores are in fp32, since rounding them would change sharp attention; probabilities are in the
    dtype of the inputs. Second derivatives are not supported.

    Args:
        mask_T1T: `hidden_keys` of at least as many positions. Compiled code adds it while it reads
            the scores, and takes a third of the time; without it the scores are filled in place.
    """
    return CausalAttention.apply(q_BTHE, k_BKTE, v_BKTE, mask_T1T)


class CausalAttention(torch.autograd.Function):
    """`causal_attention` with its own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_BTHE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask_T1T: Tensor | None
    ) -> Tensor:
        B, T, n_heads, head_dim = q_BTHE.shape
        n_kv_heads = k_BKTE.shape[1]
        q_NTGE = by_group(q_BTHE, n_kv_heads) * head_dim**-0.5
        k_NTE, v_NTE = k_BKTE.reshape(-1, T, head_dim), v_BKTE.reshape(-1, T, head_dim)
        parts, kept = [], []
        for start in range(0, T, TILE):
            end = min(start + TILE, T)
            p_NRL = probabilities(q_NTGE[:, start:end], k_NTE[:, :end], mask_T1T)
            parts.append(p_NRL @ v_NTE[:, :end])
            if T <= KEPT_POSITIONS:
                kept.append(p_NRL)
        ctx.save_for_backward(q_NTGE, k_NTE, v_NTE, mask_T1T, *kept)
        return by_head(torch.cat(parts, dim=1), B, n_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTHE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NTGE, k_NTE, v_NTE, mask_T1T, *kept = ctx.saved_tensors
        B, T, n_heads, head_dim = dy_BTHE.shape
        dy_NTGE = by_group(dy_BTHE, len(k_NTE) // B)
        dk_NTE, dv_NTE = (torch.zeros_like(x, dtype=torch.float32) for x in (k_NTE, v_NTE))
        parts = []
        for number, start in enumerate(range(0, T, TILE)):
            end = min(start + TILE, T)
            q_NtGE, k_NLE = q_NTGE[:, start:end], k_NTE[:, :end]
            dy_NRE = dy_NTGE[:, start:end].flatten(1, 2)
            p_NRL = kept[number] if kept else probabilities(q_NtGE, k_NLE, mask_T1T)
            dp_NRL = dy_NRE @ v_NTE[:, :end].mT
            ds_NRL = torch._softmax_backward_data(dp_NRL, p_NRL, -1, p_NRL.dtype)
            parts.append(ds_NRL @ k_NLE)
            dk_NTE[:, :end] += ds_NRL.mT @ q_NtGE.flatten(1, 2)
            dv_NTE[:, :end] += p_NRL.mT @ dy_NRE
        dq_BTHE = by_head(torch.cat(parts, dim=1), B, n_heads) * head_dim**-0.5
        dk, dv = (x.to(k_NTE.dtype).view(B, -1, T, head_dim) for x in (dk_NTE, dv_NTE))
        return dq_BTHE, dk, dv, None


def probabilities(q_NtGE: Tensor, k_NLE: Tensor, mask_T1T: Tensor | None) -> Tensor:
    """Softmax of the scores of a tile's queries, whose last has the position of the last key, as
    rows (N, R = t G, L); the mask as in `causal_attention`."""
    N, t, n_shared, _ = q_NtGE.shape
    scores_NRL = q_NtGE.flatten(1, 2).float() @ k_NLE.float().mT
    scores_NtGL = scores_NRL.view(N, t, n_shared, -1)
    if mask_T1T is not None:
        end = k_NLE.shape[1]
        scores_NRL = (scores_NtGL + mask_T1T[end - t : end, :, :end]).flatten(1, 2)
    else:  # only the last t keys can be hidden
        places = torch.arange(t, device=k_NLE.device)
        scores_NtGL[..., -t:].masked_fill_(places > places[:, None, None], -math.inf)
    return scores_NRL.softmax(dim=-1).to(k_NLE.dtype)


def by_group(x_BTHE: Tensor, n_kv_heads: int) -> Tensor:
    """(B, T, H, E) -> (N, T, G, E): the rows of a product with what the group shares are then
    contiguous for any tile."""
    B, T, _, head_dim = x_BTHE.shape
    x_BTKGE = x_BTHE.reshape(B, T, n_kv_heads, -1, head_dim)
    return x_BTKGE.transpose(1, 2).reshape(B * n_kv_heads, T, -1, head_dim)


def by_head(x_NRE: Tensor, n_batch: int, n_heads: int) -> Tensor:
    """(N, T G, E) -> (B, T, H, E), the inverse of `by_group`."""
    n_kv_heads = len(x_NRE) // n_batch
    x_BKTGE = x_NRE.view(n_batch, n_kv_heads, -1, n_heads // n_kv_heads, x_NRE.shape[-1])
    return x_BKTGE.transpose(1, 2).reshape(n_batch, -1, n_heads, x_NRE.shape[-1])
