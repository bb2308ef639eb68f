"""Every field of run.json with every kind of wrong value: a sentence, or a command that works."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.planted import planted

from smolctl.cli.report_command import make_card
from smolctl.cli.run_details import run_facts
from smolctl.cli.run_list import cells, summary
from smolctl.report.run_card import short_card
from smolctl.report.sections.reproduction import train_command
from smolctl.studies.resume import with_changes
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.runs.load_run import load_run_tokenizer, text_bounds
from smollm2.runs.run import Run, list_runs

GONE = object()
WRONG: dict[str, Any] = {
    "gone": GONE,
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "huge": 10**30,
    "fraction": 0.5,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "empty text": "",
    "text": "x\n# y\x1b[31m",
    "long text": "x" * 100_000,
    "list": [None],
    "table": {"x": 1},
}


def fields_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of every field of nested tables."""
    for name, inner in value.items():
        yield (*path, name)
        if isinstance(inner, dict):
            yield from fields_of(inner, (*path, name))


def mutated(manifest: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a manifest with another value in one field."""
    changed = copy.deepcopy(manifest)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def use(run: Run) -> None:
    """Everything that commands do with a manifest."""
    cells(summary(run))
    run_facts(run)
    json.dumps(run.manifest)
    load_run_tokenizer(run)
    text_bounds(run, load_run_tokenizer(run))
    assert run.origin is None or isinstance(run.origin, str)
    if not run.is_imported:
        train_command(run)
        with_changes(run, {"seed": 1})
    short_card(run)


def use_in_card(run: Run) -> None:
    """What a report does with the manifests of a study."""
    card = make_card("s", Path("results"), appendix=Path("appendix.md"))
    assert card.markdown + card.appendix_markdown


@pytest.mark.parametrize("use", [use, pytest.param(use_in_card, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_in_any_field_is_a_sentence(template, workdir, kind, use):
    run = planted(template, "a", 0, 5.0)
    planted(template, "b", 0, 5.0)
    manifest = run.manifest
    failed = []
    for path in fields_of(manifest):
        write_json(run.path / "run.json", mutated(manifest, path, WRONG[kind]))
        try:
            use(Run(run.path))
        except UserError:
            pass
        except Exception as error:
            failed.append(f"{'.'.join(path)}: {type(error).__name__}: {error}")
        runs, broken = list_runs(Path("results"), "s")
        assert len(runs) + len(broken) == 2
    assert not failed, "\n".join(failed)
