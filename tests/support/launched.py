"""Studies that are launched in processes of their own, and looked at from outside."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.command import smolctl
from support.outcome import outcome

SECONDS = 900.0


def study_status(file: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What `smolctl study status` says of a study in `results`, next to its file."""
    done = smolctl("study", "status", file.name, "--json", cwd=file.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for(
    file: Path, environment: Mapping[str, str], found: Callable[[dict[str, Any]], Any]
) -> Any:
    """The first true value that `found` gives of the status."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        status = study_status(file, environment)
        if value := found(status):
            return value
        time.sleep(0.5)
    raise AssertionError(f"It did not happen: {status}")


def in_training(role: str, least: int) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Finds a run of that role that is being trained and has made so many steps."""

    def find(status: dict[str, Any]) -> dict[str, Any] | None:
        for run in status["runs"]:
            if (run["role"], run["state"]) == (role, "running") and run["step"] >= least:
                return run
        return None

    return find


def has_ended(status: dict[str, Any]) -> bool:
    """Whether nothing of the launch goes on."""
    return not status["launch"]["goes_on"]


def outcomes(study: Path) -> dict[str, dict[str, object]]:
    """What must be equal however the runs of a study were trained, by run."""
    return {path.parent.name: outcome(path.parent) for path in study.glob("*/run.json")}
