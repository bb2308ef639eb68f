"""How the cost of a training step grows: with layers, width, sequence and batch, and vocabulary.

    python benchmarks/growth.py [--works layers]

Ours, eager in bf16. One number of a small model is varied at a time. For the vocabulary the
question is memory: only weights, gradients and optimizer should grow with it, since the logits
never exist all at once. `predicted_mb` is their size by `smollm2.model.cost`. Draws `growth.png`
next to the CSV.
"""

import argparse
from pathlib import Path

import side_by_side
from side_by_side import Row, middle
from train_speed import our_step, timed

from smollm2.model.attention import KEPT_POSITIONS
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import ResolvedConfig, RunConfig

# Of the model that is varied; two heads of 64 share a key-value head, d_ff is four times the width.
BASE = {"layers": 4, "width": 256, "sequence": 256, "batch": 4, "vocabulary": 4096}
VARIED = {
    "layers": (2, 4, 8, 16, 32),
    "width": (128, 256, 512, 768, 1024),
    "sequence": (256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 16, 32),
    "vocabulary": (8192, 16384, 32768, 49152),
}
OURS = "ours"
QUANTITIES = ("step_seconds", "flops", "predicted_mb")
UNITS = {
    "layers": "layers",
    "width": "width (d_model)",
    "sequence": "sequence (tokens)",
    "batch": "batch (sequences)",
}
# Explanations of step time and memory, for the figure.
REASONS = {
    "layers": ("linear", "linear"),
    "width": ("matrices are square; small ones are slow", "matrices are square"),
    "sequence": (
        "attention is square",
        f"linear: scores are kept up to {KEPT_POSITIONS} positions only",
    ),
    "batch": ("linear, the optimizer aside", "linear: activations"),
}


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.set_defaults(rounds=1)
    options = side_by_side.start(parser, measure)
    works = [f"{name} {value}" for name, values in VARIED.items() for value in values]
    side_by_side.run(options, dict.fromkeys(works, (OURS,)), QUANTITIES)
    if options.contenders is None:
        draw(side_by_side.read(options.csv), options.csv.with_suffix(".png"))


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    protocol = resolve(request(work))
    _, seconds = timed(our_step(protocol, contender), at_least=2.0)
    return {
        "step_seconds": seconds,
        "flops": protocol.flops_per_step,
        "predicted_mb": state_mb(protocol),
    }


def request(work: str) -> RunConfig:
    """The base with one number changed as `work` says ("layers 8")."""
    varied, value = work.split()
    n = BASE | {varied: int(value)}
    if varied == "vocabulary":  # as wide as the variants, so the vocabulary matters
        n |= {"width": 512, "sequence": 512}
    fields = {
        "d_model": n["width"],
        "n_heads": n["width"] // 64,
        "n_kv_heads": n["width"] // 128,
        "d_ff": 4 * n["width"],
        "n_layers": n["layers"],
        "vocab_size": n["vocabulary"],
        "max_seq_len": n["sequence"],
    }
    settings = tuple(f"{name}={value}" for name, value in fields.items())
    return RunConfig(
        variant="pow2",
        settings=settings,
        steps=10_000,
        micro_batch_size=n["batch"],
        seq_len=n["sequence"],
        device="cpu",
        dtype="bf16",
        compile=False,
    )


def state_mb(protocol: ResolvedConfig) -> float:
    """Weights, gradients and optimizer."""
    return protocol.recipe.state_bytes(protocol.model, protocol.dtype) / 1e6


def draw(rows: list[Row], path: Path) -> None:
    """Step time and peak memory against each number, with a line proportional to the FLOPs and the
    memory of weights, gradients and optimizer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(UNITS), figsize=(13, 6), sharex="col", layout="constrained")
    for (varied, unit), (time, memory) in zip(UNITS.items(), axes.T, strict=True):
        x = VARIED[varied]
        seconds, flops, state, peak = (
            [middle(rows, f"{varied} {value}", OURS, quantity) or float("nan") for value in x]
            for quantity in (*QUANTITIES, "peak_rss_mb")
        )
        time.plot(x, [1000 * s for s in seconds], "o-", label="measured")
        rate = seconds[-1] / flops[-1]
        time.plot(x, [1000 * rate * f for f in flops], "k--", lw=1, label="proportional to FLOPs")
        memory.plot(x, peak, "o-", label="measured")
        memory.plot(x, state, "k--", lw=1, label="weights, gradients, optimizer")
        memory.set_xlabel(unit)
        for axis, reason in zip((time, memory), REASONS[varied], strict=True):
            axis.set_title(reason, fontsize=9)
        for axis in (time, memory):
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("step time (ms)")
    axes[1, 0].set_ylabel("peak RSS (MB)")
    for axis in axes[:, 0]:
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    device = rows[0]["device"]
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    figure.suptitle(f"A training step in bf16, one number varied of {base}; {device}", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
