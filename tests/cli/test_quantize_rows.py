"""What `smolctl quantize` prints of a call, and earlier measurements that it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import kl

from smolctl.cli.quantize_output import show_runs
from smolctl.studies.quantizer import reasons, row_summary
from smollm2.quantize.fidelity import LONGEST_WINDOW
from smollm2.runs.quantize_status import FIDELITY
from smollm2.runs.run import Run

ARGUMENTS = ("--group-size", "32", "--method", "rtn", "--tokens", "256", "--no-compile")
ARGUMENTS += ("--no-speed",)


@pytest.fixture
def run(template: Path, workdir: Path) -> Run:
    """A finished run `run`, the test's own."""
    shutil.copytree(template, workdir / "results/runs/run")
    return Run(workdir / "results/runs/run")


def printed(capsys, *arguments: str) -> tuple[str, str]:
    code, out, err = run_main(capsys, "quantize", *arguments)
    assert code == 0, err
    return out, err


def test_a_call_shows_its_own_rows_each_on_a_line(capsys, run):
    printed(capsys, "--bits", "8", *ARGUMENTS[4:])
    out, err = printed(capsys, *ARGUMENTS)
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["bf16", "int4-g32"]
    header = next(line for line in out.splitlines() if "configuration" in line)
    for name in ("note", "MB on disk", "KL, nats/token", "KL p99", "top-1", "loss change"):
        assert name in header
    table = run.table("quantize").set_index("name")
    assert f"{table.loc['int4-g32', 'kl_mean']:.4f}" in rows[1][4]
    assert f"KL {table.loc['int4-g32', 'kl_mean']:.4f}, top-1 " in err
    assert "Recommended for run: " in out
    assert list(table.index) == ["bf16", "int8", "int4-g32"]
    assert set(table["context"]) == {run.protocol.seq_len}
    assert (table.loc["bf16", "kl_mean"], table.loc["bf16", "top1_agreement"]) == (0, 1)
    assert 0 < table.loc["int8", "kl_mean"] < table.loc["int4-g32", "kl_mean"]


def test_json_says_which_configuration_to_take(capsys, run):
    printed(capsys, "--bits", "8", *ARGUMENTS[4:])
    out, _ = printed(capsys, *ARGUMENTS, "--max-kl", "1000", "--json")
    found = json.loads(out)
    assert (found["max_kl"], found["recommended"]) == (1000, {"run": "int4-g32"})
    marks = {row["name"]: (row["recommended"], row["dominated_by"]) for row in found["rows"]}
    assert marks == {"bf16": (False, None), "int4-g32": (True, None)}
    assert set(FIDELITY) <= found["rows"][1].keys()
    out, _ = printed(capsys, *ARGUMENTS, "--max-kl", "1e-12", "--json")
    assert json.loads(out)["recommended"] == {"run": None}
    out, _ = printed(capsys, *ARGUMENTS, "--max-kl", "1e-12")
    assert (
        "None of these configurations of run has a KL divergence of at most 1e-12 nats/token" in out
    )


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_divergence_that_nothing_can_have_is_refused(capsys, run, value):
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS, f"--max-kl={value}")
    assert (code, out) == (2, "")
    assert f"--max-kl must be above 0, not {value}." in err


def test_a_reason_is_said_once(capsys, run):
    out, err = printed(capsys, "run", "--sweep", *ARGUMENTS[2:])
    assert out.count("Kept in bf16 at nf4-g64: 2 × blocks.N.attn.qkv.weight: blocks of 64") == 1
    assert out.count("Not measured at nf4-g128: No layer can be quantized: ") == 1
    assert "do not divide" not in err
    assert "run nf4-g128: not measured\n" in err
    row = next(line for line in out.splitlines() if line.startswith("│ nf4-g128 "))
    assert row.split("│")[2].strip() == "not measured"


def test_a_group_may_be_longer_than_every_row(capsys, run):
    """Then a row is a group, and the codes are those of the smallest such group."""
    sizes = (64, 256)
    rows = [
        json.loads(printed(capsys, *ARGUMENTS[2:], "--group-size", str(size), "--json")[0])["rows"][
            1
        ]
        for size in sizes
    ]
    assert [row["name"] for row in rows] == ["int4-g64", "int4-g256"]
    assert all(rows[0][key] == rows[1][key] for key in ("loss", "kl_mean", "disk_bytes"))
    made = [run.path / f"quantized/int4-g{size}/model.safetensors" for size in sizes]
    assert made[0].read_bytes() == made[1].read_bytes()
    generate = ("generate", "run+int4-g256", "--prompt", "abc", "--max-new-tokens", "2")
    assert run_main(capsys, *generate)[0] == 0


def test_the_table_marks_what_to_take_and_what_another_beats(capsys, plant):
    planted = {
        "int8": kl(0.004, disk_bytes=3_000_000),
        "llm_int8": kl(0.03, 0.02, disk_bytes=3_010_000, decode_ratio=0.29),
        "int4_g64": kl(0.1, disk_bytes=2_000_000, top1_agreement=0.8, decode_ratio=1.25),
    }
    runs = [plant("orig", seed, **planted) for seed in range(2)]
    rows = [
        {"study": "s", "run": run.name, "name": name.replace("_", "-"), "loss": 5.0} | cells
        for run in runs
        for name, cells in planted.items()
    ]
    show_runs(runs, rows, Path("results"), "s", 0.05, as_json=False)
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    by_name = {cell[2]: cell[3:-1] for cell in cells if len(cell) > 9 and cell[1] == "orig-s0"}
    assert by_name["int8"][0] == "recommended"
    assert by_name["llm-int8"] == [
        *("dominated by int8", "3.0", "0.0300 ± 0.0006", "0.240", "90.0 %", "+0.0200 ± 0.0005"),
        "0.29 ×",
    ]
    assert by_name["int4-g64"][0] == ""
    assert out.count("the smallest with a KL divergence of at most 0.05 nats/token") == 2


def test_a_reason_of_several_runs_is_said_once(capsys, plant):
    why = {"reason": "No module named 'bitsandbytes'"}
    runs = [plant("orig", seed, nf4_g64={"loss": "", "loss_delta": ""} | why) for seed in range(2)]
    rows = [{"study": "s", "run": run.name, "name": "nf4-g64"} | why for run in runs]
    show_runs(runs, rows, Path("results"), "s", 0.05, as_json=False)
    said = "- orig-s0 and orig-s1: Not measured at nf4-g64: No module named 'bitsandbytes'."
    assert said in capsys.readouterr().out.splitlines()


def test_progress_has_the_divergence_beside_the_loss(run):
    row = {"name": "int4-g64", "loss": 5.0, "disk_bytes": 88_200_000, "quantized_share": 0.999}
    row |= kl(0.109, 0.082, skipped="1 × head: kept", loss_delta_stderr=None)
    assert row_summary(run, row) == (
        "run int4-g64: 99.9% quantized, 88.2 MB on disk, KL 0.1090 ± 0.0022, top-1 90.0%, loss "
        "+0.0820"
    )
    assert reasons([row, {"name": "int8"}, row | {"name": "int4-g32"}]) == [
        "Kept in bf16 at int4-g64, int4-g32: 1 × head: kept."
    ]


# Earlier measurements


def test_rows_of_an_older_version_do_not_mix(capsys, run):
    printed(capsys, *ARGUMENTS)
    path = run.path / "quantize.csv"
    table = run.table("quantize").drop(columns=list(FIDELITY))
    table.to_csv(path, index=False)
    before = path.read_bytes()
    code, out, err = run_main(capsys, "quantize", "run", "--bits", "8", *ARGUMENTS[4:])
    assert (code, out) == (2, "")
    assert (
        "Run 'run' was quantized by an older version, which measured the loss alone, so changes "
        "would not be comparable; remove its quantize.csv to start over." in err
    )
    assert path.read_bytes() == before
    assert run_main(capsys, "report", "--section", "quantization")[0] == 0  # it is still read


def test_rows_of_other_windows_do_not_mix(capsys, run):
    printed(capsys, *ARGUMENTS)
    rows = run.rows("quantize")
    run.replace("quantize", [row | {"context": 16} for row in rows])
    code, _, err = run_main(capsys, "quantize", "run", "--bits", "8", *ARGUMENTS[4:])
    assert code == 2
    assert "was quantized in other windows than of 32 tokens, so changes would not be" in err


def test_windows_are_short_even_where_a_run_has_long_ones(capsys, run):
    protocol = run.manifest["protocol"]
    run.update(protocol=protocol | {"seq_len": LONGEST_WINDOW + 64})
    out, _ = printed(capsys, *ARGUMENTS[:4], "--tokens", "600", *ARGUMENTS[6:], "--json")
    row = json.loads(out)["rows"][1]
    assert (row["context"], row["n"]) == (LONGEST_WINDOW, LONGEST_WINDOW)
