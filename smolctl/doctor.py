"""`smolctl doctor`: what this machine can do."""

from pathlib import Path
from typing import Any

from smolctl.options import RESULTS, Json, Results

EXAMPLES = """
**Examples**

- `smolctl doctor`

- `smolctl doctor --json > machine.json`
"""

# What is imported only where it is wanted, and for what.
OPTIONAL = {
    "torchao": "smolctl quantize",
    "bitsandbytes": "smolctl quantize --backend bitsandbytes",
    "datasets": "--data hub:..., and Parquet and JSONL",
    "transformers": "comparing with the reference",
    "lm-eval": "comparing with the reference",
    "gguf": "GGUF files",
    "tensorboard": "smolctl train --track tensorboard",
    "wandb": "smolctl train --track wandb",
    "trackio": "smolctl train --track trackio",
}


def doctor(results: Results = RESULTS, as_json: Json = False) -> None:
    """Say what this machine can do: devices and their speed, quantizations, packages, disks.

    Speeds are measured, and every quantization is tried on a tiny model; it takes seconds.
    """
    from smolctl.console import print_json, say

    say("Loading torch ...")
    import torch

    from smollm2.data.prepare import cache_dir
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
        show(found)


def speeds(device: str) -> list[dict[str, Any]]:
    """What a device is and, for each dtype, how fast it multiplies matrices and copies memory."""
    from smolctl.console import say
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
    """Each kind of quantization, tried on a tiny model; `reason` says why one does not run."""
    import torch

    from smolctl.console import hush, say
    from smolctl.quantizing import CANNOT_RUN, in_words, require_kernels
    from smollm2.config import ModelConfig
    from smollm2.model import SmolLM2
    from smollm2.quantize.config import QuantConfig
    from smollm2.quantize.convert import quantize

    say(f"Trying quantizations on {device} ...")
    hush()
    # Of widths that all groups and tiles divide: what does not run here is not for its shape.
    shape = ModelConfig(d_model=256, n_heads=4, n_kv_heads=4, n_layers=1, d_ff=256, vocab_size=256)
    model = SmolLM2(shape, seed=0).to(device, torch.bfloat16).eval()
    configs = [*QuantConfig().grid(), QuantConfig(method="hqq"), QuantConfig(embedding_bits=4)]
    rows = []
    for config in configs:
        row = {"device": device, "name": config.name, "backend": config.backend}
        try:
            plain = quantize(model, config)
            require_kernels(model, config, plain)
        except CANNOT_RUN as error:
            rows.append(row | {"runs": False, "reason": in_words(error)})
        else:
            rows.append(row | {"runs": True, "reason": plain.summary or None})
    return rows


def packages() -> list[dict[str, Any]]:
    """Of `OPTIONAL`, which are installed."""
    from importlib.metadata import PackageNotFoundError, version

    rows = []
    for name, purpose in OPTIONAL.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        rows.append({"name": name, "version": installed, "for": purpose})
    return rows


def folder(what: str, path: Path) -> dict[str, Any]:
    """A folder, which need not be there yet, and the room on its disk."""
    import os
    import shutil

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


def show(found: dict[str, Any]) -> None:
    """The tables."""
    from smolctl.console import facts, size, table

    machine, cxx = found["environment"], found["compiler"]
    facts(
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
    table(
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
    table(
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
    table(
        "Packages",
        ("name", "version", "for"),
        (
            (row["name"], row["version"] or f"– (pip install {row['name']})", row["for"])
            for row in found["packages"]
        ),
        n_words=3,
    )
    facts(
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
