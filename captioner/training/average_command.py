"""The command ``captioner average``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import OptionsError

__all__ = ["average"]


def average(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the checkpoint goes.")],
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[=WEIGHT]...", help="Directories or names, and the share of each; default: 1."
        ),
    ],
    pointer: Annotated[
        float, typer.Option(min=0, help="Factor on the words that the decoder copies from the tags.")
    ] = 1.0,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=32,
            max=1024,
            help="Size at which the model sees photos; default: as before.",
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror", help="Also look at the mirror image of each photo; default: as before."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Description for `captioner models`.")] = "",
) -> None:
    """Average the weights of models that were trained from one: epochs of a run, or several runs."""
    from captioner.checkpoint import save_checkpoint
    from captioner.load import model_directory
    from captioner.training.average import average as run

    counted = []
    for text in models:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            counted.append((model_directory(name), float(weight)))
        except ValueError:
            raise OptionsError(f"{text}: {weight!r} is no number: write MODEL or MODEL=0.5") from None
    mean = run(counted, pointer=pointer, image_size=image_size, mirror=mirror, description=description)
    save_checkpoint(mean, output)
    print(output)
