"""Runs of unequal length can end on the same text; older runs keep the order that they began in."""

import dataclasses
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from support.command import run_main
from support.tiny import changed

from smollm2.data import batch
from smollm2.errors import UserError
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import ResolvedConfig, default_run_name
from smollm2.runs.run import Run
from smollm2.training.trainer import Trainer

# Of the batches that a run of ten steps with seed 7 drew before there was an offset.
ORDER = "08fed71eefc19713"


@pytest.fixture
def drawn(asked, monkeypatch):
    """The batches that a run of so many steps with seed 7 trains on, in order."""
    text = SimpleNamespace(train=np.arange(5000) % 512, fingerprint="f")

    def batches(steps: int, **changes) -> list[np.ndarray]:
        protocol = resolve(dataclasses.replace(asked, steps=steps, seed=7, **changes))
        seen = []

        def note(*arguments):
            seen.append(batch(*arguments)[0])
            return batch(*arguments)

        monkeypatch.setattr("smollm2.training.trainer.batch", note)
        trainer = Trainer(protocol, text)
        for _ in range(steps):
            trainer.update(trainer.gradients())
        return seen

    return batches


def test_the_last_batches_of_a_short_and_a_long_run_are_equal(drawn):
    long, short = drawn(10), drawn(6, batch_offset=4)
    np.testing.assert_array_equal(short, long[4:])
    assert not np.array_equal(drawn(6), long[4:])


def test_a_run_in_the_older_order_draws_what_it_drew(drawn):
    older = np.stack(drawn(10, data_order="shuffled"))
    assert hashlib.sha256(older.tobytes()).hexdigest()[:16] == ORDER
    assert not np.array_equal(drawn(10), older)


def test_a_manifest_of_an_older_version_begins_at_batch_0_of_the_older_order(asked):
    values = resolve(asked).to_dict()
    assert (values.pop("batch_offset"), values.pop("data_order")) == (0, "feistel")
    older = ResolvedConfig.from_dict(values)
    assert (older.batch_offset, older.data_order) == (0, "shuffled")


def test_runs_in_two_orders_are_not_compared_and_have_names_of_their_own(asked):
    both = [dataclasses.replace(asked, data_order=order) for order in (None, "shuffled")]
    one, other = map(resolve, both)
    assert one.controlled() != other.controlled()
    assert default_run_name(both[0], one) != default_run_name(both[1], other)
    with pytest.raises(UserError, match="`data_order` takes shuffled or feistel, not 'sorted'"):
        resolve(dataclasses.replace(asked, data_order="sorted"))


def test_an_offset_is_part_of_a_default_name(asked):
    names = {
        default_run_name(request, resolve(request))
        for request in (asked, dataclasses.replace(asked, batch_offset=3))
    }
    assert len(names) == 2


@pytest.mark.parametrize("offset", [-1, 10**13])
def test_an_offset_out_of_range_is_refused(asked, offset):
    with pytest.raises(UserError, match="`batch_offset` must be from 0 to"):
        resolve(dataclasses.replace(asked, batch_offset=offset))


def test_a_manifest_with_an_offset_below_zero_is_refused(asked):
    values = resolve(asked).to_dict() | {"batch_offset": -1}
    with pytest.raises(UserError, match="batch_offset cannot be -1"):
        ResolvedConfig.from_dict(values)


def test_an_offset_is_an_option_of_train(capsys, workdir, tiny):
    options = ("--steps", "2", "--batch-offset", "3", "--name", "late")
    code, _, err = run_main(capsys, *changed(tiny, *options))
    assert code == 0, err
    assert Run(workdir / "results/runs/late").protocol.batch_offset == 3
    assert "from batch 3" in run_main(capsys, "runs", "show", "late")[1]
