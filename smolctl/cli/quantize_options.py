"""The configuration that the options of `smolctl quantize` ask for."""

import dataclasses
from typing import TYPE_CHECKING

from smollm2.errors import UserError
from smollm2.quantize.quant_config import DEFAULT_GROUP_SIZE, QuantConfig
from smollm2.quantize.registry import BACKENDS, DEFAULT_BACKEND, find_backend

if TYPE_CHECKING:
    from smollm2.runs.run import Run


def configuration(
    bits: int, backend: str, method: str | None, group_size: int | None, embedding: str, v8: bool
) -> QuantConfig:
    """The configuration that the options ask for."""
    if embedding not in ("8", "4", "none"):
        raise UserError(f"--embedding takes 8, 4 or none, not {embedding}.")
    if v8 and not (bits == 4 and backend == DEFAULT_BACKEND):
        raise UserError(f"--v8 is for --bits 4 with --backend {DEFAULT_BACKEND}; omit it.")
    if group_size is None and has_groups(backend, bits):
        group_size = DEFAULT_GROUP_SIZE
    if method is None:
        format = find_backend(backend).format(bits)
        method = QuantConfig.method if format is None else format.default_method
    embedding_bits = None if embedding == "none" else int(embedding)
    return QuantConfig(bits, backend, method, group_size, embedding_bits, 8 if v8 else None)


def has_groups(backend: str, bits: int) -> bool:
    """Whether weights are always quantized in groups; False for a format that does not exist."""
    format = find_backend(backend).format(bits)
    return format is not None and format.needs_groups


def require_fit(runs: "list[Run]", config: QuantConfig) -> None:
    """Raise `UserError` if the backend is not installed or the group size fits no layer."""
    from importlib.util import find_spec

    from smollm2.quantize.dimensions import weights

    package = BACKENDS[config.backend].package
    if find_spec(package) is None:
        raise UserError(
            f"{package} is not installed: pip install {package}, or choose another --backend."
        )
    size = config.group_size
    widths = {weight.n_in for run in runs for weight in weights(run.protocol.model)}
    if size is None or config.format.short_groups or any(width % size == 0 for width in widths):
        return
    names = ", ".join(run.name for run in runs)
    fits = [
        str(size)
        for size in config.format.group_sizes
        if size is not None and any(width % size == 0 for width in widths)
    ]
    remedy = f"give --group-size {' or '.join(fits)}" if fits else "no group size does: --bits 8"
    raise UserError(
        f"Groups of {size} divide no layer of {names} (widths "
        f"{', '.join(map(str, sorted(widths)))}); {remedy}, or --backend {DEFAULT_BACKEND}, whose "
        "last group of a row may be shorter."
    )


def without_repeats(configs: list[QuantConfig], run: "Run") -> tuple[list[QuantConfig], list[str]]:
    """The configurations that differ for a run, and a sentence on each other one: where no row is
    longer than a group, larger groups are the same."""
    from smollm2.quantize.dimensions import weights

    longest = max(weight.n_in for weight in weights(run.protocol.model))
    kept, sentences = [], []
    for config in configs:
        sizes = [size for size in config.format.group_sizes if size is not None and size >= longest]
        if config.format.short_groups and config.group_size in sizes[1:]:
            same = dataclasses.replace(config, group_size=sizes[0])
            sentences.append(
                f"{config.name} is left out: for {run.name}, whose rows have at most {longest} "
                f"weights, it is {same.name}."
            )
        else:
            kept.append(config)
    return kept, sentences
