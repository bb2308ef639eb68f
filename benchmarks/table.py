"""Write the tables of README.md, each between its two marks, from the scripts' CSVs alone.

    python benchmarks/table.py

A line compares the better of ours with the best peer, by the medians of a quantity. A ratio is ours
over the peer's, for rates as for seconds and memory; the goal says which direction is good. For
memory the peer is the smallest one, not the fastest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path

from side_by_side import Row, middle, read

HERE = Path(__file__).parent
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """The goal of a ratio: at least, or with `at_most` at most, `value`."""

    value: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value


@dataclass(frozen=True)
class Line:
    """One row of the table: its name, and the medians behind it.

    goal: of the ratio to the best peer; share: of our rate as a share of the limit; rss: of the
    ratio of peak RSS.
    """

    name: str
    script: str
    work: str
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    goal: Goal | None
    quantity: str = "tokens_per_second"
    limit: str = "limit"
    share: Goal | None = field(default=None)
    rss: Goal | None = field(default=None)


OURS, PEERS = ("ours", "ours compiled"), ("transformers", "transformers compiled")
LEAST_RSS = Goal(0.7, at_most=True)


def training(model: str, shape: str, goal: float, share: float, rss: Goal | None = None) -> Line:
    name, work = f"train {model}, {shape.replace('x', ' × ')}", f"{model} {shape}"
    return Line(name, "train_speed", work, OURS, PEERS, Goal(goal), share=Goal(share), rss=rss)


def decoding(weights: str, kind: str, peers: tuple[str, ...], goal: float) -> Line:
    name, quantity = f"decode pow2, {weights}, vs {kind}", "decode_tokens_per_second"
    return Line(name, "decode_speed", f"pow2 {weights}", OURS, peers, Goal(goal), quantity)


def reading(weights: str, kind: str, goal: float) -> Line:
    name, work = f"read a prompt of 512, {weights}, vs {kind}", f"pow2 {weights}, prompt 512"
    quantity = "prefill_tokens_per_second"
    return Line(name, "decode_speed", work, ("ours",), ("llama.cpp",), Goal(goal), quantity)


MOE = "moe-160m 1x512"
MIXTRAL = ("transformers eager", "transformers grouped_mm", "transformers grouped_mm compiled")
LINES = (
    training("pow2", "1x512", 1.4, 0.75),
    training("pow2", "4x512", 1.4, 0.75, LEAST_RSS),
    training("orig", "1x512", 1.4, 0.75),
    training("orig", "4x512", 1.4, 0.75, LEAST_RSS),
    training("2.5m", "8x256", 2.5, 0.5),
    Line("train moe-160m, 1 × 512", "train_speed", MOE, OURS, MIXTRAL, Goal(1.6)),
    # At most 1.5 times the time of a step.
    Line(
        *("the same, vs dense with its active parameters", "train_speed", MOE, OURS),
        *(("dense", "dense compiled"), Goal(0.67)),
    ),
    decoding("bf16", "llama.cpp F16", ("llama.cpp",), 1.0),
    decoding("int8", "llama.cpp Q8_0", ("llama.cpp",), 1.0),
    decoding("int4-g64", "llama.cpp Q4_0", ("llama.cpp",), 1.0),
    decoding("bf16", "transformers bf16", PEERS, 5.0),
    reading("int8", "llama.cpp Q8_0", 1.2),
    reading("int4-g64", "llama.cpp Q4_0", 1.2),
    *(
        Line(
            *(f"HellaSwag, orig, {dtype}", "eval_speed", "hellaswag orig", (f"ours {dtype}",)),
            *(("lm-eval fp32",), None, "items_per_second", f"limit {dtype}", Goal(0.9)),
        )
        for dtype in ("fp32", "bf16")
    ),
    Line(
        *("tokenize the novels", "tokenization", "novels", ("prepare",)),
        *(("raw documents", "raw pieces"), Goal(0.95), "mb_per_second"),
    ),
    Line(
        *("`smolctl --help`", "startup", "help", ("ours",), ("empty Typer app",)),
        *(Goal(1.15, at_most=True), "seconds"),
    ),
)
FIRST_TOKEN = ("ours", "first_token_seconds", 10)
# Goals without a peer: what, script, work, contender, quantity, its largest value.
BOUNDS = (
    ("peak RSS of tokenizing, MB", "tokenization", "novels", "prepare", "peak_rss_mb", 500),
    (
        "`smolctl train` to the first step at nano, s",
        "startup",
        "first step, nano",
        "ours",
        "seconds",
        6,
    ),
    ("first token from a cold start, bf16, s", "decode_speed", "pow2 bf16", *FIRST_TOKEN),
    ("first token from a cold start, int8, s", "decode_speed", "pow2 int8", *FIRST_TOKEN),
    ("first token from a cold start, int4-g64, s", "decode_speed", "pow2 int4-g64", *FIRST_TOKEN),
)
HEADINGS = [
    *("work", "unit", "rounds", "ours", "best peer", "ratio", "goal", "limit", "share", "goal"),
    *("RSS ratio", "goal", "reached"),
]
UNITS = {
    "tokens_per_second": "tokens/s",
    "decode_tokens_per_second": "tokens/s",
    "prefill_tokens_per_second": "tokens/s",
    "items_per_second": "questions/s",
    "mb_per_second": "MB/s",
    "seconds": "s",
}
LEGEND = (
    "Medians over the rounds of our faster way and the fastest peer. **Limit**: what the machine "
    "could do, measured in the same run: the rate at which the model's own matrix products alone "
    "would train or score it, each in its best layout, or at which memory delivers the weights "
    "that a token reads; **share** is our rate over the limit. **RSS ratio** is relative to the "
    "peer with the smallest RSS."
)


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_tables(text, HERE), encoding="utf-8")


def with_tables(text: str, folder: Path) -> str:
    """`text` with the parts between the marks rewritten from the CSVs in `folder`."""
    for name, written in (("benchmarks", tables(folder)), ("quantization", quantization(folder))):
        begin, end = (mark.format(name) for mark in MARKS)
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{written}\n{end}{after}"
    return text


def tables(folder: Path) -> str:
    scripts = dict.fromkeys([*(line.script for line in LINES), "growth"])
    measured = {script: rows_of(folder / f"{script}.csv") for script in scripts}
    lines = [row_of(line, measured[line.script]) for line in LINES]
    parts = (
        LEGEND,
        markdown(HEADINGS, lines),
        markdown(["", "measured", "goal", "reached"], [bound(measured, *b) for b in BOUNDS]),
        growth(measured["growth"]),
        provenance(measured),
    )
    return "\n\n".join(parts)


def bound(
    measured: dict[str, list[Row]],
    name: str,
    script: str,
    work: str,
    contender: str,
    quantity: str,
    largest: float,
) -> list[str]:
    """The cells of one of `BOUNDS`."""
    value = middle(measured[script], work, contender, quantity)
    if value is None:
        return [name, f"{NOT_MEASURED}: `python benchmarks/{script}.py`", f"≤ {largest:g}", "–"]
    return [name, figure(value), f"≤ {largest:g}", "yes" if value <= largest else "no"]


def rows_of(path: Path) -> list[Row]:
    """The rows of a CSV that `side_by_side` wrote; none if it did not."""
    rows = read(path)
    return rows if rows and "work" in rows[0] else []


def row_of(line: Line, rows: list[Row]) -> list[str]:
    """The cells of one line."""
    pick = min if line.goal and line.goal.at_most else max
    ours = best(rows, line, line.ours, pick)
    peer = best(rows, line, line.peers, pick)
    if ours is None or peer is None:
        command = f"`python benchmarks/{line.script}.py`"
        cells = [line.name, UNITS[line.quantity], "–", f"{NOT_MEASURED}: {command}"]
        return cells + ["–"] * (len(HEADINGS) - len(cells))
    limit = middle(rows, line.work, line.limit, line.quantity)
    share = ours[1] / limit if limit else None
    rss = None
    if line.rss:
        ours_mb = middle(rows, line.work, ours[0], "peak_rss_mb")
        least = [middle(rows, line.work, peer, "peak_rss_mb") for peer in line.peers]
        rss = ours_mb / min(filter(None, least)) if ours_mb and any(least) else None
    ratio = ours[1] / peer[1]
    goals = (("ratio", line.goal, ratio), ("share", line.share, share), ("RSS", line.rss, rss))
    missed = [f"{name}" for name, goal, x in goals if goal and not (x and goal.is_met(x))]
    n_rounds = sum((row["work"], row["contender"]) == (line.work, ours[0]) for row in rows)
    return [
        *(line.name, UNITS[line.quantity], str(n_rounds)),
        f"{figure(ours[1])} ({ours[0]})",
        f"{figure(peer[1])} ({peer[0]})",
        *(f"{ratio:.2f}", str(line.goal or "–")),
        *(figure(limit), figure(share), str(line.share or "–")),
        *(figure(rss), str(line.rss or "–")),
        f"no: {', '.join(missed)}" if missed else "yes",
    ]


def best(
    rows: list[Row], line: Line, contenders: tuple[str, ...], pick: Callable
) -> tuple[str, float] | None:
    """The contender with the best median, and the median."""
    found = ((name, middle(rows, line.work, name, line.quantity)) for name in contenders)
    return pick(((n, x) for n, x in found if x is not None), key=lambda p: p[1], default=None)


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def growth(rows: list[Row]) -> str:
    """Memory against vocabulary, and the powers with which a step's cost grows."""
    steps: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["work"].split()[1])):
        steps.setdefault(row["work"].split()[0], []).append(row)
    if "vocabulary" not in steps:
        return f"Growth: {NOT_MEASURED}: `python benchmarks/growth.py`"
    vocabularies = steps.pop("vocabulary")
    peak, state = (ends(vocabularies, name) for name in ("peak_rss_mb", "predicted_mb"))
    ratio = (peak[1] - peak[0]) / (state[1] - state[0])
    verdict = "reached" if ratio <= 1.1 else "not reached"
    words = (
        f"From a vocabulary of 8k to 49k the peak RSS grows by {peak[1] - peak[0]:,.0f} MB, "
        f"weights, gradients and optimizer by {state[1] - state[0]:,.0f} MB: {ratio:.2f} × "
        f"(goal ≤ 1.1, {verdict})."
    )
    cells = [[name, *(f"{power(found, q):.2f}" for q in POWERS)] for name, found in steps.items()]
    headings = ["varied", "step time", "FLOPs", "peak RSS"]
    caption = (
        "The power with which a step's cost grows between the two largest sizes (1 is linear, 2 "
        "quadratic; memory has a constant part):"
    )
    return "\n\n".join((words, "![growth](growth.png)", caption, markdown(headings, cells)))


POWERS = ("step_seconds", "flops", "peak_rss_mb")


def ends(rows: list[Row], quantity: str) -> tuple[float, float]:
    """The medians of the smallest and the largest size."""
    works = list(dict.fromkeys(row["work"] for row in rows))
    first, last = (middle(rows, work, "ours", quantity) for work in (works[0], works[-1]))
    assert first is not None
    assert last is not None
    return first, last


def power(rows: list[Row], quantity: str) -> float:
    """The slope between the two largest sizes on logarithmic axes."""
    works = list(dict.fromkeys(row["work"] for row in rows))[-2:]
    low, high = ends([row for row in rows if row["work"] in works], quantity)
    sizes = [int(work.split()[1]) for work in works]
    return log(high / low) / log(sizes[1] / sizes[0])


QUANTIZED = (
    *("", "MB", "bits a weight", "s to make", "KL, novels", "over rtn", "p99", "top-1"),
    *("KL, manuals", "decoding, tokens/s"),
)


def quantization(folder: Path) -> str:
    """What each way to quantize costs, the smallest file first; one table per work."""
    rows = rows_of(folder / "quantization.csv")
    parts = []
    for work in dict.fromkeys(row["work"] for row in rows):
        found = {row["contender"]: row for row in rows if row["work"] == work}
        order = sorted(found, key=lambda name: found[name]["bytes"])
        cells = [quantized(name, found) for name in order]
        parts += [f"Weights {work}:", markdown(list(QUANTIZED), cells)]
    return "\n\n".join((*parts, provenance({"quantization": rows})))


def quantized(name: str, found: dict[str, Row]) -> list[str]:
    """The cells of one contender; `over rtn` is beside the same format rounded to nearest."""
    row = found[name]
    plain = found.get("-".join(name.split("-")[:2]))
    is_ours = plain is not None and name.startswith("int4") and name != plain["contender"]
    return [
        name,
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['bits_a_weight']:.2f}",
        f"{row['seconds']:.1f}" if row["seconds"] != "" else "–",
        f"{row['kl']:.4f} ± {row['kl_stderr']:.4f}",
        f"{row['kl'] / plain['kl']:.2f} ×" if plain and is_ours else "–",
        f"{row['kl_p99']:.3f}",
        f"{row['top1']:.1%}",
        f"{row['kl_manuals']:.4f} ± {row['kl_manuals_stderr']:.4f}",
        f"{row['decode_tokens_per_second']:.0f}",
    ]


def provenance(measured: dict[str, list[Row]]) -> str:
    """Machine, versions and commands."""
    rows = [row for found in measured.values() for row in found]
    devices = dict.fromkeys(f"{row['device']}, {row['threads']} threads" for row in rows)
    named = (part for row in rows for part in str(row["versions"]).split(", ") if part)
    commands = dict.fromkeys(f"`{row['command']}`" for row in rows)
    return "\n".join(
        f"{what}: {'; '.join(values) or NOT_MEASURED}.  "
        for what, values in (
            ("Machine", devices),
            ("Versions", sorted(dict.fromkeys(named))),
            ("Commands", commands),
        )
    ).rstrip()


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    marks = [":--", *["--:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows))


if __name__ == "__main__":
    main()
