"""The counts of a campaign, as a table and as docs/reliability.md."""

import datetime
import os
import platform
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak.child import CPU_SECONDS
from soak.disk import SIZES
from soak.inputs import PEAK
from soak.trial import Result, Trial

ROOT = Path(__file__).parents[2]
PARTS = {
    "kill": "SIGKILL, then the same command again",
    "bad": "bad input",
    "disk": "a disk with too little space",
    "share": "several processes at the same work",
}


@dataclass(frozen=True)
class Ended:
    """A campaign that has ended. `seconds` is its length, `skipped` why parts are missing, and
    `commit` that of the source when it began."""

    results: dict[str, Result]
    seed: int
    seconds: float
    skipped: dict[str, str]
    commit: str


def counts(campaign: Ended) -> str:
    """Tables of what was done and what failed, in Markdown."""
    lines = ["| part | trials | of these | failed |", "|:--|--:|:--|--:|"]
    for part, title in PARTS.items():
        found = of_part(campaign, part)
        total = sum((result.counts for result in found), Counter())
        events = ", ".join(f"{n:,} {event}" for event, n in sorted(total.items()))
        failed = sum(result.problem is not None for result in found)
        lines.append(f"| {title} | {len(found):,} | {events} | {failed:,} |")
    lines += ["", "| part | of what | trials | failed |", "|:--|:--|--:|--:|"]
    by_subject: dict[tuple[str, str], list[Result]] = {}
    for name, result in campaign.results.items():
        trial = Trial.named(name)
        by_subject.setdefault((trial.part, trial.subject), []).append(result)
    for part in PARTS:
        for (of, subject), found in sorted(by_subject.items()):
            if of == part:
                failed = sum(result.problem is not None for result in found)
                lines.append(f"| {part} | {subject} | {len(found):,} | {failed:,} |")
    return "\n".join(lines) + "\n"


def of_part(campaign: Ended, part: str) -> list[Result]:
    """The results of the trials of a part."""
    return [result for name, result in campaign.results.items() if Trial.named(name).part == part]


def document(campaign: Ended) -> str:
    """docs/reliability.md."""
    skipped = [f"- Skipped: {part}: {why}." for part, why in campaign.skipped.items()]
    failed = [
        f"- Failed: `{name}`: {' '.join(result.problem.split())[:200]}"
        for name, result in campaign.results.items()
        if result.problem
    ]
    notes = "".join(
        f"{line}\n" for line in [*skipped, *failed, *([""] if skipped or failed else [])]
    )
    return f"""\
# Reliability

`make soak` kills commands, gives them bad input, fills their disk and runs several at the same
work, for 10 minutes or as long as `make soak MINUTES=60` says. It wrote this page; no number here
was typed.

{about(campaign)}

{counts(campaign)}
{notes}## What a trial is

- **kill**: a command is killed by SIGKILL up to three times, before a random one of the system
  calls that change its files (a write is torn in its middle) or at a random time. The same command,
  or the `--resume` of its training, then runs to its end. Every file must equal that of an
  undisturbed run, apart from clocks, and there may be no other.
- **bad**: hypothesis damages a file or the value of an option. The command must end within
  {CPU_SECONDS} s of CPU time and {PEAK / 2**30:.0f} GB above what it begins with, with exit code 2
  and a sentence, or 0 if the input is legal after all. After exit code 2 no file outside the cache
  has changed.
- **disk**: the command runs on a disk with 0 to {SIZES - 1} of the {SIZES} parts of the space
  that it needs. If that is too little it must say so with exit code 1, leave no part of an output
  and change no older file. With more space it ends as if undisturbed.
- **share**: two or four processes run the same command at once, and the end is that of one.

Children are forked from a process that has imported everything; they run the command line's `main`
on one thread, with models of 30,000 parameters. Only the measurement of the machine's speed is
replaced.

## What is not covered

- Loss of power: a kill loses nothing that the operating system holds.
- Kills at the system calls of C's own streams (`fwrite`, which NumPy uses) and of memory maps;
  these are hit at random times only.
- GPUs, network file systems, the Hugging Face Hub, trackers, sweeps, and studies at equal seconds.

A trial that fails prints the command that repeats it, and keeps its folder.
"""


def about(campaign: Ended) -> str:
    """When, where and of what the counts are."""
    now = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{len(campaign.results):,} trials in {campaign.seconds / 60:.0f} minutes on {now}, commit "
        f"{campaign.commit}, seed {campaign.seed}; {processor()}, {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}."
    )


def commit() -> str:
    """The commit of the source, and whether it was changed since."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--dirty=, with changes",
        "--abbrev=10",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
