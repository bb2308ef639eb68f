"""The mixture of experts against a loop over tokens, and its account of the routing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smollm2.model.config import ModelConfig
from smollm2.model.moe import MoE, group_multiple, groups, mean_routing, routing

CONFIG = ModelConfig(
    d_model=16, n_heads=2, n_kv_heads=2, n_layers=1, d_ff=24, n_experts=6, n_active_experts=2
)


@pytest.fixture
def moe():
    module = MoE(CONFIG)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def inputs(n_rows=3, n_positions=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_rows, n_positions, 16, generator=generator)


def token_by_token(moe, x):
    """What the mixture means: each token's experts, weighted by renormalized probabilities."""
    out = []
    for token in x.flatten(0, 1):
        probs = F.softmax(moe.router.weight @ token, dim=0)
        chosen = probs.argsort(descending=True)[: moe.n_active]
        y = torch.zeros_like(token)
        for expert in chosen:
            gate, up = (moe.gate_up[expert] @ token).chunk(2)
            share = probs[expert] / probs[chosen].sum()
            y = y + share * (moe.down[expert] @ (F.silu(gate) * up))
        out.append(y)
    return torch.stack(out).view_as(x)


def test_output_is_that_of_a_loop_over_tokens(moe):
    x = inputs()
    torch.testing.assert_close(moe(x)[0], token_by_token(moe, x), atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_a_loop_over_tokens(moe):
    x = inputs().requires_grad_()
    variables = [x, *moe.parameters()]
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    grads = torch.autograd.grad((moe(x)[0] * weights).sum(), variables)
    expected = torch.autograd.grad((token_by_token(moe, x) * weights).sum(), variables)
    for grad, plain in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, plain, atol=1e-4, rtol=1e-4)


def test_order_of_the_tokens_does_not_matter(moe):
    x = inputs()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(moe(x[:, order])[0], moe(x)[0][:, order], atol=1e-5, rtol=0)


def test_all_experts_active_is_a_dense_mixture(moe):
    moe.n_active = 6
    x = inputs(1, 4)
    y, shares = moe(x)
    torch.testing.assert_close(y, token_by_token(moe, x), atol=1e-5, rtol=1e-4)
    assert shares.load.tolist() == pytest.approx([1 / 6] * 6)


def test_load_is_each_experts_share_of_the_choices(moe):
    x = inputs()
    _, shares = moe(x)
    chosen = (x.flatten(0, 1) @ moe.router.weight.T).topk(2).indices.flatten()
    assert shares.load.tolist() == pytest.approx((chosen.bincount(minlength=6) / 66).tolist())
    assert shares.load.sum().item() == pytest.approx(1)
    assert not shares.load.requires_grad


def test_balance_loss_is_one_when_tokens_and_probabilities_are_shared_evenly():
    even = routing(torch.full((12, 6), 1 / 6), torch.full((6,), 4))
    assert even.balance_loss.item() == pytest.approx(1)


def test_balance_loss_is_the_number_of_experts_when_one_takes_all():
    collapsed = routing(F.one_hot(torch.full((12,), 2), 6).float(), torch.eye(6)[2] * 12)
    assert collapsed.balance_loss.item() == pytest.approx(6)
    assert collapsed.load.tolist() == [0, 0, 1, 0, 0, 0]


def test_balance_loss_pushes_probability_away_from_busy_experts(moe):
    nn.init.zeros_(moe.router.weight)
    with torch.no_grad():
        moe.router.weight[3] = 0.1
    x = inputs().abs()
    moe(x)[1].balance_loss.backward()
    gradient = moe.router.weight.grad.sum(dim=1)
    assert gradient[3] > 0
    assert gradient.argmax() == 3


def test_experts_without_tokens_get_zero_gradients(moe):
    x = inputs().abs()
    with torch.no_grad():
        moe.router.weight.fill_(-1.0)
        moe.router.weight[1:3] = 1.0  # positive inputs: experts 1 and 2 take every token
    y, shares = moe(x)
    assert shares.load.tolist() == [0, 0.5, 0.5, 0, 0, 0]
    y.square().sum().backward()
    for grad in (moe.gate_up.grad, moe.down.grad):
        assert (grad.flatten(1).abs().amax(dim=1) > 0).tolist() == [False, True, True] + [False] * 3
    torch.testing.assert_close(y, token_by_token(moe, x), atol=1e-5, rtol=1e-4)


def test_groups_keep_the_order_of_the_choices_and_end_at_multiples():
    chosen = F.one_hot(torch.tensor([2, 0, 2, 0, 2, 3]), 4).T
    slots, ends, n_rows = groups(chosen, 1)
    assert slots.tolist() == [2, 0, 3, 1, 4, 5]
    assert ends.tolist() == [2, 2, 5, 6]
    assert n_rows == 6
    slots, ends, n_rows = groups(chosen, 4)
    assert slots.tolist() == [4, 0, 5, 1, 6, 8]
    assert ends.tolist() == [4, 4, 8, 12]
    assert n_rows >= 12


def test_rows_always_suffice_for_the_worst_choices():
    # One row more than a multiple for each of four experts.
    chosen = F.one_hot(torch.arange(4).repeat(5), 4).T
    _, ends, n_rows = groups(chosen, 4)
    assert ends[-1] == n_rows == 32


def test_only_bf16_on_a_cpu_rounds_groups_up():
    chosen = torch.zeros(8, 1024)
    assert group_multiple(torch.empty(1, dtype=torch.bfloat16), chosen) == 16
    assert group_multiple(torch.empty(1), chosen) == 1
    assert group_multiple(torch.empty(1, dtype=torch.bfloat16, device="meta"), chosen) == 1
    assert group_multiple(torch.empty(1, dtype=torch.bfloat16), chosen[:, :2]) == 1  # one new token


@pytest.mark.parametrize("idle", [False, True], ids=["all", "some experts idle"])
def test_rounded_up_groups_change_neither_output_nor_gradients(moe, idle, monkeypatch):
    x = inputs(2, 96).bfloat16()
    if idle:
        x = x.abs()
        with torch.no_grad():
            moe.router.weight.fill_(-1.0)
            moe.router.weight[1:3] = 1.0
    moe = moe.bfloat16()
    x.requires_grad_()
    variables = [x, *moe.parameters()]
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)

    def output_and_gradients():
        y, _ = moe(x)
        return [y, *torch.autograd.grad((y * weights).sum(), variables)]

    found = output_and_gradients()
    assert group_multiple(x, torch.zeros(6, 2 * 192)) == 8
    monkeypatch.setattr("smollm2.model.moe.group_multiple", lambda *_: 1)
    for rounded_up, plain in zip(found, output_and_gradients(), strict=True):
        torch.testing.assert_close(
            rounded_up, plain, rtol=0.01, atol=0.01 * plain.abs().max().item()
        )


def test_layers_are_averaged_in_the_loss_and_stacked_in_the_load():
    even = routing(torch.full((12, 6), 1 / 6), torch.full((6,), 4))
    collapsed = routing(F.one_hot(torch.full((12,), 2), 6).float(), torch.eye(6)[2] * 12)
    both = mean_routing([even, collapsed])
    assert both.balance_loss.item() == pytest.approx(3.5)
    assert both.load.shape == (2, 6)
    assert torch.equal(both.load[1], collapsed.load)
