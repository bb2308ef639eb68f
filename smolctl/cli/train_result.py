"""What `smolctl train` prints when a run is finished."""

import math

from smolctl.cli.console import print_facts, print_json, say, warn
from smolctl.command_line import command, results_of
from smolctl.studies.targets import comparison_command
from smolctl.units import count, duration
from smollm2.model.cost import parameters
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run

NOTABLE_RISE = 0.1  # nats/token of validation loss; one step changes it by less


def show_result(run: Run, as_json: bool) -> None:
    """Print the scores and the speed of a finished run, with warnings on doubtful losses."""
    for sentence in doubts(run):
        warn(sentence)
    scores = run.final_scores()
    split = "validation" if run.role is Role.SWEEP else "test"
    steps = run.table("train")
    seconds = float(steps["seconds"].iloc[-1])
    protocol = run.protocol
    speed = steps["tokens_per_second"].median()
    if as_json:
        summary = {
            "run": run.name,
            "path": str(run.path),
            "steps": protocol.steps,
            "tokens": protocol.steps * protocol.tokens_per_step,
            "seconds": seconds,
            "tokens_per_second": None if speed != speed else speed,  # NaN: too few steps
            split: {name: float(value) for name, value in scores.items()},
        }
        print_json(summary)
        return
    size, speed_text = parameters(protocol.model), "speed not measured: too few steps"
    if speed == speed:
        speed_text = f"{duration(seconds)} timed, {speed:,.0f} tokens/s (median)"
    print_facts(
        f"{run.name} is finished",
        [
            ("model", f"{protocol.variant}, {protocol.scale}, {size.total:,} parameters"),
            ("trained on", f"{count(protocol.steps * protocol.tokens_per_step)} tokens"),
            (f"{split} loss", f"{scores['loss']:.4f} nats/token"),
            ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
            ("accuracy", f"{scores['accuracy']:.2%} of next tokens"),
            ("training", speed_text),
            ("files", str(run.path)),
        ],
        is_result=False,
    )
    score = command("eval", run.name, study=run.study, results=results_of(run))
    say(f"Next: {score}")
    say(f"      {comparison_command(run) or 'or train another variant, to compare the two'}")


def doubts(run: Run) -> list[str]:
    """Warnings about the losses of a finished run."""
    from smollm2.data import epochs

    protocol, validation = run.protocol, run.table("val").set_index("step")["loss"]
    loss, found = float(run.final_scores()["loss"]), []
    if loss > (guessing := math.log(protocol.model.vocab_size)):
        found.append(
            f"{run.name} did worse than guessing among all tokens ({guessing:.2f} nats/token): the "
            "training diverged or was too short; try a lower --lr, or more --steps."
        )
    elif (rise := validation.iloc[-1] - validation.min()) > NOTABLE_RISE:
        tokens = protocol.steps * protocol.tokens_per_step
        read = epochs(protocol.data.train_tokens, protocol.seq_len, tokens) if protocol.data else 0
        found.append(
            f"The validation loss rose by {rise:.2f} after step {validation.idxmin()}; the text "
            f"was read {read:.3g} times. Try fewer --steps, more text or a lower --lr."
        )
    return found
