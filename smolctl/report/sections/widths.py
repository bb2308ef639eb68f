"""Which group sizes and kernels fit the widths; needs no run."""

from itertools import product

from smolctl.analysis.quantized_arms import percent
from smolctl.report.document import Section, Table, bullets, paragraph, section
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
    memory_bits_per_weight,
    padded_bits_per_weight,
    padding_share,
    taken_share,
    weights,
)

TITLE = "What fits the widths"


def widths_section(evidence: Evidence) -> Section | None:
    """Of the study at full size; no other widths are those that models are quantized at."""
    study = evidence.full_size
    if study is None:
        return None
    start = [paragraph(text) for text in source(evidence, study)]
    configs = model_configs(study)
    return section(TITLE, [*start, bullets(width_sentences(configs)), widths_table(configs)])


def dimensions_section(configs: dict[str, ModelConfig], *, each: bool) -> Section | None:
    """The same of any models, and what int4 takes.

    Args:
        each: whether every matrix of every model is listed too.
    """
    matrices = [weights_table(name, config) for name, config in configs.items() if each]
    tables = [*matrices, widths_table(configs), bits_table(configs)]
    return section(TITLE, [bullets(width_sentences(configs)), *tables])


def widths_table(configs: dict[str, ModelConfig]) -> Table:
    """A column per model: shares of the matrices' parameters that groups and kernels fit."""
    columns = [widths_column(config) for config in configs.values()]
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    return Table(
        "What fits the widths, as shares of the parameters in matrices; needs no run",
        ("", *configs),
        rows,
    )


def bits_table(configs: dict[str, ModelConfig]) -> Table:
    """A column per model: bits per weight of int4."""
    places = {"on disk": bits_per_weight, "in memory": memory_bits_per_weight}
    return Table(
        "Bits per weight of int4: on disk the last group of a row is shorter where the size does "
        "not divide it; in memory such a row is held in smaller groups, or padded",
        ("", *configs),
        [
            (
                f"groups of {size}, {place}",
                *(f"{bits(config, size):.3f}" for config in configs.values()),
            )
            for size, (place, bits) in product(GROUP_SIZES, places.items())
        ],
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
        cells[label] = f"{padded_bits_per_weight(config, size):.3f}"
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
