"""What the commands share: parameters that several of them take, and text that is safe to print."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from captioner.options import GenerationOptions

__all__ = [
    "Device",
    "Dtype",
    "Model",
    "complain",
    "generation_options",
    "in_flags",
    "one_line",
    "takes_generation_options",
    "telling",
]

Model = Annotated[
    str,
    typer.Option(
        help="A name that `captioner models` or `captioner models --all` lists, a checkpoint directory, a "
        "model of the Hugging Face hub: owner/name, or one on a server: http://HOST/v1#NAME, ollama://HOST#NAME."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, float16 or bfloat16; for vision-language models also int4.")
]


def _wording(help_text: str, *names: str) -> Any:
    """One of the options of generation, which stand together in the help; None is the model's own default."""
    return typer.Option(*names, help=help_text, rich_help_panel="Wording (default: the model's own settings)")


def _generation_parameters(
    num_beams: Annotated[int | None, _wording("Beams of the search; 1 is greedy search.", "--beams")] = None,
    alternatives: Annotated[int | None, _wording("How many more captions to give, best first.")] = None,
    prompt: Annotated[str | None, _wording("Words that the caption begins with.")] = None,
    instruction: Annotated[str | None, _wording("What to ask a model that follows instructions.")] = None,
    detail: Annotated[
        Literal["brief", "detailed", "full"] | None,
        _wording("How much to tell, for a model that was trained for each of them."),
    ] = None,
    json_schema: Annotated[
        str | None, _wording("The JSON schema of the answer, of a vision-language model.")
    ] = None,
    stop: Annotated[
        list[str] | None, _wording("A text before which the caption ends; may be repeated.", "--stop")
    ] = None,
    bad_words: Annotated[
        list[str] | None, _wording("A word never to use; may be repeated.", "--bad-word")
    ] = None,
    max_length: Annotated[int | None, _wording("Maximum number of tokens.")] = None,
    min_length: Annotated[int | None, _wording("Minimum number of tokens.")] = None,
    length_penalty: Annotated[
        float | None,
        _wording("Exponent of the length in a beam's score; larger values favour long captions."),
    ] = None,
    early_stopping: Annotated[
        bool | None, _wording("Stop as soon as there are as many captions as beams.", "--early-stopping")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _wording("Above 1, words that were used already become less likely.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, _wording("Never repeat a sequence of this many words.", "--no-repeat-ngram")
    ] = None,
    do_sample: Annotated[bool | None, _wording("Choose the words at random.", "--sample")] = None,
    temperature: Annotated[float | None, _wording("With --sample: below 1 prefers likely words.")] = None,
    top_k: Annotated[
        int | None, _wording("With --sample: choose from the k likeliest words; 0: from all.")
    ] = None,
    top_p: Annotated[
        float | None,
        _wording("With --sample: choose from the likeliest words that together have this probability."),
    ] = None,
    seed: Annotated[int | None, _wording("With --sample: the same seed gives the same captions.")] = None,
    min_confidence: Annotated[
        float | None, _wording("Mark captions that are less likely to be right than this, from 0 to 1.")
    ] = None,
    hedge: Annotated[
        bool | None,
        _wording(
            "Shorten those captions to what is sure; without --min-confidence, those below 0.5.", "--hedge"
        ),
    ] = None,
) -> None:
    """The parameters that :func:`takes_generation_options` adds to a command's own."""


def takes_generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of generation after its own; :func:`generation_options` reads them."""
    own = inspect.signature(command, eval_str=True)
    added = inspect.signature(_generation_parameters, eval_str=True).parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: given[name] for name in own.parameters})

    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[
            *own.parameters.values(),
            *(each.replace(kind=each.KEYWORD_ONLY) for each in added),
        ]
    )
    return run


def generation_options(ctx: typer.Context, *, attention: bool) -> GenerationOptions:
    """Those parameters of the command that bear the names of options.

    Args:
        ctx: of the command.
        attention: whether the command needs to know where the model looked.

    Raises:
        OptionsError: they contradict each other.
    """
    from captioner.options import GenerationOptions

    names = {field.name for field in fields(GenerationOptions)}
    given = {name: value for name, value in ctx.params.items() if name in names and value is not None}
    given |= {name: tuple(given[name]) for name in ("bad_words", "stop") if name in given}
    return GenerationOptions(**{**given, "attention": attention or None})


def in_flags(message: str) -> str:
    """A message of the library with the command line's names: ``--beams`` for ``num_beams``.

    Names without an underscore stay, since they are words as well.
    """
    parameters = inspect.signature(_generation_parameters, eval_str=True).parameters
    for name, parameter in parameters.items():
        if "_" in name:
            (option,) = parameter.annotation.__metadata__
            # Typer takes the first name for a default until it has read the signature
            flag = option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"
            message = re.sub(rf"\b{name}(=True)?\b", flag, message)
    return message


def complain(error: Exception | str) -> None:
    """One line on stderr."""
    print(f"captioner: {one_line(str(error))}", file=sys.stderr, flush=True)


@contextmanager
def telling() -> Iterator[None]:
    """Print what the library has to tell of a download, a line for each on stderr."""
    logger, lines = logging.getLogger("captioner.hub"), _Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def one_line(text: str) -> str:
    """Text with tabs, line breaks and control characters escaped: one line, harmless to any terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
