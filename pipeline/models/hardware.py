"""What the torch at hand can compute with, as plain data that needs no torch to be read."""

from __future__ import annotations

from typing import TypedDict

# Instruction sets that make a lower precision faster than float32, as torch names them.
CPU_BF16 = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
CPU_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm")


class Accelerator(TypedDict):
    """One GPU: its name as torch spells devices (`cuda:0`), what it is, and what it can do."""

    device: str
    model: str
    memory: int  # bytes
    bf16: bool


class Hardware(TypedDict):
    """What torch found."""

    torch: str
    build: str  # "CPU", "CUDA 13.2", "ROCm 7.0"
    threads: int
    cpu_bf16: list[str]
    cpu_int8: list[str]
    kernels: str | None  # our own for bf16: what of the processor they use
    accelerators: list[Accelerator]


def describe() -> Hardware:
    """Import torch and ask it; a few seconds."""
    import torch

    from pipeline.models.native import kernels

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    own = kernels() if capabilities else None
    accelerators: list[Accelerator] = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            accelerators.append(
                {
                    "device": f"cuda:{number}",
                    "model": properties.name,
                    "memory": properties.total_memory,
                    # Before Ampere, bf16 is emulated and slower than float32.
                    "bf16": torch.version.hip is not None or properties.major >= 8,
                }
            )
    build = "CPU"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    elif torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    return {
        "torch": str(torch.__version__),
        "build": build,
        "threads": torch.get_num_threads(),
        "cpu_bf16": [name for name in CPU_BF16 if capabilities.get(name)],
        "cpu_int8": [name for name in CPU_INT8 if capabilities.get(name)],
        "kernels": own.kind if own is not None else None,
        "accelerators": accelerators,
    }
