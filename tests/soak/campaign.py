"""Which trials there are, and running them in forked processes, one per core."""

import contextlib
import gc
import itertools
import os
import pickle
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from soak import child, disk, inputs, kills, sharing
from soak.scenes import SCENES, make_templates
from soak.trial import Reference, Result, Setup, Trial, reference

import smollm2.training.loop

# Trials per scene in one round: fewer of the longer commands.
KILLS = {
    "train": 18, "study": 12, "eval": 16, "quantize": 12, "report": 12, "export-hf": 14,
    "export-gguf": 16, "import": 12, "import-quantize": 8, "prepare": 16,
}  # fmt: skip
PROGRESS = 50  # trials between two lines of progress
INPUTS = inputs.BATCH  # per kind in one round
DISKS = [name for name in SCENES if name != "import-quantize"]  # `quantize` writes the same


def parts() -> list[tuple[str, str | None]]:
    """The parts of the campaign, each with the reason why it is skipped here."""
    no_events = None if child.kills_at_events() else "there is no C compiler"
    return [
        ("kill", None),
        ("kill at file changes", no_events),
        ("bad", None),
        ("disk", disk.reason_to_skip()),
        ("share", None),
    ]


def planned() -> Iterator[Trial]:
    """The trials of all rounds, without end; those of a round are mixed evenly."""
    skipped = {part for part, why in parts() if why}
    numbers = {("kill", name): count for name, count in KILLS.items()}
    numbers |= {("bad", name): INPUTS for name in inputs.SUBJECTS}
    numbers |= {("disk", name): disk.SIZES for name in DISKS}
    numbers |= {("share", name): 2 for name in sharing.SUBJECTS}
    for number in itertools.count():
        order = [
            ((i + 0.5) / count, part, subject, number * count + i)
            for (part, subject), count in numbers.items()
            if part not in skipped
            for i in range(count)
        ]
        for _, part, subject, i in sorted(order):
            yield Trial(part, subject, i)


class Campaign:
    """Runs trials beneath a folder; `results` has what came of each, by its name."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.results: dict[str, Result] = {}
        self.running: dict[int, tuple[Trial, Path]] = {}

    def set_up(self, only: list[Trial]) -> None:
        """Import everything, make the templates, and run the command of each scene undisturbed."""
        # A second of work in each training, whose result is no more than a column.
        smollm2.training.loop.matmul_flops_per_second = lambda device, dtype: 1e9
        begin = time.monotonic()
        needed = {trial.subject for trial in only} & SCENES.keys() if only else set(SCENES)
        if any(inputs.template(trial.subject) == "study" for trial in only):
            needed.add("report")
        templates = make_templates(self.folder, needed)
        gc.freeze()  # or every child would copy the pages of all objects to count them
        references: dict[str, Reference] = {}
        for name in sorted(needed):
            references[name] = reference(templates, name, self.folder / f"reference-{name}")
        self.setup = Setup(templates, references)
        print(f"Ready in {time.monotonic() - begin:.0f} s.", flush=True)

    def run(self, only: list[Trial], deadline: float) -> None:
        """Run the given trials, or the planned ones until the deadline (of the monotonic clock) or
        Ctrl-C; those that have begun come to their ends."""
        signal.signal(signal.SIGINT, lambda number, frame: stopping.append(number))
        stopping: list[int] = []
        waiting = iter(only) if only else planned()
        cores = max(2, len(os.sched_getaffinity(0)))
        for trial in waiting:
            if stopping or (not only and time.monotonic() > deadline):
                break
            while len(self.running) >= cores:
                self.collect()
            self.begin(trial)
        while self.running:
            self.collect()

    def begin(self, trial: Trial) -> None:
        """Fork a process for a trial."""
        folder = self.folder / trial.name
        folder.mkdir()
        if trial.part == "bad":  # drawn here, to be kept for the next trial
            inputs.generated(self.setup, trial.subject, trial.number, self.seed)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)  # Ctrl-C is for the campaign
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                result = self.result(trial, folder)
                (folder / "result").write_bytes(pickle.dumps(result))
            finally:
                os._exit(0)
        self.running[pid] = trial, folder

    def result(self, trial: Trial, folder: Path) -> Result:
        """Run a trial in this process."""
        rng = trial.rng(self.seed)
        try:
            match trial.part:
                case "kill":
                    return kills.run(self.setup, trial.subject, rng, folder)
                case "bad":
                    return inputs.run(
                        self.setup, trial.subject, trial.number, rng, self.seed, folder
                    )
                case "disk":
                    return disk.run(self.setup, trial.subject, trial.number, folder)
                case "share":
                    return sharing.run(self.setup, trial.subject, trial.number, folder)
            raise ValueError(f"no part {trial.part}")
        except Exception:
            return Result(problem=f"the trial itself failed:\n{traceback.format_exc()}")

    def collect(self) -> None:
        """Wait for one trial; its folder is kept if it failed."""
        pid, _ = os.wait()
        if pid not in self.running:
            return
        trial, folder = self.running.pop(pid)
        result = Result(problem="the trial's process died")
        with contextlib.suppress(FileNotFoundError):
            result = pickle.loads((folder / "result").read_bytes())
        self.results[trial.name] = result
        if len(self.results) % PROGRESS == 0:
            print(f"{len(self.results)} trials", flush=True)
        if result.problem is None:
            shutil.rmtree(folder)
            return
        print(f"FAILED {trial.name}: {result.problem}")
        for step in result.steps:
            print(f"    {step}")
        print(f"    kept: {folder}")
        again = f"PYTHONPATH=tests python -m soak --seed {self.seed} --only {trial.name}"
        print(f"    again: {again}", flush=True)
