"""The runs of the study `tinies` of tests/studies/conftest.py."""

from pathlib import Path

from smollm2.runs.run import Run, list_runs


def runs_of(workdir: Path) -> dict[str, Run]:
    """Its runs by their names."""
    return {run.name: run for run in list_runs(workdir / "results", "tinies")[0]}
