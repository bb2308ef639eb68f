"""Integers chosen by torchao, multiplied by the kernels of torch that torchao calls.

torchao's own tensors are not used: they cannot all be saved as plain tensors, cost a dispatch per
layer, and have no rows to look up. A test holds these modules to their outputs, bit for bit.
"""

from smollm2.quantize.format import Backend, Format
from smollm2.quantize.shapes import GROUP_SIZES, Kernel

# torchao 0.18, `Int4TilePackedTo4dTensor.from_hp`: pads K to 1024 and N to 8.
TILE_PACKED = Kernel("torchao int4, CUDA", GROUP_SIZES, k_multiple=1024, n_multiple=8, pads=True)

BACKEND = Backend(
    name="torchao",
    package="torchao",
    formats=(
        Format(
            "int8",
            bits=8,
            matrix="smollm2.quantize.backends.torchao.int8:Int8",
            group_sizes=(None, 32),
            short_groups=True,
            row_devices=("cpu", "cuda", "mps"),
        ),
        Format(
            "int4",
            bits=4,
            matrix="smollm2.quantize.backends.torchao.int4:Int4",
            group_sizes=GROUP_SIZES,
            short_groups=True,
            # See smollm2.quantize.codes; hqq is Half-Quadratic Quantization (Badri and Shaji 2023).
            methods=("rtn", "hqq", "clip", "gptq"),
            default_method="clip",
            row_devices=("cpu",),
            kernels=(
                # torch's `_weight_int4pack_mm_for_cpu`, which torchao calls; rows are padded to
                # its blocks of 32 or 64, which adds nothing to widths such as these.
                Kernel("torchao int4, CPU", GROUP_SIZES),
                TILE_PACKED,
                # Not called here, but it takes such codes: groups of 128 in Frantar et al. 2024
                # (MARLIN, arXiv:2408.11743), with the smallest tiles that vLLM's version takes.
                Kernel("Marlin", (128,), k_multiple=128, n_multiple=64),
            ),
        ),
    ),
)
