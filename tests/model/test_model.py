"""The model: shapes, causality, initial weights, and an import that costs nothing."""

import subprocess
import sys

import pytest
import torch

from smollm2 import VARIANTS, SmolLM2, variant
from smollm2.model.feedforward import swiglu
from smollm2.model.transformer import rope_tables, rotate

NANO = {name: variant(name, scale="nano") for name in VARIANTS}


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_readme_example_gives_logits():
    logits = SmolLM2(variant("pow2"))(torch.randint(0, 49152, (1, 32)))
    assert logits.shape == (1, 32, 49152)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_logits(name):
    model = SmolLM2(NANO[name])
    tokens = torch.arange(24)[None] * 7
    changed = tokens.clone()
    changed[0, 15] += 1
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:15], after[:15], atol=1e-5, rtol=0)
    # ... while each later one sees the change.
    assert (before[15:] - after[15:]).abs().amax(dim=-1).min() > 1e-3


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    model = SmolLM2(NANO["orig"])
    tokens = torch.arange(60).view(3, 20)
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pow2", "moe-160m"])
def test_loss_is_the_cross_entropy_of_the_logits(name):
    model = SmolLM2(NANO[name])
    tokens, targets = torch.arange(40).view(2, 20), torch.arange(40).view(2, 20) * 3
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    loss, routing = model.loss(tokens, targets)
    torch.testing.assert_close(loss, expected)
    assert (routing is not None) == (name == "moe-160m")


def test_routing_has_a_row_for_each_layer():
    _, routing = SmolLM2(NANO["moe-160m"]).loss(torch.ones(1, 8).long(), torch.ones(1, 8).long())
    assert routing.load.shape == (NANO["moe-160m"].n_layers, 8)
    assert routing.balance_loss.shape == ()


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    model = SmolLM2(NANO["pow2"], seed=3)
    torch.manual_seed(6)
    assert same_weights(model, SmolLM2(NANO["pow2"], seed=3))
    assert not torch.equal(model.embed.weight, SmolLM2(NANO["pow2"], seed=4).embed.weight)


def test_making_a_model_leaves_global_random_state_alone():
    state = torch.get_rng_state()
    SmolLM2(NANO["pow2"], seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["orig", "moe-160m"])
def test_initial_weights_have_the_documented_spread(name):
    config = NANO[name]
    model = SmolLM2(config)
    base = config.d_model**-0.5
    narrow = base / (2 * config.n_layers) ** 0.5
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(1).all(), key
        elif ".out." in key or ".down" in key:
            assert parameter.std().item() == pytest.approx(narrow, rel=0.04), key
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(base, rel=0.04), key


def test_untrained_model_is_about_as_uncertain_as_a_uniform_guess():
    model, tokens = SmolLM2(NANO["pow2"]), torch.randint(4096, (2, 64))
    assert model.loss(tokens, tokens.roll(7)).cross_entropy.item() == pytest.approx(8.8, abs=0.4)


def test_gradient_reaches_every_parameter():
    model, tokens = SmolLM2(NANO["moe-160m"]), torch.randint(4096, (4, 64))
    loss, routing = model.loss(tokens, tokens.roll(1))
    (loss + routing.balance_loss).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    config = NANO["pow2"]
    rope = rope_tables(config, 50, torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, config.head_dim, generator=generator).expand(2, 1, 50, 1, -1)
    q_turned, k_turned = rotate(q, *rope)[0, :, 0], rotate(k, *rope)[0, :, 0]
    torch.testing.assert_close(q_turned.norm(dim=-1), q[0, :, 0].norm(dim=-1))
    scores = q_turned @ k_turned.T
    torch.testing.assert_close(scores[10:, 3:-7], scores[7:-3, :-10], atol=1e-4, rtol=0)
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-3


def test_importing_the_package_does_not_import_torch():
    script = "import sys, smollm2; smollm2.variant('pow2'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_swiglu_has_the_values_and_gradients_of_its_formula():
    gate_up = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(gate_up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, gate_up)
