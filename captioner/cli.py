"""The command line: it parses and prints, and the library does the rest.

Results go to stdout, errors to stderr. The exit status is 0 when all went well, 1 when anything failed, 2 for
wrong usage, 130 after Ctrl-C. Each command imports what it needs itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, get_args

import typer

from captioner.batch.command import batch
from captioner.batch.export_command import export
from captioner.batch.items import Dedupe
from captioner.batch.search_command import search
from captioner.batch.watch_command import watch
from captioner.caption import Caption
from captioner.commandline import (
    Device,
    Dtype,
    Model,
    complain,
    generation_options,
    in_flags,
    one_line,
    takes_generation_options,
    telling,
)
from captioner.compare import caption_paths, compare, print_comparison, write_comparison
from captioner.errors import CaptionerError, ImageError, OptionsError
from captioner.evaluation.benchmark_command import benchmark
from captioner.evaluation.calibrate_command import calibrate
from captioner.evaluation.command import evaluate
from captioner.model_commands import download, models
from captioner.serve import serve
from captioner.training.average_command import average
from captioner.training.command import train

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.options import GenerationOptions, SearchOptions

__all__ = ["app", "main"]

app = typer.Typer(
    name="captioner",
    help="Captions for photographs, and where the model looked for each word.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BatchSize = Annotated[int, typer.Option(min=1, help="How many photographs go through the model together.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Attention = Annotated[
    bool, typer.Option("--attention", help="With --json: where the model looked for each word, and its box.")
]
ShowOptions = Annotated[
    bool,
    typer.Option("--show-options", help="With --json: all options that were used, with those of the model."),
]


class Loader(Protocol):
    """What finds a model by name: :func:`captioner.load`, or a test's own."""

    def __call__(self, name_or_path: str, /, *, device: str, dtype: str) -> Captioner:
        """Raises CheckpointError or DeviceError."""


def main(argv: Sequence[str] | None = None, *, load: Loader | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; None for the process's own.
        load: what finds a model; None for :func:`captioner.load`.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may hold bytes that are no UTF-8
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # of damaged files, which have a line of ours
    try:
        args = _with_dedupe_value(sys.argv[1:] if argv is None else argv)
        app(args=args, prog_name="captioner", obj=load or _load)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OptionsError as error:
        complain(in_flags(str(error)))
        return 2
    except CaptionerError as error:
        complain(error)
        return 1
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        complain(f"{place}{error.strerror or error}")
        return 1
    raise AssertionError("typer ends a command by SystemExit")


def _with_dedupe_value(argv: Sequence[str]) -> list[str]:
    """``--dedupe`` alone means ``--dedupe bytes``; Typer has no options whose value may be left out."""
    words: list[str] = []
    for word, following in zip_longest(argv, argv[1:]):
        words += [word, "bytes"] if word == "--dedupe" and following not in get_args(Dedupe) else [word]
    return words


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"captioner {version('captioner')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Typer's place for options that stand before the command."""


@app.command()
@takes_generation_options
def caption(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Photographs.", show_default=False)],
    model: Model = "default",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    as_json: Json = False,
    attention: Attention = False,
    show_options: ShowOptions = False,
    heatmap: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Draw where the model looked, as .png or .html; may be repeated."),
    ] = None,
    comparing: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MODEL,MODEL…",
            help="Caption by several models, and print their captions side by side; each is what --model "
            "takes, or NAME=MODEL.",
        ),
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --compare: an .html page of it, too.")
    ] = None,
) -> None:
    """Caption photographs. Print one line for each: its path, a tab and its caption."""
    if comparing is not None:
        source = ctx.get_parameter_source("model")
        if heatmap or show_options or (source and source.name == "COMMANDLINE"):
            raise OptionsError("--compare goes with neither --model nor --heatmap nor --show-options")
        compared = [text.strip() for text in comparing.split(",")]
        if not all(compared):
            raise OptionsError(f"--compare {comparing!r} names a model of no name: give MODEL,MODEL")
        load = partial(ctx.obj, device=device, dtype=dtype)
        given = generation_options(ctx, attention=attention or report is not None)
        well = _compare(compared, load, paths, given, batch_size, as_json=as_json, report=report)
        raise typer.Exit(0 if well else 1)
    if report is not None:
        raise OptionsError("--report goes with --compare: for one model, use `captioner batch --report`")
    heatmaps = heatmap or []
    if heatmaps:
        from captioner.heatmap import check_heatmap_path, write_heatmap
        from captioner.image import decode_image
    for file in heatmaps:
        check_heatmap_path(file)
    given = generation_options(ctx, attention=attention or bool(heatmaps))
    captioner = ctx.obj(model, device=device, dtype=dtype)
    options = captioner.resolve(given)
    captions: list[tuple[str, Caption]] = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        for path, result in zip(batch, caption_paths(captioner, batch, options), strict=True):
            _print_result(path, result, options if show_options else None, as_json=as_json)
            if isinstance(result, Caption):
                captions.append((path, result))
    for file in heatmaps if captions else ():
        write_heatmap(file, ((decode_image(path).pixels, result) for path, result in captions))
        print(f"captioner: where the model looked: {one_line(file)}", file=sys.stderr)
    raise typer.Exit(0 if len(captions) == len(paths) else 1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A directory or a model of the hub.")],
    dest: Annotated[Path, typer.Argument(help="A new directory for the converted checkpoint.")],
) -> None:
    """Convert a BLIP, Florence-2, ViT-GPT2 or similar checkpoint of Hugging Face to Captioner's format."""
    from captioner.convert import convert as run

    with telling():
        checkpoint = run(source, dest)
    print(one_line(str(dest)), one_line(checkpoint.description), sep="\t")


for command in (
    models,
    download,
    batch,
    export,
    search,
    watch,
    train,
    average,
    evaluate,
    calibrate,
    benchmark,
    serve,
):
    app.command()(command)


def _load(name_or_path: str, /, *, device: str, dtype: str) -> Captioner:
    """Load a model, and have the garbage collector pass over torch from then on.

    Its hundreds of thousands of objects live as long as the process. The collector would search them several
    times during the import and once more at exit, which takes a quarter of the time of one caption.
    """
    from captioner import load

    gc.disable()
    try:
        with telling():
            return load(name_or_path, device=device, dtype=dtype)
    finally:
        gc.enable()
        gc.freeze()


def _compare(
    models: Sequence[str],
    load: Callable[[str], Captioner],
    paths: Sequence[str],
    options: GenerationOptions,
    batch_size: int,
    *,
    as_json: bool,
    report: str | None,
) -> bool:
    """Print what several models say, and write a page of it; whether all went well."""
    from captioner.load import named_models
    from captioner.report import check_report_path

    if report is not None:
        check_report_path(report)
    chosen = named_models(models)
    found = compare(chosen, load, paths, options, batch_size=batch_size)
    well = [print_comparison(comparison, as_json=as_json) for comparison in found]
    if report is not None:
        write_comparison(report, found)
        print(f"captioner: the captions side by side: {one_line(report)}", file=sys.stderr)
    return all(well)


def _print_result(
    path: str, result: Caption | CaptionerError, shown: SearchOptions | None, *, as_json: bool
) -> None:
    if isinstance(result, Caption):
        data = result.to_dict()
        if shown:
            data["options"] = shown.to_dict()
        if result.warning:
            complain(f"{path}: {result.warning}")
    else:
        reason = result.reason if isinstance(result, ImageError) else str(result)
        complain(f"{path}: {reason}")
        data = {"file": path, "error": reason}
    if as_json:
        print(json.dumps(data, ensure_ascii=False), flush=True)
    elif isinstance(result, Caption):
        doubt = ["not sure"] if result.uncertain else []
        print(one_line(path), result.caption, *doubt, sep="\t", flush=True)
