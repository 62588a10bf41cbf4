"""What torch can compute with here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.models.hardware import describe


def test_the_description_is_plain_data() -> None:
    """It crosses a process boundary and lands in JSON."""
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] >= 1
    assert torch.__version__ == found["torch"]
    assert found["build"].partition(" ")[0] in {"CPU", "CUDA", "ROCm"}


def test_bf16_is_named_exactly_where_the_processor_has_it() -> None:
    """Precision `auto` and the doctor's advice rest on it; the kernel is the other witness."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("this system has no /proc/cpuinfo to compare with")
    flags = {
        word for line in info.splitlines() if line.startswith("flags") for word in line.split()
    }
    if not flags:
        pytest.skip("not an x86 processor")
    assert set(describe()["cpu_bf16"]) == flags & {"avx512_bf16", "amx_bf16"}


def test_our_kernels_are_named_where_they_are_used() -> None:
    """On x86-64 with AVX-512 BF16, by tiles where there are some."""
    found = describe()
    if found["kernels"] is not None:
        assert found["kernels"] in found["cpu_bf16"]


def test_every_gpu_is_named_once() -> None:
    """As torch counts them; none is right, too."""
    found = describe()["accelerators"]
    assert len(found) == torch.cuda.device_count()
    for number, gpu in enumerate(found):
        assert gpu["device"] == f"cuda:{number}"
        assert gpu["memory"] > 2**30
        assert gpu["bf16"] == torch.cuda.is_bf16_supported(including_emulation=False)
