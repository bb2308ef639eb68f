"""The machine: its devices and dtypes, their speed, and the environment of a run."""

import contextlib
import ctypes
import functools
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smollm2._version import __version__
from smollm2.errors import UserError

DEVICES = ("cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str | None) -> str:
    """`cpu`, `cuda` or `mps`; None takes CUDA if there is one.

    Raises:
        UserError: the device is unknown, or this machine does not have it.
    """
    available = devices()
    if name is None:
        return "cuda" if "cuda" in available else "cpu"
    if name not in DEVICES:
        raise UserError(f"Unknown device {name!r}; choose {', '.join(DEVICES)}.", field="device")
    if name not in available:
        raise UserError(
            f"This machine has no {name} device; omit `device` or use cpu.", field="device"
        )
    return name


def devices() -> list[str]:
    """The devices of `DEVICES` that this machine has."""
    is_here = (True, torch.cuda.is_available(), torch.backends.mps.is_available())
    return [name for name, here in zip(DEVICES, is_here, strict=True) if here]


def resolve_dtype(name: str | None, device: str) -> str:
    """`float32` or `bfloat16`; None takes bfloat16 where the device multiplies it natively.

    Raises:
        UserError: the dtype is unknown.
    """
    if name is None:
        return "bfloat16" if has_native_bfloat16(device) else "float32"
    names = {"fp32": "float32", "bf16": "bfloat16"} | {dtype: dtype for dtype in DTYPES}
    if name not in names:
        raise UserError(f"Unknown dtype {name!r}; choose fp32 or bf16.", field="dtype")
    return names[name]


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler; `reason` says why it cannot compile a file with Python's headers."""

    name: str
    reason: str | None

    @property
    def runs(self) -> bool:
        return self.reason is None


def compiler() -> Compiler:
    """The compiler that torch would call for a CPU."""
    return tried_compiler(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


@functools.cache
def tried_compiler(name: str) -> Compiler:
    """The compiler, after it has compiled a small file."""
    words = shlex.split(name)  # such as `ccache g++`
    if not words or shutil.which(words[0]) is None:
        return Compiler(name, "not found; install it, or set CXX")
    done = subprocess.run(
        [*words, "-fsyntax-only", "-x", "c++", f"-I{sysconfig.get_path('include')}", "-"],
        input="#include <Python.h>\n#include <vector>\n",
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip().splitlines() or ["it fails without a message"]
    return Compiler(name, said[0] if done.returncode else None)


def has_native_bfloat16(device: str) -> bool:
    """Whether the device computes in bf16 without emulation."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def synchronize(device: str) -> None:
    """Wait until the device has finished, so that a clock can be read."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def peak_memory_mb(device: str) -> float:
    """Peak memory so far in MB (10^6 bytes): of the GPU's allocator, or of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # Linux; ru_maxrss may be the peak of the parent process
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")  # the standard library has no such number
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def reset_peak_memory(device: str) -> None:
    """Reset `peak_memory_mb`, where the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # memory of an earlier model that the allocator holds must not count
    with contextlib.suppress(OSError):  # Linux only, and not in every container
        Path("/proc/self/clear_refs").write_text("5")


def machine_bytes(device: str) -> float:
    """Bytes of the GPU's memory, or of the machine's and its swap space; infinite if unknown."""
    if device == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return memory + swap_bytes()
    return math.inf


def swap_bytes() -> int:
    """Bytes of swap space; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("SwapTotal:"):
                return int(line.split()[1]) * 1024
    return 0


@functools.cache
def matmul_flops_per_second(device: str, dtype: str) -> float:
    """What `matmul_rate_now` gave when this process first asked."""
    return matmul_rate_now(device, dtype)


def matmul_rate_now(device: str, dtype: str) -> float:
    """FLOP/s of a large square matrix product, measured at each call; best of five."""
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(DTYPES[dtype])
    b = torch.randn(n, n, device=device).to(DTYPES[dtype])
    return float(2 * n**3 / best_seconds(lambda: a @ b, device))


def memory_bytes_per_second(device: str) -> float:
    """B/s of copying 256 MB, reads plus writes; best of five.

    Only the caches of the largest servers hold that much.
    """
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return float(2 * source.nbytes / best_seconds(lambda: target.copy_(source), device))


def best_seconds(work: Callable[[], object], device: str) -> float:
    """The shortest of five runs of `work`, after one to warm up."""
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def environment(device: str) -> dict[str, Any]:
    """Everything a measurement may depend on: versions, device, threads, commit."""
    return {
        "smolctl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor and its number of cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None if it is installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None
