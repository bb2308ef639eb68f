"""The facts that `smolctl runs show` prints."""

from typing import Any

from smolctl.cli.flags import with_flags
from smolctl.cli.run_list import finite_number
from smolctl.studies.targets import unfinished
from smolctl.units import count, size
from smollm2.runs.conditions import CONDITIONS, describe, error_of
from smollm2.runs.run import Run

NUMBERS = ("value", "stderr", "n", "total", "clusters", "chance")
WHOLE_NUMBERS = ("shots", "context")


def eval_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of eval.csv, with numeric columns parsed; None for a cell that is not a number."""
    return [
        row | {"stderr": error_of(row)}
        for row in (
            row
            | {key: finite_number(row.get(key)) for key in NUMBERS}
            | {key: whole_number(row.get(key)) for key in WHOLE_NUMBERS}
            for row in run.rows("eval")
        )
    ]


def whole_number(text: str | None) -> int | None:
    """The digits in a cell of a table; None if it holds anything else."""
    return int(text) if text and text.isdecimal() else None


def run_facts(run: Run) -> list[tuple[str, str]]:
    """The manifest as readable facts."""
    protocol, manifest = run.protocol, run.manifest
    model, n_parameters = protocol.model, manifest["parameters"]
    experts = f", {model.n_active_experts} of {model.n_experts} experts" if model.is_moe else ""
    machine = manifest["environment"]
    pairs = [
        (
            "model",
            f"{protocol.variant}, {protocol.scale}: {n_parameters['total']:,} parameters, "
            f"{n_parameters['active']:,} active, {n_parameters['embedding']:,} in the embedding",
        ),
        (
            "shape",
            f"width {model.d_model}, {model.n_heads} heads ({model.n_kv_heads} of keys and "
            f"values), {model.n_layers} layers, d_ff {model.d_ff}{experts}, vocabulary "
            f"{model.vocab_size:,}, context {model.max_seq_len:,}",
        ),
        *(imported_facts(run) if run.is_imported else training_facts(run)),
        (
            "versions",
            f"smolctl {machine['smolctl']} ({machine['git_commit'] or 'no commit'}), "
            f"torch {machine['torch']}, Python {machine['python']}, {machine['platform']}",
        ),
        ("created", manifest["created_at"]),
        ("files", f"{run.home}, {size(run.disk_bytes)}"),
    ]
    return [(name, str(text)) for name, text in pairs if text]


def imported_facts(run: Run) -> list[tuple[str, str | None]]:
    """The source of an imported model."""
    source = run.manifest["source"]
    return [("state", f"imported from {source['name']} ({source['dtype']})")]


def training_facts(run: Run) -> list[tuple[str, str | None]]:
    """How a run is trained, and how far it is."""
    protocol, manifest = run.protocol, run.manifest
    recipe, data, machine = protocol.recipe, protocol.data, manifest["environment"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in recipe.rates.items())
    tokens = protocol.steps * protocol.tokens_per_step
    return [
        ("state", f"finished at {manifest['finished_at']}" if run.is_finished else unfinished(run)),
        ("error", manifest["error"] and with_flags(manifest["error"])),
        (
            "data",
            data
            and f"{data.source}: {data.train_tokens:,} training tokens (fingerprint "
            f"{data.fingerprint}, tokenizer {data.tokenizer_fingerprint})",
        ),
        (
            "recipe",
            f"{manifest['request']['recipe']}: {recipe.optimizer}, {recipe.schedule}, "
            f"{rates}, weight decay {recipe.weight_decay:g}",
        ),
        (
            "horizon",
            f"{protocol.steps:,} steps of {protocol.tokens_per_step:,} tokens "
            f"({recipe.grad_accum} × {protocol.micro_batch_size} sequences of "
            f"{protocol.seq_len}): {count(tokens)} tokens, "
            f"{protocol.steps * protocol.flops_per_step:.2e} FLOPs",
        ),
        (
            "seeds",
            f"weights {protocol.seed}, order of the data {protocol.data_seed}"
            + (f" from batch {protocol.batch_offset:,}" if protocol.batch_offset else ""),
        ),
        ("started from", manifest["started_from"]),
        ("arm", f"{run.arm} ({manifest['role']}, equal {manifest['equal']})"),
        (
            "machine",
            f"{machine['device_name']}, {protocol.device}, {protocol.dtype}, "
            f"threads: {machine['threads']}" + (", compiled" if protocol.compile else ""),
        ),
    ]


def score_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of eval.csv as it is printed."""
    how = describe({name: "–" if row.get(name) is None else row[name] for name in CONDITIONS})
    words = (row.get("task") or "–", how, row.get("metric") or "–")
    value, error = (
        "–" if row[name] is None else f"{row[name]:.4f}" for name in ("value", "stderr")
    )
    n, total = ("–" if row[name] is None else f"{row[name]:,.0f}" for name in ("n", "total"))
    return (*words, value, error, n, total, row.get("fingerprint") or "–")
