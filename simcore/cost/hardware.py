"""Peaks of the GPUs that serve: what no kernel can beat, and what a roofline estimate starts from.

Bandwidth, tensor peaks, capacity and links are those of NVIDIA AIConfigurator 0.12.0 (`systems/*.yaml`, Apache-2.0)
where it has the part; the others and all L2 sizes are from NVIDIA's data sheets and architecture white papers.
"""

from __future__ import annotations

import difflib

import msgspec

AICONFIGURATOR = "aiconfigurator-core 0.12.0 systems/*.yaml; L2 from NVIDIA's white papers"
DATA_SHEET = "NVIDIA data sheet and white paper"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's physical limits."""

    name: str
    memory_bytes_per_s: float
    """Peak DRAM bandwidth."""
    tensor_flops_per_s: float
    """Peak dense 16-bit tensor throughput."""
    capacity_bytes: float
    l2_bytes: float
    link_bytes_per_s: float
    """Between GPUs of one host, one direction, per GPU."""
    source: str


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the GPUs of one particular host send each other with, where that is known better than from a data sheet."""

    bytes_per_s: float
    """One direction, per GPU, as it is reached."""
    latency_s: float
    """Latency of one message."""
    source: str


def _gpu(name: str, gb_s: float, tflops: float, gib: float, l2_mb: float, link_gb_s: float, source: str) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes_per_s=gb_s * 1e9,
        tensor_flops_per_s=tflops * 1e12,
        capacity_bytes=gib * 2**30,
        l2_bytes=l2_mb * 2**20,
        link_bytes_per_s=link_gb_s * 1e9,
        source=source,
    )


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("a30", 933, 165, 24, 24, 32, AICONFIGURATOR),
        _gpu("a100", 2039, 312, 80, 40, 300, AICONFIGURATOR),
        _gpu("a100-40gb", 1555, 312, 40, 40, 300, DATA_SHEET),
        _gpu("a800", 2039, 312, 80, 40, 200, DATA_SHEET),
        _gpu("h100", 3350, 989, 80, 50, 450, AICONFIGURATOR),
        _gpu("h200", 4800, 989, 141, 50, 450, AICONFIGURATOR),
        _gpu("l40s", 864, 362.05, 45, 96, 32, AICONFIGURATOR),
        _gpu("l4", 300, 121, 24, 48, 32, DATA_SHEET),
        _gpu("a40", 696, 149.7, 48, 6, 32, DATA_SHEET),
        _gpu("a6000", 768, 154.8, 48, 6, 32, DATA_SHEET),
        _gpu("rtx4090", 1008, 165.2, 24, 72, 32, DATA_SHEET),
        _gpu("rtxpro6000", 1792, 467.8, 95.6, 128, 64, AICONFIGURATOR),
    )
}
"""By name, as in the first half of a profile's name."""


class UnknownHardwareError(ValueError):
    """A GPU or model that the tables here do not know; the message says which come close."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name (`a30`, `H100`, `a100_sxm`). Raises `UnknownHardwareError`."""
    wanted = name.strip().lower().removeprefix("nvidia").strip(" -_").replace("_", "-").removesuffix("-sxm")
    if wanted in GPUS:
        return GPUS[wanted]
    close = difflib.get_close_matches(wanted, GPUS, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UnknownHardwareError(f"no peaks for GPU {name!r}; {hint}known: {', '.join(GPUS)}")
