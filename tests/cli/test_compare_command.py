"""What `smolctl compare` says beside its tables."""

import math
from pathlib import Path

from support.command import run_main
from support.planted import planted

from smollm2.runs.run import Run


def test_few_documents_are_said_with_the_option_for_more(capsys, workdir, template):
    for arm in ("a", "b"):
        for seed in (0, 1):
            planted(template, arm, seed, 5.0 + seed / 10)
    run = Run(Path("results/s/a-s0"))
    (documents,) = {int(row["clusters"]) for row in run.rows("eval") if row["metric"] == "loss"}
    more = math.ceil(run.protocol.test_tokens * 30 / documents)
    code, _, err = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert code == 0
    said = " ".join(err.split())
    assert f"Few held-out documents: {documents}. " in said
    assert f"test_tokens = {more} below [train] of the study file, or --test-tokens {more}." in said
    for path in Path("results/s").glob("*/run.json"):
        rows = [row | {"total": row["n"]} for row in Run(path.parent).rows("eval")]
        Run(path.parent).replace("eval", rows)
    said = " ".join(run_main(capsys, "compare", "a", "b", "--study", "s")[2].split())
    assert "They are all of the test split. For more, hold out a larger share of the text:" in said
    assert "--held-out." in said
    for path in Path("results/s").iterdir():
        if (path / "run.json").exists():
            rows = [row | {"clusters": 30} for row in Run(path).rows("eval")]
            Run(path).replace("eval", rows)
    assert "Few held-out" not in run_main(capsys, "compare", "a", "b", "--study", "s")[2]
