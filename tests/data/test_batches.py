"""What a training step and an evaluation see is a function of their arguments alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm2.data import batch, epochs, spread_windows, window_count, windows
from smollm2.data.batches import ORDERS
from smollm2.errors import RunError, UserError
from smollm2.protocol.run_config import WORDS

TOKENS = np.arange(1000, dtype=np.uint16)


def starts_of_epoch(n_tokens, seq_len, seed, epoch, order="feistel"):
    """The first token of each sample of an epoch of `np.arange(n_tokens)`."""
    count = n_tokens // seq_len - 1
    steps = range(epoch * count, (epoch + 1) * count)
    tokens = np.arange(n_tokens, dtype=np.uint32)
    return [int(batch(tokens, "f", seed, step, 1, seq_len, order)[0][0, 0]) for step in steps]


def test_targets_are_the_inputs_one_token_on():
    inputs, targets = batch(TOKENS, "f", 0, 3, 4, 10)
    assert inputs.shape == targets.shape == (4, 10)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs), 1)


def test_a_run_has_the_orders_that_there_are():
    assert WORDS["data_order"] == tuple(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_the_calls_does_not_matter(order):
    forward = [batch(TOKENS, "f", 1, step, 4, 16, order)[0] for step in range(60)]
    backward = [batch(TOKENS, "f", 1, step, 4, 16, order)[0] for step in reversed(range(60))]
    np.testing.assert_array_equal(forward, backward[::-1])


@pytest.mark.parametrize(
    ("order", "starts"), [("shuffled", [142, 842, 442]), ("feistel", [713, 313, 613])]
)
def test_samples_are_those_of_the_published_rule(order, starts):
    # Pinned: a change here would silently break resuming and comparing with older runs.
    inputs, _ = batch(TOKENS, "0123456789abcdef", 7, 2, 3, 100, order)
    assert inputs[:, 0].tolist() == starts


@given(
    n_tokens=st.integers(8, 400),
    seq_len=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
    order=st.sampled_from(sorted(ORDERS)),
)
@settings(max_examples=60)
def test_epoch_has_each_window_once(n_tokens, seq_len, seed, epoch, order):
    if n_tokens < 2 * seq_len:
        with pytest.raises(UserError, match="expected at least"):
            batch(np.zeros(n_tokens), "f", seed, 0, 1, seq_len)
        return
    starts = sorted(starts_of_epoch(n_tokens, seq_len, seed, epoch, order))
    assert np.diff(starts).tolist() == [seq_len] * (len(starts) - 1)
    assert 0 <= starts[0] < seq_len
    assert starts[-1] + seq_len < n_tokens


@given(step=st.integers(0, 500), seq_len=st.integers(1, 300))
def test_large_batch_is_two_small_ones(step, seq_len):
    large = batch(TOKENS, "f", 5, step, 8, seq_len)
    small = [batch(TOKENS, "f", 5, 2 * step + half, 4, seq_len) for half in (0, 1)]
    for part in (0, 1):
        np.testing.assert_array_equal(large[part], np.concatenate([half[part] for half in small]))


@pytest.mark.parametrize("order", ORDERS)
def test_seeds_fingerprints_and_epochs_differ(order):
    first = starts_of_epoch(1000, 10, 0, 0, order)
    assert starts_of_epoch(1000, 10, 1, 0, order) != first
    assert starts_of_epoch(1000, 10, 0, 1, order) != first
    other = batch(TOKENS, "g", 0, 0, 99, 10, order)[0][:, 0].tolist()
    assert other != first
    assert first != sorted(first)


def test_epochs_start_at_different_offsets():
    offsets = {min(starts_of_epoch(1000, 50, 0, epoch)) for epoch in range(10)}
    assert len(offsets) > 5


def test_corpus_smaller_than_two_windows_is_refused():
    batch(TOKENS[:32], "f", 0, 0, 1, 16)
    with pytest.raises(UserError, match=r"31 tokens.*at least 32.*`seq_len`"):
        batch(TOKENS[:31], "f", 0, 0, 1, 16)


@given(n_tokens=st.integers(1, 1200) | st.none(), seq_len=st.integers(1, 200))
def test_evaluation_reads_whole_windows_one_after_the_other(n_tokens, seq_len):
    count = window_count(TOKENS, seq_len, n_tokens)
    wanted = 999 if n_tokens is None else max(n_tokens, seq_len)
    assert count == min(wanted, 999) // seq_len
    inputs, targets = windows(TOKENS, seq_len, range(count))
    np.testing.assert_array_equal(inputs.ravel(), np.arange(count * seq_len))
    np.testing.assert_array_equal(targets, inputs + 1)


def test_evaluation_needs_one_whole_window():
    assert window_count(TOKENS[:17], 16, 16) == 1
    with pytest.raises(UserError, match=r"16 tokens.*at least 17"):
        window_count(TOKENS[:16], 16, 16)


def test_epochs_counts_how_often_the_corpus_is_seen():
    assert epochs(1000, 10, 990) == 1
    assert epochs(1000, 10, 2475) == 2.5


@given(st.integers(1, 1000), st.data())
def test_spread_windows_are_different_in_order_and_reach_both_ends(total, data):
    count = data.draw(st.integers(1, total))
    numbers = spread_windows(total, count)
    assert len(set(numbers)) == count
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert total - 1 - numbers[-1] <= -(-total // count)


@pytest.mark.parametrize("read", ["batch", "windows"])
def test_a_file_that_is_cut_while_it_is_read_is_a_sentence(tmp_path, read):
    path = tmp_path / "train.bin"
    np.arange(100_000, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r")

    def take():
        if read == "batch":
            return batch(tokens, "abc", 0, 0, 4, 100)
        return windows(tokens, 100, [0, 900])

    expected = [part.tolist() for part in take()]
    with path.open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(RunError, match=r"cut train\.bin .* to 1,000 bytes \(200,000 expected\)"):
        take()
    np.arange(100_000, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    path.unlink()  # the map still has it
    assert [part.tolist() for part in take()] == expected
