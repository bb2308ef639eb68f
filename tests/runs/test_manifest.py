"""run.json of a received run: whatever it holds, the run is named and the others stay."""

import pytest
from support.command import run_main
from support.planted import planted

from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.manifest import read_manifest
from smollm2.runs.manifest_types import wrong_field
from smollm2.runs.run import Run

TEXTS = ("name", "arm", "equal", "created_at", "finished_at", "error", "started_from")
FOLDERS = ("parameters", "environment", "request")


@pytest.mark.parametrize("field", [*TEXTS, *FOLDERS])
@pytest.mark.parametrize("value", [3, True, []])
def test_a_field_of_another_type_is_named(template, workdir, field, value):
    run = planted(template, "a", 0, 5.0)
    write_json(run.path / "run.json", run.manifest | {field: value})
    with pytest.raises(UserError, match=f"a-s0/run.json is damaged: its {field} is "):
        Run(run.path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("matmul_flops_per_second", []),
        ("matmul_flops_per_second", True),
        ("finished_at", "yesterday"),
        ("request", {"data_seed": -1}),
        ("request", {"micro_batch_size": -1}),
        ("request", {"lr": float("inf")}),
    ],
)
def test_a_value_out_of_bounds_is_named(template, field, value):
    manifest = Run(template).manifest
    inner = value if not isinstance(value, dict) else manifest[field] | value
    wrong = wrong_field(manifest | {field: inner}, is_imported=False)
    assert wrong is not None
    assert wrong.startswith(f"its {field} is ")


@pytest.mark.parametrize("field", ["variant", "scale", "device", "dtype", "steps", "seed", "data"])
@pytest.mark.parametrize("value", [[], {}, 1.5])
def test_a_protocol_with_a_field_of_another_type_is_named(template, workdir, field, value):
    run = planted(template, "a", 0, 5.0)
    protocol = run.manifest["protocol"] | {field: value}
    write_json(run.path / "run.json", run.manifest | {"protocol": protocol})
    with pytest.raises(UserError, match=r"a-s0/run.json(:| is damaged:) "):
        Run(run.path)


FLOORS = {"tokens": 640, "unigram": 5.8, "trigram": 5.1}


@pytest.mark.parametrize(
    "floors",
    [3, [], {}, {"tokens": 640}, FLOORS | {"tokens": 0}, FLOORS | {"tokens": 6.5},
     FLOORS | {"unigram": "5"}, FLOORS | {"trigram": -1}, FLOORS | {"trigram": None},
     FLOORS | {"trigram": 1e308}, FLOORS | {"bigram": 5.2},
     FLOORS | {"text": "all"}, FLOORS | {"text": None}],
)  # fmt: skip
def test_floors_that_no_training_records_are_named(template, workdir, floors):
    run = planted(template, "a", 0, 5.0)
    write_json(run.path / "run.json", run.manifest | {"floors": floors})
    with pytest.raises(UserError, match=r"a-s0/run.json is damaged: its floors is "):
        Run(run.path)
    for known in (
        FLOORS,
        FLOORS | {"text": "scored"},
        None,
    ):  # older runs and those from other weights have none
        write_json(run.path / "run.json", run.manifest | {"floors": known})
        assert Run(run.path).manifest["floors"] == known


def test_a_protocol_is_read_as_it_was_written(template):
    protocol = Run(template).protocol
    assert ResolvedConfig.from_dict(protocol.to_dict()) == protocol
    assert read_manifest(template)["protocol"] == protocol.to_dict()


@pytest.mark.parametrize("change", [{"created_at": 3}, {"role": "asleep"}, {"state": []}])
def test_the_list_and_a_comparison_go_on_without_a_broken_run(capsys, template, workdir, change):
    broken = planted(template, "a", 0, 5.0)
    planted(template, "a", 1, 5.0)
    planted(template, "b", 1, 5.0)
    write_json(broken.path / "run.json", broken.manifest | change)
    for command in (["runs", "s"], ["compare", "a", "b", "--study", "s"]):
        code, _, err = run_main(capsys, *command)
        assert code == 0
        assert "a-s0/run.json is " in err


@pytest.mark.parametrize("inner", [{"total": []}, {"total": None}, {"total": 0}])
def test_a_run_whose_facts_cannot_be_shown_is_named(capsys, template, workdir, inner):
    run = planted(template, "a", 0, 5.0)
    parameters = run.manifest["parameters"] | inner
    write_json(run.path / "run.json", run.manifest | {"parameters": parameters})
    for options in ([], ["--json"]):
        code, _, err = run_main(capsys, "runs", "show", "a-s0", "--study", "s", *options)
        assert code == 2
        assert "a-s0/run.json is damaged: its parameters.total is " in err
