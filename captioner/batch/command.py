"""The command ``captioner batch``: its options, and what it puts together for a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captioner.batch.export import Format, check_format, write_table
from captioner.batch.items import find_items, read_list
from captioner.batch.log import Existing, RecordLog
from captioner.batch.remote import is_remote
from captioner.batch.sidecars import SidecarKind, SidecarNaming, Sidecars
from captioner.commandline import Device, Dtype, Model, complain, generation_options, takes_generation_options
from captioner.errors import DataError, OptionsError

if TYPE_CHECKING:
    from captioner.batch.engine import BatchCaptioner, Engine

__all__ = ["batch"]


def _results(help_text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel="Results", **settings)


@takes_generation_options
def batch(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Photographs, folders, globs, .tar shards, .txt lists of paths; - for a list on stdin.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, _results("Where records go; a run that ended there goes on.", "--output", "-o", metavar="FILE")
    ],
    format: Annotated[Format | None, _results("Of the output; by default as its suffix says.")] = None,
    sidecar: Annotated[SidecarKind | None, _results("Also write each caption beside its photo.")] = None,
    sidecar_name: Annotated[
        SidecarNaming, _results("For dog.jpg: dog.xmp (stem) or dog.jpg.xmp (full).")
    ] = "stem",
    existing: Annotated[Existing, _results("What becomes of records and sidecars that are there.")] = "skip",
    retry_errors: Annotated[
        bool, _results("Caption anew what has a record with an error.", "--retry-errors")
    ] = False,
    attention: Annotated[
        bool, _results("Where the model looked for each word, and its box.", "--attention")
    ] = False,
    report: Annotated[
        Path | None, _results("A gallery of the photographs and their captions.", metavar="FILE.html")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Enter folders in folders.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names or paths to leave out; may be repeated.")
    ] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Caption photos of equal bytes once.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="What does the work: this machine, or a Ray cluster.")
    ] = "local",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Photos together in the model; by default what is fastest.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; by default a core each.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    model: Model = "default",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Caption many photographs into one file; after a kill or a crash, the same command goes on."""
    from captioner.batch.engine import BatchCaptioner
    from captioner.batch.progress import ProgressReport
    from captioner.batch.run import run_batch
    from captioner.report import check_report_path, write_report

    kind = format or _format_of(output)
    check_format(kind)
    if report is not None:
        check_report_path(report)
    records = output if kind == "jsonl" else output.with_name(f"{output.name}.jsonl")
    ours = {os.path.abspath(path) for path in (output, records, report) if path}
    names = list(_with_stdin(inputs))
    if sidecar and any(map(is_remote, names)):
        raise OptionsError("sidecars stand beside photographs of this machine: leave out --sidecar for a URI")
    find = partial(find_items, names, recursive=recursive, exclude=exclude or (), ignore=ours)
    options = generation_options(ctx, attention=attention or report is not None)
    here = "cpu" if engine == "ray" else device  # the cluster's nodes have the devices
    captioner = ctx.obj(model, device=here, dtype=dtype)
    worker, sizes = BatchCaptioner(captioner, options), {"batch_size": batch_size, "workers": workers}
    work = _make_engine(engine, worker, device=device, dtype=dtype, **sizes)
    writer = Sidecars(sidecar, existing=existing, naming=sidecar_name) if sidecar else None
    with _open_log(output, records, existing, retry_errors) as log:
        with _Signals() as signals, ProgressReport(find, quiet=quiet) as progress:
            counts = run_batch(
                find(),
                work,
                log,
                sidecars=writer,
                dedupe=dedupe,
                stop=signals.stop,
                progress=progress.update,
            )
        if kind != "jsonl" and log.in_place:
            write_table(output, log, kind)
        if report is not None and not counts.stopped:
            write_report(report, ((item.source, log[item.key]) for item in find() if item.key in log))
    progress.summary(counts)
    if signals.received:
        complain("stopped; the same command goes on")
    elif not counts.done:
        raise DataError(f"no photographs in {' '.join(inputs)}; --recursive looks into folders in folders")
    raise typer.Exit(128 + signals.received if signals.received else int(bool(counts.errors)))


def _make_engine(
    name: str,
    captioner: BatchCaptioner,
    *,
    device: str,
    dtype: str,
    batch_size: int | None,
    workers: int | None,
) -> Engine:
    from captioner.batch.local import LocalEngine
    from captioner.batch.ray_engine import RayEngine

    if name == "local":
        return LocalEngine(captioner, batch_size=batch_size, workers=workers)
    return RayEngine(captioner, device=device, dtype=dtype, batch_size=batch_size, workers=workers)


def _format_of(output: Path) -> Format:
    formats: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}
    return formats.get(output.suffix.lower(), "jsonl")


def _with_stdin(inputs: Iterable[str]) -> Iterator[str]:
    for name in inputs:
        if name == "-":
            yield from read_list(sys.stdin.buffer.read())
        else:
            yield name


def _open_log(output: Path, records: Path, existing: Existing, retry_errors: bool) -> RecordLog:
    if output.exists() and not records.exists() and existing != "overwrite":
        raise DataError(
            f"{output} is there, but not {records.name}, from which a run goes on: choose another output, "
            "or --existing overwrite"
        )
    return RecordLog(records, existing=existing, retry_errors=retry_errors)


class _Signals:
    """Remembers Ctrl-C or SIGTERM instead of dying of it; a second one is obeyed at once.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        complain("stopping after this batch; once more stops at once")
