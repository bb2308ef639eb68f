"""Sampling by its formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.decoding import NANO, greedy
from support.perturbed import perturbed

from smollm2 import SmolLM2
from smollm2.errors import RunError, UserError
from smollm2.inference.decoder import Decoder, Sampling


def log(*probabilities):
    return torch.tensor(probabilities).log()


FOUR = log(0.15, 0.5, 0.05, 0.3)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(0.5), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        (Sampling(1.0, top_k=2), [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (Sampling(1.0, top_k=9), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(1.0, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.49), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.51), [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        # Of the two that top_k leaves, the first has 0.5 / 0.8 = 0.625.
        (Sampling(1.0, top_k=2, top_p=0.6), [0, 1, 0, 0]),
        (Sampling(1e-300), [0, 1, 0, 0]),
    ],
)
def test_probabilities_are_those_of_the_formula(sampling, expected):
    torch.testing.assert_close(sampling.probabilities(FOUR).float(), torch.tensor(expected).float())


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 5),
    st.floats(0.01, 0.999),
)
def test_a_nucleus_is_the_least_set_that_reaches_top_p(logits, temperature, top_p):
    whole = Sampling(temperature).probabilities(torch.tensor(logits))
    kept = Sampling(temperature, top_p=top_p).probabilities(torch.tensor(logits))
    assert kept.sum() == pytest.approx(1, abs=1e-9)
    in_it = kept > 0
    share = whole[in_it].sum()
    assert share >= top_p - 1e-9
    assert share - whole[in_it].min() < top_p + 1e-9
    if not in_it.all():
        assert whole[in_it].min() >= whole[~in_it].max()
    torch.testing.assert_close(kept[in_it], whole[in_it] / share)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    generator = torch.Generator().manual_seed(0)
    drawn = [Sampling(1.0).choose(FOUR, generator) for _ in range(8000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4)
    expected = FOUR.exp() * 8000
    # Chi square with 3 degrees of freedom: 16.3 is passed once in a thousand seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_a_seed_repeats_a_generation_and_leaves_other_generators_alone():
    decoder = Decoder(perturbed(NANO["pow2"]), 64)
    before = torch.get_rng_state()
    texts = [greedy(decoder, sampling=Sampling(1.0, seed=seed)) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), before)
    # One likely token is left, whatever the seed.
    assert greedy(decoder, sampling=Sampling(1.0, top_k=1, seed=3)) == greedy(decoder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, "`temperature`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"temperature": float("inf")}, "`temperature`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"top_p": 1.1}, "`top_p`"),
        ({"top_p": float("nan")}, "`top_p`"),
        ({"top_k": -1}, "`top_k`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**63}, "`seed`"),
    ],
)
def test_sampling_out_of_range_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_reported(temperature):
    model = SmolLM2(NANO["pow2"])
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        greedy(Decoder(model, 64), sampling=Sampling(temperature))
