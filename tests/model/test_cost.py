"""The arithmetic of costs against the models, counters and optimizers it speaks of."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smollm2 import VARIANTS, SmolLM2, variant
from smollm2.device import DTYPES
from smollm2.model.cost import (
    forward_flops_per_token,
    kv_cache_bytes_per_token,
    parameters,
    scale_of,
    training_flops_per_token,
)
from smollm2.protocol.recipe import Recipe
from smollm2.training.masters import Optimizer

FULL = {
    "orig": 134_515_008,
    "orig-174m": 174_328_128,
    "pow2": 151_028_224,
    "pow2-135m": 135_295_488,
    "moe-160m": 159_425_024,
}


def small(name):
    return variant(f"{name}:n_layers=2", scale="nano")


def grouped_product_flops(a, b, *args, **kwargs):
    """Rows times a stack of matrices, or (the stack's gradient) columns times rows."""
    return 2 * a[0] * a[1] * b[-1]


def counted_flops(run):
    """What torch counts for `run`; attention in the plain form, which it knows on any device."""
    known = {torch.ops.aten._grouped_mm: grouped_product_flops}
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=known) as counter,
    ):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "count"), FULL.items())
def test_full_size_has_the_published_number_of_parameters(name, count):
    assert parameters(VARIANTS[name]).total == count


def test_every_variant_is_of_full_size_with_fewer_layers_too_and_none_at_nano_scale():
    for name, config in VARIANTS.items():
        fewer = dataclasses.replace(config, n_layers=config.n_layers * 3 // 4, n_kv_heads=1)
        assert scale_of(config) == scale_of(fewer) == "full"
        assert scale_of(variant(name, scale="nano")) == "small"
        words = dataclasses.replace(variant(name, scale="nano"), vocab_size=10**6)
        assert scale_of(words) == "small"  # a large vocabulary makes no wide layers


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layers", [None, 2], ids=["nano", "full width"])
def test_counts_are_those_of_the_model(name, layers):
    config = variant(name, scale="nano")
    if layers:
        config = dataclasses.replace(VARIANTS[name], n_layers=layers, vocab_size=64)
    model = SmolLM2(config)
    assert parameters(config).total == sum(p.numel() for p in model.parameters())
    assert parameters(config).embedding == model.embed.weight.numel()


def test_an_untied_head_is_counted_with_the_embedding():
    tied = variant("pow2", scale="nano")
    config = dataclasses.replace(tied, tie_embeddings=False)
    model = SmolLM2(config)
    assert parameters(config).total == sum(p.numel() for p in model.parameters())
    assert parameters(config).embedding == 2 * model.embed.weight.numel()
    assert training_flops_per_token(config, 64) == training_flops_per_token(tied, 64)


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_use():
    config = small("moe-160m")
    model = SmolLM2(config)
    experts = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    count = parameters(config)
    assert count.active == count.total - experts * 6 // 8
    dense = parameters(small("pow2"))
    assert dense.active == dense.total


@pytest.mark.parametrize("name", ["orig", "pow2", "moe-160m"])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_flops_are_those_that_torch_counts(name, seq_len):
    config, rows = small(name), 2
    model = SmolLM2(config)
    tokens = torch.randint(config.vocab_size, (rows, seq_len))
    # The counter has each position attend to all seq_len, we to (seq_len + 1) / 2 of them.
    unseen = config.n_layers * 2 * 2 * config.d_model * (seq_len - 1) / 2
    with torch.no_grad():
        forward = counted_flops(lambda: model(tokens))
    assert forward == rows * seq_len * (forward_flops_per_token(config, seq_len) + unseen)
    training = counted_flops(lambda: model.loss(tokens, tokens).cross_entropy.backward())
    assert training == rows * seq_len * (training_flops_per_token(config, seq_len) + 3 * unseen)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # keys and values × layers × heads × width × 2 bytes
        ("orig", 2 * 30 * 3 * 64 * 2),
        ("pow2", 2 * 32 * 4 * 64 * 2),
        ("moe-160m", 2 * 8 * 8 * 64 * 2),
    ],
)
def test_cache_holds_keys_and_values_of_every_layer(name, expected):
    assert kv_cache_bytes_per_token(VARIANTS[name]) == expected


@pytest.mark.parametrize("name", ["pow2", "moe-160m"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_training_state_is_what_the_optimizer_holds(name, kind, dtype, grad_accum):
    config, recipe = small(name), Recipe(optimizer=kind, grad_accum=grad_accum)
    model = SmolLM2(config)
    optimizer = Optimizer(model, recipe, DTYPES[dtype])
    tokens = torch.randint(config.vocab_size, (1, 8))
    for _ in range(2):  # the moments are made by the first update
        model.loss(tokens, tokens).cross_entropy.backward()
        gradients = list(optimizer.grads.values())
        optimizer.step(1.0, 1.0)
    # By memory, since in fp32 master and parameter share it; step counters are not counted.
    held = [t for name, t in optimizer.state().items() if not name.endswith(".step")]
    held += [*gradients, *model.parameters()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    assert sum(storages.values()) == recipe.state_bytes(config, dtype)
