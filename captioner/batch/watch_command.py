"""The command ``captioner watch``: what is in a folder and what arrives there, until it is told to end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.batch.items import Item
from captioner.batch.job import Job
from captioner.batch.settings import BatchOptions, takes_batch_options
from captioner.batch.signals import Signals
from captioner.commandline import complain, generation_options
from captioner.errors import DataError, OptionsError

if TYPE_CHECKING:
    from captioner.batch.log import RecordLog

__all__ = ["Settling", "Watch", "watch"]


@takes_batch_options(default_output=lambda folder: Path(folder, "captions.jsonl"))
def watch(
    ctx: typer.Context,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where photographs are and arrive.", show_default=False)
    ],
    options: BatchOptions,
    poll: Annotated[
        bool, typer.Option("--poll", help="Look for changes every second, as a network folder needs it.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0.1, help="Seconds for which a file must not have changed before it is read.")
    ] = 1.0,
) -> None:
    """Caption what is in a folder and then what arrives, until Ctrl-C. The same command goes on later."""
    if options.engine == "ray":
        raise OptionsError("captioner watch runs on this machine: leave out --engine ray")
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder that can be watched")
    job = Job(options, [folder])
    job.load(ctx.obj, generation_options(ctx, attention=job.needs_attention))
    with job.open_log() as log, Signals() as signals:
        if not options.quiet:
            complain(f"watching {folder}; Ctrl-C ends it")
        changes = _changes(folder, signals, recursive=options.recursive, poll=poll, seconds=settle)
        Watch(job, log, folder, Settling(settle), stop=signals.is_set).run(changes)
    if signals.received:
        complain("stopped; the same command goes on")
        raise typer.Exit(128 + signals.received)


class Settling:
    """Tells which files stand still: one that is being copied is no photograph yet.

    Args:
        seconds: for which size and time of modification must be the same.
        clock: gives seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._seen: dict[str, tuple[tuple[int, int] | None, float]] = {}  # and since when

    def is_settled(self, path: str) -> bool:
        """Whether a file is what it was ``seconds`` ago, when this was asked as well."""
        try:
            status = os.stat(path)
            version = (status.st_size, status.st_mtime_ns)
        except OSError:
            version = None
        seen, since = self._seen.get(path, (None, self.clock()))
        if path not in self._seen or seen != version:
            self._seen[path] = (version, self.clock())
            return False
        return self.clock() - since >= self.seconds

    def forget(self) -> None:
        """Nothing is waited for any more."""
        self._seen.clear()


class Watch:
    """Runs a job again and again: first over all of a folder, then over what is new or has changed in it.

    Args:
        job: whose model is loaded.
        log: of the job, open.
        folder: of the job.
        settling: decides which files are whole.
        stop: asked after each batch and each change whether to end.
    """

    def __init__(
        self, job: Job, log: RecordLog, folder: str, settling: Settling, *, stop: Callable[[], bool]
    ) -> None:
        self.job, self.log, self.folder = job, log, folder
        self.settling, self.stop = settling, stop
        self._is_first = True
        self._waits = True  # whether there may be a file that does not stand still yet

    def run(self, changes: Iterable[object]) -> None:
        """Caption until ``stop``, or until there are no more changes.

        Args:
            changes: gives something true when something in the folder has changed, and now and then
                something false, so that files can be seen to stand still.

        Raises:
            DataError: the folder, or a file of the job, is gone or has been changed by somebody else.
            CaptionerError: the model cannot go on; what was done is written.
        """
        for item in self.job.find():  # a first look
            if not self.log.is_current(item):
                self.settling.is_settled(item.path)
        for changed in changes:
            if self.stop():
                return
            if not os.path.isdir(self.folder):
                raise DataError(f"{self.folder} is not there any more; the same command goes on when it is")
            if changed or self._waits:
                self._pass()

    def _pass(self) -> None:
        """Caption what stands still."""
        from captioner.batch.progress import ProgressReport

        left_out: Counter[str] = Counter()
        items: Iterable[Item] = self._ready(self.job.find(left_out=left_out))
        find: Callable[[], Iterable[Item]] = self.job.find
        if not self._is_first:
            items = found = list(items)
            if not found:
                return
            find = found.copy
            self._check_files()
        with ProgressReport(find, quiet=self.job.options.quiet) as progress:
            counts = self.job.run(items, self.log, stop=self.stop, progress=progress.update)
        if len(self.log):  # or else a table would stay behind without its records
            self.job.outputs.write(self.log, self.job.find(), stopped=counts.stopped)
        counts.left_out = left_out if self._is_first else Counter()
        progress.summary(counts)
        self._is_first = False

    def _ready(self, items: Iterable[Item]) -> Iterator[Item]:
        """What is to be captioned now; the first time also what has been, for sidecars and the summary."""
        self._waits = False
        for item in items:
            if self.log.is_current(item):
                if self._is_first:
                    yield item
            elif self.settling.is_settled(item.path):
                yield item
            else:
                self._waits = True
        if not self._waits:
            self.settling.forget()

    def _check_files(self) -> None:
        """Add nothing to a file that has gone, and replace no table that somebody has changed."""
        self.log.check()
        self.job.outputs.check("skip")


def _changes(
    folder: str, stop: Signals, *, recursive: bool, poll: bool, seconds: float
) -> Iterator[Iterable[object]]:
    """The changes in a folder as they come, and an empty set where there are none for some seconds."""
    from watchfiles import watch as changes_of

    try:
        yield from changes_of(
            folder,
            watch_filter=None,
            rust_timeout=round(1000 * seconds),
            yield_on_timeout=True,
            stop_event=stop,
            recursive=recursive,
            force_polling=poll or None,
            poll_delay_ms=1000,
            ignore_permission_denied=True,
        )
    except (OSError, RuntimeError) as error:  # as where a user may not watch as many folders
        raise DataError(f"{folder} cannot be watched: {error}; --poll needs less of the system") from error
