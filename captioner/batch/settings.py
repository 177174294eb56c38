"""Options that several commands on many photographs take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from captioner.batch.export import Format
from captioner.batch.items import Dedupe
from captioner.batch.log import Existing
from captioner.batch.sidecars import CAPTION_FIELD, SidecarKind, SidecarNaming
from captioner.commandline import Device, Dtype, Model, takes_generation_options

__all__ = [
    "BatchOptions",
    "Naming",
    "Prefix",
    "RecordsFile",
    "Suffix",
    "Template",
    "result_option",
    "takes_batch_options",
]


def result_option(help_text: str, *names: str, **among: Any) -> Any:
    """One of the options about what is written, which stand together in the help."""
    return typer.Option(*names, help=help_text, rich_help_panel="Results", **among)


Naming = Annotated[SidecarNaming, result_option("For dog.jpg: dog.xmp (stem) or dog.jpg.xmp (full).")]
Prefix = Annotated[str, result_option("Text before each caption in a text sidecar, such as 'ohwx dog, '.")]
Suffix = Annotated[str, result_option("Text after each caption in a text sidecar.")]
Template = Annotated[str, result_option("Text of a text sidecar; {caption} stands for the caption.")]
RecordsFile = Annotated[
    str,
    typer.Argument(metavar="RECORDS", help="What `captioner batch --output` wrote.", show_default=False),
]


OutputInFolder = Annotated[
    Path | None,
    result_option(
        "File for the records; default: captions.jsonl in the folder.", "--output", "-o", metavar="FILE"
    ),
]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The options of a run, each with what the command line says of it; see :func:`takes_batch_options`."""

    output: Annotated[
        Path,
        result_option(
            "File for the records; an unfinished run there continues.", "--output", "-o", metavar="FILE"
        ),
    ]
    format: Annotated[Format | None, result_option("Format of the output; default: by its suffix.")] = None
    excel: Annotated[bool, result_option("Write a CSV that spreadsheets open as text.", "--excel")] = False
    sidecar: Annotated[SidecarKind | None, result_option("Also write each caption beside its photo.")] = None
    sidecar_name: Naming = "stem"
    prefix: Prefix = ""
    suffix: Suffix = ""
    template: Template = CAPTION_FIELD
    existing: Annotated[Existing, result_option("What to do with records and sidecars that exist.")] = "skip"
    retry_errors: Annotated[
        bool, result_option("Try photos again whose record has an error.", "--retry-errors")
    ] = False
    update: Annotated[
        bool,
        result_option(
            "Caption photos again that were captioned with another model or other options.", "--update"
        ),
    ] = False
    attention: Annotated[
        bool, result_option("Add to each word where the model looked, and its box.", "--attention")
    ] = False
    report: Annotated[
        Path | None,
        result_option("Also write a gallery of the photographs and their captions.", metavar="FILE.html"),
    ] = None
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include folders in folders.")] = False
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names or paths to leave out; may be repeated.")
    ] = None
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Include hidden files, thumbnails and recycle bins.")
    ] = False
    dedupe: Annotated[
        Dedupe | None,
        typer.Option(
            "--dedupe",
            metavar="[bytes|stem]",
            help="Caption identical files only once; with stem, files of one name (RAW and JPEG).",
        ),
    ] = None
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Run on this machine or on a Ray cluster.")
    ] = "local"
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="How many photos go through the model together; default: what is fastest."),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode photos; default: one per core.")
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False
    model: Model = "default"
    device: Device = "auto"
    dtype: Dtype = "auto"


def takes_batch_options(
    *, default_output: Callable[[str], Path] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, which has a parameter ``options``, those of :class:`BatchOptions` and of generation.

    Args:
        default_output: from the command's ``folder``, where the records go unless ``--output`` says it; None
            where that must be said.
    """
    fields = dict(inspect.signature(BatchOptions, eval_str=True).parameters)
    if default_output is not None:
        fields["output"] = fields["output"].replace(default=None, annotation=OutputInFolder)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = dict(inspect.signature(command, eval_str=True).parameters)
        del parameters["options"]

        @wraps(command)
        def run(**given: Any) -> None:
            if given["output"] is None and default_output is not None:
                given["output"] = default_output(given["folder"])
            options = BatchOptions(**{name: given[name] for name in fields})
            command(**{name: given[name] for name in parameters}, options=options)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*parameters.values(), *fields.values()]
        )
        return takes_generation_options(run)

    return decorate
