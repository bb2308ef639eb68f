"""The commands of a card repeat its runs."""

import gzip
import json
import re

from support.carded import card
from support.command import run_main
from support.planted import task_conditions

from smolctl.report.sections.reproduction import fingerprint, train_command
from smollm2.files import write_json
from smollm2.runs.run import Run
from smollm2.runs.tables import TableFolder


def test_tasks_that_no_study_file_names_are_repeated(capsys, study):
    run = Run(study / "pow2-s0")
    dtype = run.protocol.dtype  # the default differs between machines
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    score = {"task": "arc_easy", "metric": "acc", "value": 0.25, "stderr": 0.01, "clusters": 500}
    score |= {"fingerprint": "f", "n": 500, "total": 2376}
    score |= task_conditions(dtype=dtype)
    rows = [score, score | {"task": "piqa", "n": 9, "total": 9}]
    rows += [score | {"task": "openbookqa"}, rows[1] | {"metric": "acc_norm"}]
    rows += [score | {"dtype": other}]
    run.replace("eval", [*run.rows("eval"), *rows])
    quantized = study / "pow2-s0/quantized/int8"
    quantized.mkdir(parents=True)
    TableFolder(quantized).replace("eval", rows[1:2])
    commands = re.findall(r"^smolctl eval (.*)$", card(capsys), flags=re.MULTILINE)
    assert commands == [
        "pow2-s0 --tasks arc_easy,openbookqa --limit 500 --study s",
        "pow2-s0 pow2-s0+int8 --tasks piqa --study s",
        f"pow2-s0 --tasks arc_easy --limit 500 --dtype {other} --study s",
    ]
    # What the study file asks for needs no command; another dtype, limit or seed does.
    plan = '[arms."pow2"]\nvariant = "pow2"\nseeds = [0]\n[eval]\ntasks = "arc_easy,piqa"\n'
    (study / "study.toml").write_text(f"{plan}limit = 500\n")
    commands = re.findall(r"^smolctl eval (.*)$", card(capsys), flags=re.MULTILINE)
    assert commands == [
        "pow2-s0 --tasks openbookqa --limit 500 --study s",
        f"pow2-s0 --tasks arc_easy --limit 500 --dtype {other} --study s",
        "pow2-s0+int8 --tasks piqa --study s",
    ]


def test_the_commands_of_the_card_repeat_the_runs(capsys, study):
    text = card(capsys)
    commands = re.findall(r"^smolctl train .*$", text, flags=re.MULTILINE)
    assert len(commands) == 6
    assert all("--steps 10" in command and "--seq-len 32" in command for command in commands)
    assert "--name pow2-s1" in text


def test_no_option_is_named_that_train_does_not_have(capsys, workdir, tiny):
    trunk = [*tiny, "--steps", "8", "--name", "trunk", "--keep-step", "4"]
    assert run_main(capsys, *trunk)[0] == 0
    assert run_main(capsys, *tiny, "--steps", "8", "--name", "b", "--from", "trunk@4")[0] == 0
    run = Run(workdir / "results/runs/b")
    assert run.manifest["request"]["data_order"] == "feistel"
    assert "order" not in train_command(run)


def test_a_rate_is_repeated_to_the_last_digit(capsys, study):
    path = study / "pow2-s1/run.json"
    manifest = json.loads(path.read_text())
    manifest["request"]["lr"] = 0.0012345678
    write_json(path, manifest)
    assert "--lr 0.0012345678 " in card(capsys)


def test_a_fingerprint_does_not_depend_on_compression(study):
    run = Run(study / "pow2-s0")
    path = run.path / "items" / "arc.csv.gz"
    path.parent.mkdir(exist_ok=True)
    found = []
    for level in (1, 9):
        path.write_bytes(gzip.compress(b"item,gold\n0,1\n" * 99, level))
        found.append(fingerprint(run))
    path.write_bytes(gzip.compress(b"item,gold\n0,0\n" * 99))
    changed = fingerprint(run)
    path.write_bytes(b"damaged")
    assert found[0] == found[1]
    assert len({found[0], changed, fingerprint(run)}) == 3
