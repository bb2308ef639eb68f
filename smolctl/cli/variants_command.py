"""`smolctl variants`: architectures and their costs."""

import dataclasses
from typing import Annotated, Any

import typer

from smolctl.cli.console import print_json, print_table, say
from smolctl.cli.options import Json, complete_variant
from smollm2.errors import UserError
from smollm2.model.config import SCALES, VARIANTS, ModelConfig, variant
from smollm2.model.cost import kv_cache_bytes_per_token, parameters, training_flops_per_token
from smollm2.protocol.resolve import default_seq_len, variant_label

EXAMPLES = """
**Examples**

- `smolctl variants`

- `smolctl variants orig orig:n_kv_heads=9 mine.toml --scale full`

- `smolctl variants --json`
"""

HEADER = (
    *("variant", "scale", "d_model", "heads", "kv heads", "layers", "d_ff", "experts"),
    *("parameters", "active", "embedding", "FLOPs/token", "KV bytes/token"),
)


def variants(
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VARIANT]...",
            help="Variants, short forms such as pow2:n_kv_heads=8, or TOML files (default: all).",
            autocompletion=complete_variant,
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="full or nano (default: both).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show architectures: shape, parameters, FLOPs and KV cache per token."""
    rows: list[dict[str, Any]] = []
    for one in SCALES if scale is None else (scale,):
        for spec in specs or VARIANTS:
            try:
                rows.append(architecture_row(spec, one, variant(spec, one)))
            except UserError as error:
                if scale is not None or one == "full":
                    raise
                say(f"{spec} at {one} scale: {error}")
    if as_json:
        print_json(rows)
        return
    print_table(
        "Variants",
        HEADER,
        (
            (
                row["variant"],
                row["scale"],
                *(f"{row[key]:,}" for key in ("d_model", "n_heads", "n_kv_heads", "n_layers")),
                f"{row['d_ff']:,}",
                f"{row['n_active_experts']} of {row['n_experts']}" if row["n_experts"] > 1 else "–",
                *(f"{row[key]:,}" for key in ("total", "active", "embedding")),
                f"{row['training_flops_per_token']:.3e}",
                f"{row['kv_cache_bytes_per_token']:,}",
            )
            for row in rows
        ),
        n_words=2,
    )
    lengths = dict.fromkeys(f"{row['seq_len']} ({row['scale']})" for row in rows)
    say(
        f"FLOPs are those of training on sequences of {', '.join(lengths)} tokens; a forward pass "
        "takes a third. The KV cache is in bf16."
    )


def architecture_row(spec: str, scale: str, config: ModelConfig) -> dict[str, Any]:
    """The fields of an architecture and its costs."""
    seq_len = min(default_seq_len(scale), config.max_seq_len)
    return {
        "variant": variant_label(spec, []),
        "scale": scale,
        **dataclasses.asdict(config),
        **dataclasses.asdict(parameters(config)),
        "seq_len": seq_len,
        "training_flops_per_token": training_flops_per_token(config, seq_len),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(config),
    }
