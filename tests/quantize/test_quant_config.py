"""Configurations: their names, and what is refused."""

import dataclasses

import pytest

from smollm2.errors import UserError
from smollm2.quantize.quant_config import BF16, QuantConfig, row_order

INT8 = QuantConfig(8, group_size=None)
INT4 = QuantConfig(4)


CONFIGS = [
    INT8,
    INT4,
    QuantConfig(4, embedding_bits=4),
    QuantConfig(4, method="hqq", group_size=32),
    QuantConfig(4, embedding_bits=None),
    QuantConfig(4, "bitsandbytes"),
    QuantConfig(8, "bitsandbytes", group_size=None),
    QuantConfig(8, group_size=32),
    QuantConfig(4, method="clip"),
    QuantConfig(4, method="gptq", group_size=128, embedding_bits=4, value_bits=8),
]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bits": 3}, "`bits` takes 8 or 4, not 3"),
        ({"backend": "torchoa"}, "Unknown backend 'torchoa'. Did you mean 'torchao'"),
        ({"method": "awq"}, "Unknown method 'awq'"),
        ({"group_size": 48}, "`group_size` takes 32, 64, 128, 256, not 48"),
        ({"group_size": None}, "`group_size` takes"),
        ({"bits": 8}, "`group_size` takes 32, not 64"),
        ({"bits": 8, "backend": "bitsandbytes"}, "one scale per row; omit `group_size`"),
        ({"value_bits": 4}, "`value_bits` takes 8"),
        ({"value_bits": 8, "backend": "bitsandbytes"}, "`value_bits` takes 8, where"),
        ({"embedding_bits": 3}, "`embedding_bits` takes 8, 4 or none"),
        ({"backend": "bitsandbytes", "method": "hqq"}, "`method=hqq` is for 4 bits with torchao"),
    ],
)
def test_an_unknown_configuration_is_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(INT4, **wrong)


def test_names_omit_defaults():
    assert [config.name for config in INT4.grid()] == [
        *("int8", "int4-g32", "int4-g64", "int4-g128", "int4-g256"),
        *("llm-int8", "nf4-g32", "nf4-g64", "nf4-g128", "nf4-g256"),
    ]
    assert QuantConfig(4, method="hqq", embedding_bits=4).name == "int4-g64-hqq-emb4"
    assert QuantConfig(4, embedding_bits=None).name == "int4-g64-emb16"
    assert QuantConfig(4, method="gptq", value_bits=8).name == "int4-g64-gptq-v8"
    assert QuantConfig(8, group_size=32).name == "int8-g32"


@pytest.mark.parametrize("config", [*CONFIGS, *INT4.grid()], ids=lambda config: config.name)
def test_a_name_says_the_whole_configuration(config):
    assert QuantConfig.of(config.name) == config


def test_rows_are_in_the_order_of_a_sweep():
    names = [BF16, *(config.name for config in QuantConfig().grid())]
    assert sorted(sorted(names), key=row_order) == names
    later = ["int8", "int8-g32", "int4-g64", "int4-g64-emb4", "int4-g64-emb16", "int4-g64-hqq"]
    later += ["int4-g64-clip", "int4-g64-clip-v8", "int4-g128", "gone"]
    assert sorted(sorted(later), key=row_order) == later
