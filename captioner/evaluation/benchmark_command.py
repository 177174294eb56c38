"""The command ``captioner benchmark``: its options, and what it prints as soon as it is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.commandline import Device, Dtype, Model
from captioner.errors import DeviceError, OptionsError
from captioner.evaluation.command import Beams
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.evaluation.benchmark import BenchmarkResult, Comparison
    from captioner.evaluation.grid import Cell, Grid

__all__ = ["benchmark"]


def benchmark(
    ctx: typer.Context,
    model: Model = "default",
    random: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use an untrained blip-base or vit-gpt2 of its real size instead."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="transformers", help="Also run the same weights with that library.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N…", help="Batch sizes to measure.")] = "1,8,32",
    num_beams: Beams = None,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="'AXIS=V,V… …'",
            help="Measure all combinations instead, for example 'batch=1,32 beams=1,5 length=16 "
            "dtype=float32,bfloat16 runner=captioner,transformers'. An axis that is left out is as the other "
            "options and the model's own settings say.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="With --grid: also draw images per second.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each measurement is repeated.")] = 10,
    device: Device = "auto",
    dtype: Dtype = "auto",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --grid, one a line.")
    ] = False,
) -> None:
    """Measure a model's speed and memory on generated photographs, in turns with what it is compared to."""
    if against not in (None, "transformers"):
        raise OptionsError(f"--against takes transformers, not {against!r}")
    if grid is not None and against is not None:
        raise OptionsError("with --grid, write runner=captioner,transformers into it instead of --against")
    if random is not None and model != "default":
        raise OptionsError(f"give --random {random} or --model {model}, not both")
    if plot is not None and grid is None:
        raise OptionsError(f"--plot {plot} draws a grid: add --grid, such as --grid 'batch=1,8,32'")
    if markdown and as_json:
        raise OptionsError("give --markdown or --json, not both")

    from captioner.evaluation.grid import Grid, parse_grid, parse_numbers

    def load(number: str) -> Captioner:
        return (
            ctx.obj(model, device=device, dtype=number) if random is None else _random(random, device, number)
        )

    options, sizes = GenerationOptions(num_beams=num_beams), parse_numbers(batch_sizes, "--batch-sizes")
    with _telling_of_memory():
        if grid is None:
            _measure(load(dtype), options, sizes, repeats, against, markdown=markdown, as_json=as_json)
        else:
            combinations = parse_grid(grid, Grid(batch=sizes, dtype=(dtype,)))
            _measure_grid(load, combinations, options, repeats, plot, markdown=markdown, as_json=as_json)


def _measure(
    captioner: Captioner,
    options: GenerationOptions,
    batch_sizes: tuple[int, ...],
    repeats: int,
    against: str | None,
    *,
    markdown: bool,
    as_json: bool,
) -> None:
    from captioner.evaluation.benchmark import benchmark as run

    table = _Table(markdown=markdown, head=("measure", "result"))
    latest: list[BenchmarkResult] = []

    def found(result: BenchmarkResult) -> None:
        latest[:] = [result]
        if not as_json:
            table.add_all(_lines(result))

    try:
        with _progress() as progress:
            run(
                captioner,
                options=options,
                batch_sizes=batch_sizes,
                repeats=repeats,
                against_transformers=against is not None,
                progress=progress,
                found=found,
            )
    finally:  # also what is known when something ends it early
        if as_json and latest:
            print(json.dumps(latest[0].to_dict()))


def _measure_grid(
    load: Callable[[str], Captioner],
    grid: Grid,
    options: GenerationOptions,
    repeats: int,
    plot: Path | None,
    *,
    markdown: bool,
    as_json: bool,
) -> None:
    from captioner.evaluation.grid import AXES, measure_grid, plot_grid
    from captioner.evaluation.reliability import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    figures = ("encode ms", "step ms", "products ms", "images/s")
    table = _Table(markdown=markdown, head=(*AXES, *figures), show_head=True)
    cells: list[Cell] = []

    try:
        with _progress() as progress:
            for cell in measure_grid(load, grid, options, repeats=repeats, progress=progress):
                cells.append(cell)
                if as_json:
                    print(json.dumps(cell.to_dict()), flush=True)
                else:
                    table.add(tuple(map(_shown, cell.to_dict().values())))
    finally:  # also what is known when something ends it early
        if plot is not None and cells:
            plot_grid(plot, cells, title="images per second")


def _shown(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _telling_of_memory() -> Iterator[None]:
    """Say in a line that memory ran out, which a large batch may well cause."""
    from captioner.load import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError("memory ran out: leave out the largest batch sizes, and lengths") from error


class _Table:
    """Rows that are printed as they come, once each, apart by tabs or as Markdown, after the head."""

    def __init__(self, *, markdown: bool, head: tuple[str, ...], show_head: bool = False) -> None:
        self._markdown, self._rows, self._head = markdown, 0, head
        self._show_head = show_head or markdown

    def add(self, row: tuple[str, ...]) -> None:
        if self._show_head and not self._rows:
            self._print(self._head)
            if self._markdown:
                self._print(("---",) * len(self._head))
        self._rows += 1
        self._print(row)

    def add_all(self, rows: Iterable[tuple[str, ...]]) -> None:
        """Those of them that are new."""
        for row in list(rows)[self._rows :]:
            self.add(row)

    def _print(self, row: tuple[str, ...]) -> None:
        print(f"| {' | '.join(row)} |" if self._markdown else "\t".join(row), flush=True)


def _lines(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    """What is known so far, in the order in which it is measured."""
    stages = result.stages_ms
    yield "model", f"{result.model}, {result.num_beams} beams"
    if result.dtype is None:
        yield "device", f"the server {result.device}"
    else:
        yield "device", f"{result.device}, {result.dtype}, {result.threads} threads"
        yield "processor", ", ".join((result.processor, *result.instruction_sets))
    yield "one photo", f"{result.latency_p50_ms:.1f} ms, p95 {result.latency_p95_ms:.1f} ms"
    if stages is not None:
        yield (
            "its stages",
            f"prepare {stages.prepare:.1f} ms, encode {stages.encode:.1f} ms, search {stages.search:.1f} ms",
        )
    for size, speed in result.images_per_second.items():
        yield f"batch of {size}", f"{speed:.1f} images/s"
    for size, step in result.steps_ms.items():
        times = f"{step.step:.2f} ms, {step.ratio:.2f} times its bare products' {step.products:.2f} ms"
        yield f"step for {size}", times
    if result.tokens_per_second is not None:
        yield "decode loop", f"{result.tokens_per_second:.0f} tokens/s, {result.tokens:.1f} tokens a caption"
    if result.peak_memory_mb and result.dtype is not None:
        yield "peak memory", f"{result.peak_memory_mb:.0f} MB"
    if result.comparisons:
        yield "against", f"transformers {result.transformers}, {result.scope}, the same weights"
    for each in result.comparisons:
        yield from _comparison(each)


def _comparison(each: Comparison) -> Iterator[tuple[str, str]]:
    speeds = f"{each.images_per_second:.2f} and {each.transformers_images_per_second:.2f} images/s"
    yield (
        f"batch of {each.batch_size}",
        f"{each.ratio:.2f} times as fast: {speeds}, {each.same:.0%} of the captions the same",
    )
    search = f"{each.search_ms:.1f} and {each.transformers_search_ms:.1f} ms"
    parts = f"search {each.search_ratio:.2f} times as fast: {search}"
    if each.transformers_encode_ms is not None:
        parts += f"; encoder {each.encode_ms:.1f} and {each.transformers_encode_ms:.1f} ms"
    yield "apart", parts


def _random(name: str, device: str, dtype: str) -> Captioner:
    from captioner.captioner import Captioner
    from captioner.evaluation.architectures import random_checkpoint
    from captioner.load import resolve_device, resolve_dtype
    from captioner.runners import CheckpointRunner

    checkpoint, on = random_checkpoint(name), resolve_device(device)
    checkpoint.model.to(on, resolve_dtype(dtype, on))
    return Captioner(CheckpointRunner(checkpoint), name=checkpoint.description)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """What is measured, on stderr: a bar with the time left where that is a terminal, else a line each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=2,  # to draw it takes time from what is measured
        redirect_stdout=sys.stdout.isatty(),  # results go above the bar, but into a file where one is meant
    ) as bar:
        task = bar.add_task("", total=None)

        def progress(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"captioner: {title} ({done + 1} of {total})", highlight=False, soft_wrap=True)

        yield progress
