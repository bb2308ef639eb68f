"""Names of architectures, and errors for wrong names."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2 import VARIANTS, ModelConfig, variant
from smollm2.errors import UserError
from smollm2.model.config import nano

POW2 = VARIANTS["pow2"]


def toml(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", VARIANTS)
def test_name_alone_is_the_variant(name):
    assert variant(name) == VARIANTS[name]


def test_short_form_changes_fields():
    config = variant("pow2:n_kv_heads=8,n_layers=28")
    assert config == dataclasses.replace(POW2, n_kv_heads=8, n_layers=28)


@given(
    heads=st.sampled_from([1, 2, 4, 8, 16, 32]),
    layers=st.integers(1, 99),
    theta=st.floats(1, 1e7),
)
def test_any_setting_comes_back_as_written(heads, layers, theta):
    spec = f"pow2:n_heads={heads},n_kv_heads={heads},n_layers={layers}"
    config = variant(spec, settings=[f"rope_theta={theta!r}"])
    assert (config.n_heads, config.n_layers, config.rope_theta) == (heads, layers, theta)
    assert variant(spec, "nano", [f"rope_theta={theta!r}"]).n_layers == layers


def test_settings_win_over_the_short_form():
    assert variant("pow2:n_layers=28", settings=["n_layers=30"]).n_layers == 30


def test_settings_take_the_type_of_their_field():
    config = variant("pow2", settings=["rope_theta=20000", " d_ff = 512 "])
    assert config.rope_theta == 20000.0
    assert type(config.rope_theta) is float
    assert config.d_ff == 512


def test_toml_changes_a_base_variant(tmp_path):
    config = variant(toml(tmp_path, 'base = "pow2"\nn_layers = 28\nrope_theta = 20000\n'))
    assert config == dataclasses.replace(POW2, n_layers=28, rope_theta=20000.0)
    assert type(config.rope_theta) is float


def test_toml_describes_a_whole_model(tmp_path):
    path = toml(tmp_path, "d_model=64\nn_heads=4\nn_kv_heads=2\nn_layers=2\nd_ff=128\n")
    assert variant(path) == ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=128)


def test_toml_is_of_the_full_size(tmp_path):
    path = toml(tmp_path, 'base = "pow2"\nn_layers = 28\n')
    assert variant(path, "nano") == nano(variant(path))


@pytest.mark.parametrize(
    ("name", "d_model", "heads", "kv_heads", "layers", "d_ff"),
    [
        ("orig", 144, 9, 3, 15, 384),
        ("orig-174m", 144, 9, 3, 15, 576),
        ("pow2", 128, 8, 4, 16, 512),
        ("pow2-135m", 128, 8, 4, 14, 512),
        ("moe-160m", 128, 8, 8, 4, 320),
    ],
)
def test_nano_scale_keeps_the_proportions(name, d_model, heads, kv_heads, layers, d_ff):
    config = variant(name, scale="nano")
    assert config == dataclasses.replace(
        VARIANTS[name],
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=kv_heads,
        n_layers=layers,
        d_ff=d_ff,
        vocab_size=4096,
    )


def test_true_and_false_are_read():
    assert variant("pow2").tie_embeddings
    assert not variant("pow2:tie_embeddings=false").tie_embeddings
    assert variant("pow2", settings=["tie_embeddings=true"]) == variant("pow2")


def test_fields_are_set_after_scaling():
    assert variant("pow2:n_layers=3,vocab_size=512", scale="nano").n_layers == 3
    assert variant("pow2", "nano", ["vocab_size=512"]).vocab_size == 512


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pow3", r"Unknown variant 'pow3'\. Did you mean 'pow2'\?.*my\.toml"),
        ("pow2:n_layer=3", r"Unknown field 'n_layer'\. Did you mean 'n_layers'\?"),
        ("pow2:n_layers=many", "n_layers takes a whole number, not 'many'"),
        ("pow2:n_layers=2.5", r"n_layers takes a whole number, not '2\.5'"),
        ("pow2:rope_theta=big", "rope_theta takes a number, not 'big'"),
        ("pow2:n_layers", "'n_layers' is not of the form field=value"),
        ("pow2:n_layers=", "'n_layers=' is not of the form field=value"),
        ("pow2:n_layers=0", r"n_layers must be positive.* not 0"),
        ("pow2:d_ff=-4", r"d_ff must be positive.* not -4"),
        ("pow2:tie_embeddings=no", "tie_embeddings takes true or false, not 'no'"),
        ("pow2:n_heads=9", r"d_model 512 is not a multiple of n_heads 9.*1, 2, 4, 8"),
        ("pow2:n_heads=512", "head width .* is odd"),
        ("pow2:n_kv_heads=3", r"n_heads 8 is not a multiple of n_kv_heads 3.*1, 2, 4, 8"),
        ("moe-160m:n_active_experts=9", "n_active_experts 9 is more than n_experts 8"),
        ("nowhere.toml", r"There is no variant file 'nowhere\.toml'"),
    ],
)
def test_wrong_name_says_what_to_type(spec, message):
    with pytest.raises(UserError, match=message):
        variant(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layers = ", "not a readable TOML file"),
        ('base = "pow2"\nn_layer = 3', r"Unknown field 'n_layer'\. Did you mean 'n_layers'"),
        ('base = "pow2"\nn_layers = 2.5', r"n_layers takes a whole number, not 2\.5"),
        ('base = "pow2"\nd_model = "x"', "d_model takes a whole number, not 'x'"),
        ('base = "pow2"\nn_heads = 7', "d_model 512 is not a multiple of n_heads 7"),
        ('base = "pow2"\nn_layers = true', "n_layers takes a whole number, not True"),
        ('base = "pow3"', "Did you mean 'pow2'"),
        ("base = 2", r'base must name a variant, such as base = "pow2"'),
        ('base = "mine.toml"', "base must name a variant"),
        ("d_model = 64\nn_heads = 4", 'it lacks n_kv_heads, n_layers, d_ff;.*base = "pow2"'),
        ('base = "pow2"\n[model]\nn_layers = 2', "Unknown field 'model'"),
    ],
)
def test_wrong_toml_says_what_to_write(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"/mine\.toml.*{message}"):
        variant(toml(tmp_path, text))


def test_toml_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"mine\.toml is not a readable TOML file"):
        variant(str(tmp_path / "mine.toml"))


def test_folder_with_the_name_of_a_toml_file_is_refused(tmp_path):
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(UserError, match=r"mine\.toml is not a readable TOML file"):
        variant(str(tmp_path / "mine.toml"))


def test_unknown_scale_is_refused():
    with pytest.raises(UserError, match="Unknown scale 'micro'; choose full or nano"):
        variant("pow2", scale="micro")


@pytest.mark.parametrize("change", ["d_model=514,n_heads=1,n_kv_heads=1", "n_layers=31", "d_ff=42"])
def test_model_that_cannot_be_quartered_has_no_nano_scale(change):
    with pytest.raises(UserError, match="nano scale needs"):
        nano(variant(f"pow2:{change}"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match="rope_theta must be"):
        variant("pow2", settings=[f"rope_theta={value}"])
