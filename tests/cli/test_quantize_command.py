"""`smolctl quantize`: rows, saved models as targets, and what is refused."""

import errno
import json
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from support.command import run_main

from smolctl.studies.quantizer import missing
from smolctl.studies.study_file import study_of, to_toml
from smollm2.errors import UserError
from smollm2.inference import kept_code
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.store import quantized_names
from smollm2.runs.run import Run

ARGUMENTS = ("--method", "rtn", "--group-size", "32", "--tokens", "256", "--no-compile")


@pytest.fixture
def run(template: Path, workdir: Path) -> Run:
    """A finished run `run`, the test's own."""
    shutil.copytree(template, workdir / "results/runs/run")
    return Run(workdir / "results/runs/run")


FULL_DISK = OSError(errno.ENOSPC, "No space left on device", "model.json")


@pytest.mark.parametrize(
    "place", ["smollm2.quantize.store.write_json", "smolctl.report.card.save_figure"]
)
def test_a_full_disk_is_said_whatever_comes_after_it(capsys, monkeypatch, run, place):
    """The tables and the figure are made in any case, and the figure fails as well."""

    def full(*_: object, **__: object) -> None:
        raise FULL_DISK

    monkeypatch.setattr(place, full)
    monkeypatch.setattr("smolctl.report.card.save_figure", full)
    code, _, err = run_main(capsys, "quantize", *ARGUMENTS, "--no-speed")
    assert code == 1
    assert "Error: C" in err  # Could not write the model, or Cannot write figures
    assert "No space left on device" in err
    assert "unexpectedly" not in err
    assert "run bf16: " in err
    assert not list(run.path.rglob("*.tmp"))


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_shows_its_rows_and_says_nothing_of_a_next_step(
    capsys, monkeypatch, run, number
):
    measured = []

    def stop(_: Run, row: dict) -> str:
        measured.append(row["name"])
        if len(measured) == 2:
            signal.raise_signal(number)
        return row["name"]

    monkeypatch.setattr("smolctl.studies.quantizer.row_summary", stop)
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS, "--no-speed")
    assert code == 128 + number
    assert "bf16" in out
    assert "Stopped. The rows so far are in quantize.csv" in err
    assert "Next:" not in err


def quantized(capsys, *arguments: str) -> list[dict]:
    """The rows that `smolctl quantize --json` prints."""
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["rows"]


# Compiling a decoder's layer imports what torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
def test_compiled_decoding_is_timed_and_its_code_kept(capsys, run, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_code, "code_folder", lambda: tmp_path / "compiled")
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS[:-1], "--bits", "4", "--json")
    assert code == 0, err
    assert all(row["compiled_decode_tokens_per_second"] > 0 for row in json.loads(out)["rows"])
    command = "generate run+int4-g32 --prompt abc --max-new-tokens 4 --dtype bf16 --json"
    code, out, err = run_main(capsys, *command.split())
    assert code == 0, err
    assert json.loads(out)["compiled"]


def test_json_has_the_section_that_a_report_has(capsys, run, workdir):
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS, "--no-speed", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["name"] for row in found["rows"]] == ["bf16", "int4-g32"]
    code, out, err = run_main(capsys, "report", "--section", "quantization", "--json")
    assert code == 0, err
    assert found["sections"] == json.loads(out)
    (section,) = found["sections"]
    assert section["name"] == "quantization"
    sentences = [text for block in section["blocks"] for text in block.get("sentences", [])]
    assert found["conclusion"] == sentences != []
    assert not (workdir / "results/runs/figures").exists()


def test_a_run_is_quantized_measured_and_saved(capsys, run):
    original, row = quantized(capsys)
    assert (original["name"], row["name"]) == ("bf16", "int4-g32")
    assert row["quantized_share"] > 0.99
    assert row["disk_bytes"] == (run.path / "quantized/int4-g32/model.safetensors").stat().st_size
    assert row["disk_bytes"] < 0.6 * original["disk_bytes"]
    assert row["loss_delta"] == pytest.approx(row["loss"] - original["loss"])
    assert row["loss_delta_stderr"] is None  # over fewer than five documents
    assert row["n"] == 256
    assert row["decode_ratio"] > 0
    assert "compiled_decode_ratio" not in row  # was not asked for
    assert quantized_names(run) == ["int4-g32"]

    table = run.table("quantize").set_index("name")
    assert table.loc["int4-g32", "loss"] == row["loss"]
    assert table.loc["bf16", "loss_delta"] == 0


def test_the_same_again_replaces_its_rows_and_others_stay(capsys, run):
    quantized(capsys)
    run_main(capsys, "quantize", "run", "--bits", "8", "--no-speed")
    quantized(capsys)
    assert list(run.table("quantize")["name"]) == ["bf16", "int8", "int4-g32"]


def test_a_quantized_model_is_a_target_of_eval_with_a_record_of_its_own(capsys, run):
    quantized(capsys)
    before = (run.path / "eval.csv").read_bytes()
    code, out, _ = run_main(capsys, "eval", "run+int4-g32", "--tasks", "test", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["run"] for row in rows} == {"run+int4-g32"}
    assert (run.path / "eval.csv").read_bytes() == before
    assert (run.path / "quantized/int4-g32/eval.csv").exists()

    code, out, _ = run_main(capsys, "eval", "run", "--tasks", "test", "--json")
    assert json.loads(out)[0]["value"] != rows[0]["value"]


def test_tasks_are_scored_for_both(capsys, run, workdir):
    questions = workdir / "eval"
    questions.mkdir()
    lines = [
        {
            "id": str(i),
            "question": "abc",
            "choices": {"text": ["ab", "cd"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for i in range(4)
    ]
    (questions / "arc_easy_test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    quantized(capsys, "--tasks", "arc_easy", "--data-dir", "eval")
    kept = Run(run.path).table("eval")
    found = Run(run.path).path / "quantized/int4-g32/eval.csv"
    assert "arc_easy" in set(kept["task"])
    assert "arc_easy" in found.read_text()


def test_a_sweep_measures_what_runs_and_says_why_the_rest_does_not(capsys, run):
    words = "quantize run --sweep --method rtn --tokens 256 --no-speed --json"
    code, out, err = run_main(capsys, *words.split())
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert len(rows) == 9
    assert rows["nf4-g128"]["reason"].startswith("No layer can be quantized: 2 × blocks.N.attn")
    assert "loss" not in rows["nf4-g128"]
    assert rows["nf4-g64"]["skipped"].startswith("2 × blocks.N.attn.qkv.weight: blocks of 64")
    assert rows["int4-g64"]["skipped"] == ""
    assert rows["int4-g64"]["quantized_share"] == rows["int4-g32"]["quantized_share"] > 0.99
    for name in ("int4-g128", "int4-g256"):  # rows are 32 and 64 wide
        assert f"{name} is left out: for run, whose rows have at most 64 weights, it is" in err
    assert missing(run, [QuantConfig.of(name) for name in ("nf4-g128", "int4-g128")]) == [
        QuantConfig.of("int4-g128")  # no layer will ever fit the other
    ]
    assert rows["int8"]["loss"] > 0
    assert set(quantized_names(run)) >= {"int8", "int4-g32", "int4-g64", "llm-int8"}


BAD = {
    "three bits": (("--bits", "3"), "--bits takes 8 or 4, not 3"),
    "a group size that divides nothing": (
        ("--backend", "bitsandbytes", "--group-size", "256"),
        "Groups of 256 divide no layer of run (widths 32, 64); give --group-size 32 or 64, or "
        "--backend torchao, whose last group of a row may be shorter.",
    ),
    "an unknown backend": (("--backend", "bitsandbites"), "Did you mean 'bitsandbytes'"),
    "an unknown method": (("--method", "awq"), "Unknown method"),
    "a text that nothing reads": (("--method", "rtn", "--calibration", "x.txt"), "omit it"),
    "values with 8 bits": (("--bits", "8", "--v8"), "--v8 is for --bits 4"),
    "a calibration text that is not there": (("--calibration", "gone.txt"), "gone.txt"),
    "an unknown embedding": (("--embedding", "16"), "--embedding takes 8, 4 or none"),
    "a quantized target": (("run+int8",), "is quantized already; give the run"),
    "a sweep of one": (("--sweep", "--group-size", "32"), "omit them"),
    "no tokens": (("--tokens", "0"), "--tokens must be at least 1"),
    "a scale for a run": (("--scale", "nano"), "--scale is for --dimensions"),
    "a split as a task": (("--tasks", "test"), "--tasks takes multiple-choice tasks here"),
    "dimensions and a measurement": (("--dimensions", "--sweep"), "--dimensions measures nothing"),
    "questions without a task": (("--limit", "5"), "name some with --tasks"),
    "an unknown target": (("rnu",), "is not a run or variant"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_cannot_be_quantized_is_refused_with_a_sentence(capsys, run, case):
    arguments, sentence = BAD[case]
    code, out, err = run_main(capsys, "quantize", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (run.path / "quantize.csv").exists()


def test_a_run_without_weights_is_refused(capsys, run):
    (run.path / "checkpoints/final.safetensors").unlink()
    code, _, err = run_main(capsys, "quantize", "run")
    assert code == 2
    assert "has no weights" in err


def test_a_backend_that_is_not_installed_is_refused_and_in_a_sweep_a_row(capsys, run, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, out, err = run_main(capsys, "quantize", "run", "--backend", "bitsandbytes", *ARGUMENTS)
    assert (code, out) == (2, "")
    assert "bitsandbytes is not installed: pip install bitsandbytes" in err
    assert not (run.path / "quantize.csv").exists()

    arguments = (
        "quantize",
        "run",
        "--sweep",
        "--method",
        "rtn",
        "--tokens",
        "256",
        "--no-speed",
        "--json",
    )
    code, out, _ = run_main(capsys, *arguments)
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert "bitsandbytes" in rows["nf4-g32"]["reason"]
    assert missing(run, [QuantConfig.of("nf4-g32"), QuantConfig.of("int4-g64")]) == [
        QuantConfig.of("nf4-g32")  # it may be installed later
    ]


def test_rows_on_another_number_of_tokens_do_not_mix(capsys, run):
    quantized(capsys, "--no-speed")
    code, _, err = run_main(capsys, "quantize", "run", "--bits", "8", "--tokens", "128")
    assert code == 2
    assert "was quantized on 256 validation tokens, not 128" in err
    code, out, _ = run_main(capsys, "quantize", "run", "--bits", "8", "--no-speed", "--json")
    assert [row["n"] for row in json.loads(out)["rows"]] == [256, 256]


def test_a_broken_table_reports_an_error(capsys, run):
    quantized(capsys, "--no-speed")
    path = run.path / "quantize.csv"
    path.write_text(path.read_text().replace("name,", "nmae,", 1))
    code, out, err = run_main(capsys, "quantize", "run", *ARGUMENTS)
    assert (code, out) == (2, "")
    assert "run/quantize.csv lacks the column 'name'" in err


def test_what_is_not_measured_again_is_kept(capsys, run):
    decode = quantized(capsys)[1]["decode_ratio"]
    run_main(capsys, "eval", "run+int4-g32", "--tasks", "test")
    path = run.path / "quantized/int4-g32/eval.csv"
    scores = set(path.read_text().splitlines())
    quantized(capsys, "--no-speed")
    assert set(path.read_text().splitlines()) == scores
    assert run.table("quantize").set_index("name").loc["int4-g32", "decode_ratio"] == decode


def test_a_held_lock_is_an_error_not_a_reason(capsys, run):
    quantized(capsys, "--no-speed")
    before = (run.path / "quantize.csv").read_bytes()
    with run.writing():
        code, _, err = run_main(capsys, "quantize", "run", *ARGUMENTS, "--no-speed")
    assert code == 2
    assert "Another process is writing run 'run'" in err
    assert (run.path / "quantize.csv").read_bytes() == before
    assert not list(run.path.glob(".quantized*"))


def test_a_quantized_model_can_be_named_by_its_folder(capsys, run):
    quantized(capsys, "--no-speed")
    arguments = ("results/runs/run/quantized/int4-g32", "--prompt", "abc", "--max-new-tokens", "2")
    assert run_main(capsys, "generate", *arguments)[0] == 0


def test_an_unknown_quantized_model_lists_the_known_ones(capsys, run):
    code, _, err = run_main(capsys, "eval", "run+int4")
    assert code == 2
    assert "Make one: smolctl quantize run" in err
    quantized(capsys, "--no-speed")
    code, _, err = run_main(capsys, "eval", "run+int4")
    assert code == 2
    assert "Available: run+int4-g32." in err


# In a study


@pytest.fixture
def study_file(workdir, corpus, variants) -> Path:
    path = workdir / "tinies.toml"
    path.write_text(
        f"""
        seeds = [0]
        [arms]
        two = "{variants}/tiny.toml"
        three = {{ variant = "{variants}/tiny.toml", set = ["n_layers=3"] }}
        [train]
        steps = 4
        seq_len = 32
        micro_batch_size = 2
        scale = "nano"
        set = ["d_model=64", "d_ff=128"]
        data = "{corpus}"
        tokenizer = "train:512"
        val_tokens = 128
        test_tokens = 256
        [quantize]
        models = ["int8", "int4-g32"]
        tokens = 256
        """
    )
    return path


def test_a_study_quantizes_its_final_runs_once(capsys, study_file, workdir):
    code, _, err = run_main(capsys, "study", "tinies.toml")
    assert code == 0, err
    assert err.count("MB on disk") == 6  # bf16 and two more, of two runs
    runs = [Run(workdir / f"results/tinies/{name}-s0") for name in ("two", "three")]
    for run in runs:
        assert list(run.table("quantize")["name"]) == ["bf16", "int8", "int4-g32"]
        assert run.table("quantize")["decode_ratio"].isna().all()  # nano says nothing about speed
    assert "MB on disk" not in run_main(capsys, "study", "tinies.toml")[2]

    text = study_file.read_text()
    study_file.write_text(text.replace('"int4-g32"', '"int4-g32-emb4"'))
    err = run_main(capsys, "study", "tinies.toml")[2]
    assert err.count("int4-g32-emb4: ") == 2
    assert "int8: " not in err


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, "[quantize] needs models"),
        (
            {"models": ["int4"]},
            "'int4' is not a quantization. Did you mean 'int4-g64'? Available: int8, int4-g32",
        ),
        ({"models": "int8"}, 'models takes a list such as ["int8"'),
        ({"models": ["int8"], "tokens": 0}, "tokens of [quantize] must be at least 1"),
        ({"models": ["int8"], "bits": 4}, "unknown key 'bits'"),
    ],
)
def test_a_wrong_quantize_section_is_refused(wrong, sentence):
    table = {"arms": ["orig", "pow2"], "train": {"steps": 10}, "quantize": wrong}
    with pytest.raises(UserError) as error:
        study_of(table, "x")
    assert sentence.lower() in str(error.value).lower()


def test_the_quantize_section_is_kept_with_the_study():
    names = ["int8", "nf4-g64", "int4-g32-hqq-emb4"]
    table = {"arms": ["orig", "pow2"], "quantize": {"models": names, "tokens": 4096}}
    study = study_of(table | {"train": {"steps": 10}}, "x")
    assert study_of(tomllib.loads(to_toml(study)), "x") == study
    assert [config.name for config in study.quantization.models] == names
