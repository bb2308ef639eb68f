"""The columns of quantize.csv that older versions lack."""

import pytest

from smolctl.analysis.quantization_rows import read_rows
from smolctl.studies.quantizer import missing
from smollm2.errors import UserError
from smollm2.quantize.quant_config import QuantConfig
from smollm2.runs.quantize_status import FIDELITY, with_later_columns, with_status
from smollm2.runs.tables import TABLES, TableFolder

HEADER = [column for column in TABLES["quantize"] if column not in ("status", *FIDELITY)]
REASONS = {
    "int8": ("3.5", ""),
    "int4-g64": ("", "No layer can be quantized: 2 × blocks.N.attn.qkv.weight: too narrow."),
    "nf4-g64": ("", "No module named 'bitsandbytes'"),
    "int4-g32": ("3.6", "compiled: no kernel"),
}


@pytest.fixture
def old(tmp_path):
    """A folder with a quantize.csv of an older version."""
    lines = [",".join(HEADER)]
    for name, (loss, reason) in REASONS.items():
        cells = {"name": name, "bits": "4", "loss": loss, "reason": reason}
        lines.append(",".join(cells.get(column, "") for column in HEADER))
    (tmp_path / "quantize.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TableFolder(tmp_path)


def test_an_old_file_gets_its_status_when_it_is_read(old):
    rows = read_rows(old)
    assert rows is not None
    assert dict(zip(rows["name"], rows["status"], strict=True)) == {
        "int8": "ok",
        "int4-g64": "no_layer",
        "nf4-g64": "failed",
        "int4-g32": "ok",
    }
    assert list(rows["reason"]) == [reason for _, reason in REASONS.values()]
    assert list(rows.columns) == list(TABLES["quantize"])


def test_only_what_failed_or_was_never_tried_is_still_to_be_measured(old):
    names = [*REASONS, "int4-g128"]
    todo = missing(old, [QuantConfig.of(name) for name in names])
    assert [config.name for config in todo] == ["nf4-g64", "int4-g128"]


def test_a_file_with_the_column_stays_as_it_is():
    text = "name,loss,status,reason\nint8,,failed,No layer can be quantized\n"
    assert with_status(text) == text
    assert with_status("") == ""


def test_an_old_file_has_no_fidelity(old):
    rows = read_rows(old)
    assert rows is not None
    assert rows[list(FIDELITY)].isna().all(axis=None)
    assert list(rows["loss"].dropna()) == [3.5, 3.6]


def test_a_file_with_some_of_the_columns_of_fidelity_is_damaged(old):
    text = "name,loss,kl_mean,n,status,reason\nint8,3.5,0.1,8,ok,\n"
    assert with_later_columns(text) == text
    (old.path / "quantize.csv").write_text(text)
    with pytest.raises(UserError, match="lacks the column"):
        read_rows(old)


def test_a_truncated_line_of_an_old_file_stays_truncated(old):
    path = old.path / "quantize.csv"
    path.write_text(path.read_text().replace(",3.5,", ",3.5", 1))
    with pytest.raises(UserError, match="a line of another length"):
        read_rows(old)


def test_an_unknown_status_is_refused(old):
    rows = old.rows("quantize")
    old.replace("quantize", [rows[0] | {"status": "perhaps"}])
    with pytest.raises(UserError, match="an unknown status: 'perhaps'"):
        read_rows(old)
