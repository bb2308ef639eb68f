"""One process's work on a study: what of it is done, and doing the rest, beside other processes."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from smollm2.errors import RunBusy, RunError, RunExists, UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.protocol import Request
    from smollm2.runs import Run
    from smollm2.study import PlannedRun, Study

BUSY_SECONDS = 1.0  # between two looks at runs that another process trains


class Session:
    """One process's work on a study: what is planned, what of it is done, and doing the rest."""

    def __init__(self, study: "Study", results: Path, track: str | None = None) -> None:
        from filelock import FileLock

        from smolctl.scoring import questions
        from smolctl.tokens import prepared
        from smollm2.protocol import resolve
        from smollm2.study import horizons

        self.study, self.results, self.track = study, results, track
        self.lock = FileLock(self.record.parent / "study.lock")
        first = study.arms[0].request
        sizes = [resolve(plan.request).model.vocab_size for plan in study.arms]
        self.data: TokenData = prepared(
            first.data, first.tokenizer, f"train:{sizes[0]}", max_vocab=min(sizes)
        )
        plan = study.evaluation
        # Read before anything runs: a missing file is better known now than after the training.
        self.questions = plan and questions(plan.tasks, plan.data_dir, plan.limit)
        self.step_seconds: dict[str, float] = {}
        if study.equal == "seconds":
            self.step_seconds = self.recorded_step_seconds() or self.measure()
        self.requests: dict[str, Request] = horizons(study, self.step_seconds)
        self.failed: dict[str, str] = {}
        # Of earlier sessions, which are tried again; one of another process now is not.
        self.tried_again = self.failed_runs()
        self.spent_seconds = self.spent_flops = 0.0  # by the runs of this process

    @property
    def record(self) -> Path:
        """Step times that the numbers of steps follow from, so that they stay as they are."""
        return self.results / self.study.name / "study.json"

    def recorded_step_seconds(self) -> dict[str, float] | None:
        """The step times that the study began with; None if it has not begun here.

        Raises:
            UserError: they are gone, cannot be read, or are of another machine, protocol or set of
                arms: on another machine the seconds would be others, so it does not go on there.
        """
        import json

        from smollm2.protocol import differing
        from smollm2.runs import list_runs

        # Without a run nothing follows from the record yet: the times are measured anew.
        runs, broken = list_runs(self.results, self.study.name)
        if not broken and all(run.is_imported for run in runs):
            return None
        remedy = "restore it, or give the study file another name."
        if not self.record.exists():
            raise UserError(
                f"The runs of study {self.study.name!r} follow from step times in {self.record}, "
                f"which is gone; {remedy}"
            )
        try:
            record = json.loads(self.record.read_text("utf-8"))
            known = {arm: float(seconds) for arm, seconds in record["step_seconds"].items()}
            conditions = dict(record["measured"])
        except KeyError as error:
            raise UserError(f"{self.record} lacks {error}; {remedy}") from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.record} cannot be read ({error}); {remedy}") from None
        if not all(0 < seconds < math.inf for seconds in known.values()):
            raise UserError(f"{self.record} has a step time that is no positive number; {remedy}")
        if missing := [plan.name for plan in self.study.arms if plan.name not in known]:
            raise UserError(
                f"Study {self.study.name!r} has begun without arm {missing[0]!r}, and equal "
                "seconds are measured at the start; give the file another name."
            )
        if fields := differing(conditions, self.conditions(), ("at the start", "now")):
            raise UserError(
                f"Study {self.study.name!r} has begun under other conditions, and its equal "
                f"seconds hold for those alone: {fields}. Go on as it began, or give the file "
                "another name."
            )
        return known

    def conditions(self) -> dict[str, Any]:
        """What the time of a step depends on, the model aside."""
        from smollm2.device import environment
        from smollm2.protocol import resolve

        protocol = resolve(self.study.arms[0].request)
        machine = environment(protocol.device)
        return {
            "device_name": machine["device_name"],
            "threads": machine["threads"],
            "tokens_per_step": protocol.tokens_per_step,
            "seq_len": protocol.seq_len,
        }

    def measure(self) -> dict[str, float]:
        """Seconds that a step of each arm takes on this machine."""
        from smolctl.console import say, warn_if_busy
        from smollm2.protocol import resolve
        from smollm2.train import probe

        say("Measuring a step of each arm on this machine ...")
        warn_if_busy()
        return {
            plan.name: probe(resolve(plan.request).on(self.data), self.data).step_seconds
            for plan in self.study.arms
        }

    def planned(self) -> "list[PlannedRun]":
        """Every run in the order in which they run; the rates of the last ones are those of the
        sweep, once it is done."""
        from smollm2.study import final_runs, sweep_runs

        sweep = sweep_runs(self.study, self.requests)
        return sweep + final_runs(self.study, self.requests, self.rates())

    def rates(self) -> dict[str, float]:
        """The learning rate with the smallest mean validation loss of each arm in the sweep; of
        equals the smaller. Empty until every run of it has ended.

        Raises:
            RunError: an arm failed at every rate.
        """
        from smolctl.comparison import best_rate
        from smollm2.study import sweep_runs

        losses: dict[str, dict[float, list[float]]] = {}
        for planned in sweep_runs(self.study, self.requests):
            run = self.existing(planned)
            if run is not None and run.is_finished:
                loss = float(run.table("val")["loss"].iloc[-1])
            elif self.is_lost(planned, run):
                loss = math.inf
            else:
                return {}
            assert planned.request.lr is not None
            losses.setdefault(planned.arm, {}).setdefault(planned.request.lr, []).append(loss)
        for arm, by_rate in losses.items():
            if all(math.inf in values for values in by_rate.values()):
                raise RunError(
                    f"Arm {arm!r} failed at every learning rate of the sweep, and so has none to "
                    "go on with; give a study file of another name smaller ones."
                )
        return {arm: best_rate(by_rate) for arm, by_rate in losses.items()}

    def is_lost(self, planned: "PlannedRun", run: "Run | None") -> bool:
        """Whether a run of the sweep has failed for good, which is a result: that rate is no good.

        Once a final run has begun, the rate it took stays: no run of the sweep is tried again.
        """
        if planned.name in self.failed:
            return True
        return self.has_chosen and run is not None and run.manifest["state"] == "failed"

    @property
    def has_chosen(self) -> bool:
        """Whether a final run has been begun."""
        from smollm2.runs import run_path
        from smollm2.study import final_runs

        final = final_runs(self.study, self.requests, {})
        return any(run_path(self.results, self.study.name, run.name).exists() for run in final)

    def existing(self, planned: "PlannedRun") -> "Run | None":
        """The planned run if it has been begun.

        Raises:
            UserError: a run of that name was made with other settings.
        """
        from smollm2.protocol import differing, resolve
        from smollm2.runs import Run, run_path

        path = run_path(self.results, self.study.name, planned.name)
        if not path.exists():
            return None
        run = Run(path)
        wanted = resolve(planned.request).on(self.data).to_dict()
        if self.study.sweep and planned.request.lr is None:  # not chosen yet: nothing to compare
            wanted["recipe"]["lr"] = run.protocol.recipe.lr
        if fields := differing(run.protocol.to_dict(), wanted):
            raise UserError(
                f"Run {planned.name!r} of study {self.study.name!r} was made with other settings: "
                f"{fields}. Give the changed study file another name, or remove the run."
            )
        return run

    def run(self) -> None:
        """Run what is missing, the sweep first, then score the final runs."""
        for planned in self.planned():  # all of them, before one of them runs for hours
            self.existing(planned)
        if self.study.equal == "seconds":
            with self.alone("its arms get equal seconds of a machine, which two would share"):
                self.run_missing()
        else:
            self.run_missing()

    def run_missing(self) -> None:
        """See `run`."""
        from smollm2.study import final_runs, sweep_runs

        self.write_records()
        self.train_all(sweep_runs(self.study, self.requests))
        final = final_runs(self.study, self.requests, self.rates())
        self.train_all(final)
        # By one process: what it times is not to share the machine.
        with self.alone():
            for planned in final:
                self.evaluate(planned)
                self.quantize(planned)

    @contextlib.contextmanager
    def alone(self, why: str | None = None) -> Iterator[None]:
        """Keep other processes from what follows; wait for one that is at it.

        Raises:
            UserError: one is at it, and is not waited for because of `why`.
        """
        from filelock import Timeout

        from smolctl.console import say

        self.record.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            if why is not None:
                raise UserError(
                    f"Another process is running study {self.study.name!r}, and {why}."
                ) from None
            say("Waiting for another process, which evaluates the runs ...")
            self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def failed_runs(self) -> set[str]:
        from smollm2.runs import list_runs

        runs, _ = list_runs(self.results, self.study.name)
        return {run.name for run in runs if run.manifest["state"] == "failed"}

    def write_records(self) -> None:
        """Keep beside the runs what they follow from: the study file and the step times.

        Raises:
            UserError: the directory cannot be written to.
        """
        from smollm2.files import replace_file, write_json
        from smollm2.study import to_toml

        folder = self.record.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "study.toml", to_toml(self.study))
            if self.step_seconds:
                record = {"step_seconds": self.step_seconds, "measured": self.conditions()}
                write_json(self.record, record)
        except OSError as error:
            raise UserError(
                f"Cannot write to {folder}: {error.strerror}; choose another --results."
            ) from None

    def train_all(self, runs: "list[PlannedRun]") -> None:
        """Train `runs` to their ends. What another process trains is left to it, and waited for at
        the end, so that several of them share a study; if it dies, its run is gone on with."""
        from smolctl.console import say

        runs = [planned for planned in runs if not self.train(planned)]
        # Once more: most of those that the other had have ended since.
        if runs := [planned for planned in runs if not self.train(planned)]:
            say(f"Waiting for what another process trains: {', '.join(run.name for run in runs)}")
        while runs:
            time.sleep(BUSY_SECONDS)
            runs = [planned for planned in runs if not self.train(planned)]

    def train(self, planned: "PlannedRun") -> bool:
        """Train one run to its end, from where it stands; False if another process has it.

        One that fails, here or there, is named in `failed`.
        """
        from smolctl.console import say, warn
        from smolctl.progress import TrainingProgress
        from smolctl.tracking import tracked
        from smollm2.train import Stopped, train

        try:
            run = self.claim(planned)
        except (RunBusy, RunExists):
            return False
        if run is None:
            return True
        done, started = max(run.checkpoints.steps(), default=0), time.monotonic()
        say(self.heading(planned) + (f", which goes on from step {done:,}" if done else ""))
        with TrainingProgress(run) as progress, tracked(progress, run, self.track) as observer:
            try:
                train(run, self.data, observer)
            except Stopped:
                progress.close()
                say("Stopped and saved. The same command goes on with the study.")
                raise typer.Exit(128 + (progress.signal or 2)) from None
            except RunBusy:
                return False
            except (UserError, RunError) as error:
                progress.close()
                warn(f"Run {planned.name!r} failed: {error} The study goes on without it.")
                self.failed[planned.name] = str(error)
                return True
        self.spent_seconds += time.monotonic() - started
        self.spent_flops += (run.protocol.steps - done) * run.protocol.flops_per_step
        return True

    def claim(self, planned: "PlannedRun") -> "Run | None":
        """The run, made if need be; None if there is nothing of it to train.

        Raises:
            RunBusy, RunExists: another process trains it, or has just made it.
        """
        from smollm2.protocol import resolve
        from smollm2.runs import create_run

        run = self.existing(planned)
        if run is None:
            return create_run(
                self.results,
                self.study.name,
                planned.name,
                planned.request,
                resolve(planned.request).on(self.data),
                self.data.tokenizer,
                arm=planned.arm,
                role=planned.role,
                equal=self.study.equal,
            )
        if run.is_finished or (planned.role == "sweep" and self.is_lost(planned, run)):
            return None
        if run.is_being_written:
            raise RunBusy(f"Another process trains run {run.name!r}.")
        run.read()  # it may have ended a moment ago
        if run.manifest["state"] == "failed" and run.name not in self.tried_again:
            self.failed[run.name] = str(run.manifest["error"])
        return None if run.is_finished or run.name in self.failed else run

    def heading(self, planned: "PlannedRun") -> str:
        """`Run 3 of 8: pow2-s0, about 12 min left`, at the pace of the runs before it."""
        from smolctl.console import duration
        from smollm2.protocol import resolve

        runs = self.planned()
        number = [other.name for other in runs].index(planned.name)
        text = f"Run {number + 1} of {len(runs)}: {planned.name}"
        if not self.spent_flops:
            return text
        left = [planned, *(run for run in runs[number + 1 :] if not self.is_finished(run))]
        protocols = [resolve(other.request) for other in left]
        flops = sum(protocol.steps * protocol.flops_per_step for protocol in protocols)
        seconds = flops * self.spent_seconds / self.spent_flops
        return f"{text}, about {duration(seconds)} of training left"

    def is_finished(self, planned: "PlannedRun") -> bool:
        run = self.existing(planned)
        return run is not None and run.is_finished

    def evaluate(self, planned: "PlannedRun") -> None:
        """Score one run on the tasks of the study; what is recorded is not scored again."""
        from smolctl.console import say, warn
        from smolctl.models import Model
        from smolctl.scoring import Scorer
        from smollm2.runs import final_weights

        run = self.existing(planned)
        if not self.questions or run is None or not run.is_finished:
            return
        assert self.study.evaluation is not None
        try:
            scorer = Scorer(Model(run, final_weights(run)), dtype=self.study.evaluation.dtype)
            for acc, *_ in scorer.score(scorer.load(), [], self.questions):
                say(f"{run.name} {acc['task']}: acc {acc['value']:.4f} ± {acc['stderr']:.4f}")
        except (UserError, RunError) as error:
            warn(f"Run {planned.name!r} could not be scored: {error}")
            self.failed[planned.name] = str(error)

    def quantize(self, planned: "PlannedRun") -> None:
        """Quantize one final run as the study says; what is measured is not measured again."""
        from smolctl.console import say, warn
        from smolctl.models import Model
        from smolctl.quantizing import Quantizer, What, missing, one_line
        from smollm2.runs import final_weights

        plan, run = self.study.quantization, self.existing(planned)
        if plan is None or planned.role != "final" or run is None or not run.is_finished:
            return
        try:
            if not (todo := missing(run, plan.models)):
                return
            quantizer = Quantizer(Model(run, final_weights(run)), What(plan.tokens))
            for row in quantizer.measure(todo):
                say(one_line(run, row))
        except (UserError, RunError) as error:
            warn(f"Run {planned.name!r} could not be quantized: {error}")
            self.failed[planned.name] = str(error)
