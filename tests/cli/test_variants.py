"""`smolctl variants`: exact numbers for every variant at both scales."""

import json
import re
from pathlib import Path

import pytest
from support.command import run_main

from smollm2.model.config import VARIANTS, variant
from smollm2.model.transformer import SmolLM2


def rows_of(capsys, *arguments: str) -> list[dict]:
    code, out, err = run_main(capsys, "variants", "--json", *arguments)
    assert code == 0, err
    return json.loads(out)


def test_every_variant_is_listed_at_both_scales(capsys):
    rows = rows_of(capsys)
    assert [(row["scale"], row["variant"]) for row in rows] == [
        (scale, name) for scale in ("full", "nano") for name in VARIANTS
    ]
    code, out, err = run_main(capsys, "variants")
    assert code == 0
    for row in rows:
        assert f"{row['total']:,}" in out
    assert "2048 (full), 256 (nano)" in err


def test_the_counts_are_those_of_the_model_itself(capsys):
    for row in rows_of(capsys, "--scale", "nano"):
        model = SmolLM2(variant(row["variant"], "nano"), seed=None)
        assert row["total"] == sum(p.numel() for p in model.parameters())
        assert row["embedding"] == model.embed.weight.numel()
        assert (row["active"] < row["total"]) == ("moe" in row["variant"])


def test_the_table_of_the_reference_is_what_the_command_says(capsys):
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \|", text, flags=re.MULTILINE))
    rows = {row["variant"]: f"{row['total']:,}" for row in rows_of(capsys, "--scale", "full")}
    assert {name: written[name] for name in rows} == rows


def test_short_forms_and_files_are_variants_too(capsys, workdir, variants):
    specs = ("pow2:n_kv_heads=8", str(variants / "tiny.toml"))
    rows = rows_of(capsys, *specs, "--scale", "full")
    assert [row["variant"] for row in rows] == ["pow2:n_kv_heads=8", "tiny"]
    assert rows[0]["kv_cache_bytes_per_token"] == 2 * 32 * 8 * 64 * 2  # k and v, bf16
    assert rows[1]["seq_len"] == 64  # of its context


def test_a_variant_without_a_nano_scale_is_shown_at_full_size(capsys, workdir):
    Path("odd.toml").write_text('base = "pow2"\nn_layers = 5\n')
    code, out, err = run_main(capsys, "variants", "odd.toml", "--json")
    assert code == 0
    assert [row["scale"] for row in json.loads(out)] == ["full"]
    assert "even n_layers" in err
    assert run_main(capsys, "variants", "odd.toml", "--scale", "nano")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("pow3",), "Did you mean 'pow2'?"), (("--scale", "mini"), "full or nano")],
)
def test_unknown_variants_are_refused(capsys, arguments, said):
    code, out, err = run_main(capsys, "variants", *arguments)
    assert (code, out) == (2, "")
    assert said in err
