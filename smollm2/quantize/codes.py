"""How integer codes are chosen for groups of weights that share a scale and a zero point.

A weight is (code - MIDDLE) · scale + zero, with codes 0 to 15. Scales and zero points are rounded
to bf16 first, as they are stored, so that the codes make up for that; all else is in fp32. The
calibrated methods make the error of a layer's outputs on calibration text small, through the second
moments E[x xᵀ] of its inputs (`calibration.py`).

Where a group size does not divide the inputs, the last group of every row is shorter: its scale and
zero point are those of its own weights alone.

Shape suffixes: R rows (outputs), I inputs, G groups of g inputs, so I = G·g; S groups of a matrix,
the shorter one included.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

LAST = 15  # the largest code of four bits
MIDDLE = 8
SMALLEST = 1e-6  # scale: that of torchao's tinygemm layout
SHARES = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52)  # of a group's range, that `clipped` tries
# Added to each input's own second moment, as a share of it. It keeps the corrections small: large
# ones leave the range of a group's codes, and correlations are weaker between other tokens. Of
# SmolLM2-135M-Instruct, its channels permuted, shares of 0.02, 0.05, 0.2 and 0.5 left a KL of
# 0.104, 0.094, 0.088 and 0.087 nats/token, and 0.01 of the mean second moment, as in Frantar et al.
# 2023, 0.118: a few inputs with huge moments make that mean.
DAMPING = 0.5
CHUNK = 2**17  # weights that `clipped` works on at a time: they stay in the cache


class Codes(NamedTuple):
    """codes (R, I) uint8 from 0 to 15; scales and zeros (R, S) in bf16."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def rounded(weight_RI: Tensor, group_size: int) -> Codes:
    """Round to nearest (rtn): the smallest and the largest weight of a group are its first and last
    code."""
    found = []
    for weight_RGg in in_groups(weight_RI.float(), group_size):
        low, high = weight_RGg.aminmax(dim=-1, keepdim=True)
        found.append(flat(weight_RGg, *scale_and_zero(low, high, 1.0)))
    return joined(found, dim=1)


def clipped(weight_RI: Tensor, group_size: int, moments_I: Tensor) -> Codes:
    """Round to nearest within a part of the range, where that makes the error of the outputs
    smaller: for each group the best of `SHARES`, each improved by a least squares fit of scale and
    zero point to its codes.

    Args:
        moments_I: E[x²] of each input; the error of a weight counts in proportion to it.
    """
    shares = in_groups(moments_I.float(), group_size)
    rows = weight_RI.split(max(1, CHUNK // weight_RI.shape[1]))
    found = [
        joined(map(clipped_groups, in_groups(part.float(), group_size), shares), dim=1)
        for part in rows
    ]
    return joined(found, dim=0)


def clipped_groups(weight_RGg: Tensor, moments_Gg: Tensor) -> Codes:
    """`clipped` of some groups of some rows."""
    # Only ratios within a group count; unused inputs count a little, so that no sum is zero.
    share_Gg = moments_Gg / moments_Gg.mean(dim=1, keepdim=True).clamp(min=1e-30) + 1e-6
    share_Gg = share_Gg / share_Gg.sum(dim=1, keepdim=True)
    group = Group(weight_RGg, share_Gg)
    low, high = weight_RGg.aminmax(dim=-1, keepdim=True)
    scales, zeros = scale_and_zero(low, high, 1.0)
    least = group.error(scales, zeros)
    for share in SHARES:
        candidate = group.fitted(*scale_and_zero(low, high, share))
        error = group.error(*candidate)
        is_less = error < least
        least = torch.where(is_less, error, least)
        scales = torch.where(is_less, candidate[0], scales)
        zeros = torch.where(is_less, candidate[1], zeros)
    return flat(weight_RGg, scales, zeros)


class Group:
    """Groups of weights, and how much each weight of a group counts, as shares that sum to 1.

    Sums over a group with these shares (⟨c⟩, ⟨c²⟩, ⟨cw⟩ of codes c and weights w) give both the
    least squares fit and the error, so that a candidate costs a few passes over the weights.
    """

    def __init__(self, weight_RGg: Tensor, share_Gg: Tensor) -> None:
        self.weight_RGg, self.share_Gg = weight_RGg, share_Gg
        self.shared_RGg = weight_RGg * share_Gg
        self.mean = self.shared_RGg.sum(-1, keepdim=True)
        self.centred_RGg = self.shared_RGg - self.mean * share_Gg
        self.spread = (self.centred_RGg * weight_RGg).sum(-1, keepdim=True)

    def sums(self, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """⟨c⟩, and of the deviations from the means ⟨c²⟩ and ⟨cw⟩, for the nearest codes; (R, G, 1)
        each."""
        inverse = scales.reciprocal()
        codes_RGg = torch.addcmul(-zeros * inverse, self.weight_RGg, inverse)
        codes_RGg.round_().clamp_(-MIDDLE, LAST - MIDDLE)
        products = (codes_RGg * self.centred_RGg).sum(-1, keepdim=True)
        shared_RGg = codes_RGg * self.share_Gg
        mean = shared_RGg.sum(-1, keepdim=True)
        squares = shared_RGg.mul_(codes_RGg).sum(-1, keepdim=True)
        return mean, squares - mean.square(), products

    def fitted(self, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
        """The least squares fit of scale and zero point to the codes that they give."""
        mean, squares, products = self.sums(scales, zeros)
        # Codes that are all alike determine no scale.
        slope = torch.where(squares > 1e-4, products / squares.clamp(min=1e-4), scales)
        slope = as_stored(slope.clamp(min=SMALLEST))
        return slope, as_stored(self.mean - slope * mean)

    def error(self, scales: Tensor, zeros: Tensor) -> Tensor:
        """The mean squared error of each group (R, G, 1), by the shares."""
        mean, squares, products = self.sums(scales, zeros)
        off = scales * mean + zeros - self.mean
        return scales.square() * squares - 2 * scales * products + self.spread + off.square()


def gptq(weight_RI: Tensor, group_size: int, moments_II: Tensor) -> Codes:
    """Column by column, the columns that are left make up for the error of those before (GPTQ,
    Frantar et al. 2023, arXiv:2210.17323). A group's scale and zero point are those of `clipped` on
    what its weights have become by then.

    Args:
        moments_II: E[x xᵀ] of the inputs.
    """
    upper_II = inverse_factor(moments_II)
    weight_IR = weight_RI.float().T.contiguous()  # columns become rows, which are contiguous
    # With later columns making up for it, the error of a column counts by this.
    moments_I = upper_II.diagonal() ** -2
    found = []
    for start in range(0, len(weight_IR), group_size):
        end = min(start + group_size, len(weight_IR))
        block_gR, upper_gg = weight_IR[start:end], upper_II[start:end, start:end]
        _, scales_R1, zeros_R1 = clipped(block_gR.T, group_size, moments_I[start:end])
        scales, zeros = scales_R1[:, 0].float(), zeros_R1[:, 0].float()
        codes_gR, errors_gR = torch.empty_like(block_gR), torch.empty_like(block_gR)
        for i in range(len(block_gR)):
            codes_gR[i] = codes_of(block_gR[i], scales, zeros)
            error = block_gR[i] - dequantized(codes_gR[i], scales, zeros)
            errors_gR[i] = error / upper_gg[i, i]
            block_gR[i + 1 :] -= upper_gg[i, i + 1 :, None] * errors_gR[i]
        weight_IR[end:] -= upper_II[start:end, end:].T @ errors_gR
        found.append(Codes(codes_gR.T, scales_R1, zeros_R1))
    codes, scales, zeros = joined(found, dim=1)
    return Codes(codes.to(torch.uint8), scales, zeros)


def in_groups(x: Tensor, group_size: int) -> list[Tensor]:
    """x (..., I) as views: its whole groups (..., G, g), then what is left (..., 1, the rest)."""
    rest = x.shape[-1] % group_size
    parts = zip(x.split([x.shape[-1] - rest, rest], dim=-1), (group_size, rest), strict=True)
    return [part.unflatten(-1, (-1, size)) for part, size in parts if part.shape[-1]]


def joined(found: Iterable[Codes], dim: int) -> Codes:
    """Codes of parts of a matrix, in rows (dim 0) or side by side (dim 1)."""
    return Codes(*(torch.cat(tensors, dim) for tensors in zip(*found, strict=True)))


def inverse_factor(moments_II: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of damped second moments, in fp32."""
    wide_II = moments_II.cpu().double()  # not every device has fp64
    own_I = wide_II.diagonal()
    least = own_I.mean().clamp(min=1e-30) * 1e-4  # of an input that is never used
    damped_II = wide_II + torch.diag(DAMPING * own_I.clamp(min=least))
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(damped_II))
    return torch.linalg.cholesky(inverse_II, upper=True).float().to(moments_II.device)


def scale_and_zero(low: Tensor, high: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point (R, G, 1) for a share of each group's range, as they are stored."""
    scales = as_stored((share * (high - low) / LAST).clamp(min=SMALLEST))
    return scales, as_stored(share * low + MIDDLE * scales)


def codes_of(weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The nearest codes, in fp32."""
    return ((weight - zeros) / scales).round_().add_(MIDDLE).clamp_(0, LAST)


def dequantized(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """What the codes stand for."""
    return (codes - MIDDLE).mul_(scales).add_(zeros)


def as_stored(x: Tensor) -> Tensor:
    """Rounded to bf16, in fp32."""
    return x.bfloat16().float()


def flat(weight_RGg: Tensor, scales_RG1: Tensor, zeros_RG1: Tensor) -> Codes:
    """The codes of groups as they are stored."""
    codes_RI = codes_of(weight_RGg, scales_RG1, zeros_RG1).flatten(1).to(torch.uint8)
    return Codes(codes_RI, scales_RG1[..., 0].bfloat16(), zeros_RG1[..., 0].bfloat16())
