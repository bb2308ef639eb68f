"""What the trials of all parts have in common."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from soak import child
from soak.scenes import SCENES, copied
from soak.state import state

PAGE = 4096  # bytes: what a file system gives a file in


@dataclass(frozen=True)
class Reference:
    """An undisturbed run of a scene's command.

    Args:
        before: the state of the folder, and `after` the command.
        changes: how many changes of files it made.
        cpu: seconds.
        growth: bytes by which the folder grew.
    """

    before: dict[str, str]
    after: dict[str, str]
    changes: int
    cpu: float
    growth: int


@dataclass(frozen=True)
class Trial:
    """A trial: its part (`kill` for example), what it is about, and a number for its choices."""

    part: str
    subject: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.part}-{self.subject}-{self.number}"

    @classmethod
    def named(cls, name: str) -> "Trial":
        part, _, rest = name.partition("-")
        subject, _, number = rest.rpartition("-")
        return cls(part, subject, int(number))

    def rng(self, seed: int) -> random.Random:
        return random.Random(f"{seed}/{self.name}")


@dataclass
class Result:
    """What came of a trial: events that are counted, and what is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    steps: list[str] = field(default_factory=list)  # what was done, for who reads of a problem
    problem: str | None = None


@dataclass(frozen=True)
class Setup:
    """What trials start from: the templates of folders, and the reference of each scene."""

    templates: dict[str, Path]
    references: dict[str, Reference]


def reference(templates: dict[str, Path], scene_name: str, folder: Path) -> Reference:
    """Run the command of a scene undisturbed."""
    scene = SCENES[scene_name]
    work = copied(templates[scene.template], folder)
    before, size = state(work), pages(work)
    ended = child.command(scene.arguments, work)
    if ended.code:
        raise RuntimeError(f"{scene_name} fails undisturbed: {ended.code}\n{ended.err}")
    return Reference(before, state(work), child.changes(work), ended.cpu, pages(work) - size)


def pages(work: Path) -> int:
    """Bytes that the files in a folder take on a disk."""
    sizes = (path.stat().st_size for path in work.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def unclean(ended: child.Ended) -> str | None:
    """What no command may do whatever its input: a traceback, an error without a sentence, an end
    by a signal other than SIGKILL, which only a trial sends."""
    said = ended.err + ended.out
    if "Traceback (most recent call last)" in said:
        return "it printed a traceback"
    if "failed unexpectedly" in said:
        return "it failed unexpectedly: " + last_line(ended)
    if ended.code < 0 and not ended.was_killed:
        return f"signal {-ended.code} ended it"
    return None


def last_line(ended: child.Ended) -> str:
    """The end of what a command said."""
    lines = ended.err.strip().splitlines() or ["(nothing)"]
    return lines[-1][:300]
