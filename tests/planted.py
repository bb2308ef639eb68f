"""Finished runs with the numbers that a test wants, made of copies of a real one."""

import json
import shutil
from pathlib import Path

from smollm2.files import write_json
from smollm2.runs import Run


def planted(template: Path, arm: str, seed: int, loss: float, *, study="s", **changes) -> Run:
    """A run of `arm` in ./results whose test loss is `loss`.

    Changes are of the manifest's protocol, `model` of fields of its model; `manifest` of itself.
    """
    path = Path("results") / study / f"{arm}-s{seed}"
    shutil.copytree(template, path)
    manifest = json.loads((path / "run.json").read_text())
    manifest |= {"name": path.name, "arm": arm} | changes.pop("manifest", {})
    model = changes.pop("model", {})
    manifest["protocol"] |= {"seed": seed, "data_seed": seed} | changes
    manifest["protocol"]["model"] |= model
    write_json(path / "run.json", manifest)
    run = Run(path)
    rows = run.rows("eval")
    for row in rows:
        if row["metric"] == "loss":
            row["value"] = loss
    run.replace("eval", rows)
    return run
