"""What was typed about a study, for the processes that work on it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smolctl.studies.runner import Session
    from smollm2.runs.run import Run
    from smollm2.training.loop import Observer


@dataclass(frozen=True)
class StudyOptions:
    """Options of `smolctl study`, by its names for them.

    Args:
        at_once: None if it was not typed.
    """

    file: Path
    results: Path
    data: str | None
    track: str | None
    at_once: int | None

    @property
    def words(self) -> list[str]:
        """Arguments and options for a process that works on the same study."""
        words = [str(self.file), "--results", str(self.results)]
        words += ["--data", self.data] if self.data else []
        return words + (["--track", self.track] if self.track else [])

    def sessions(self) -> "Iterator[Session]":
        """The sessions of the study's sizes, which show the progress of the runs they train."""
        from smolctl.cli.progress import observed
        from smolctl.studies.ladder import sessions_of

        def observe(run: "Run") -> "AbstractContextManager[Observer]":
            return observed(run, self.track, "The same command continues the study.")

        return sessions_of(self.file, self.results, observe, self.data)
