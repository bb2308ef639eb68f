"""Codes chosen and multiplied by bitsandbytes: NF4 in blocks, and LLM.int8() by row."""

from smollm2.quantize.format import Backend, Format
from smollm2.quantize.shapes import GROUP_SIZES, Kernel

# Of bitsandbytes 0.50 (`quantize_4bit`), which cuts the flattened weight into blocks. Its CPU
# kernels compute with a block as a part of a row, and its CUDA kernels are slower otherwise.
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Rows that bitsandbytes 0.50 packs together on a CPU with AVX-512 and bf16
# (`_convert_weight_packed_for_cpu`).
PACKED_ROWS = 32

BACKEND = Backend(
    name="bitsandbytes",
    package="bitsandbytes",
    formats=(
        Format(
            "llm-int8",
            bits=8,
            matrix="smollm2.quantize.backends.bitsandbytes.llm_int8:LLMInt8",
        ),
        Format(
            "nf4",
            bits=4,
            matrix="smollm2.quantize.backends.bitsandbytes.nf4:NF4",
            group_sizes=GROUP_SIZES,
            kernels=(Kernel("bitsandbytes NF4, CPU", BLOCK_SIZES, n_multiple=PACKED_ROWS),),
        ),
    ),
)
