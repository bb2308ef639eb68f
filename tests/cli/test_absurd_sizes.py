"""Sizes that no machine has are refused in seconds, before anything is allocated."""

import json
import time

import pytest
from support.command import run_main

from smollm2.model.config import LIMITS, divisors, variant
from smollm2.training import memory

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--name", "x"]
HUGE = {
    "layers": ([*NANO, "--steps", "1", "--set", "n_layers=99999999999"], "n_layers must be at"),
    "width": ([*NANO, "--steps", "1", "--set", f"d_model={10**21}"], "d_model must be at most"),
    "width of 19 digits": ([*NANO, "--steps", "1", "--set", f"d_ff={10**19}"], "d_ff must be at"),
    "vocabulary": ([*NANO, "--steps", "1", "--set", f"vocab_size={10**12}"], "vocab_size must be"),
    "context": (
        [*NANO, "--steps", "1", "--set", f"max_seq_len={10**15}"],
        "max_seq_len must be at most",
    ),
    "variant": (["variants", f"pow2:d_model={10**12 + 1}"], "d_model must be at most"),
    "heads": (["variants", f"pow2:n_heads={10**12}"], "n_heads must be at most"),
    "experts": (["variants", f"moe-160m:n_experts={10**15}"], "n_experts must be at most"),
    "steps": ([*NANO, "--steps", "9" * 30], "more than 1,000,000,000,000 steps"),
    "tokens": ([*NANO, "--tokens", "1e308"], "--tokens 1e+308 would be more than"),
    "flops": ([*NANO, "--flops", "1e308"], "more than 1,000,000,000,000 steps"),
    "batch": ([*NANO, "--steps", "1", "--micro-batch-size", str(10**12)], "268,435,456 tokens"),
    "accumulation": ([*NANO, "--steps", "1", "--grad-accum", str(10**12)], "268,435,456 tokens"),
    "activations": (
        [*NANO, "--steps", "1", "--micro-batch-size", "900000"],
        "use a smaller --micro-batch-size with a larger --grad-accum",
    ),
    "weights": (
        [*NANO, "--steps", "1", "--set", "d_model=131072", "--set", "d_ff=1048576"],
        "use a smaller model",
    ),
    "kept step": ([*NANO, "--steps", "1", "--keep-step", "9" * 30], "is after the last step"),
    "seeds": (["study", "seeds.toml"], "seeds has 20,000 numbers; give at most 1,000"),
    "many seeds": (["study", "more.toml"], "it has more than 262,144 bytes"),
    "arms": (["study", "arms.toml"], "arms has 5,000 names; give at most 1,000"),
    "study of layers": (["study", "layers.toml"], "n_layers must be at most"),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_huge_size_is_refused_at_once(case, capsys, workdir):
    two = 'arms = ["pow2", "orig"]\n'
    (workdir / "seeds.toml").write_text(f"{two}seeds = {list(range(20_000))}\n")
    (workdir / "more.toml").write_text(f"{two}seeds = {list(range(200_000))}\n")
    (workdir / "arms.toml").write_text(f"arms = {json.dumps([f'a{i}' for i in range(5_000)])}\n")
    (workdir / "layers.toml").write_text(
        f"{two}[train]\nsteps = 1\nset = ['n_layers=100000000000']"
    )
    before = sorted(workdir.rglob("*"))
    arguments, expected = HUGE[case]
    start = time.process_time()
    code, out, err = run_main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert sorted(workdir.rglob("*")) == before
    assert time.process_time() - start < 5


def test_a_large_model_for_a_larger_machine_is_shown(capsys, workdir, corpus, monkeypatch):
    (workdir / "llama-70b.toml").write_text(
        "d_model = 8192\nn_heads = 64\nn_kv_heads = 8\nn_layers = 80\nd_ff = 28672\n"
        "vocab_size = 128256\nmax_seq_len = 131072\ntie_embeddings = false\n"
    )
    code, out, _ = run_main(capsys, "variants", "llama-70b.toml", "--json")
    assert code == 0
    assert json.loads(out)[0]["total"] == 70_553_706_496
    monkeypatch.setattr(memory, "machine_bytes", lambda device: 64e9)
    options = ["--variant", "llama-70b.toml", "--data", str(corpus), "--tokenizer", "train:300"]
    options += ["--seq-len", "64", "--steps", "10"]
    code, out, _ = run_main(capsys, "train", *options, "--dry-run")
    assert code == 0
    assert "70,553,706,496" in out
    assert "Training takes at least" in " ".join(out.split())
    code, out, _ = run_main(capsys, "train", *options, "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["state_bytes"] > 1e12
    assert plan["step_seconds"] is plan["activation_bytes"] is plan["eta_seconds"] is None
    code, out, err = run_main(capsys, "train", *options)
    assert (code, out) == (2, "")
    assert "and the machine has 64.0 GB; use a smaller model." in err
    assert not (workdir / "results").exists()


def test_a_context_that_can_never_fit_is_refused(capsys, workdir, tiny):
    options = ["--steps", "2", "--name", "r", "--set", f"max_seq_len={LIMITS['max_seq_len']}"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    for n, expected in ((10**9, "give fewer --max-new-tokens"), (10**15, "leaves no room")):
        code, out, err = run_main(
            capsys, "generate", "r", "--prompt", "a", "--max-new-tokens", str(n)
        )
        assert (code, out) == (2, "")
        assert expected in err
    code, _, err = run_main(capsys, "eval", "r", "--tokens", "9" * 30)
    assert code == 0, err


def test_divisors_are_all_found():
    for n in range(1, 400):
        assert divisors(n) == ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)


def test_the_limits_are_legal():
    for field, limit in LIMITS.items():
        if field in ("vocab_size", "max_seq_len", "n_layers", "d_ff"):
            assert getattr(variant("pow2", settings=[f"{field}={limit}"]), field) == limit
