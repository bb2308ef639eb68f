"""Every part of the state has one owner, however many processes there are."""

from hypothesis import given
from hypothesis import strategies as st

from smollm2 import SmolLM2
from smollm2.model.config import variant
from smollm2.protocol.optimizers import find_optimizer
from smollm2.training.masters import LEAF_NUMBERS, split_leaves
from smollm2.training.shared_masters import owners_of

# The shape of the published model of 1.7 billion parameters.
LARGE = "orig:d_model=2048,n_heads=32,n_kv_heads=32,d_ff=8192,n_layers=24"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60), st.integers(1, 70))
def test_the_fullest_process_has_at_most_a_leaf_more_than_its_share(sizes, n):
    by_name = {str(number): size for number, size in enumerate(sizes)}
    owners = owners_of(by_name, n)
    assert list(owners) == list(by_name)
    held = [0] * n
    for name, owner in owners.items():
        held[owner] += by_name[name]
    assert sum(held) == sum(sizes)
    assert max(held) <= sum(sizes) / n + max(sizes)


def test_a_thousand_processes_share_a_large_model():
    config = variant(LARGE)
    model = SmolLM2(config, seed=None)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    for optimizer in ("adamw", "muon"):
        leaves = split_leaves(config, find_optimizer(optimizer), tensors)
        sizes = {name: leaf.numel() for name, leaf in leaves.items()}
        assert sum(sizes.values()) == sum(tensor.numel() for tensor in tensors.values())
        owners = owners_of(sizes, 1024)
        assert owners.keys() == sizes.keys()
        held = [0] * 1024
        for name, owner in owners.items():
            held[owner] += sizes[name]
        # The largest leaf: rows of a matrix for AdamW, which is whole for Muon.
        assert max(held) == max(sizes.values())
        if optimizer == "adamw":
            assert max(held) <= LEAF_NUMBERS
