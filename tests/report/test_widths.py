"""What fits the widths of a model, from its dimensions alone."""

from dataclasses import replace

from smolctl.report.sections.widths import bits_table, width_sentences, widths_table
from smollm2.model.config import VARIANTS


def test_the_dimension_check_needs_no_run():
    configs = {name: VARIANTS[name] for name in ("orig", "pow2")}
    table = widths_table(configs)
    cells = {label: both for label, *both in table.rows}
    assert table.header == ("", "orig", "pow2")
    assert cells["inputs in whole groups of 64"] == ["100.0 %", "100.0 %"]
    assert cells["inputs in whole groups of 128"] == ["19.7 %", "100.0 %"]
    assert cells["bits per weight at 4 bits, rows padded to groups of 256"][1] == "4.125"
    assert bits_table(configs).rows[2:] == [
        ("groups of 64, on disk", "4.500", "4.500"),
        ("groups of 64, in memory", "4.500", "4.500"),
        ("groups of 128, on disk", "4.272", "4.250"),
        ("groups of 128, in memory", "4.451", "4.250"),
        ("groups of 256, on disk", "4.158", "4.125"),
        ("groups of 256, in memory", "4.426", "4.125"),
    ]
    orig, pow2 = width_sentences(configs)
    assert orig.startswith(
        "orig: groups of 128 and 256 do not divide the 576 inputs of query, output; key, value; "
        "gate, up; embedding, head. "
    )
    assert pow2.startswith("pow2: every group size divides the inputs of every matrix. Padding")


def test_widths_that_fit_nothing_are_all_named():
    (text,) = width_sentences({"odd": replace(VARIANTS["pow2"], d_ff=1000)})
    assert "groups of 32, 64, 128 and 256 do not divide the 1,000 inputs of down" in text
