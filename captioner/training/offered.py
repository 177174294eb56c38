"""The fields of TrainingOptions as options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer

from captioner.training.options import Offered, TrainingOptions

__all__ = ["setting", "takes_training_options"]


def setting(help_text: str, *, usual: object = None, tuned: object = None, **bounds: Any) -> Any:
    """One of the options of the recipe, which stand together in the help.

    Not to be given is None. Args: the help, the default, that with --init if it is another, and the bounds.
    """
    shown = f"{usual}" if tuned is None else f"{usual}; with --init {tuned}"
    hidden = usual is None or isinstance(usual, bool)
    return typer.Option(
        help=help_text, rich_help_panel="Recipe", show_default=False if hidden else shown, **bounds
    )


def takes_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let the command line offer what TrainingOptions marks; the command gets them all as ``options``.

    What is not given has its default, which depends on whether the command's ``init`` is given.
    """
    own = inspect.signature(command, eval_str=True)
    added, marked = [], get_type_hints(TrainingOptions, include_extras=True)
    for field in fields(TrainingOptions):
        kind = get_type_hints(TrainingOptions)[field.name]
        for mark in get_args(marked[field.name]):
            if isinstance(mark, Offered):
                option = setting(mark.help, usual=field.default, tuned=mark.tuned, min=mark.min, max=mark.max)
                parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY)
                added.append(parameter.replace(default=None, annotation=Annotated[kind | None, option]))

    @wraps(command)
    def run(**given: Any) -> None:
        recipe = {each.name: given.pop(each.name) for each in added}
        known = {name: value for name, value in recipe.items() if value is not None}
        make = TrainingOptions if given["init"] is None else TrainingOptions.tuned
        command(**given, options=make(**known))

    kept = [each for name, each in own.parameters.items() if name != "options"]
    run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return run
