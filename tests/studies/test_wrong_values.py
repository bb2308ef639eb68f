"""Every key of a study file with wrong values: the error names the file and the key."""

from pathlib import Path

import pytest

from smolctl.analysis.ladder_notes import LadderNotes
from smolctl.analysis.study_notes import StudyNotes
from smolctl.studies.ladder import read_rungs
from smolctl.studies.speed_plan import SpeedPlan
from smolctl.studies.study_file import OF_A_RUN, OPTIONS, Evaluation, Quantization
from smolctl.studies.study_keys import fields_of
from smollm2.errors import UserError

# A study file as the lines before its tables and those of each table.
LINES = {
    "": {"seeds": "[0, 1, 2]", "arms": '["orig", "pow2"]'},
    "train": {"scale": '"nano"', "steps": "10"},
    "tune": {},
    "sweep": {"lr": "[1e-3, 2e-3]"},
    "eval": {"tasks": '"piqa"'},
    "quantize": {"models": '["int8"]'},
    "speed": {},
    "ladder": {"sizes": '["0.5M", "1M"]'},
    "arms.a": {"variant": '"orig"'},
}
# Values that no key takes, and, by what it takes, more that it refuses.
REFUSED = ["{ x = 1 }", "[[1]]", "1979-05-27", "[nan]", "[]"]
NUMBER = ['"x"', "nan", "-1", "0", "true"]
SEEDS = ["3", '"x"', "[-1]", "[0, 0]", "[1.5]", "[true]", f"[{10**30}, 1]"]
TEXT = ["3", "nan", "true", '""']
KEYS = {
    "": {
        "seeds": SEEDS,
        "looks": [*SEEDS, "[2, 5]", "[3, 2]", "[1, 3]"],
        "margin": NUMBER,
        "blocked": ['"x"', "1"],
        "equal": TEXT,
        "superseded": TEXT,
        "claims": TEXT,
        "license": TEXT,
        "arms": [*TEXT, '["orig"]', '["orig", 3]'],
        "train": TEXT,
    },
    "train": {
        **dict.fromkeys(("seq_len", "grad_accum", "micro_batch_size", "val_every"), NUMBER),
        **dict.fromkeys(("val_tokens", "test_tokens", "lr", "held_out"), NUMBER),
        "data_seed": [*NUMBER[:3], str(10**30)],
        "compile": ['"x"', "1"],
        "set": TEXT,
        "steps": [*NUMBER, str(10**30)],
        "tokens": NUMBER,
        "flops": [*NUMBER, "1e30"],
        **dict.fromkeys(("scale", "recipe", "optimizer", "schedule", "device", "dtype"), TEXT),
        "held_out_windows": [*TEXT[:3], '"x"'],
        "data_order": [*TEXT[:3], '"x"'],
        "data": TEXT[:3],
        "tokenizer": TEXT[:3],
    },
    "tune": {"lr": NUMBER, "seeds": [*SEEDS, "[0, 1, 2]", "[100]"]},
    "sweep": {"lr": ["1e-3", "[1e-3]", "[1e-3, -1]", "[1e-3, 1e30]"], "seeds": SEEDS},
    "eval": {"tasks": TEXT, "limit": NUMBER, "data_dir": TEXT[:3], "dtype": TEXT},
    "quantize": {"models": TEXT, "tokens": NUMBER},
    "speed": {"rounds": [*NUMBER, "1"], "steps": [*NUMBER, str(10**30)]},
    "ladder": {
        "sizes": [*TEXT, "[1, 2]", '["1M", "0.5M"]'],
        "tokens_per_parameter": [*NUMBER, "1e30"],
        **dict.fromkeys(("rate", "check", "at", "name", "rung"), TEXT),
    },
    "arms.a": {"variant": TEXT, "lr": NUMBER, "seeds": SEEDS, "data_seeds": SEEDS, "set": TEXT},
}
TAKEN = {("train", "set", "[]"), ("arms.a", "set", "[]")}


@pytest.mark.parametrize(("table", "key"), [(table, key) for table in KEYS for key in KEYS[table]])
def test_a_wrong_value_is_refused_by_the_name_of_the_file_and_the_key(workdir, table, key):
    path = Path("x.toml")
    names = ("rate", "lr") if key == "lr" else (key.removesuffix("s"),)
    for value in [*REFUSED, *KEYS[table][key]]:
        lines = {name: dict(LINES[name]) for name in dict.fromkeys(("", "train", table))}
        if table == "arms.a":
            del lines[""]["arms"]
            lines[""]["arms.b"] = '"pow2"'
        if table == "ladder" or key in ("tokens", "flops"):  # the horizon
            del lines["train"]["steps"]
        if key == "train":
            del lines["train"]
        lines[table][key] = value
        path.write_text(
            "\n".join(
                f"[{name}]" * bool(name) + "".join(f"\n{k} = {v}" for k, v in each.items())
                for name, each in lines.items()
            )
        )
        if (table, key, value) in TAKEN:
            read_rungs(path)
            continue
        with pytest.raises(UserError) as error:
            read_rungs(path)
        message = str(error.value)
        assert message.startswith("x.toml: "), message
        assert any(name in message for name in names), message
        assert "`" not in message


def test_every_key_is_tried_with_wrong_values():
    assert KEYS["train"].keys() == OPTIONS - OF_A_RUN
    tables = {"eval": Evaluation, "quantize": Quantization, "speed": SpeedPlan}
    for name, cls in tables.items():
        assert list(KEYS[name]) == fields_of(cls)
    assert {*fields_of(StudyNotes)} < KEYS[""].keys()
    assert {*fields_of(LadderNotes)} == KEYS["ladder"].keys()
