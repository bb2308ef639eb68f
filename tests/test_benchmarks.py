"""The tables of the benchmarks follow from their CSVs."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import table

    yield table
    for name in ("table", "side_by_side", "idle"):
        sys.modules.pop(name, None)


def write_rates(folder: Path, rates: dict[str, list[float]]) -> None:
    """A train_speed.csv of one work, a round for each number."""
    common = {"versions": "torch 2", "device": "a CPU", "threads": 2, "command": "python x.py"}
    rows = [
        {"work": "pow2 4x512", "contender": who, "round": i, "tokens_per_second": x} | common
        for who, found in rates.items()
        for i, x in enumerate(found)
    ]
    for row in rows:
        row["peak_rss_mb"] = 300 if row["contender"].startswith("ours") else 500
        if row["contender"] == "transformers compiled":
            row["peak_rss_mb"] = 375  # the leanest peer, which is not the fastest
    with (folder / "train_speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def line_of(text: str, work: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {work} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_tables_follow_from_the_committed_csvs(table):
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert table.with_tables(text, BENCHMARKS) == text


def test_a_line_takes_the_best_medians_and_says_which_goals_are_missed(table, tmp_path):
    rates = {"ours": [90, 110, 100], "ours compiled": [160, 159, 900], "limit": [250]}
    rates |= {"transformers": [100, 80, 99], "transformers compiled": [70]}
    write_rates(tmp_path, rates)
    cells = line_of(table.tables(tmp_path), "train pow2, 4 × 512")
    assert cells[1:6] == ["tokens/s", "3", "160 (ours compiled)", "99.0 (transformers)", "1.62"]
    assert cells[7:9] == ["250", "0.64"]
    assert cells[10] == "0.80"
    assert cells[-1] == "no: share, RSS"


def test_what_was_not_measured_is_listed_as_not_measured(table, tmp_path):
    write_rates(tmp_path, {"ours": [100]})
    cells = line_of(table.tables(tmp_path), "train pow2, 4 × 512")
    assert cells[3] == "not measured: `python benchmarks/train_speed.py`"
    assert cells[-1] == "–"


@pytest.fixture
def guard(table, monkeypatch):
    """A guard with 30 seconds of patience and these rates, and how long it has waited."""
    import idle

    slept = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr(idle, "time", clock)

    def make(rates):
        return idle.Guard(30, iter(rates).__next__), slept

    return make


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rounds", "0"),
        ("--threads", "-1"),
        ("--patience", "nan"),
        ("--patience", "-1"),
        ("--works", ","),
        ("--contenders", ""),
        ("--csv", "no/such/folder/x.csv"),
        ("--csv", "."),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(table, capsys, monkeypatch, option, value):
    side_by_side = sys.modules["side_by_side"]
    monkeypatch.setattr(sys, "argv", ["x.py", option, value])
    with pytest.raises(SystemExit) as ended:
        side_by_side.start(side_by_side.parser("x"), lambda *_: {})
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_a_measurement_waits_for_a_quiet_machine(guard, monkeypatch):
    one, slept = guard([])
    loads = iter([2.0, 0.5, 0.3])
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads), 9.0, 9.0))
    one.wait_for_quiet()
    assert slept == [10, 10]


def test_a_measurement_waits_until_products_are_fast_again(guard):
    one, slept = guard([100, 85, 89, 90, 120, 100, 110])
    for _ in range(4):
        one.wait_for_speed()
    assert slept == [10, 10, 10]
    assert one.best == 120


def test_a_machine_that_stays_busy_is_refused(guard, monkeypatch):
    one, slept = guard([100, *[50] * 9])
    one.wait_for_speed()
    with pytest.raises(SystemExit, match="not idle: matrix products run below 90% of their best"):
        one.wait_for_speed()
    assert slept == [10, 10, 10]


def test_a_model_with_its_channels_permuted_computes_the_same(table):
    import quantization
    import torch

    from smollm2 import SmolLM2, variant

    model = SmolLM2(variant("orig:n_layers=2", scale="nano")).eval()
    state = quantization.permuted(model.state_dict(), model.config)
    other = SmolLM2(model.config, seed=None)
    other.load_state_dict(state, assign=True)
    tokens = torch.arange(60).view(2, 30)
    with torch.inference_mode():
        torch.testing.assert_close(other.eval()(tokens), model(tokens), atol=1e-5, rtol=1e-4)
    before = model.state_dict()
    matrices = {name for name, tensor in state.items() if tensor.ndim == 2}
    assert len(matrices) == 2 * 4 + 1
    assert not any(torch.equal(state[name], before[name]) for name in matrices)


def test_quantized_models_are_listed_by_size_beside_their_plain_rounding(table, tmp_path):
    common = {"versions": "torch 2", "device": "a CPU", "threads": 2, "command": "python x.py"}
    cells = {"bits_a_weight": 5, "seconds": 1, "kl_stderr": 0.01, "kl_p99": 0.5, "top1": 0.75}
    cells |= {"kl_manuals": 0.2, "kl_manuals_stderr": 0.01, "decode_tokens_per_second": 90}
    made = (("q4_0", 3e6, 0.3), ("int4-g64-clip-v8", 2e6, 0.1), ("int4-g64", 1e6, 0.4))
    rows = [
        {"work": "permuted", "contender": name, "round": 1, "bytes": n_bytes, "kl": kl}
        for name, n_bytes, kl in made
    ]
    with (tmp_path / "quantization.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0] | cells | common))
        writer.writeheader()
        writer.writerows(row | cells | common for row in rows)
    lines = table.quantization(tmp_path).splitlines()[4:7]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in found] == ["int4-g64", "int4-g64-clip-v8", "q4_0"]
    assert [line[5] for line in found] == ["–", "0.25 ×", "–"]
    assert found[0][1:5] == ["1.0", "5.00", "1.0", "0.4000 ± 0.0100"]
