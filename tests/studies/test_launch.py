"""A study as jobs of a cluster: what a launcher is told, `--only`, `status` and `cancel`."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from support.command import run_main
from support.fake_slurm import FakeSlurm
from support.outcome import outcome
from support.processes import started
from support.tinies import runs_of

from smolctl.studies.launch import ray as ray_tasks
from smolctl.studies.launch import slurm as slurm_jobs
from smolctl.studies.launch_record import LaunchRecord, read_launch
from smolctl.studies.launchers import LAUNCHERS, launcher_of
from smolctl.studies.launching import has_active
from smollm2.errors import RunError, UserError

FINAL = ["two-s0", "three-s0", "two-s1", "three-s1"]
FOLDER = Path("results/tinies")


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch) -> FakeSlurm:
    return FakeSlurm(tmp_path_factory.mktemp("slurm"), monkeypatch)


def launch(capsys, study_file, *options: str) -> tuple[int, str, str]:
    return run_main(capsys, "study", str(study_file), "--launch", "slurm", *options)


def status(capsys, study_file) -> dict:
    code, out, err = run_main(capsys, "study", "status", str(study_file), "--json")
    assert code == 0, err
    return json.loads(out)


def states(found: dict) -> dict[str, str]:
    return {run["run"]: run["state"] for run in found["runs"]}


def tune(study_file) -> None:
    """Give the study a tuning of two rates."""
    study_file.write_text(study_file.read_text() + "\n[tune]\nlr = [1e-3, 1.414e-3]\n")


# Slurm


def test_the_final_runs_are_an_array_and_the_rest_a_job_after_it(capsys, study_file, slurm):
    code, out, err = launch(capsys, study_file, "--json")
    assert code == 0, err
    assert json.loads(out)["jobs"] == ["11", "12"]
    assert json.loads(out)["left"] == FINAL
    assert slurm.words("11") == [
        *("--parsable", "--requeue", "--job-name=tinies-final"),
        *("--open-mode=append", "--array=0-3"),
    ]
    assert slurm.words("12") == [
        *("--parsable", "--requeue", "--job-name=tinies", "--open-mode=append"),
        *("--exclusive", "--dependency=afterany:11"),
    ]
    assert f"runs=({' '.join(FINAL)})" in slurm.jobs()["11"]["script"]
    assert "--only" not in slurm.jobs()["12"]["script"]
    record = read_launch(FOLDER)
    assert record is not None
    assert record.tasks == {f"11_{index}": run for index, run in enumerate(FINAL)}
    assert "smolctl study status" in err


def test_options_reach_sbatch_and_the_final_runs_wait_for_the_tuning(capsys, study_file, slurm):
    tune(study_file)
    options = ["--at-once", "2", "--gpus-per-run", "1", "--slurm", "--partition=gpu --time 4:00:00"]
    code, _, err = launch(capsys, study_file, *options)
    assert code == 0, err
    given = ["--gres=gpu:1", "--partition=gpu", "--time", "4:00:00", "--open-mode=append"]
    head = ["--parsable", "--requeue"]
    assert slurm.words("11") == [*head, "--job-name=tinies-tuning", *given, "--array=0-11%2"]
    after = ["--array=0-3%2", "--dependency=afterany:11"]
    assert slurm.words("12") == [*head, "--job-name=tinies-final", *given, *after]
    assert slurm.words("13")[-1] == "--dependency=afterany:12"
    assert "two-lr0.001-s100" in slurm.jobs()["11"]["script"]


def test_more_runs_than_an_array_takes_are_several(capsys, study_file, slurm, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "MOST_TASKS", 3)
    code, _, err = launch(capsys, study_file)
    assert code == 0, err
    assert [slurm.words(job)[-1] for job in ("12", "13")] == [
        *("--dependency=afterany:11", "--dependency=afterany:12")
    ]
    record = read_launch(FOLDER)
    assert record is not None
    tasks = {"11_0": "two-s0", "11_1": "three-s0", "11_2": "two-s1", "12_0": "three-s1"}
    assert record.tasks == tasks


def test_what_the_jobs_train_is_what_the_command_trains(capsys, workdir, study_file, slurm):
    study_file.write_text(study_file.read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    assert run_main(capsys, "study", str(study_file), "--results", "here")[0] == 0
    assert launch(capsys, study_file)[0] == 0
    # A file of defaults that launches every study does not launch the tasks.
    Path("smolctl.toml").write_text('[study]\nlaunch = "slurm"\n')
    for done in (slurm.run("11", 1), slurm.run("11", 0), slurm.run("12")):
        assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are finished" in done.stderr
    assert len(slurm.jobs()) == 2
    for name in ("two-s0", "three-s0"):
        assert outcome(Path("results/tinies", name)) == outcome(Path("here/tinies", name))
    assert runs_of(workdir)["two-s0"].manifest["environment"]["threads"] == 1


def test_only_what_is_missing_is_launched(capsys, study_file, slurm):
    assert run_main(capsys, "study", str(study_file), "--only", "three-s0")[0] == 0
    assert launch(capsys, study_file)[0] == 0
    assert "runs=(two-s0 two-s1 three-s1)" in slurm.jobs()["11"]["script"]
    assert run_main(capsys, "study", str(study_file), "--at-once", "1")[0] == 0
    assert launch(capsys, study_file)[0] == 0
    assert len(slurm.jobs()) == 3  # one job, which scores what has no scores
    assert slurm.words("13")[-1] == "--exclusive"


def test_a_second_launch_is_refused_while_jobs_of_the_first_go_on(capsys, study_file, slurm):
    assert launch(capsys, study_file)[0] == 0
    before = read_launch(FOLDER)
    slurm.say(j11_0="COMPLETED", j12="PENDING")
    for launcher in ("slurm", "local:1"):
        code, _, err = run_main(capsys, "study", str(study_file), "--launch", launcher)
        assert code == 2
        assert "Study 'tinies' has been launched already by slurm" in err
        assert "smolctl study cancel" in err
    assert read_launch(FOLDER) == before
    assert not runs_of(Path.cwd())
    slurm.say(j11_0="COMPLETED", j12="FAILED")
    assert launch(capsys, study_file)[0] == 0
    (slurm.folder / "broken").touch()
    code, _, err = launch(capsys, study_file)
    assert code == 1
    assert "squeue does not say which jobs go on: Unable to contact slurm controller." in err


def test_a_job_that_is_refused_takes_those_before_it_along(capsys, study_file, slurm):
    slurm.refuse("afterany:11")
    code, _, err = launch(capsys, study_file)
    assert code == 2
    assert "sbatch refused the job tinies: invalid partition specified: gpu." in err
    assert slurm.cancelled() == "11"


def test_status_shows_runs_jobs_and_what_a_task_said_last(capsys, study_file, slurm):
    assert run_main(capsys, "study", str(study_file), "--only", "two-s1")[0] == 0
    assert status(capsys, study_file)["launch"] is None
    assert launch(capsys, study_file)[0] == 0
    slurm.say(j11_0="FAILED", j11_1="RUNNING", j11_2="PENDING", j12="PENDING")
    (FOLDER / "launch/11_0.log").write_text("First.\nError: The disk is full.\n")
    found = status(capsys, study_file)
    assert found["launch"]["goes_on"] is True
    assert found["launch"]["launcher"] == "slurm"
    rows = {run["run"]: run for run in found["runs"]}
    assert list(rows) == FINAL
    assert rows["two-s1"]["state"] == "finished"
    assert (rows["two-s1"]["step"], rows["two-s1"]["tokens"]) == (6, 384)
    assert (rows["two-s0"]["state"], rows["two-s0"]["job_state"]) == ("waiting", "FAILED")
    assert rows["two-s0"]["said"] == "Error: The disk is full."
    assert (rows["three-s0"]["job"], rows["three-s0"]["job_state"]) == ("11_1", "RUNNING")
    code, out, err = run_main(capsys, "study", "status", str(study_file))
    assert code == 0
    assert "11_2 PENDING" in out
    assert "Of 4 runs: 3 waiting, 1 finished." in err
    assert "two-s0: Error: The disk is full." in err
    assert "ago, as jobs 11, 12 PENDING: it goes on." in err
    (slurm.folder / "broken").touch()
    code, _, err = run_main(capsys, "study", "status", str(study_file))
    assert code == 0
    assert "Warning: squeue does not say which jobs go on" in err


def test_a_run_in_training_is_running_at_its_step(capsys, study_file):
    assert run_main(capsys, "study", str(study_file), "--only", "two-s0")[0] == 0
    run = runs_of(Path.cwd())["two-s0"]
    run.update(state="running")
    with run.writing():
        row = status(capsys, study_file)["runs"][0]
    assert (row["state"], row["step"], row["steps"]) == ("running", 6, 6)
    assert status(capsys, study_file)["runs"][0]["state"] == "interrupted"


def test_cancel_stops_the_jobs(capsys, study_file, slurm):
    code, _, err = run_main(capsys, "study", "cancel", str(study_file))
    assert code == 2
    assert "No launch of study 'tinies' goes on" in err
    assert launch(capsys, study_file)[0] == 0
    slurm.say(j11_0="RUNNING")
    code, out, _ = run_main(capsys, "study", "cancel", str(study_file), "--json")
    assert code == 0
    assert json.loads(out)["jobs"] == ["11", "12"]
    assert slurm.cancelled() == "11 12"
    assert status(capsys, study_file)["launch"]["goes_on"] is False


def test_without_squeue_jobs_may_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    record = LaunchRecord(tmp_path, "id", "slurm", jobs=["7"])
    assert slurm_jobs.squeue(record) == {"7": "UNKNOWN"}
    assert has_active(slurm_jobs.squeue(record))


def test_squeue_that_has_forgotten_all_jobs_says_that_they_have_ended(monkeypatch, tmp_path):
    path = tmp_path / "squeue"
    path.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    record = LaunchRecord(tmp_path, "id", "slurm", jobs=["3"])
    assert slurm_jobs.squeue(record) == {}


# --only


def test_only_trains_one_run_and_is_done_at_once_the_next_time(capsys, workdir, study_file):
    for _ in range(2):
        code, _, err = run_main(capsys, "study", str(study_file), "--only", "three-s1")
        assert code == 0, err
    assert "step 6/6" not in err
    assert [run.name for run in runs_of(workdir).values()] == ["three-s1"]
    assert runs_of(workdir)["three-s1"].is_finished
    assert Path("results/tinies/ledger.json").exists()


def test_a_final_run_tunes_first(capsys, workdir, study_file):
    tune(study_file)
    assert run_main(capsys, "study", str(study_file), "--only", "two-lr0.001-s100")[0] == 0
    assert list(runs_of(workdir)) == ["two-lr0.001-s100"]
    assert run_main(capsys, "study", str(study_file), "--only", "two-s1")[0] == 0
    runs = runs_of(workdir)
    assert {name for name in runs if "lr" not in name} == {"two-s1"}
    assert all(run.is_finished for run in runs.values())
    tuned = {run["run"] for run in status(capsys, study_file)["runs"]} & runs.keys()
    assert tuned == runs.keys()  # also those by which the grid has grown
    rates = {run.protocol.recipe.lr for run in runs.values()}
    assert runs["two-s1"].protocol.recipe.lr in rates


def test_a_run_that_fails_is_told_by_the_exit_code(capsys, study_file, monkeypatch):
    def fail(*arguments, **options):
        raise RunError("The disk is full.")

    monkeypatch.setattr("smolctl.studies.runner.train", fail)
    code, _, err = run_main(capsys, "study", str(study_file), "--only", "two-s0")
    assert code == 1
    assert "The disk is full." in err


def test_a_task_that_does_not_see_the_launch_trains_nothing(capsys, workdir, study_file, slurm):
    assert launch(capsys, study_file)[0] == 0
    record = read_launch(FOLDER)
    assert record is not None
    for folder, id, sentence in (
        ("elsewhere", record.id, "Put --results on a disk that every machine"),
        ("results", "another", "Another launch of study 'tinies' has taken the place of this one"),
    ):
        code, _, err = run_main(
            *(capsys, "study", str(study_file), "--only", "two-s0"),
            *("--launched", id, "--results", folder),
        )
        assert code == 2
        assert sentence in err
    assert not Path("elsewhere").exists()
    assert not runs_of(workdir)


# Ray, as far as it goes without; see test_ray.py


def test_a_task_of_ray_is_a_process_that_says_how_it_ended(tmp_path):
    def run(code: str) -> int:
        words = [sys.executable, "-c", f"import os, sys; {code}"]
        return ray_tasks.run_command(words, str(tmp_path), str(tmp_path / "run.log"), 3)

    said = "print(os.getcwd(), os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    assert run(f"{said}; sys.exit(2)") == 2
    assert (tmp_path / "run.log").read_text() == f"{tmp_path} 3\n"
    with pytest.raises(ray_tasks.Killed, match="killed by signal 9"):
        run("os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="put --results on a disk that all of them share"):
        ray_tasks.run_command(["false"], str(tmp_path), str(tmp_path / "gone/run.log"), 1)


# This machine


@pytest.mark.slow
def test_a_local_launch_is_stopped_by_cancel_and_goes_on(capsys, workdir, study_file):
    text = study_file.read_text()
    study_file.write_text(text.replace("steps = 6", "steps = 20000"))
    with started(["study", str(study_file), "--launch", "local:2"], workdir) as process:
        while list(states(status(capsys, study_file)).values()).count("running") < 2:
            assert process.poll() is None
            time.sleep(0.2)
        code, _, err = run_main(capsys, "study", str(study_file), "--launch", "local:2")
        assert code == 2
        assert "has been launched already by local" in err
        assert run_main(capsys, "study", "cancel", str(study_file))[0] == 0
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    found = status(capsys, study_file)
    assert found["launch"]["goes_on"] is False
    assert list(states(found).values()).count("stopped") == 2
    assert run_main(capsys, "study", "cancel", str(study_file))[0] == 2


# Bad input


BAD = {
    "unknown": (["--launch", "slrum"], "Unknown launcher 'slrum'. Did you mean 'slurm'?"),
    "no number": (["--launch", "local:none"], "--launch local:N takes a number"),
    "zero": (["--launch", "local:0"], "--launch local:N takes a number"),
    "a number for Slurm": (["--launch", "slurm:4"], "give --at-once 4"),
    "twice": (["--launch", "local:2", "--at-once", "2"], "give one of them"),
    "GPUs here": (["--launch", "local:2", "--gpus-per-run", "1"], "--gpus-per-run is for"),
    "two GPUs": (["--launch", "slurm", "--gpus-per-run", "2"], "trains on one GPU"),
    "options of sbatch": (["--launch", "local", "--slurm", "--time=1"], "--launch slurm alone"),
    "an open quote": (["--launch", "slurm", "--slurm", "'a"], "is no list of options"),
    "no such run": (["--only", "two-s7"], "plans no run 'two-s7'. Did you mean 'two-s1'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_do_not_go_together_are_refused(capsys, study_file, slurm, case):
    options, said = BAD[case]
    code, out, err = run_main(capsys, "study", str(study_file), *options)
    assert (code, out) == (2, "")
    assert said in err
    assert not Path("results").exists()


@pytest.mark.parametrize("missing", ["sbatch", "ray"])
def test_a_launcher_that_is_not_here_says_what_to_do(capsys, study_file, monkeypatch, missing):
    if missing == "ray":
        monkeypatch.setattr("smolctl.studies.launch.ray.find_spec", lambda name: None)
    else:
        monkeypatch.setenv("PATH", "")
    name = "ray" if missing == "ray" else "slurm"
    code, _, err = run_main(capsys, "study", str(study_file), "--launch", name)
    assert code == 2
    assert {"ray": "pip install", "sbatch": "There is no Slurm here"}[missing] in err
    assert not Path("results").exists()


def test_a_study_that_cannot_be_shared_is_not_launched(capsys, study_file, slurm):
    text = study_file.read_text()
    study_file.write_text(f'equal = "seconds"\n{text}')
    for options in (["--launch", "slurm"], ["--only", "two-s0"]):
        code, _, err = run_main(capsys, "study", str(study_file), *options)
        assert code == 2
        assert 'equal = "seconds" of one machine' in err
    study_file.write_text(text.replace("tinies", "gone").replace("corpus.jsonl", "gone.jsonl"))
    code, _, err = launch(capsys, study_file)
    assert code == 2
    assert "There is no file or folder" in err
    assert not slurm.jobs()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "Name the study file: smolctl study status gqa.toml"),
        (["stauts", "a.toml"], "takes one study file, with status or cancel before it"),
        (["status", "a.toml", "--at-once", "2"], "smolctl study status takes --results and --json"),
        (["status", "a.toml"], "There is no study file 'a.toml'"),
    ],
)
def test_words_that_make_no_sense_are_refused(capsys, workdir, words, said):
    code, _, err = run_main(capsys, "study", *words)
    assert code == 2
    assert said in err


def test_a_damaged_record_is_refused_by_name(capsys, study_file, slurm):
    assert launch(capsys, study_file)[0] == 0
    (FOLDER / "launch/launch.json").write_text('{"id": 3}')
    code, _, err = launch(capsys, study_file)
    assert code == 2
    assert "results/tinies/launch/launch.json is not the record of a launch" in err


def test_every_launcher_is_known_by_its_name():
    assert list(LAUNCHERS) == ["local", "ray", "slurm"]
    assert launcher_of("local:3") == (LAUNCHERS["local"], 3)
    assert launcher_of("slurm") == (LAUNCHERS["slurm"], None)
