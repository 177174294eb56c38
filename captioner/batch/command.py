"""The command ``captioner batch``: its options, and what it puts together for a run."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captioner.batch.export import Format
from captioner.batch.items import NEEDED, Dedupe, Item, find_items, say_what_is_needed
from captioner.batch.log import Existing
from captioner.batch.origin import made_with
from captioner.batch.outputs import Outputs
from captioner.batch.remote import is_remote
from captioner.batch.settings import Naming, Prefix, Suffix, Template, result_option
from captioner.batch.sidecars import CAPTION_FIELD, SidecarKind, Sidecars, text_form
from captioner.commandline import Device, Dtype, Model, complain, generation_options, takes_generation_options
from captioner.errors import DataError, OptionsError

if TYPE_CHECKING:
    from captioner.batch.engine import BatchCaptioner, Engine

__all__ = ["batch"]


@takes_generation_options
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
    output: Annotated[
        Path,
        result_option(
            "File for the records; an unfinished run there continues.", "--output", "-o", metavar="FILE"
        ),
    ],
    format: Annotated[Format | None, result_option("Format of the output; default: by its suffix.")] = None,
    excel: Annotated[bool, result_option("Write a CSV that spreadsheets open as text.", "--excel")] = False,
    sidecar: Annotated[SidecarKind | None, result_option("Also write each caption beside its photo.")] = None,
    sidecar_name: Naming = "stem",
    prefix: Prefix = "",
    suffix: Suffix = "",
    template: Template = CAPTION_FIELD,
    existing: Annotated[Existing, result_option("What to do with records and sidecars that exist.")] = "skip",
    retry_errors: Annotated[
        bool, result_option("Try photos again whose record has an error.", "--retry-errors")
    ] = False,
    update: Annotated[
        bool,
        result_option(
            "Caption photos again that were captioned with another model or other options.", "--update"
        ),
    ] = False,
    attention: Annotated[
        bool, result_option("Add to each word where the model looked, and its box.", "--attention")
    ] = False,
    report: Annotated[
        Path | None,
        result_option("Also write a gallery of the photographs and their captions.", metavar="FILE.html"),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include folders in folders.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names or paths to leave out; may be repeated.")
    ] = None,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Include hidden files, thumbnails and recycle bins.")
    ] = False,
    dedupe: Annotated[
        Dedupe | None,
        typer.Option(
            "--dedupe",
            metavar="[bytes|stem]",
            help="Caption identical files only once; with stem, files of one name (RAW and JPEG).",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Run on this machine or on a Ray cluster.")
    ] = "local",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="How many photos go through the model together; default: what is fastest."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode photos; default: one per core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
    model: Model = "default",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Caption many photographs into one file. If a run is stopped, the same command continues it."""
    from captioner.batch.engine import BatchCaptioner
    from captioner.batch.progress import ProgressReport
    from captioner.batch.run import run_batch

    outputs = Outputs(output=output, format=format or _format_of(output), excel=excel, report=report)
    form = text_form(sidecar, template, prefix, suffix, option="--sidecar")
    if sidecar and any(map(is_remote, inputs)):
        raise OptionsError("sidecars stand beside photographs of this machine: leave out --sidecar for a URI")
    outputs.check(existing)
    options = generation_options(ctx, attention=attention or report is not None)
    stdin = sys.stdin.buffer.read() if "-" in inputs else b""
    among: dict[str, Any] = {"recursive": recursive, "all_files": all_files, "exclude": exclude or ()}
    find = partial(find_items, inputs, stdin=stdin, ignore=outputs.paths, **among)
    _check_there_is_any(inputs, find)
    here = "cpu" if engine == "ray" else device  # the cluster's nodes have the devices
    captioner = ctx.obj(model, device=here, dtype=dtype)
    worker, sizes = BatchCaptioner(captioner, options), {"batch_size": batch_size, "workers": workers}
    work = _make_engine(engine, worker, device=device, dtype=dtype, **sizes)
    origin = {"model": captioner.name, **made_with(model, worker.options)}
    beside: dict[str, Any] = {
        "existing": existing,
        "naming": sidecar_name,
        "form": form,
        "ours": outputs.paths,
    }
    writer = Sidecars(sidecar, **beside) if sidecar else None
    left_out: Counter[str] = Counter()
    with outputs.open_log(existing, retry_errors=retry_errors) as log:
        with _Signals() as signals, ProgressReport(find, quiet=quiet) as progress:
            counts = run_batch(
                find(left_out=left_out),
                work,
                log,
                origin=origin,
                update=update,
                sidecars=writer,
                dedupe=dedupe,
                stop=signals.stop,
                progress=progress.update,
            )
        outputs.write(log, find(), stopped=counts.stopped)
    counts.left_out = left_out
    progress.summary(counts)
    if signals.received:
        complain("stopped; the same command goes on")
    raise typer.Exit(128 + signals.received if signals.received else int(bool(counts.errors)))


def _check_there_is_any(inputs: Sequence[str], find: Callable[..., Iterator[Item]]) -> None:
    """Say that there is nothing to do before a model is loaded and a file is made."""
    left_out: Counter[str] = Counter()
    if next(find(left_out=left_out), None) is None:
        advice = list(say_what_is_needed(left_out))
        advice += ["--all-files takes hidden files, thumbnails and bins"] if left_out.keys() - NEEDED else []
        advice += ["--recursive looks into folders in folders"]
        raise DataError(f"no photographs in {' '.join(inputs)}; {'; '.join(advice)}")


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
