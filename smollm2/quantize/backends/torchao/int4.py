"""int4: a scale and a zero point per group."""

from collections.abc import Iterator, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from smollm2.inference.compiled_step import materialize
from smollm2.quantize.backends.torchao.cpu import CHUNK, LANES
from smollm2.quantize.codes import (
    Codes,
    as_stored,
    clipped,
    flat,
    gptq,
    in_groups,
    joined,
    rounded,
)
from smollm2.quantize.matrix import TableMatrix, UnsupportedShape
from smollm2.quantize.shapes import group_size_of, held_group_size, next_multiple

MANY_ROWS = 256  # see int8.py


class Int4(TableMatrix):
    """Four bits, a scale and a zero point per group along the input. The last group of a row is
    shorter where the group size does not divide n_in.

    Plain: `codes` (n_out, n_in / 2) uint8, two per byte, the first in the high half; `scales` and
    `zeros` (n_out, n_in / group_size, rounded up) bf16; a weight is (code - 8) · scale + zero.

    Kernels take whole groups only. Such a row is held in smaller groups, several of which have the
    same scale and zero point, and padded if need be: then x is padded, too, with zeros.
    """

    @classmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        assert group_size is not None
        n_in = weight.shape[1]
        if n_in % 2:
            raise UnsupportedShape(f"codes are stored in pairs, and its {n_in} inputs are odd")
        codes, scales, zeros = choose_int4(weight, group_size, method, moments)
        packed = codes[:, ::2] << 4 | codes[:, 1::2]
        return {"codes": packed, "scales": scales, "zeros": zeros}

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__(plain, dtype)
        self.n_out, self.n_in = plain["codes"].shape[0], plain["codes"].shape[1] * 2
        stored_size = group_size_of(self.n_in, plain["scales"].shape[1])
        self.group_size = held_group_size(self.n_in, stored_size)
        self.n_held = next_multiple(self.n_in, self.group_size)
        device = plain["codes"].device
        pack = pack_cuda if device.type == "cuda" else pack_cpu
        codes = F.pad(plain["codes"], (0, (self.n_held - self.n_in) // 2))
        of_groups = torch.stack([plain["scales"], plain["zeros"]], dim=-1).to(dtype)
        of_groups = of_groups.repeat_interleave(stored_size // self.group_size, dim=1)
        scales_and_zeros = of_groups[:, : self.n_held // self.group_size]
        self.packed: Tensor
        self.scales_and_zeros: Tensor  # (n_held / group_size, n_out padded, 2)
        self.register_buffer("packed", pack(codes))
        n_padded = self.packed.shape[0] if device.type == "cpu" else self.n_out
        padded = F.pad(scales_and_zeros, (0, 0, 0, 0, 0, n_padded - self.n_out))
        self.register_buffer("scales_and_zeros", padded.transpose(0, 1).contiguous())

    def rows(self, numbers: Tensor) -> Tensor:
        """Only on a CPU; the GPU's packing is unknown."""
        block, place = packing()
        slots = place[numbers % block]
        both = self._blocks()[numbers // block, :, slots % (block // 2)]
        codes = torch.where((slots >= block // 2)[:, None], both >> 4, both & 15)
        return self._values(codes, self.scales_and_zeros[:, numbers])[:, : self.n_in]

    def forward(self, x: Tensor) -> Tensor:
        flat = self._padded(x.reshape(-1, self.n_in))
        aten = torch.ops.aten
        if x.device.type == "cuda":
            kernel = aten._weight_int4pack_mm
            y = kernel(flat, self.packed, self.group_size, self.scales_and_zeros)
        elif len(flat) >= MANY_ROWS:
            y = torch.cat([F.linear(flat, part) for part in self._parts()], dim=1)
        else:
            kernel = aten._weight_int4pack_mm_for_cpu
            y = kernel(flat, self.packed, self.group_size, self.scales_and_zeros)
        return y[:, : self.n_out].view(*x.shape[:-1], self.n_out)

    def step_operands(self) -> tuple[Tensor, ...]:
        """For the compiled step: words (n_padded / 16, n_held / 8, 16) int32, each eight codes of
        one row, and (n_padded / 16, 2, n_held / group_size, 16) scales and zero points."""
        block, place = packing()
        both = self._blocks()
        codes = torch.cat([both & 15, both >> 4], dim=-1)[..., place].int()
        codes = codes.view(len(both), self.n_held // 8, 8, block // LANES, LANES)
        words = sum(codes[:, :, k] << 4 * k for k in range(8))
        assert isinstance(words, Tensor)
        words = words.transpose(1, 2).reshape(-1, self.n_held // 8, LANES)
        scales_and_zeros = self.scales_and_zeros.unflatten(1, (-1, LANES)).permute(1, 3, 0, 2)
        return words, scales_and_zeros.contiguous()

    def step_product(self, x: Tensor, words: Tensor, scales_and_zeros: Tensor) -> Tensor:
        """Rows lie in lanes, so that nothing is summed across a vector. A code is not shifted down;
        its x is scaled down instead. 1.3 times as fast as the kernel."""
        groups = words.unflatten(1, (-1, self.group_size // 8))
        x_GW8 = self._padded(x).view(*groups.shape[1:3], 8)
        sums_G1 = materialize(x_GW8.sum((1, 2)))[:, None]
        places = 1 / (1 << 4 * (torch.arange(8) % 7)).float()  # 16^-k, but 1 for k = 7
        x_GW8 = materialize(x_GW8 * places)
        y = torch.zeros(())
        for k in range(8):  # the highest four bits hold the sign
            codes = groups & (15 << 4 * k) if k < 7 else (groups >> 28) & 15
            y = y + codes.float() * x_GW8[..., k, None]
        scales, zeros = scales_and_zeros.float().unbind(1)
        y = (y.sum(2) - 8 * sums_G1) * scales + sums_G1 * zeros
        return y.sum(1).flatten()[: self.n_out]

    def _parts(self) -> Iterator[Tensor]:
        """The padded matrix, dequantized some rows at a time."""
        block, place = packing()
        parts = self._blocks().split(CHUNK // block)
        scales_and_zeros = self.scales_and_zeros.split(CHUNK, dim=1)
        for packed, of_rows in zip(parts, scales_and_zeros, strict=True):
            slots = torch.cat([packed & 15, packed >> 4], dim=-1).transpose(1, 2).contiguous()
            codes = slots.index_select(1, place)  # whole rows: a fifth of the time of single codes
            yield self._values(codes.view(-1, self.n_held), of_rows)

    def _padded(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_held)."""
        n_added = self.n_held - self.n_in
        return F.pad(x, (0, n_added)) if n_added else x

    def _blocks(self) -> Tensor:
        return self.packed.view(-1, self.n_held, packing()[0] // 2)

    def _values(self, codes: Tensor, scales_and_zeros: Tensor) -> Tensor:
        """codes (N, n_held), scales_and_zeros (n_held / group_size, N, 2) -> weights, shaped as the
        codes."""
        scales, zeros = scales_and_zeros.transpose(0, 1).unbind(-1)
        groups = codes.view(len(codes), -1, self.group_size).to(scales.dtype)
        values = groups.sub_(8).mul_(scales[..., None]).add_(zeros[..., None])
        return values.view(len(codes), self.n_held)


def choose_int4(weight: Tensor, group_size: int, method: str, moments: Tensor | None) -> Codes:
    """Codes by one of the format's methods, in fp32.

    Without `moments` all inputs count alike, as for an expert that no token chose; `gptq` is then
    `clip`, which is what it comes to if inputs are uncorrelated.
    """
    if method == "rtn":
        return rounded(weight, group_size)
    if method == "hqq":
        return half_quadratic(weight, group_size)
    if method == "gptq" and moments is not None and moments.ndim == 2:
        return gptq(weight, group_size, moments)
    if moments is None:
        moments = weight.new_ones(weight.shape[1])
    return clipped(weight, group_size, moments.diagonal() if moments.ndim == 2 else moments)


def half_quadratic(weight: Tensor, group_size: int) -> Codes:
    """Half-Quadratic Quantization (Badri and Shaji 2023) as torchao has it; the codes are chosen
    again for scales and zero points as they are stored."""
    from torchao.quantization import quant_primitives as primitives

    found = []
    for weight_RGg in in_groups(weight.float(), group_size):
        _, scales, zeros, _ = primitives._choose_qparams_and_quantize_affine_hqq(
            weight_RGg.flatten(1),
            nbits=4,
            group_size=weight_RGg.shape[-1],
            compute_dtype=torch.float32,
            device=str(weight.device),
        )
        scales, zeros = (as_stored(x.view(len(weight), -1, 1)) for x in (scales, zeros))
        found.append(flat(weight_RGg, scales, zeros))
    return joined(found, dim=1)


def pack_cpu(codes: Tensor) -> Tensor:
    """Codes two per byte (n_out, n_in / 2) -> the layout of the CPU's kernel: (n_out padded to
    whole blocks, n_in / 2)."""
    block, _ = packing()
    unpacked = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1).int()
    padded = F.pad(unpacked, (0, 0, 0, -len(codes) % block))
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)


def pack_cuda(codes: Tensor) -> Tensor:
    """Codes two per byte (n_out, n_in / 2) -> the layout of tensor cores.

    Raises:
        UnsupportedShape: the kernel does not take this shape.
    """
    n_out, n_in = codes.shape[0], codes.shape[1] * 2
    tiles = [k for k in (8, 4, 2) if n_in % (16 * k) == 0]
    if not tiles or n_out % 8:
        raise UnsupportedShape(
            f"the CUDA kernel takes tiles of 8 × 32, which do not divide {n_out} × {n_in}"
        )
    return torch.ops.aten._convert_weight_to_int4pack(codes, tiles[0])


@cache
def packing() -> tuple[int, Tensor]:
    """The layout of the CPU's kernel, which depends on the CPU's vectors: the number of rows in a
    block, and the place of each row, counted through the low halves of the bytes and then the high
    halves.

    Determined by packing the row numbers themselves, because torch does not document it.

    Raises:
        RuntimeError: the layout is unknown.
    """
    for block in (64, 32):
        numbers = torch.arange(block)
        digits = torch.stack([numbers & 15, numbers >> 4], dim=1).int()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(digits, 1).view(2, block // 2)
        low, high = torch.cat([packed & 15, packed >> 4], dim=1).long()
        if torch.equal((low + 16 * high).sort().values, numbers):
            return block, (low + 16 * high).argsort()
    raise RuntimeError("torch packs 4-bit weights on this CPU in an unknown layout.")
