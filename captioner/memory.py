"""Memory that tensors gave back: kept for the next ones, or freed with the model that they were of."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["free_unloaded", "keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h


def keep_freed_memory(*, all_of_it: bool = False) -> None:
    """Stop glibc from giving memory back to the kernel that the next step wants again.

    On a CPU each large tensor is otherwise fresh memory, whose pages the kernel clears one by one: that takes
    as long as the arithmetic. Does nothing where the C library is not glibc.

    Args:
        all_of_it: keep all that was ever used, as training wants it; else up to 256 MB, and blocks above
            32 MB (a decoded photo, say) go back at once.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if all_of_it:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)
    else:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**28)


def free_unloaded() -> None:
    """Free what the parts of a model that nobody holds any more keep alive of each other, also on the GPU."""
    import torch

    gc.unfreeze()  # the command line keeps the collector off what was loaded
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
