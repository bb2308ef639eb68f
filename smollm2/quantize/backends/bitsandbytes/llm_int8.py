"""LLM.int8(): one scale per row, and activations in eight bits too."""

from collections.abc import Mapping

import torch
from torch import Tensor

from smollm2.quantize.matrix import QuantizedMatrix


class LLMInt8(QuantizedMatrix):
    """Eight bits by row, multiplied with activations that are themselves rounded, to fp16 and then
    to eight bits by token (Dettmers et al. 2022, arXiv:2208.07339), here without outliers.

    Plain: `codes` (n_out, n_in) int8, `scales` (n_out,) fp32; a weight is code · scale / 127.
    """

    @classmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(weight.half().contiguous())
        return {"codes": codes, "scales": scales}

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        super().__init__(plain, dtype)
        codes, scales = plain["codes"], plain["scales"]
        self.n_out, self.n_in = codes.shape
        self.linear = Linear8bitLt(
            self.n_in, self.n_out, bias=False, has_fp16_weights=False, device="meta"
        )
        self.linear.weight = Int8Params(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
        )
        self.linear.eval()
        self.scales_bytes = scales.nbytes  # bitsandbytes changes them

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    @property
    def memory_bytes(self) -> int:
        return super().memory_bytes + self.scales_bytes
