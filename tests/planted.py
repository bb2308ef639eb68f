"""Finished runs with the numbers that a test wants, made of copies of a real one."""

import json
import shutil
from pathlib import Path

from smollm2.files import write_json
from smollm2.runs import Run


def planted(template: Path, name: str, seed: int, loss: float, *, study="s", **changes) -> Run:
    """A run NAME-sSEED of the arm `name` in ./results whose test loss is `loss`.

    Of `changes`, `arm` is another name of the arm, `manifest` is of the manifest itself and `model`
    of the fields of its model; the others are of its protocol.
    """
    path = Path("results") / study / f"{name}-s{seed}"
    shutil.copytree(template, path)
    manifest = json.loads((path / "run.json").read_text())
    manifest |= {"name": path.name, "arm": changes.pop("arm", name)} | changes.pop("manifest", {})
    model = changes.pop("model", {})
    manifest["protocol"] |= {"seed": seed, "data_seed": seed} | changes
    manifest["protocol"]["model"] |= model
    write_json(path / "run.json", manifest)
    run = Run(path)
    for table in ("train", "val"):
        rows = run.rows(table)
        rows[-1]["step"] = manifest["protocol"]["steps"]  # as if it had been so long
        run.replace(table, rows)
    rows = run.rows("eval")
    for row in rows:
        if row["metric"] == "loss":
            row["value"] = loss
    run.replace("eval", rows)
    return run
