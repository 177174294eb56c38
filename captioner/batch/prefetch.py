"""Work ahead in threads, in order, so far and no further."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    work: Callable[[T], R], inputs: Iterable[T], *, workers: int, ahead: int
) -> Generator[tuple[T, R]]:
    """Each input with what ``work`` makes of it, in order.

    Threads are enough for photographs: Pillow decodes and resizes, and hashlib hashes, without the
    interpreter's lock. They give way to the caller's thread, which feeds the model: on Linux by a lower
    priority.

    Args:
        work: what to do, in ``workers`` threads; what it raises is raised here, at its input's place.
        inputs: taken in the caller's thread, at most ``ahead`` before they are asked for.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch", initializer=_give_way) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in inputs:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > ahead:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 5)
