"""The command ``captioner batch``: one run over photographs, from what it finds to its exit status."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer

from captioner.batch.finding import NEEDED, say_what_is_needed
from captioner.batch.items import Item
from captioner.batch.job import Job
from captioner.batch.settings import BatchOptions, takes_batch_options
from captioner.batch.signals import Signals
from captioner.commandline import complain, generation_options
from captioner.errors import DataError

__all__ = ["batch"]


@takes_batch_options()
def batch(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Photographs, folders, globs, .tar shards and .txt lists of paths; - reads such a list.",
            show_default=False,
        ),
    ],
    options: BatchOptions,
) -> None:
    """Caption many photographs into one file. If a run is stopped, the same command continues it."""
    from captioner.batch.progress import ProgressReport

    job = Job(options, inputs, stdin=_read_stdin() if "-" in inputs else b"")
    given = generation_options(ctx, attention=job.needs_attention)
    _check_there_is_any(inputs, job.find)
    job.load(ctx.obj, given)
    left_out: Counter[str] = Counter()
    with job.open_log() as log:
        with Signals() as signals, ProgressReport(job.find, quiet=options.quiet) as progress:
            counts = job.run(job.find(left_out=left_out), log, stop=signals.is_set, progress=progress.update)
        job.outputs.write(log, job.find(), stopped=counts.stopped)
    counts.left_out = left_out
    progress.summary(counts)
    if signals.received:
        complain("stopped; the same command goes on")
    raise typer.Exit(128 + signals.received if signals.received else int(bool(counts.errors)))


def _read_stdin() -> bytes:
    return sys.stdin.buffer.read() if sys.stdin else b""  # which some that start processes close


def _check_there_is_any(inputs: Sequence[str], find: Callable[..., Iterator[Item]]) -> None:
    """Say that there is nothing to do before a model is loaded and a file is made."""
    left_out: Counter[str] = Counter()
    if next(find(left_out=left_out), None) is None:
        advice = list(say_what_is_needed(left_out))
        advice += ["--all-files takes hidden files, thumbnails and bins"] if left_out.keys() - NEEDED else []
        advice += ["--recursive looks into folders in folders"]
        raise DataError(f"no photographs in {' '.join(inputs)}; {'; '.join(advice)}")
