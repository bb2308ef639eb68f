"""Second moments of the inputs of a model's matrices."""

import pytest
import torch

from smollm2.errors import UserError
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.backends.torchao.int4 import Int4
from smollm2.quantize.calibration import second_moments
from smollm2.quantize.convert import quantize
from smollm2.quantize.quant_config import QuantConfig

DENSE = ModelConfig(
    d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=128, vocab_size=320, max_seq_len=64
)
MIXTURE = ModelConfig(
    d_model=64,
    n_heads=4,
    n_kv_heads=2,
    n_layers=2,
    d_ff=96,
    vocab_size=320,
    max_seq_len=64,
    n_experts=4,
    n_active_experts=2,
)


def windows(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 320, (n, 32), generator=torch.Generator().manual_seed(seed))


def test_the_moments_are_those_of_what_a_matrix_reads():
    model = SmolLM2(DENSE, seed=0).eval()
    read = []
    hook = model.blocks[1].mlp.down.register_forward_pre_hook(lambda _, x: read.append(x[0]))
    with torch.no_grad():
        hidden, _ = model.hidden(windows())
    hook.remove()
    x = read[0].flatten(0, 1).double()
    done = []
    full = second_moments(model, windows(), full=True, on_progress=done.append)
    assert done == [4, 6]
    expected = x.T @ x / len(x)
    assert torch.allclose(full["blocks.1.mlp.down"].double(), expected, rtol=1e-4, atol=1e-8)
    squares = second_moments(model, windows(), full=False)
    assert full.keys() == squares.keys()
    assert torch.allclose(squares["blocks.1.mlp.down"].double(), expected.diagonal(), rtol=1e-4)
    h = hidden.flatten(0, 1)
    for found in (full, squares):
        assert torch.allclose(found["embed"], h.square().mean(0), rtol=1e-4)
    names = {f"blocks.{n}.{m}" for n in range(2) for m in ("attn.qkv", "attn.out")}
    assert names <= full.keys()


def test_the_moments_of_an_expert_are_of_the_tokens_that_choose_it():
    model = SmolLM2(MIXTURE, seed=0).eval()
    found = second_moments(model, windows(), full=False)
    experts = {name for name in found if ".gate_up." in name}
    assert all(found[name].shape == (64,) for name in experts)
    assert all(found[name.replace("gate_up", "down")].shape == (96,) for name in experts)
    read = []
    hook = model.blocks[0].mlp.register_forward_pre_hook(lambda _, x: read.append(x[0]))
    with torch.no_grad():
        model.hidden(windows())
        x = read[0].flatten(0, 1)
        chosen = model.blocks[0].mlp.router(x).topk(2).indices
    hook.remove()
    for expert in range(4):
        rows = x[(chosen == expert).any(1)]
        name = f"blocks.0.mlp.gate_up.{expert}"
        assert (name in found) == bool(len(rows))
        if len(rows):
            assert torch.allclose(found[name], rows.square().mean(0), rtol=1e-4)


@pytest.mark.parametrize("config", [DENSE, MIXTURE])
@pytest.mark.parametrize("method", ["clip", "gptq"])
def test_calibrated_layers_compute_nearly_the_same_on_other_text(config, method):
    model = SmolLM2(config, seed=0).bfloat16().eval()
    with torch.no_grad():  # inputs of different sizes, as after training
        for block in model.blocks:
            for norm in (block.attn_norm, block.mlp_norm):
                norm.weight.copy_(torch.linspace(0.05, 3, 64))
    moments = second_moments(model, windows(60), full=method == "gptq")
    unseen = second_moments(model, windows(30, seed=1), full=True)

    def errors(name: str) -> dict[str, float]:
        """The mean squared error of the outputs of each matrix."""
        quant, found = QuantConfig.of(name), {}
        state = quantize(model, quant, moments)
        for matrix, plain in state.quantized.items():
            if matrix in unseen and matrix != "embed":
                off = Int4(plain, torch.float32).weight() - weight_of(model, matrix).float()
                found[matrix] = float(((off @ unseen[matrix]) * off).sum())
        return found

    before, after = errors("int4-g32"), errors(f"int4-g32-{method}")
    assert before.keys() == after.keys()
    assert len(before) == 2 * (4 if config is DENSE else 2 + 2 * 4)
    ratios = sorted(after[name] / before[name] for name in before)
    assert ratios[-1] < 1
    assert ratios[len(ratios) // 2] < {"clip": 0.9, "gptq": 0.85}[method]


def weight_of(model: SmolLM2, name: str) -> torch.Tensor:
    """The matrix of that name as trained."""
    parent, _, last = name.rpartition(".")
    if last.isdigit():
        return model.get_parameter(parent)[int(last)].detach()
    return model.get_parameter(f"{name}.weight").detach()


@pytest.mark.parametrize("config", [DENSE, MIXTURE])
def test_moments_that_never_fit_are_refused(config, monkeypatch):
    model = SmolLM2(config, seed=0).eval()
    found = second_moments(model, windows(), full=True)
    found.pop("embed")
    needed = there = sum(moment.nbytes for moment in found.values())
    monkeypatch.setattr("smollm2.quantize.calibration.machine_bytes", lambda device: there)
    second_moments(model, windows(), full=True)
    there = needed - 1
    with pytest.raises(UserError, match="choose the method clip"):
        second_moments(model, windows(), full=True)
    second_moments(model, windows(), full=False)
