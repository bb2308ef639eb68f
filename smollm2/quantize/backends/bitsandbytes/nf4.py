"""NF4: quantiles of a normal distribution, a scale per block."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smollm2.quantize.backends.bitsandbytes import PACKED_ROWS
from smollm2.quantize.matrix import QuantizedMatrix, UnsupportedShape


class NF4(QuantizedMatrix):
    """The 16 quantiles of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314) times the
    largest value of each block.

    Plain: `codes` (n_out, n_in / 2) uint8, two per byte; `scales` (n_out, n_in / group_size) fp32.
    """

    @classmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        n_out, n_in = weight.shape
        assert group_size is not None
        # bitsandbytes accepts blocks that straddle rows, but then raises at the first product or
        # dequantizes wrongly.
        if n_in % group_size:
            raise UnsupportedShape(f"blocks of {group_size} do not divide its {n_in} inputs")
        if weight.device.type == "cpu" and n_out % PACKED_ROWS:
            raise UnsupportedShape(f"{PACKED_ROWS} does not divide its {n_out} outputs")
        codes, state = quantize_4bit(weight.contiguous(), blocksize=group_size, quant_type="nf4")
        return {"codes": codes.view(n_out, -1), "scales": state.absmax.view(n_out, -1)}

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        from bitsandbytes.functional import get_4bit_type
        from bitsandbytes.nn import Linear4bit, Params4bit

        super().__init__(plain, dtype)
        codes, scales = plain["codes"], plain["scales"]
        self.n_out, self.n_in = codes.shape[0], codes.shape[1] * 2
        self.linear = Linear4bit(
            self.n_in, self.n_out, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        stats = {
            "absmax": scales.flatten(),
            "quant_map": get_4bit_type("nf4", device=codes.device),
            "blocksize": self.n_in // scales.shape[1],
            "quant_type": "nf4",
            "dtype": str(dtype).removeprefix("torch."),
            "shape": (self.n_out, self.n_in),
        }
        # Packing for the CPU, at the first product, is in place: the file's tensors stay whole.
        self.linear.weight = Params4bit.from_prequantized(
            codes.clone().view(-1, 1), stats, device=codes.device, module=self.linear
        )
        self.linear.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    @property
    def memory_bytes(self) -> int:
        weight: Any = self.linear.weight
        return super().memory_bytes + int(weight.quant_state.absmax.nbytes)
