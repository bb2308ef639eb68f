"""`smolctl quantize`: so far the dimension check, which needs no trained run."""

from typing import Annotated

import typer

from smolctl.options import Json
from smollm2.errors import UserError

EXAMPLES = """
**Examples**

- `smolctl quantize --bits 4`

- `smolctl quantize orig pow2 --bits 4 --json`
"""


def quantize(
    variants: Annotated[
        list[str] | None, typer.Argument(help="Variants; default all five.")
    ] = None,
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 4,
    scale: Annotated[str, typer.Option(help="full or nano.")] = "full",
    as_json: Json = False,
) -> None:
    """Which group sizes divide each weight. Loss, bytes and speed are not measured yet."""
    import json
    import sys

    from smolctl.console import say, table
    from smollm2.config import VARIANTS, variant
    from smollm2.quantize.dimensions import GROUP_SIZES, divisible_share, weights

    if bits not in (4, 8):
        raise UserError(f"--bits takes 8 or 4, not {bits}.")
    configs = {spec: variant(spec, scale) for spec in variants or VARIANTS}
    if as_json:
        rows = [
            {
                "variant": spec,
                "weight": weight.name,
                "n_out": weight.n_out,
                "n_in": weight.n_in,
                "groups": weight.dividing_groups(),
            }
            for spec, config in configs.items()
            for weight in weights(config)
        ]
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return
    table(
        f"Share of parameters in weights that a group size divides ({scale} size)",
        ("variant", *(f"groups of {size}" for size in GROUP_SIZES), "input widths"),
        (
            (
                spec,
                *(f"{divisible_share(config, size):.1%}" for size in GROUP_SIZES),
                ", ".join(str(n) for n in sorted({weight.n_in for weight in weights(config)})),
            )
            for spec, config in configs.items()
        ),
    )
    if bits == 8:
        say("At 8 bits a scale a row is usual, and any width will do.")
    say(f"Loss, bytes and speed at {bits} bits: not measured; this version checks dimensions only.")
