"""On real text: the commands of the README at nano and full size."""

import json

import pytest
from support.command import smolctl

from smollm2.runs.run import Run

pytestmark = pytest.mark.slow


def test_a_nano_model_learns_english(real_data, workdir):
    novels = str(real_data / "corpus/novels.jsonl.gz")
    done = smolctl(
        *("train", "--variant", "pow2", "--scale", "nano", "--steps", "100"),
        *("--data", novels, "--tokenizer", "train:4096", "--name", "r", "--json"),
        cwd=workdir,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    # Knowing only how frequent each token is gives 6.58 nats on this corpus.
    assert json.loads(done.stdout)["test"]["loss"] < 6.2


@pytest.mark.parametrize("variant", ["orig", "orig-174m", "pow2", "pow2-135m", "moe-160m"])
def test_full_size_trains_on_a_cpu(real_data, workdir, variant):
    done = smolctl(
        *(
            "train",
            "--variant",
            variant,
            "--steps",
            "3",
            "--micro-batch-size",
            "1",
            "--seq-len",
            "256",
        ),
        *("--lr", "1e-4"),  # three steps have no warm-up to speak of
        *("--data", str(real_data / "corpus/novels.jsonl.gz")),
        *("--tokenizer", str(real_data / "tokenizer"), "--name", "r"),
        cwd=workdir,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    run = Run(workdir / "results/runs/r")
    losses = run.table("train")["loss"]
    assert losses.iloc[0] == pytest.approx(11.3, abs=0.3)  # ln 49,152 and the spread of the logits
    assert losses.iloc[-1] < losses.iloc[0]
    assert run.manifest["parameters"]["total"] > 134e6


def test_the_default_run_starts_without_network_or_files(workdir):
    done = smolctl(
        *("train", "--variant", "orig", "--scale", "nano", "--steps", "2", "--json"),
        cwd=workdir,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "orig-nano-2-s0"
