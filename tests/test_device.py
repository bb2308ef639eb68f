"""What the machine is asked: peak memory."""

import sys

import pytest
import torch

from smollm2.device import peak_memory_mb, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset a peak")
def test_a_reset_peak_excludes_memory_freed_before():
    blocks = [torch.ones(20_000) for _ in range(2_000)]  # 160 MB, each too small for a map
    assert sum(len(block) for block in blocks) == 40_000_000
    before = peak_memory_mb("cpu")
    del blocks
    reset_peak_memory("cpu")
    assert peak_memory_mb("cpu") < before - 100
