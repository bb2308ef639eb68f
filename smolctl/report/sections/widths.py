"""Which group sizes and kernels fit the widths; needs no run."""

from collections.abc import Sequence

from smolctl.analysis.quantized_arms import percent
from smolctl.report.document import Block, Section, Table, bullets, paragraph, section
from smolctl.report.evidence import Evidence, model_configs
from smolctl.report.sections.per_study import source
from smolctl.report.wording import listed, percent_cell
from smollm2.model.config import ModelConfig
from smollm2.quantize.backends.torchao import TILE_PACKED
from smollm2.quantize.dimensions import (
    ALIGNMENTS,
    GROUP_SIZES,
    aligned_share,
    bits_per_weight,
    divisible_share,
    kernels,
    padding_share,
    taken_share,
    weights,
)


def widths_section(evidence: Evidence) -> Section | None:
    """Of the study at full size; no other widths are those that models are quantized at."""
    study = evidence.full_size
    if study is None:
        return None
    start = [paragraph(text) for text in source(evidence, study)]
    return widths_of(model_configs(study), start=start)


def widths_of(
    configs: dict[str, ModelConfig], *, each: bool = False, start: Sequence[Block] = ()
) -> Section | None:
    """The same of any models.

    Args:
        each: whether every matrix of every model is listed too.
    """
    matrices = [weights_table(name, config) for name, config in configs.items() if each]
    blocks = [*start, bullets(width_sentences(configs)), *matrices, widths_table(configs)]
    return section("What fits the widths", blocks)


def widths_table(configs: dict[str, ModelConfig]) -> Table:
    """A column per model: shares of the matrices' parameters that groups and kernels fit."""
    columns = [widths_column(config) for config in configs.values()]
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    return Table(
        "What fits the widths, as shares of the parameters in matrices; needs no run",
        ("", *configs),
        rows,
    )


def weights_table(name: str, config: ModelConfig) -> Table:
    """A row per kind of matrix of one model: what fits it, and what padding it would add."""
    rows = [
        (
            weight.name,
            f"{weight.count} × {weight.n_out:,} × {weight.n_in:,}",
            " ".join(map(str, weight.dividing_groups())) or "none",
            *(percent_cell(weight.padding(size)) for size in (128, 256)),
            str(weight.alignment),
            *("yes" if kernel.groups(weight) else "no" for kernel in kernels()),
        )
        for weight in weights(config)
    ]
    return Table(
        f"Matrices of {name}: groups that divide the inputs, weights that padding to 128 and 256 "
        "adds, the multiple of 64, 16 or 8 that the widths are, and which kernels take it unpadded",
        (
            *("matrix", "outputs × inputs", "groups", "to 128", "to 256", "multiple"),
            *(kernel.name for kernel in kernels()),
        ),
        rows,
    )


def widths_column(config: ModelConfig) -> dict[str, str]:
    """What `widths_table` says of a model, by label."""
    cells = {}
    for size in GROUP_SIZES:
        cells[f"inputs in whole groups of {size}"] = percent(divisible_share(config, size))
    for size in GROUP_SIZES:
        label = f"bits per weight at 4 bits, rows padded to groups of {size}"
        cells[label] = f"{bits_per_weight(config, size):.3f}"
    for kernel in kernels():
        cells[f"{kernel.name}: fits unpadded"] = percent(taken_share(config, kernel))
        if kernel.pads:
            padding = padding_share(config, kernel.k_multiple, kernel.n_multiple)
            cells[f"{kernel.name}: padding adds"] = percent(padding)
    for multiple in ALIGNMENTS:
        label = f"widths in multiples of {multiple}, for tensor cores"
        cells[label] = percent(aligned_share(config, multiple))
    return cells


def width_sentences(configs: dict[str, ModelConfig]) -> list[str]:
    """Which widths a group size does not divide, and what tiles of 1024 cost, model by model."""
    sentences = []
    for name, config in configs.items():
        widths: dict[int, list[str]] = {}
        for weight in weights(config):
            widths.setdefault(weight.n_in, []).append(weight.name)
        odd = [
            f"groups of {listed([str(size) for size in sizes])} do not divide the {width:,} inputs "
            f"of {'; '.join(names)}"
            for width, names in widths.items()
            if (sizes := [size for size in GROUP_SIZES if width % size])
        ]
        fits = ", and ".join(odd) if odd else "every group size divides the inputs of every matrix"
        padding = padding_share(config, TILE_PACKED.k_multiple, TILE_PACKED.n_multiple)
        sentences.append(
            f"{name}: {fits}. Padding to the tiles of {TILE_PACKED.name} adds "
            f"{percent(padding)} to its matrices."
        )
    return sentences
