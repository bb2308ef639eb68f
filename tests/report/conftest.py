"""The studies that cards are made of in the tests."""

from itertools import product
from pathlib import Path

import pytest
from support.carded import ARMS
from support.planted import planted


@pytest.fixture
def study(workdir, template) -> Path:
    """Two runs of each of three arms."""
    for number, (arm, model) in enumerate(ARMS.items()):
        for seed in range(2):
            run = planted(template, arm, seed, 5.0 + 0.01 * seed + 0.1 * number, model=model)
            run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{number}")
    return workdir / "results/s"


@pytest.fixture
def further(study, template) -> None:
    """A study at full size of a few steps, and one of a control."""
    for seed, (number, (name, model)) in product(range(3), enumerate(ARMS.items())):
        run = planted(template, name, seed, 7.0, study="full", steps=12, model=model)
        speed = {"orig": 100, "pow2": 110, "moe-160m": 130}[name] + seed
        fields = run.manifest["protocol"] | {"scale": "full", "variant": name}
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{number}", protocol=fields)
        rows = run.rows("train")
        for row in rows:
            row["tokens_per_second"] = speed
        run.replace("train", rows)
    for seed in range(4):
        planted(template, ("a", "again")[seed % 2], seed, 5.0 + 0.01 * (seed // 2), study="aa")
