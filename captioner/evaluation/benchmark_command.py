"""The command ``captioner benchmark``: its options, and what it prints as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.commandline import Device, Dtype, Model
from captioner.errors import OptionsError
from captioner.evaluation.command import Beams, Json
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.evaluation.benchmark import BenchmarkResult, Comparison

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
            help="Measure all combinations instead, for example "
            "'batch=1,32 beams=1,5 length=16 dtype=float32,bfloat16'.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="With --grid: also draw images per second.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each measurement is repeated.")] = 10,
    device: Device = "auto",
    dtype: Dtype = "auto",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model's speed and memory on generated photographs, in turns with what it is compared to."""
    if against not in (None, "transformers"):
        raise OptionsError(f"--against takes transformers, not {against!r}")
    if grid is not None and against is not None:
        raise OptionsError("--grid measures this library alone: leave out --against")
    if plot is not None and grid is None:
        raise OptionsError(f"--plot {plot} draws a grid: add --grid, such as --grid 'batch=1,8,32'")
    if markdown and as_json:
        raise OptionsError("give --markdown or --json, not both")

    def load(number: str | None) -> Captioner:
        wanted = number or dtype
        return (
            ctx.obj(model, device=device, dtype=wanted) if random is None else _random(random, device, wanted)
        )

    options = GenerationOptions(num_beams=num_beams)
    if grid is not None:
        _measure_grid(load, grid, options, repeats, plot, markdown=markdown, as_json=as_json)
        return
    from captioner.evaluation.benchmark import benchmark as run

    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        raise OptionsError(f"--batch-sizes takes numbers such as 1,8,32, not {batch_sizes!r}") from None
    captioner, table = load(None), _Table(markdown=markdown, head=("measure", "result"))
    with _progress() as progress:
        result = run(
            captioner,
            options=options,
            batch_sizes=sizes,
            repeats=repeats,
            against_transformers=against is not None,
            progress=progress,
            found=lambda found: None if as_json else table.add_all(_lines(found)),
        )
    if as_json:
        print(json.dumps(result.to_dict()))


def _measure_grid(
    load: Callable[[str | None], Captioner],
    text: str,
    options: GenerationOptions,
    repeats: int,
    plot: Path | None,
    *,
    markdown: bool,
    as_json: bool,
) -> None:
    from captioner.evaluation.grid import measure_grid, parse_grid, plot_grid
    from captioner.evaluation.reliability import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    grid, cells = parse_grid(text), []
    head = ("batch", "beams", "length", "dtype", "encode ms", "step ms", "products ms", "images/s")
    table = None if as_json else _Table(markdown=markdown, head=head, show_head=True)
    with _progress() as progress:
        for cell in measure_grid(
            load, grid, lambda captioner: captioner.resolve(options), repeats=repeats, progress=progress
        ):
            cells.append(cell)
            if table is None:
                print(json.dumps(cell.to_dict()), flush=True)
            else:
                numbers = (cell.encode_ms, cell.step_ms, cell.products_ms, cell.images_per_second)
                table.add(
                    (
                        str(cell.batch),
                        str(cell.beams),
                        str(cell.length),
                        cell.dtype,
                        *(f"{n:.4g}" for n in numbers),
                    )
                )
    if plot is not None:
        plot_grid(plot, cells, title="images per second")


class _Table:
    """Rows that are printed as they come, once each, apart by tabs or as Markdown."""

    def __init__(self, *, markdown: bool, head: tuple[str, ...], show_head: bool = False) -> None:
        self._markdown, self._rows = markdown, 0
        if markdown or show_head:
            self._print(head)
        if markdown:
            self._print(("---",) * len(head))

    def add(self, row: tuple[str, ...]) -> None:
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
    if result.peak_memory_mb:
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

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def progress(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"captioner: {title} ({done + 1} of {total})", highlight=False, soft_wrap=True)

        yield progress
