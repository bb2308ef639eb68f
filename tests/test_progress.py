"""What is said while a run trains."""

from types import SimpleNamespace

from smolctl.progress import TrainingProgress


def test_speed_and_eta_of_a_line_are_of_the_same_steps(capsys):
    protocol = SimpleNamespace(steps=100, tokens_per_step=1000, compile=False)
    run = SimpleNamespace(name="r", protocol=protocol, checkpoints=SimpleNamespace(steps=list))
    progress = TrainingProgress(run)
    clock = 1000.0  # seconds
    progress.bar.get_time = lambda: clock
    for step in range(1, 11):
        clock += 100.0 if step % 2 == 0 else 300.0
        progress.on_step({"step": step, "loss": 5.0, "tokens_per_second": 10.0})
    progress.on_validation({"step": 10, "loss": 4.0})
    # Nine steps in 1700 s and 90 to go; the last one alone took 100 s.
    assert capsys.readouterr().err == (
        "r: step 10/100: validation loss 4.0000, 5 tokens/s, ETA 4 h 43 min\n"
    )
    progress.on_validation({"step": 100, "loss": 4.0})
    assert "ETA" not in capsys.readouterr().err
