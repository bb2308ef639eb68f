"""Schedules by closed form, and optimizer steps against those of torch on plain matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smollm2 import SmolLM2, variant
from smollm2.interop.hf import to_hf
from smollm2.protocol.recipe import RECIPES, Recipe
from smollm2.training.masters import Optimizer
from smollm2.training.schedule import decay_start, lr_factor, warmup_steps

TINY = variant("pow2:n_layers=2,vocab_size=256", scale="nano")
TINY_MOE = variant("moe-160m:n_layers=1,vocab_size=256", scale="nano")
UNTIED = variant("pow2:n_layers=2,vocab_size=256,tie_embeddings=false", scale="nano")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
FACTORS = (0.5, 1.0, 0.7, 0.2)


def tokens_of(step):
    return torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(step))


def backward(model, tokens, scale=1.0):
    (model.loss(tokens, tokens.roll(1, dims=1)).cross_entropy * scale).backward()


def train(model, optimizer, steps):
    for step in steps:
        backward(model, tokens_of(step))
        optimizer.step(FACTORS[step], optimizer.gradient_norm().item())


def start(recipe, config=TINY, dtype=torch.float32):
    model = SmolLM2(config, seed=1)
    return model, Optimizer(model, recipe, dtype)


# Schedules

recipes = st.builds(
    Recipe,
    schedule=st.sampled_from(["wsd", "cosine"]),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    final_lr=st.floats(0, 1),
    max_warmup_steps=st.integers(1, 3000),
    schedule_length=st.sampled_from([1.0, 1.5, 12.0]),
)


@given(recipe=recipes, steps=st.integers(1, 20_000), data=st.data())
def test_learning_rate_is_a_positive_share_of_the_peak(recipe, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    for update in (0, step, steps - 1):
        assert 0 < lr_factor(recipe, update, steps) <= 1


@given(recipe=recipes, steps=st.integers(2, 20_000), data=st.data())
def test_warm_up_rises_and_what_follows_does_not(recipe, steps, data):
    step = data.draw(st.integers(0, steps - 2))
    here, following = (lr_factor(recipe, step + k, steps) for k in (0, 1))
    if step + 1 < warmup_steps(recipe, steps):
        assert here < following
    else:
        assert here >= following


@given(recipe=recipes, steps=st.integers(10, 20_000), data=st.data())
def test_wsd_stays_at_the_peak_until_its_decay(recipe, steps, data):
    recipe = Recipe(**vars(recipe) | {"schedule": "wsd"})
    first, last = warmup_steps(recipe, steps) - 1, min(decay_start(recipe, steps), steps - 1)
    if first <= last:
        assert lr_factor(recipe, data.draw(st.integers(first, last)), steps) == 1


def test_wsd_by_hand():
    recipe = Recipe(schedule="wsd", warmup=0.05, decay=0.2, final_lr=0.0)
    expected = {0: 0.2, 1: 0.4, 4: 1.0, 5: 1.0, 80: 1.0, 81: 0.95, 90: 0.5, 99: 0.05}
    assert {step: lr_factor(recipe, step, 100) for step in expected} == pytest.approx(expected)


def test_cosine_by_hand():
    recipe = Recipe(schedule="cosine", warmup=0.2, final_lr=0.1)
    expected = {0: 0.05, 19: 1.0, 20: 1.0, 60: 0.55, 99: 0.1 + 0.45 * (1 - math.cos(math.pi / 80))}
    assert {step: lr_factor(recipe, step, 100) for step in expected} == pytest.approx(expected)


def test_warm_up_is_capped():
    assert warmup_steps(Recipe(warmup=0.05), 100_000) == 2000
    assert lr_factor(Recipe(warmup=0.05), 1999, 100_000) == 1


def test_seed_recipe_spends_60_percent_of_the_run_in_warm_up_and_hardly_decays():
    factors = [lr_factor(RECIPES["seed"], step, 100) for step in range(100)]
    assert factors.index(1.0) == 59
    assert min(factors[59:]) > 0.99


# Steps


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_adamw_step_is_that_of_torch(clip):
    recipe = Recipe(weight_decay=0.1, grad_clip=clip, lr=1e-2)
    model, optimizer = start(recipe)
    plain = SmolLM2(TINY, seed=1)
    torch_adamw = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step, factor in enumerate(FACTORS):
        backward(model, tokens_of(step))
        for name, parameter in plain.named_parameters():
            parameter.grad = optimizer.grads[name].clone()
        optimizer.step(factor, optimizer.gradient_norm().item())
        torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        for group in torch_adamw.param_groups:
            group["lr"] = 1e-2 * factor
        torch_adamw.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_muon_on_fused_weights_is_muon_on_the_published_matrices():
    recipe = Recipe(optimizer="muon", muon_lr=0.02, momentum=0.9, lr=1e-2, grad_clip=1e9)
    for config in (TINY, TINY_MOE, UNTIED):
        model, optimizer = start(recipe, config)
        published = {name: t.clone() for name, t in to_hf(model.state_dict(), config).items()}
        hidden = {n: t for n, t in published.items() if t.ndim == 2 and n not in TABLES}
        muon = torch.optim.Muon(hidden.values(), momentum=0.9, weight_decay=0.0)
        for step in range(2):
            backward(model, tokens_of(step))
            grads = {name: optimizer.grads[name].clone() for name in optimizer.masters}
            grads = to_hf(grads, config)
            for name, matrix in hidden.items():
                matrix.grad = grads[name]
            muon.param_groups[0]["lr"] = 0.02 * FACTORS[step]
            muon.step()
            optimizer.step(FACTORS[step], 0.0)
        ours = to_hf(optimizer.masters, config)
        for name, matrix in hidden.items():
            torch.testing.assert_close(ours[name], matrix, atol=1e-6, rtol=1e-5, msg=name)
        # The others are AdamW's: they moved, but not by an orthogonal matrix.
        for name in published.keys() - hidden.keys():
            assert 0 < (ours[name] - published[name]).abs().max() < 2.1e-2, name


def test_norms_and_muons_matrices_do_not_decay():
    for kind in ("adamw", "muon"):
        model, optimizer = start(Recipe(optimizer=kind, weight_decay=0.5, lr=0.1))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():  # without a gradient only decay moves anything
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(1.0, 0.0)
        for name, parameter in model.named_parameters():
            decays = name == "embed.weight" or (kind == "adamw" and parameter.ndim > 1)
            torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1))


def test_two_micro_batches_are_one_batch():
    # Hardly a learning rate: where gradients are almost zero, AdamW makes steps of their rounding.
    whole, halves = start(Recipe(lr=1e-9)), start(Recipe(lr=1e-9, grad_accum=2))
    for step in range(2):
        tokens = tokens_of(step)
        backward(whole[0], tokens)
        for half in tokens.chunk(2):
            backward(halves[0], half, scale=0.5)
        norms = [optimizer.gradient_norm().item() for _, optimizer in (whole, halves)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-4)
        for name in whole[1].masters:
            sums = [optimizer.grads[name] for _, optimizer in (halves, whole)]
            torch.testing.assert_close(*sums, atol=1e-6, rtol=1e-4)
        for _, optimizer in (whole, halves):
            optimizer.step(1.0, norms[0])


@pytest.mark.parametrize("config", [TINY, TINY_MOE, UNTIED], ids=["tied", "moe", "untied"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_and_groups_change_nothing(monkeypatch, config, kind, dtype):
    recipe = Recipe(optimizer=kind)
    ends = []
    for n_numbers in (10**9, 5_000):
        monkeypatch.setattr("smollm2.training.masters.GROUP_NUMBERS", n_numbers)
        monkeypatch.setattr("smollm2.training.masters.LEAF_NUMBERS", n_numbers)
        model, optimizer = start(recipe, config, dtype)
        for step in range(3):
            backward(model, tokens_of(step))
            optimizer.step(FACTORS[step], 2.0)
        ends.append(optimizer.state())
    assert len(optimizer.groups) > 10
    assert any("#1" in name for name in optimizer.leaves)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # What was saved whole is gone on with in parts.
    other_model, other = start(recipe, config, dtype)
    other.load({name: tensor.clone() for name, tensor in ends[0].items()})
    for each, its in ((model, optimizer), (other_model, other)):
        backward(each, tokens_of(3))
        its.step(1.0, 2.0)
    expected = optimizer.state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state().items())


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_gradients_of_a_step_do_not_leak_into_the_next(grad_accum):
    model, optimizer = start(Recipe(lr=1e-12, grad_accum=grad_accum))
    norms = []
    for _ in range(2):
        backward(model, tokens_of(0))
        norms.append(optimizer.gradient_norm().item())
        optimizer.step(1.0, 0.0)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_gradient_is_clipped_to_the_norm_or_left_alone(dtype, grad_accum):
    for clip in (0.25, 1e9):
        recipe = Recipe(grad_clip=clip, grad_accum=grad_accum)
        model, optimizer = start(recipe, dtype=dtype)
        backward(model, tokens_of(0))
        norm = optimizer.gradient_norm().item()
        grads = [optimizer.grads[name].double() for name in optimizer.masters]
        assert norm == pytest.approx(math.sqrt(sum(g.square().sum() for g in grads)), rel=1e-5)
        optimizer.step(1.0, norm)
        # The first moment is now a share 1 - beta1 of what was left of the gradient.
        moments = [t for name, t in optimizer.state().items() if name.endswith("exp_avg")]
        left = math.sqrt(sum(t.double().square().sum() for t in moments)) / (1 - recipe.beta1)
        assert left == pytest.approx(min(norm, clip), rel=1e-4)


def test_masters_keep_updates_that_bfloat16_would_round_away():
    model, optimizer = start(Recipe(lr=1e-6, weight_decay=0.0), dtype=torch.bfloat16)
    before = model.embed.weight.detach().clone()
    assert before.dtype == torch.bfloat16
    # A step of 1e-6 is far below what bf16 can tell near 1/16; a thousand of them are not.
    large = before.abs() > 2**-4
    for step in range(1000):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step(1.0, 0.0)
        if step == 0:
            assert (model.embed.weight == before)[large].float().mean() > 0.99
    moved = (model.embed.weight.float() - before.float()).mean().item()
    assert moved == pytest.approx(-1e-3, rel=0.05)
    assert torch.equal(model.embed.weight, optimizer.masters["embed.weight"].bfloat16())


def test_masters_start_unrounded():
    _, optimizer = start(Recipe(), dtype=torch.bfloat16)
    assert torch.equal(optimizer.masters["embed.weight"], SmolLM2(TINY, seed=1).embed.weight)


# State


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_state_continues_bit_for_bit(config, kind, dtype):
    recipe = Recipe(optimizer=kind)
    model, optimizer = start(recipe, config, dtype)
    train(model, optimizer, [0, 1])
    saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    train(model, optimizer, [2, 3])

    other_model = SmolLM2(config, seed=2)
    other = Optimizer(other_model, recipe, dtype)
    other.load(saved)
    train(other_model, other, [2, 3])
    state, expected = other.state(), optimizer.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True)
    )


def test_weights_alone_start_with_fresh_moments():
    model, optimizer = start(Recipe())
    train(model, optimizer, [0, 1])
    weights = {n: t.clone() for n, t in optimizer.state().items() if n.startswith("model.")}
    fresh_model = SmolLM2(TINY)
    fresh_model.load_state_dict({n.removeprefix("model."): t for n, t in weights.items()})
    fresh = Optimizer(fresh_model, Recipe(), torch.float32)
    other_model, other = start(Recipe())
    other.load(weights)
    for pair in ((fresh_model, fresh), (other_model, other)):
        train(*pair, [2])
    assert all(torch.equal(other.state()[name], t) for name, t in fresh.state().items())
