"""Finished runs with the numbers that a test wants, made of copies of a real one."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smolctl.analysis.quantized_arms import Quantized, quantized
from smolctl.analysis.selection import study_comparison
from smolctl.analysis.study_plan import Ledger, StudyPlan, read_ledger
from smolctl.studies.ledger import write_ledger
from smollm2.data.tokenizer import tokenizer_fingerprint
from smollm2.files import write_json
from smollm2.model.transformer import SmolLM2
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import DataRef, RunConfig
from smollm2.quantize.quant_config import QuantConfig
from smollm2.runs.create import create_run
from smollm2.runs.manifest import Role, now
from smollm2.runs.run import Run, list_runs
from smollm2.runs.speed_table import SpeedBlock, write_speed

# Parameters of a model that is quantized.
DOCUMENTS = 6  # of the final test of a planted run
FLOORS = {"tokens": 1000, "unigram": 30.0, "trigram": 20.0, "text": "scored"}
COUNTS = {"total": 1000, "active": 1000, "embedding": 200}


def planted(template: Path, name: str, seed: int, loss: float, *, study="s", **changes) -> Run:
    """A run NAME-sSEED of the arm `name` in ./results whose test loss is `loss`, with all that a
    verdict needs: it is planned, has documents, and is better than a trigram.

    Of `changes`, `arm` is another name of the arm, `manifest` is of the manifest itself and `model`
    of the fields of its model; the others are of its protocol.
    """
    path = Path("results") / study / f"{name}-s{seed}"
    shutil.copytree(template, path)
    manifest = json.loads((path / "run.json").read_text())
    manifest |= {"name": path.name, "arm": changes.pop("arm", name), "floors": FLOORS}
    manifest |= changes.pop("manifest", {})
    model = changes.pop("model", {})
    manifest["protocol"] |= {"seed": seed, "data_seed": seed} | changes
    manifest["protocol"]["model"] |= model
    write_json(path / "run.json", manifest)
    run = Run(path)
    for table in ("train", "val"):
        rows = run.rows(table)
        rows[-1]["step"] = manifest["protocol"]["steps"]  # as if it had been so long
        run.replace(table, rows)
    run.replace("eval", [row | {"clusters": DOCUMENTS} for row in run.rows("eval")])
    rescore(run, loss)
    if run.role is Role.FINAL:
        plan_seed(run)
    return run


def plan(study: Path, **changes: Any) -> None:
    """Change what the ledger of a study planned."""
    ledger = read_ledger(study)
    assert ledger is not None
    planned_as = dataclasses.replace(ledger.plan, **changes)
    write_ledger(study, dataclasses.replace(ledger, plan=planned_as))


def plant_tuning(template: Path, arm: str, *, study="s", **changes) -> None:
    """The runs of a tuning of an arm: twice and half its rate are worse by 0.1."""
    recipe = Run(template).manifest["protocol"]["recipe"]
    manifest = {"role": "sweep"} | changes.pop("manifest", {})
    for times in (0.5, 1, 2):
        of_rate = changes | {"recipe": recipe | {"lr": recipe["lr"] * times}}
        for seed in (100, 101, 102):
            name = f"{arm}-tuning{times:g}"
            run = planted(
                template, name, seed, 5.0, study=study, arm=arm, manifest=manifest, **of_rate
            )
            rows = run.rows("val")
            rows[-1]["loss"] = 5.0 if times == 1 else 5.1
            run.replace("val", rows)


def rescore(run: Run, loss: float) -> None:
    """Give a planted run another test loss."""
    rows = run.rows("eval")
    for row in rows:
        if row["metric"] == "loss":
            row["value"] = loss
    run.replace("eval", rows)
    run.replace("documents", document_sums(loss, int(rows[0]["n"])))


def document_sums(loss: float, n_tokens: int) -> list[dict[str, Any]]:
    """documents.csv of `DOCUMENTS` documents of one loss, with `n_tokens` in all."""
    sizes = [n_tokens // DOCUMENTS + (number < n_tokens % DOCUMENTS) for number in range(DOCUMENTS)]
    return [
        {"document": number, "n_tokens": size, "nats": loss * size, "hits": 0}
        | {"text_nats": loss * size, "n_bytes": size}
        for number, size in enumerate(sizes)
    ]


def plan_seed(run: Run) -> None:
    """Add the run to the plan in the ledger of its study, as if it had always been there."""
    before = read_ledger(run.study_path)
    seeds = dict(before.plan.seeds) if before else {}
    seeds[run.arm] = (*seeds.get(run.arm, ()), run.protocol.seed)
    plan = StudyPlan(seeds, (max(map(len, seeds.values())),), None, blocked=False)
    write_ledger(run.study_path, Ledger("2000-01-01", None, plan, {}, ()))


def task_conditions(**changes: Any) -> dict[str, Any]:
    """How the score of a task in eval.csv was made, with `changes`."""
    usual = {"suite": "lm-eval", "shots": 0, "split": "test", "context": 64}
    return usual | {"dtype": "float32", "device": "cpu"} | changes


def plant_weights(
    results: Path, name: str, model: SmolLM2, tokenizer: Tokenizer, dtype: str = "float32"
) -> Run:
    """A finished run of the default study that ended with the weights of `model`, without any
    losses."""
    seq_len = min(64, model.config.max_seq_len)
    request = RunConfig("pow2", steps=1, seq_len=seq_len, device="cpu", dtype=dtype)
    data = DataRef("stories.jsonl", "0" * 16, tokenizer_fingerprint(tokenizer), 10_000)
    protocol = dataclasses.replace(resolve(request, model.config), data=data)
    run = create_run(results, "runs", name, request, protocol, tokenizer)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    run.checkpoints.save(weights, 1, 1.0, is_final=True)
    run.update(state="finished", finished_at=now())
    return run


def plant_quantized(run: Run, **configurations: dict[str, Any]) -> None:
    """quantize.csv of `run`: bf16 and `configurations`, `int4_g64={"loss_delta": 0.01}` say; what
    is not given is as usual at about 5 bits a parameter."""
    total, embedding = (run.manifest["parameters"][name] for name in ("total", "embedding"))
    usual = {"n": 8192, "clusters": 5, "dtype": "bfloat16", "device": "cpu"}
    usual |= {"device_name": "a CPU", "threads": 2}
    usual |= {"fingerprint": "71c1416dbe7b3d39", "loss": 5.0, "status": "ok"}

    def bytes_of(each: float) -> dict[str, float]:
        return {
            f"{where}_bytes{rest}": each * count
            for where in ("disk", "memory")
            for rest, count in (("", total), ("_without_embedding", total - embedding))
        }

    rows = [{"name": "bf16", "bits": 16, "quantized_share": 0, "loss_delta": 0} | usual]
    rows[0] |= bytes_of(2)
    for argument, cells in configurations.items():
        name = argument.replace("_", "-")
        row = {"name": name, **dataclasses.asdict(QuantConfig.of(name))}
        row |= {"quantized_share": 1.0, "loss_delta_stderr": 0.0005}
        rows.append(row | usual | bytes_of(0.625) | cells)
    run.replace("quantize", rows)


def delta(value: float, **cells: Any) -> dict[str, Any]:
    """A configuration that changes the loss by `value`."""
    return {"loss_delta": value} | cells


def kl(value: float, change: float = 0.01, **cells: Any) -> dict[str, Any]:
    """A configuration with this KL divergence, that changes the loss by `change`."""
    return {
        "kl_mean": value,
        "kl_mean_stderr": value / 50,
        "kl_p99": 8 * value,
        "top1_agreement": 0.9,
        "top1_agreement_stderr": 0.01,
        "context": 512,
        "loss_delta": change,
        "loss_delta_stderr": 0.0005,
    } | cells


def found() -> Quantized:
    """What was quantized in study `s`."""
    return quantized(study_comparison("s", list_runs(Path("results"), "s")[0]))


def plant_speed(results: Path, study: str, rates: dict[str, float], rounds: int = 3) -> None:
    """speed.csv of a study in which its arms train at these tokens a second, on a machine that
    becomes slower in every block and a little more so in every round."""
    costs = {
        run.arm: run.manifest["training_flops_per_token"] for run in list_runs(results, study)[0]
    }
    order = [*rates, *reversed(rates)]
    write_speed(
        results / study,
        [
            SpeedBlock(
                *(number, position, arm),
                seconds=1000 / rates[arm] * (1 + 0.001 * number) ** (position * (1 + number)),
                tokens=1000,
                flops=1000 * costs[arm],
                matmul_flops_per_second=1e11,
                repeats=0,
                device_name="a CPU",
                threads=2,
            )
            for number in range(rounds)
            for position, arm in enumerate(order)
        ],
    )
