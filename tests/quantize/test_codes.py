"""How codes are chosen: the error that each method leaves in a layer's outputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smollm2.quantize.codes import (
    DAMPING,
    LAST,
    MIDDLE,
    Codes,
    clipped,
    gptq,
    inverse_factor,
    rounded,
)

N_OUT, N_IN = 48, 128


def weight(seed: int = 0, n_in: int = N_IN) -> torch.Tensor:
    """Rows with a few large weights, as trained models have."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(N_OUT, n_in, generator=generator)
    return 0.03 * normal * (1 + 4 * (torch.rand(N_OUT, n_in, generator=generator) > 0.97))


def inputs(seed: int = 1, n: int = 1000) -> torch.Tensor:
    """Correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, 40, generator=generator) @ torch.randn(40, N_IN, generator=generator)
    noise = torch.randn(n, N_IN, generator=generator)
    return (mixed + noise) * torch.rand(N_IN, generator=generator) ** 2


def values(found: Codes) -> torch.Tensor:
    """The weights that the codes stand for, in fp64."""
    groups = found.codes.double().unflatten(1, (found.scales.shape[1], -1))
    return ((groups - MIDDLE) * found.scales[..., None] + found.zeros[..., None]).flatten(1)


def output_error(found: Codes, w: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (values(found) - w.double()).T).square().mean())


def moments(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


@pytest.mark.parametrize("group_size", [32, 64])
def test_rounding_leaves_at_most_half_a_step(group_size):
    w = weight()
    found = rounded(w, group_size)
    assert found.codes.dtype == torch.uint8
    assert int(found.codes.max()) <= LAST
    assert found.scales.dtype == found.zeros.dtype == torch.bfloat16
    step = found.scales.float().repeat_interleave(group_size, 1)
    # The rounding of scale and zero point to bf16 shortens the range a little.
    assert ((values(found) - w).abs() <= 0.56 * step).all()


@pytest.mark.parametrize("group_size", [32, 64])
def test_each_method_leaves_less_error_than_the_one_before(group_size):
    w, (x, unseen) = weight(), inputs(n=2000).chunk(2)
    found = {
        "rtn": rounded(w, group_size),
        "clip": clipped(w, group_size, moments(x).diagonal()),
        "gptq": gptq(w, group_size, moments(x)),
    }
    errors = [output_error(each, w, unseen) for each in found.values()]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]


@given(seed=st.integers(0, 1000), power=st.integers(-6, 3))
def test_clipping_never_leaves_more_weighted_error_than_rounding(seed, power):
    w, x = weight(seed) * 10.0**power, inputs(seed)
    importance = moments(x).diagonal()

    def error(found: Codes) -> torch.Tensor:
        """Of each group, relative to the importance of the group."""
        by_weight = (values(found) - w).square() * importance
        return by_weight.unflatten(1, (-1, 32)).sum(-1)

    assert (error(clipped(w, 32, importance)) <= error(rounded(w, 32)) * 1.001 + 1e-30).all()


def test_weights_on_a_grid_are_kept():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, LAST + 1, (N_OUT, N_IN), generator=generator)
    codes[:, ::32], codes[:, 1::32] = 0, LAST  # every group has both ends
    w = (codes - MIDDLE) * 2.0**-6 + 2.0**-7
    for found in (
        rounded(w, 32),
        clipped(w, 32, torch.ones(N_IN)),
        gptq(w, 32, torch.eye(N_IN)),
    ):
        assert torch.equal(values(found).float(), w)


def test_gptq_of_uncorrelated_inputs_is_clipping():
    w = weight()
    alone, together = gptq(w, 64, torch.eye(N_IN)), clipped(w, 64, torch.ones(N_IN))
    assert torch.equal(values(alone), values(together))


def test_unused_and_correlated_inputs_break_nothing():
    w, x = weight(), inputs()
    x[:, 5] = 0  # never used
    x[:, 7] = x[:, 6]  # the same twice
    for found in (clipped(w, 32, moments(x).diagonal()), gptq(w, 32, moments(x))):
        assert values(found).isfinite().all()
    silent = torch.zeros(N_IN, N_IN)
    for found in (clipped(w, 32, silent.diagonal()), gptq(w, 32, silent)):
        assert output_error(found, w, inputs()) <= output_error(rounded(w, 32), w, inputs()) * 1.3


def test_constant_and_empty_groups_stay_finite():
    w = torch.zeros(4, 64)
    w[1] = 0.25
    w[2, 3] = -1e-4
    for found in (rounded(w, 32), clipped(w, 32, torch.ones(64)), gptq(w, 32, torch.eye(64))):
        assert torch.allclose(values(found).float(), w, atol=2e-6)


def test_the_factor_is_of_the_inverse():
    x = torch.randn(500, N_IN, generator=torch.Generator().manual_seed(0))
    upper = inverse_factor(moments(x)).double()
    damped = moments(x).double()
    damped += DAMPING * torch.diag(damped.diagonal())
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(N_IN).double(), atol=1e-4)
