"""Which photos go through the model together, and when.

There are no threads and no clock here: :mod:`service.worker` has them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Batcher"]

Job = TypeVar("Job")


class Batcher(Generic[Job]):
    """Jobs by key, in the order of their arrival; jobs of one key make a batch.

    A batch is due when it is full or when its first job has waited for the window. Once the window of the
    longest waiting job is over, its batch comes first even if others are full, so no key starves another.

    Args:
        max_batch: jobs in a batch at most.
        window: seconds that a job waits for others.
    """

    def __init__(self, *, max_batch: int, window: float) -> None:
        self.max_batch = max_batch
        self.window = window
        self._groups: dict[Hashable, deque[tuple[float, Job]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, job: Job, *, key: Hashable, now: float) -> None:
        """Queue a job that arrives at ``now``, in seconds of any clock."""
        self._groups.setdefault(key, deque()).append((now, job))

    def due(self, now: float) -> float | None:
        """Seconds until a batch is due, 0 for now; None if nothing waits."""
        if not self._groups:
            return None
        if any(len(group) >= self.max_batch for group in self._groups.values()):
            return 0.0
        return max(0.0, self._oldest()[0][0] + self.window - now)

    def take(self, now: float, *, is_wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and give the batch that is due; empty if none is, or if nobody wants its jobs any more.

        Args:
            now: the time, as for :meth:`add`.
            is_wanted: asked once for each job that is about to join the batch; False drops it, and its place
                goes to the next.
        """
        if self.due(now) != 0.0:
            return []
        group = self._oldest()
        if group[0][0] + self.window > now:
            group = next(group for group in self._groups.values() if len(group) >= self.max_batch)
        batch: list[Job] = []
        while group and len(batch) < self.max_batch:
            _, job = group.popleft()
            if is_wanted(job):
                batch.append(job)
        if not group:
            self._groups = {key: other for key, other in self._groups.items() if other}
        return batch

    def clear(self) -> list[Job]:
        """Remove and give all jobs."""
        jobs = [job for group in self._groups.values() for _, job in group]
        self._groups = {}
        return jobs

    def _oldest(self) -> deque[tuple[float, Job]]:
        """The group whose first job came first."""
        return min(self._groups.values(), key=lambda group: group[0][0])
