"""The machine that work is done on."""

import shutil

import pytest

from smolctl.studies.machine import machine_for, warn_if_busy
from smollm2.runs.run import Run


@pytest.mark.parametrize(("load", "is_busy"), [(0.2, False), (1.0, False), (1.1, True), (4, True)])
def test_a_busy_machine_is_warned_of(capsys, monkeypatch, load, is_busy):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0), raising=False)
    warn_if_busy()
    assert (f"load {load:.1f} on 2 cores" in capsys.readouterr().err) == is_busy


@pytest.mark.parametrize("own", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("is_quantized", [True, False])
def test_a_quantized_model_computes_in_bf16_where_that_is_native(
    monkeypatch, template, tmp_path, own, is_native, is_quantized
):
    monkeypatch.setattr("smolctl.studies.machine.has_native_bfloat16", lambda device: is_native)
    shutil.copytree(template, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.update(protocol=run.manifest["protocol"] | {"dtype": own})
    expected = "bfloat16" if is_quantized and is_native else own
    assert machine_for(run, "cpu", None, is_quantized=is_quantized) == ("cpu", expected)
    for asked, found in (("fp32", "float32"), ("bf16", "bfloat16")):
        assert machine_for(run, "cpu", asked, is_quantized=is_quantized) == ("cpu", found)
