"""`smolctl doctor`: what this machine can do."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smolctl.cli.console import print_facts, print_json, print_table, say
from smolctl.cli.options import Json, Results
from smolctl.command_line import RESULTS
from smolctl.units import size
from smollm2.files import cache_dir
from smollm2.model.config import ModelConfig
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.registry import BACKENDS

EXAMPLES = """
**Examples**

- `smolctl doctor`

- `smolctl doctor --json > machine.json`
"""

# Packages that are imported only when used, and what uses them.
OPTIONAL = {
    **{
        backend.package: f"smolctl quantize --backend {backend.name}"
        for backend in BACKENDS.values()
    },
    "datasets": "--data hub:..., and Parquet and JSONL",
    "transformers": "comparing with the reference",
    "lm-eval": "comparing with the reference",
    "gguf": "GGUF files",
    "tensorboard": "smolctl train --track tensorboard",
    "wandb": "smolctl train --track wandb",
    "trackio": "smolctl train --track trackio",
    "ray": "smolctl study --launch ray",
}


def doctor(results: Results = RESULTS, as_json: Json = False) -> None:
    """Show what this machine can do: devices, speed, quantization, packages, disks.

    It takes seconds: speeds are measured, and every quantization is tried on a tiny model.
    """
    say("Loading torch ...")
    import torch

    from smollm2.device import compiler, devices, environment

    here, cxx = devices(), compiler()
    found: dict[str, Any] = {
        "environment": environment(here[-1]) | {"cuda": torch.version.cuda},
        "compiler": {"name": cxx.name, "runs": cxx.runs, "reason": cxx.reason},
        "devices": [row for device in here for row in speeds(device)],
        "quantizations": [row for device in here for row in quantizations(device)],
        "packages": packages(),
        "folders": [folder("cache", cache_dir()), folder("results", results)],
    }
    if as_json:
        print_json(found)
    else:
        show_facts(found)


def speeds(device: str) -> list[dict[str, Any]]:
    """A device and, for each dtype, how fast it multiplies matrices and copies memory."""
    from smollm2.device import (
        DTYPES,
        device_name,
        has_native_bfloat16,
        matmul_flops_per_second,
        memory_bytes_per_second,
        resolve_dtype,
    )

    say(f"Measuring {device} ...")
    common = {
        "device": device,
        "name": device_name(device),
        "memory_bytes_per_second": memory_bytes_per_second(device),
    }
    return [
        common
        | {
            "dtype": dtype,
            "native": dtype == "float32" or has_native_bfloat16(device),
            "default": dtype == resolve_dtype(None, device),
            "matmul_flops_per_second": matmul_flops_per_second(device, dtype),
        }
        for dtype in DTYPES
    ]


def quantizations(device: str) -> list[dict[str, Any]]:
    """Each quantization, tried on a tiny model; `reason` says why it does not run."""
    import torch

    from smolctl.studies.models import hush
    from smolctl.studies.quantizer import CANNOT_RUN, first_line, require_kernels
    from smollm2.model.transformer import SmolLM2
    from smollm2.quantize.convert import quantize

    say(f"Trying quantizations on {device} ...")
    hush()
    # All groups and tiles divide these widths, so a failure is not due to the shape.
    shape = ModelConfig(d_model=256, n_heads=4, n_kv_heads=4, n_layers=1, d_ff=256, vocab_size=256)
    model = SmolLM2(shape, seed=0).to(device, torch.bfloat16).eval()
    configs = [*QuantConfig().grid(), QuantConfig(method="hqq"), QuantConfig(embedding_bits=4)]
    rows = []
    for config in configs:
        row = {"device": device, "name": config.name, "backend": config.backend}
        try:
            state = quantize(model, config)
            require_kernels(model, config, state)
        except CANNOT_RUN as error:
            rows.append(row | {"runs": False, "reason": first_line(error)})
        else:
            rows.append(row | {"runs": True, "reason": state.summary or None})
    return rows


def packages() -> list[dict[str, Any]]:
    """The packages of `OPTIONAL`, and their versions where installed."""
    rows = []
    for name, purpose in OPTIONAL.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        rows.append({"name": name, "version": installed, "for": purpose})
    return rows


def folder(what: str, path: Path) -> dict[str, Any]:
    """A folder, which need not exist yet, and the free space on its disk."""
    there = next(
        parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
    )
    return {
        "what": what,
        "path": str(path),
        "exists": path.exists(),
        "writable": os.access(there, os.W_OK) and there.is_dir(),
        "free_bytes": shutil.disk_usage(there).free,
    }


def show_facts(found: dict[str, Any]) -> None:
    """Print the tables."""
    machine, cxx = found["environment"], found["compiler"]
    print_facts(
        "This machine",
        [
            ("Python", f"{machine['python']}, {machine['platform']}"),
            ("torch", f"{machine['torch']}, threads: {machine['threads']}"),
            ("smolctl", f"{machine['smolctl']}, commit {machine['git_commit'] or 'not known'}"),
            (
                "--compile",
                f"on a CPU with {cxx['name']}"
                if cxx["runs"]
                else f"not on a CPU: {cxx['name']}: {cxx['reason']}",
            ),
        ],
    )
    print_table(
        "Devices",
        ("device", "name", "dtype", "native", "default", "matmul GFLOP/s", "memory GB/s"),
        (
            (
                row["device"],
                row["name"],
                row["dtype"],
                *("yes" if row[name] else "no" for name in ("native", "default")),
                f"{row['matmul_flops_per_second'] / 1e9:,.0f}",
                f"{row['memory_bytes_per_second'] / 1e9:,.1f}",
            )
            for row in found["devices"]
        ),
        n_words=5,
    )
    print_table(
        "Quantizations",
        ("device", "name", "backend", "runs", "reason"),
        (
            (
                row["device"],
                row["name"],
                row["backend"],
                "yes" if row["runs"] else "no",
                row["reason"] or "–",
            )
            for row in found["quantizations"]
        ),
        n_words=5,
    )
    print_table(
        "Packages",
        ("name", "version", "for"),
        (
            (row["name"], row["version"] or f"– (pip install {row['name']})", row["for"])
            for row in found["packages"]
        ),
        n_words=3,
    )
    print_facts(
        "Folders",
        (
            (
                row["what"],
                f"{row['path']}: {size(row['free_bytes'])} free"
                + ("" if row["writable"] else ", not writable"),
            )
            for row in found["folders"]
        ),
    )
