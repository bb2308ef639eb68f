"""Models of one shape at several sizes."""

import math

import pytest

from smolctl.analysis.ladder_notes import parsed_size
from smolctl.studies.shape_scaling import at_size, nearest_sizes, require_sizes
from smollm2.errors import UserError
from smollm2.model.config import VARIANTS, ModelConfig, replace_fields, variant
from smollm2.model.cost import parameters

NANO = {name: variant(name, "nano") for name in VARIANTS}
SIZES = ("0.5M", "1M", "2M", "4M", "30M", "135M", "1B")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", VARIANTS)
def test_size_and_ratios_are_kept(name, size):
    config, target = NANO[name], parsed_size(size)
    found = at_size(config, target)
    assert parameters(found).non_embedding == pytest.approx(target, rel=0.05)
    scale = (target / parameters(config).non_embedding) ** (1 / 3)
    for field in ("d_model", "n_layers", "d_ff"):
        ratio = getattr(found, field) / getattr(config, field) / scale
        assert 1 / 1.25 <= ratio <= 1.25
    heads = found.n_heads / config.n_heads / scale
    assert 1 / math.sqrt(2) <= heads <= math.sqrt(2)
    assert found.n_heads // found.n_kv_heads == config.n_heads // config.n_kv_heads
    assert found.d_model % 8 == found.d_ff % 8 == 0
    scaled = ("d_model", "n_layers", "d_ff", "n_heads", "n_kv_heads")
    same = replace_fields(found, {field: getattr(config, field) for field in scaled})
    assert same == config


def test_its_own_size_gives_the_model_itself():
    config = NANO["orig"]
    assert at_size(config, parameters(config).non_embedding) == config


def test_a_single_key_head_stays_one_and_is_never_one_of_its_own():
    config = variant("pow2:n_kv_heads=1", "nano")
    for size in SIZES:
        found = at_size(config, parsed_size(size))
        assert found.n_kv_heads == 1 < found.n_heads


def test_a_size_that_no_shape_fits_names_the_nearest_that_do():
    with pytest.raises(UserError) as raised:
        require_sizes(NANO, "1k", 1e3)
    text = str(raised.value)
    assert "no model of 1k non-embedding parameters has the shape of arm 'orig'" in text
    near = text.partition("The nearest sizes that fit all arms: ")[2].rstrip(".")
    assert all(at_size(config, parsed_size(near)) for config in NANO.values())
    require_sizes(NANO, "1M", 1e6)


def test_a_size_between_two_shapes_names_one_below_and_one_above():
    config = ModelConfig(d_model=32, n_heads=1, n_kv_heads=1, n_layers=1, d_ff=64)
    gaps = [size for size in range(2000, 40000, 250) if at_size(config, size) is None]
    between = [size for size in gaps if len(nearest_sizes([config], size)) == 2]
    assert between
    low, high = map(parsed_size, nearest_sizes([config], between[0]))
    assert low < between[0] < high


def test_far_from_every_shape_none_is_named():
    assert nearest_sizes([NANO["orig"]], 1.0) == []
    assert at_size(NANO["orig"], 1e30) is None
