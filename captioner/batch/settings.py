"""Options that several commands on many photographs take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from captioner.batch.sidecars import SidecarNaming

__all__ = ["Naming", "Prefix", "RecordsFile", "Suffix", "Template", "result_option"]


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
