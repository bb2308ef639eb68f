"""int8: one scale per row, or per group of a row."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from smollm2.quantize.backends.torchao.cpu import CHUNK, LANES
from smollm2.quantize.codes import in_groups
from smollm2.quantize.matrix import TableMatrix
from smollm2.quantize.shapes import group_size_of

# From this many rows of x on, dequantizing the matrix and multiplying with that is faster than the
# kernel (2 cores, AVX-512: benchmarks/README.md); on a GPU the kernels are always used.
MANY_ROWS = 32
# The CPU's kernel reads beyond a row whose inputs are no multiple of this, and may crash.
KERNEL_WIDTH = 16


class Int8(TableMatrix):
    """Eight bits, symmetric, one scale per row, or per group along the input, of which the last may
    be shorter. Groups are closer to the weights; no kernel has them, so eager code dequantizes the
    matrix for every product.

    Plain: `codes` (n_out, n_in) int8, `scales` (n_out,) or (n_out, n_groups) bf16, with n_groups =
    n_in / group_size, rounded up; a weight is code · scale.
    """

    @classmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        parts = in_groups(weight.float(), group_size or weight.shape[1])
        codes, scales = zip(*map(choose_int8, parts), strict=True)
        scales_of_rows = torch.cat(scales, dim=1)
        return {
            "codes": torch.cat(codes, dim=1),
            "scales": scales_of_rows if group_size else scales_of_rows.flatten(),
        }

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__(plain, dtype)
        self.n_out, self.n_in = plain["codes"].shape
        self.group_size: int | None = None
        self.n_missing = 0  # inputs, from the last group
        if plain["scales"].ndim == 2:
            self.group_size = group_size_of(self.n_in, plain["scales"].shape[1])
            self.n_missing = -self.n_in % self.group_size
        self.codes: Tensor
        self.scales: Tensor
        # Copied, because the kernel assumes aligned codes and crashes on others; in a file
        # alignment is a matter of luck.
        self.register_buffer("codes", plain["codes"].clone())
        self.register_buffer("scales", plain["scales"].to(dtype, copy=True))

    def rows(self, numbers: Tensor) -> Tensor:
        return self._values(self.codes[numbers], self.scales[numbers])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.n_in)
        if self.group_size is not None:
            parts = zip(self.codes.split(CHUNK), self.scales.split(CHUNK), strict=True)
            y = torch.cat([F.linear(flat, self._values(*part)) for part in parts], dim=1)
        elif x.device.type == "cpu" and (len(flat) >= MANY_ROWS or self.n_in % KERNEL_WIDTH):
            parts = zip(self.codes.split(CHUNK), self.scales.split(CHUNK), strict=True)
            y = torch.cat([F.linear(flat, codes.to(x.dtype)) * s for codes, s in parts], dim=1)
        else:
            y = torch.ops.aten._weight_int8pack_mm(flat, self.codes, self.scales)
        return y.view(*x.shape[:-1], self.n_out)

    def step_operands(self) -> tuple[Tensor, ...]:
        """Codes, in whole groups, and scales, for `smollm2.inference.compiled_step`."""
        codes = F.pad(self.codes, (0, self.n_missing)) if self.n_missing else self.codes
        return codes, self.scales

    def step_product(self, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        """Two vectors of a row are added before they go into its sum, which would otherwise wait
        for every addition: a step takes 0.9 of the time."""
        if self.group_size is not None:
            groups = codes.unflatten(1, (-1, self.group_size)).float()
            if self.n_missing:
                x = F.pad(x, (0, self.n_missing))
            return ((groups * x.view(groups.shape[1:])).sum(-1) * scales.float()).sum(-1)
        at_once = math.gcd(self.n_in, 2 * LANES)
        n_vectors = max(at_once // LANES, 1)
        codes = codes.view(len(codes), -1, n_vectors, at_once // n_vectors)
        x = x.view(codes.shape[1:])
        products = [codes[:, :, i].float() * x[:, i] for i in range(n_vectors)]
        return sum(products[1:], products[0]).sum((1, 2)) * scales.float()

    def _values(self, codes: Tensor, scales: Tensor) -> Tensor:
        """codes (N, n_in), with their scales -> weights (N, n_in)."""
        if self.group_size is None:
            return codes * scales[:, None]
        values = codes.to(scales.dtype)
        parts = in_groups(values, self.group_size)
        of_parts = scales.split([part.shape[1] for part in parts], dim=1)
        for part_NGg, scales_NG in zip(parts, of_parts, strict=True):
            part_NGg.mul_(scales_NG[..., None])
        return values


def choose_int8(weight_RGg: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (R, G·g) and scales (R, G) of groups of weights in fp32."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    if weight_RGg.shape[-1] == 1:  # twice the weight: torchao takes groups of one for rows
        codes, scales = choose_int8(weight_RGg.repeat(1, 1, 2))
        return codes[:, ::2], scales
    weight, block, limits = weight_RGg.flatten(1), (1, weight_RGg.shape[-1]), (-128, 127)
    scales, zeros = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, block, torch.int8, *limits, eps=1e-9
    )
    scales = scales.bfloat16()  # first, so that the codes make up for its rounding
    codes = quantize_affine(weight, block, scales.float(), zeros, torch.int8, *limits)
    return codes, scales.view(len(weight), -1)
