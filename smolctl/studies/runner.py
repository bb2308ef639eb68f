"""One process's work on a study, alongside other processes: find what is done and do the rest."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from smolctl.analysis.run_metrics import tuning_loss
from smolctl.analysis.study_plan import KEPT, LEDGER
from smolctl.studies import step_times
from smolctl.studies.alternation import measure_in_turns
from smolctl.studies.finished_runs import complete
from smolctl.studies.ledger import (
    begin_ledger,
    is_result,
    record_results,
    require_same_results,
)
from smolctl.studies.older_studies import as_older_runs, compiled_as, in_order_of
from smolctl.studies.plan import PlannedRun, final_runs, horizons, tuned_by, tuning_runs
from smolctl.studies.rate_search import Search, chosen_rates, search
from smolctl.studies.scorer import questions
from smolctl.studies.study_file import Study, to_toml
from smolctl.studies.study_lock import StudyLock
from smolctl.studies.tokens import tokens_of_study, trained_on
from smolctl.talk import say, warn
from smolctl.units import duration
from smollm2.data import TokenData
from smollm2.errors import RunBusy, RunError, RunExists, UserError
from smollm2.files import FULL, make_folder, replace_file
from smollm2.leftovers import clear_leftovers
from smollm2.protocol.run_config import differing
from smollm2.runs.create import create_run
from smollm2.runs.links import require_own
from smollm2.runs.manifest import Role, RunState
from smollm2.runs.names import run_path
from smollm2.runs.packed import PackedStudy, is_packed
from smollm2.runs.run import Run, find_run, list_runs
from smollm2.training.active_clock import ActiveClock
from smollm2.training.loop import Observer, train

BUSY_SECONDS = 1.0  # between looks at runs that another process trains

# Gives the observer of a run while it trains.
Observe = Callable[[Run], AbstractContextManager[Observer]]


@contextlib.contextmanager
def unobserved(run: Run) -> Iterator[Observer]:
    """An observer that ignores everything."""
    yield Observer()


class Session:
    """One process's work on a study: what is planned, what is done, and doing the rest.

    Args:
        source: where the study's text is now, or another text for a study that has no runs yet.
        observe: makes the observer of each run that is trained. One that stops a run ends the
            session with what its context raises, by default `Stopped`.
    """

    def __init__(
        self,
        study: Study,
        results: Path,
        observe: Observe = unobserved,
        source: str | None = None,
    ) -> None:
        runs, _ = list_runs(results, study.name)
        before = trained_on(study.arms[0].config, runs)
        if source is not None and before is None:
            study = study.with_options(data=source)
        study = as_older_runs(runs, study)
        self.study, self.results, self.observe = study, results, observe
        self.folder = results / study.name
        require_own(self.folder, "study.lock", LEDGER)
        self.lock = StudyLock(self.folder)
        self.data: TokenData = tokens_of_study(study, before, source)
        plan = study.evaluation
        # Read before anything runs: a missing file is better reported now than after the training.
        self.questions = questions(plan.tasks, plan.data_dir, plan.limit) if plan else None
        self.step_seconds: dict[str, float] = {}
        if study.equal == "seconds":
            recorded = step_times.read_recorded(study, results)
            self.step_seconds = recorded or step_times.measure(study, self.data)
        configs = horizons(compiled_as(runs, study), self.step_seconds)
        self.configs = in_order_of(runs, configs)
        # As they are before the tuning.
        self.final = [run.on(self.data) for run in final_runs(study, self.configs)]
        self.failed: dict[str, str] = {}  # errors by run
        self.losses: dict[str, float] = {}  # of finished runs of the tuning, read once
        # Failed in earlier sessions: tried again, unlike those that another process fails now or
        # has tried again, and final runs that diverged.
        self.tried_again = self.failed_runs()
        self.spent_seconds = self.spent_flops = 0.0  # by the runs of this process
        self.at_once = 1  # processes that train the study

    def planned(self) -> list[PlannedRun]:
        """Every run in the order in which they run."""
        return self.tuned().runs + self.final_at_rates()

    def final_at_rates(self) -> list[PlannedRun]:
        """The final runs, at the rates of the tuning once it has ended."""
        rates = self.rates()
        return [run.at(rates[run.arm]) if run.arm in rates else run for run in self.final]

    def rates(self) -> dict[str, float]:
        """The learning rate that the tuning chose for each arm; empty until it has ended.

        Raises:
            RunError: an arm failed at every rate.
        """
        rates = chosen_rates(self.tuned().losses or {})
        return {arm: rates[by] for arm, by in tuned_by(self.configs).items() if by in rates}

    def tuned(self) -> Search:
        """The tuning as far as it has come; without runs if the study has none."""
        if self.study.tuning is None:
            return Search([], {})
        return search(self.study.tuning, self.runs_at, self.loss_of, self.may_add)

    def may_add(self, runs: list[PlannedRun]) -> bool:
        """Whether the grid may grow by these runs: once a final run exists, the rates are chosen,
        and the grid is what has been tried, by whatever rule."""
        return bool(runs) and not (
            self.has_chosen and all(self.existing(planned) is None for planned in runs)
        )

    def runs_at(self, rates: tuple[float, ...]) -> list[PlannedRun]:
        """The runs of the tuning at these rates."""
        assert self.study.tuning is not None
        runs = tuning_runs(self.study.tuning, rates, self.study, self.configs)
        return [run.on(self.data) for run in runs]

    def loss_of(self, planned: PlannedRun) -> float | None:
        """The validation loss of a run of the tuning: infinite if it diverged, None if it has not
        ended. One that failed otherwise has not ended, unless the rates are chosen already."""
        if planned.name not in self.losses:
            run = self.existing(planned)
            if run is None or not run.is_finished:
                is_result = run is not None and (run.has_diverged or self.has_chosen)
                return math.inf if is_result and self.is_lost(planned, run) else None
            self.losses[planned.name] = tuning_loss(run)
        return self.losses[planned.name]

    def is_lost(self, planned: PlannedRun, run: Run | None) -> bool:
        """Whether a run of the tuning has failed and is not tried again here.

        Once a final run exists, the rates stay: no run of the tuning is tried again.
        """
        if planned.role is not Role.SWEEP:
            return False
        if planned.name in self.failed:
            return True
        return self.has_chosen and run is not None and run.state is RunState.FAILED

    @property
    def has_chosen(self) -> bool:
        """Whether a final run exists."""
        paths = [run_path(self.results, self.study.name, run.name) for run in self.final]
        return any(find_run(path) is not None for path in paths)

    def existing(self, planned: PlannedRun) -> Run | None:
        """The planned run if it exists.

        Raises:
            UserError: a run of that name was made with different settings.
        """
        run = find_run(run_path(self.results, self.study.name, planned.name))
        if run is None:
            return None
        wanted = planned.resolved.to_dict()
        if self.study.tuning and planned.config.lr is None:  # not chosen yet: nothing to compare
            wanted["recipe"]["lr"] = run.protocol.recipe.lr
        if fields := differing(run.protocol.to_dict(), wanted):
            raise UserError(
                f"Run {planned.name!r} of study {self.study.name!r} was made with different "
                f"settings: {fields}. Give the changed study file another name, or remove the run."
            )
        return run

    def refuse_changes(self) -> None:
        """Raise `UserError` if any run was made with different settings, or has another result than
        the ledger says, before one runs for hours or a step is timed."""
        for planned in self.planned():
            self.existing(planned)
        require_same_results(self.study.name, self.folder, self.existing_runs())

    def existing_runs(self) -> list[Run]:
        """Every run of the study that can be read."""
        return list_runs(self.results, self.study.name)[0]

    def record_results(self) -> None:
        """Add to the ledger what has finished, here or in another process."""
        with self.lock.alone():
            record_results(self.folder, self.existing_runs())

    def is_finished(self, planned: PlannedRun) -> bool:
        """Whether the planned run exists and has ended well."""
        run = self.existing(planned)
        return run is not None and run.is_finished

    def is_over(self, planned: PlannedRun) -> bool:
        """Whether nothing of the planned run is left to train."""
        run = self.existing(planned)
        is_done = run is not None and (run.is_finished or is_result(run))
        return is_done or self.is_lost(planned, run)

    def diverged(self) -> list[str]:
        """The final runs that diverged: a result, which is not tried again."""
        return [run.name for run in self.existing_runs() if is_result(run) and not run.is_finished]

    def run(self) -> None:
        """Train what is missing, the tuning first, then score and quantize the final runs.

        Raises:
            PackedStudy: the study is packed, and something is missing.
        """
        self.refuse_changes()
        if is_packed(self.folder):
            self.require_complete()
        elif self.study.equal == "seconds":
            with self.lock.alone("its arms get equal seconds of a machine, which two would share"):
                self.run_missing()
        else:
            self.run_missing()

    def require_complete(self) -> None:
        """Raise `PackedStudy` if a run of the packed study is missing or unfinished."""
        if not all(map(self.is_over, self.planned())):
            raise PackedStudy(self.folder)

    def train_missing(self) -> None:
        """Train what is missing, the tuning first: what several processes can do at once."""
        self.write_records()
        self.tune()
        self.train_all(self.final_at_rates())

    def run_missing(self) -> None:
        """See `run`."""
        self.train_missing()
        final = self.final_at_rates()
        # By one process: what is timed must not share the machine.
        with self.lock.alone():
            self.record_results()
            for planned in final:
                self.measure(planned)
            if why := measure_in_turns(self.study, self.folder, final, self.data):
                self.failed["the measurement of speed"] = why

    def tune(self) -> None:
        """Train the runs of the tuning, whose grid may grow with their results.

        Raises:
            RunError: one failed without having diverged, so no rate can be chosen.
        """
        runs = self.tuned().runs
        self.train_all(runs)
        while len(more := self.tuned().runs) > len(runs):
            say("The best rate of an arm may lie beyond the grid, which grows for every arm.")
            self.train_all(more)
            runs = more
        if lost := [run.name for run in runs if self.loss_of(run) is None]:
            raise RunError(
                f"No learning rate can be chosen: run {lost[0]!r} of the tuning failed without "
                f"having diverged: {self.failed[lost[0]]} Type the same command again, and it is "
                "trained again."
            )

    def failed_runs(self) -> dict[str, str | None]:
        """The runs of the study that have failed so far, and when."""
        failed = [run for run in self.existing_runs() if run.state is RunState.FAILED]
        return {run.name: run.failed_at for run in failed}

    def write_records(self) -> None:
        """Save the study file, the plan and the step times next to the runs that follow from them.

        Raises:
            UserError: the directory cannot be written to.
            RunError: the disk is full.
        """
        try:
            make_folder(self.folder)
            clear_leftovers(self.folder)
            replace_file(self.folder / KEPT, to_toml(self.study))
            if self.step_seconds:
                step_times.write_record(self.study, self.results, self.step_seconds)
            with self.lock.alone():
                begin_ledger(self.study, self.folder, self.existing_runs())
        except OSError as error:
            if error.errno in FULL:
                raise RunError(f"Cannot write to {self.folder}: {error.strerror}.") from None
            raise UserError(
                f"Cannot write to {self.folder}: {error.strerror}; choose another --results."
            ) from None

    def train_all(self, runs: list[PlannedRun]) -> None:
        """Train `runs` to their ends. What another process trains is left to it and waited for at
        the end, so that processes share a study; if it dies, its run is continued here."""
        runs = [planned for planned in runs if not self.train(planned)]
        # Once more: most runs of the other process have ended since.
        if runs := [planned for planned in runs if not self.train(planned)]:
            say(f"Waiting for another process: {', '.join(run.name for run in runs)}")
        while runs:
            time.sleep(BUSY_SECONDS)
            runs = [planned for planned in runs if not self.train(planned)]

    def train(self, planned: PlannedRun) -> bool:
        """Train one run from its current step to its end; False if another process has it.

        One that fails, here or there, is named in `failed`.
        """
        try:
            run = self.claim(planned)
        except (RunBusy, RunExists):
            return False
        if run is None:
            return True
        done = max(run.checkpoints.steps(), default=0)
        say(self.heading(planned) + (f", continued from step {done:,}" if done else ""))
        try:
            with self.observe(run) as observer, ActiveClock() as clock:
                started = clock.seconds()
                train(run, self.data, observer, at_once=self.at_once)
                seconds = clock.seconds() - started
        except RunBusy:
            return False
        except (UserError, RunError) as error:
            warn(f"Run {planned.name!r} failed: {error} The study continues without it.")
            self.failed[planned.name] = str(error)
            if planned.role is Role.FINAL:
                self.record_results()  # that it diverged, if it did
            return True
        self.spent_seconds += seconds
        self.spent_flops += (run.protocol.steps - done) * run.protocol.flops_per_step
        if planned.role is Role.FINAL:
            self.record_results()
        return True

    def claim(self, planned: PlannedRun) -> Run | None:
        """The run, created if need be; None if there is nothing of it to train.

        Raises:
            RunBusy, RunExists: another process trains it, or has just created it.
        """
        run = self.existing(planned)
        if run is None:
            return create_run(
                self.results,
                self.study.name,
                planned.name,
                planned.config,
                planned.resolved,
                self.data.tokenizer,
                arm=planned.arm,
                role=planned.role,
                equal=self.study.equal,
            )
        if run.is_finished:
            run.tidy()
            return None
        if self.is_lost(planned, run) or (is_result(run) and run.name in self.tried_again):
            return None
        if run.is_being_written:
            raise RunBusy(f"Another process trains run {run.name!r}.")
        run.read()  # it may have ended a moment ago
        if run.state is RunState.FAILED and self.tried_again.get(run.name, "") != run.failed_at:
            self.failed[run.name] = str(run.manifest["error"])
        return None if run.is_finished or run.name in self.failed else run

    def heading(self, planned: PlannedRun) -> str:
        """`Run 3 of 8: pow2-s0, about 12 min of training left`, at the pace of the runs before."""
        runs = self.planned()
        number = [other.name for other in runs].index(planned.name)
        text = f"Run {number + 1} of {len(runs)}: {planned.name}"
        if not self.spent_flops:
            return text
        left = [planned, *(run for run in runs[number + 1 :] if not self.is_finished(run))]
        flops = sum(run.resolved.steps * run.resolved.flops_per_step for run in left)
        seconds = flops * self.spent_seconds / self.spent_flops / self.at_once
        return f"{text}, about {duration(seconds)} of training left"

    def measure(self, planned: PlannedRun) -> None:
        """See `complete`, of one final run if it has finished."""
        run = self.existing(planned)
        if run is not None and run.is_finished:
            why = complete(run, self.study, self.data, self.questions)
            if why is not None:
                self.failed[planned.name] = why
