"""The command ``captioner serve``: its options, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; by default 8000; 0 takes a free one.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `captioner models` or `captioner models --all` lists, a checkpoint directory, "
            "a model of the hub, or one on a server."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or mps; cuda:0,cuda:1: a process on each; all: on every GPU."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option("--allow-anonymous", help="Accept requests from other machines without API keys."),
    ] = None,
) -> None:
    """Serve captions over HTTP, with a web page. CAPTIONER_* variables hold the other settings."""
    settings = {
        "host": host,
        "port": port,
        "model": model,
        "device": device,
        "dtype": dtype,
        "allow_anonymous": allow_anonymous,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    # By name, since the library knows nothing of the service, which is a layer above it
    import_module("service.server").run(given, ctx.obj)
