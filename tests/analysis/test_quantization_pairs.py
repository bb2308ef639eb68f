"""Which quantized arms are compared, and sentences about those that are not."""

import pytest
from support.planted import COUNTS, delta, found, plant_quantized
from support.quantized import claim, words

from smolctl.report.sections.quantization_tables import (
    configurations_table,
    notes_table,
)

SKIPPED = "30 × blocks.N.attn.qkv.weight: groups of 128 do not divide its 576 inputs"


WIDTHS = {
    "orig": {"d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536},
    "pow2": {"d_model": 512, "n_heads": 8, "n_kv_heads": 4, "d_ff": 2048},
}


def widen(run) -> None:
    """Give a run the widths of the variant that its arm is called after."""
    protocol = run.manifest["protocol"]
    run.update(protocol=protocol | {"model": protocol["model"] | WIDTHS[run.arm]})


SMALLER = {"quantized_share": 0.4, "skipped": SKIPPED, "disk_bytes_without_embedding": 1300}


def test_skipped_layers_are_no_better_loss(plant):
    """Of orig nothing but the embedding and a bit is quantized: its loss is hardly changed."""
    for seed in range(2):
        kept = {"int4_g64": delta(0.01 * seed), "int4_g128": delta(0.0001 * seed, **SMALLER)}
        widen(plant("orig", seed, **kept))
        kept = {"int4_g64": delta(0.011 * seed), "int4_g128": delta(0.05 + 0.001 * seed)}
        widen(plant("pow2", seed, **kept))
    result = found()
    pair = next(pair for pair in result.pairs if pair.name == "int4-g128")
    assert pair.difference is None
    # 400 of 1000 less the 200 of the embedding are 200 of 800.
    assert "25.0 % of the parameters of orig are quantized and 100.0 % of those of" in pair.problem
    text = words(result)
    assert (
        "Coverage differs at int4-g128: of the parameters outside the embedding, 25.0 % in orig, "
        "100.0 % in pow2 are quantized." in text
    )
    assert "Groups of 128 do not divide the 576 inputs of matrices of orig." in text
    assert (
        "without the embedding: at int4-g64 0.62 in every arm; at int4-g128 1.62 in orig, 0.62 in "
        "pow2." in text
    )
    assert (("orig", "int4-g128", SKIPPED)) in notes_table(result.arms).rows
    # Not a part of the family.
    assert "loss inconclusive at 1 of 1 (pow2)" in claim(result)[2]
    assert "pow2 cannot be compared at int4-g128" in claim(result)[1]


def test_layers_skipped_for_another_reason_are_not_attributed_to_the_width(plant):
    for seed in range(2):
        other = SMALLER | {"skipped": "30 × blocks.N.attn.qkv.weight: it is bf16 after quantizing"}
        widen(plant("pow2", seed, int4_g128=delta(0.01, **other)))
        widen(plant("orig", seed, int4_g128=delta(0.01)))
    text = words(found())
    assert "Coverage differs" in text
    assert "Groups of" not in text


def test_an_unknown_share_is_not_called_unequal(plant):
    plant("orig", 0, int4_g64=delta(0.05, quantized_share=""))
    plant("pow2", 0, int4_g64=delta(0.01))
    text = words(found())
    assert "not compared at int4-g64: without the embedding an unknown share" in text
    assert "Coverage differs" not in text


def test_arms_that_were_quantized_in_other_ways_are_not_mixed(plant):
    """A sentence about several arms holds for each of them."""
    plant("orig", 0, int8=delta(0.01), int4_g64=delta(0.05))
    plant("pow2", 0, int8=delta(0.02, loss_delta_stderr=""))
    plant("pow2-135m", 0, int8=delta(0.03), int4_g64=delta(0.04, disk_bytes_without_embedding=504))
    text = words(found())
    assert (
        "inconclusive whether pow2 quantizes better than orig. At int8 the change of the loss "
        "minus that of orig's is, in nats/token, +0.0100 for pow2 (standard error unknown);" in text
    )
    assert "whether pow2-135m quantizes better than orig. At int8 and int4-g64 the" in text
    assert "-0.0100 to +0.0200 for pow2-135m (standard error at most 0.0010)" in text
    assert "at int8 0.62 in every arm; at int4-g64 0.62 in orig, 0.63 in pow2-135m." in text
    (_, here, verdict) = claim(found())
    assert "a parameter of pow2-135m takes at least 0.630 bytes at int4-g64, one of orig" in here
    assert "loss untested (one run per arm) at 2 of 2 (pow2-135m); bytes fall: more" in verdict
    assert verdict.startswith("loss untested (one run per arm) at 1 of 1 (pow2);")


def test_an_embedding_of_another_share_is_not_a_skipped_layer(plant):
    """In a larger model the embedding is less of it: left as it is, the shares differ."""
    for arm, embedding in (("orig", 200), ("pow2", 150)):
        run = plant(arm, 0)
        run.update(parameters=COUNTS | {"embedding": embedding})
        share = 1 - embedding / 1000
        plant_quantized(run, int4_g64=delta(0.01, embedding_bits="", quantized_share=share))
    assert found().pairs[0].problem == ""


def test_one_embedding_quantized_and_the_other_not_is_not_alike(plant):
    skipped = "1 × embed.weight: rows of 4 bits cannot be looked up as CUDA packs them"
    plant("orig", 0, int4_g64=delta(0.01, quantized_share=0.8, skipped=skipped))
    plant("pow2", 0, int4_g64=delta(0.01))
    assert "only one of them has a quantized embedding" in found().pairs[0].problem


@pytest.mark.parametrize("column", ["n", "context", "fingerprint", "dtype", "device"])
def test_losses_of_other_text_are_not_compared(plant, column):
    plant("orig", 0, int4_g64=delta(0.01))
    other = 4096 if column in ("n", "context") else "other"
    plant("pow2", 0, int4_g64=delta(0.01, **{column: other}))
    (pair,) = found().pairs
    assert pair.problem == "they were measured on different text, windows, dtypes or devices"
    assert pair.difference is None


def test_what_one_arm_lacks_is_reported(plant):
    plant("orig", 0, int4_g64=delta(0.01), int4_g128={"loss_delta": "", "reason": "no kernel"})
    plant("pow2", 0, int4_g64=delta(0.01), int4_g128=delta(0.02), nf4_g64=delta(0.03))
    plant("pow2-135m", 0)
    result = found()
    text = words(result)
    assert "not compared at int4-g128: the loss of orig was not measured (no kernel)." in text
    assert "not compared at nf4-g64: no planned run of orig was quantized this way." in text
    assert "pow2-135m was not quantized: `smolctl quantize pow2-135m --study s`." in text
    assert {pair.arm for pair in result.pairs} == {"pow2"}
    assert ("orig", "int4-g128", "no kernel") in notes_table(result.arms).rows
    assert configurations_table("pow2-135m", result.arms["pow2-135m"]).rows == []
