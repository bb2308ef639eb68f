"""`smolctl doctor`: what it says is what was tried on this machine."""

import json
import platform
import stat
import sys

import pytest
import torch
from support.command import run_main

from smollm2.device import has_native_bfloat16
from smollm2.quantize.quant_config import QuantConfig


@pytest.fixture
def report(capsys, workdir, monkeypatch):
    """What `smolctl doctor --json` finds, without the seconds that speeds take."""
    monkeypatch.setattr("smollm2.device.matmul_flops_per_second", lambda device, dtype: 1e9)
    monkeypatch.setattr("smollm2.device.memory_bytes_per_second", lambda device: 1e9)

    def run(*arguments: str) -> dict:
        code, out, err = run_main(capsys, "doctor", "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return run


def test_speeds_are_measured(capsys, workdir):
    code, out, err = run_main(capsys, "doctor", "--json")
    assert code == 0
    assert "Measuring cpu" in err
    cpu = [row for row in json.loads(out)["devices"] if row["device"] == "cpu"]
    assert [row["dtype"] for row in cpu] == ["float32", "bfloat16"]
    assert cpu[1]["native"] == has_native_bfloat16("cpu")
    for row in cpu:  # what no machine falls short of and none exceeds
        assert 1e8 < row["matmul_flops_per_second"] < 1e15
        assert 1e8 < row["memory_bytes_per_second"] < 1e13


def test_the_machine_and_every_quantization_are_reported(report):
    found = report()
    assert found["environment"]["python"] == platform.python_version()
    assert found["environment"]["torch"] == torch.__version__
    tried = {row["name"]: row for row in found["quantizations"] if row["device"] == "cpu"}
    assert tried.keys() >= {config.name for config in QuantConfig().grid()}
    assert all(row["runs"] or row["reason"] for row in tried.values())
    assert tried["int8"]["runs"]


def test_a_backend_that_is_missing_is_a_reason(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    rows = {row["name"]: row for row in report()["quantizations"]}
    assert not rows["nf4-g64"]["runs"]
    assert "bitsandbytes" in rows["nf4-g64"]["reason"]
    assert rows["int4-g64"]["runs"]


@pytest.mark.parametrize(
    ("script", "runs", "reason"),
    [
        ("exit 0", True, None),
        ("echo 'no Python.h' >&2; exit 1", False, "no Python.h"),
        (None, False, "not found; install it, or set CXX"),
    ],
)
def test_the_compiler_is_tried(report, workdir, monkeypatch, script, runs, reason):
    path = workdir / "compiler"
    if script is not None:
        path.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
        path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(path))
    assert report()["compiler"] == {"name": str(path), "runs": runs, "reason": reason}


def test_folders_need_not_exist_to_be_checked(report, workdir, fresh_cache):
    (workdir / "file").write_text("no folder")
    cache, results = report("--results", str(workdir / "not/there"))["folders"]
    assert (cache["path"], cache["exists"]) == (str(fresh_cache), True)
    assert (results["exists"], results["writable"]) == (False, True)
    assert results["free_bytes"] > 0
    assert not report("--results", str(workdir / "file"))["folders"][1]["writable"]


def test_the_tables_say_the_same(capsys, report):
    code, out, _ = run_main(capsys, "doctor")
    assert code == 0
    for said in (torch.__version__, "int4-g64", "Quantizations", "Packages", "Folders", "free"):
        assert said in out
