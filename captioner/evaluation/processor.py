"""Which processor a measurement was taken on."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

__all__ = ["Processor", "find_processor"]

# Those that decide how fast matrices are multiplied, under the names that PyTorch gives them.
_X86 = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16")
_ARM = ("neon", "fp16_arith", "bf16", "i8mm", "sve", "sve2", "sve_bf16", "sme", "sme2")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A CPU.

    Attributes:
        name: as its maker calls it, or its architecture where that is not known.
        instruction_sets: for vectors and matrices, such as ``avx512_f`` or ``amx_bf16``.
    """

    name: str
    instruction_sets: tuple[str, ...]


def find_processor() -> Processor:
    """The CPU of this machine, as PyTorch detects it.

    Older releases of PyTorch tell only which one instruction set their own kernels use.
    """
    unnamed = platform.processor() or platform.machine()
    if not hasattr(torch.cpu, "get_capabilities"):
        return Processor(name=unnamed, instruction_sets=(torch.backends.cpu.get_cpu_capability().lower(),))
    found = torch.cpu.get_capabilities()
    return Processor(
        name=str(found.get("cpu_name") or unnamed),
        instruction_sets=tuple(name for name in (*_X86, *_ARM) if found.get(name)),
    )
