"""The options of `smolctl quantize` and the configuration that they ask for."""

import pytest

from smolctl.cli.quantize_options import configuration
from smolctl.report.sections.reproduction import quantize_options
from smollm2.quantize.quant_config import QuantConfig


@pytest.mark.parametrize(
    "config",
    [
        *QuantConfig().grid(),
        QuantConfig(4, method="hqq", group_size=32, embedding_bits=4),
        QuantConfig(8, group_size=None, embedding_bits=None),
        QuantConfig(8, group_size=32),
        QuantConfig(4, method="clip", value_bits=8),
    ],
    ids=lambda config: config.name,
)
def test_the_options_of_a_card_ask_for_the_whole_configuration(config):
    flags = [word for word in quantize_options(config) if word == "--v8"]
    words = iter(word for word in quantize_options(config) if word != "--v8")
    options = dict(zip(words, words, strict=True))
    found = configuration(
        int(options.pop("--bits")),
        options.pop("--backend", "torchao"),
        options.pop("--method", None),
        int(size) if (size := options.pop("--group-size", None)) else None,
        options.pop("--embedding", "8"),
        bool(flags),
    )
    assert (found, options) == (config, {})
