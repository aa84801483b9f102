"""Whether a processor gains from bfloat16."""

import time
from functools import lru_cache

import torch

from .stacks import Precision


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision in which a device would only get slower.

    On a CPU the products of a typical update are timed in both types. What the processor says of itself would not do:
    torch names AVX512 alone, the flags differ between makers and systems, and a virtual machine or an environment
    variable may withhold the units from oneDNN, which then emulates them at half the speed of float32.

    :param precision: of :class:`~.stacks.StackedMLP`
    :param device: where networks will live
    :raises ValueError: bfloat16 would not be faster there
    """
    if precision == "bfloat16" and not _gains(device.type):
        has = "GPU has no bfloat16 units" if device.type == "cuda" else "processor multiplies bfloat16 more slowly"
        has = has if device.type in ("cpu", "cuda") else f"gain on {device.type!r} devices is unknown"
        raise ValueError(
            f"precision='bfloat16' would only slow training down: this {has} "
            "(CPUs with AVX512-BF16 or AMX and GPUs since NVIDIA's Ampere have them); use precision='float32'"
        )


@lru_cache
def _gains(device_type: str) -> bool:
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return False
    exact = torch.ones(2, 256, 256)
    rounded = exact.bfloat16()
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(12):  # in turn, and the least of each, so that a busy machine does not decide
        for factor in (exact, rounded):
            start = time.perf_counter()
            torch.bmm(factor, factor)
            best[factor.dtype] = min(best[factor.dtype], time.perf_counter() - start)
    return best[torch.bfloat16] < best[torch.float32]
