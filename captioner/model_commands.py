"""The commands ``captioner models`` and ``captioner download``: their options, and what they print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from captioner.commandline import one_line, telling
from captioner.errors import OptionsError

__all__ = ["download", "models"]

HEAD = ("name", "model", "revision", "MB", "licence", "CIDEr", "source", "gives", "here")


def models(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Say what this model can do; anything that --model takes.", show_default=False),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="List models of the Hugging Face hub that have short names.")
    ] = False,
) -> None:
    """List the models that --model knows by name: name, size, directory and description, tab-separated.

    Of one model: its name and description, then what it can give and, where it cannot, why not. With --all:
    the models of the hub that have short names, with what others have published on them.
    """
    from captioner.load import list_models

    if show_all and model is not None:
        raise OptionsError("--all lists many models, and a name asks for one: leave one of them out")
    if show_all:
        _print_catalogue()
        return
    if model is not None:
        captioner = ctx.obj(model, device="cpu", dtype="auto")
        print(captioner.name, one_line(captioner.description), sep="\t")
        for name, reason in captioner.lacks.to_dict().items():
            print(name, *(["yes"] if reason is None else ["no", reason]), sep="\t")
        return
    for each in list_models():
        size = f"{each.megabytes:.0f} MB"
        print(each.name, size, one_line(str(each.path)), one_line(each.description), sep="\t")


def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, as --model takes them.")],
    update: Annotated[
        bool, typer.Option("--update", help="Take what the names stand for now, if that has changed.")
    ] = False,
) -> None:
    """Download models of the Hugging Face hub, so that they load without a network.

    Prints each name and its directory, tab-separated. Each file is checked against the hub's list. If a
    download is stopped, the same command continues it. The commit that came first is kept until --update.
    """
    from captioner.hub import fetch, is_local
    from captioner.load import model_directory, model_name

    with telling():
        for name in names:
            model_name(name)  # a mistyped path is refused, and nobody on the network hears of it
            directory = model_directory(name)
            if not is_local(directory):
                directory = fetch(name, update=update)
            print(name, one_line(str(directory)), sep="\t", flush=True)


def _print_catalogue() -> None:
    from captioner.hub import CATALOGUE, record_of

    rows = []
    for model in CATALOGUE:
        record = record_of(model.name)
        rows.append(
            (
                model.name,
                model.repository,
                record.commit if record else model.revision or "newest",
                str(model.megabytes),
                model.licence,
                "" if model.cider is None else f"{model.cider:.1f}",
                model.source,
                ", ".join(model.gives),
                "yes" if record else "no",
            )
        )
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None)
        for column in HEAD:
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for name, model_id, revision, *others in rows:
            table.add_row(name, model_id, revision[:12], *others)
        Console().print(table)
        return
    for row in (HEAD, *rows):
        print(*row, sep="\t")
