"""The command line: it parses and prints, and the library does the rest.

Results go to stdout, errors to stderr. The exit status is 0 when all went well, 1 when anything failed, 2 for
wrong usage, 130 after Ctrl-C. Each command imports what it needs itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from captioner.caption import Caption
from captioner.errors import CaptionerError, ImageError, OptionsError
from captioner.evaluation.command import benchmark, evaluate
from captioner.serve import serve
from captioner.training.command import train

if TYPE_CHECKING:
    from captioner.captioner import Captioner, PreparedImage
    from captioner.options import GenerationOptions

__all__ = ["app", "main"]

app = typer.Typer(
    name="captioner",
    help="Captions for photographs, and where the model looked for each word.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Option(help="A name that `captioner models` lists, a checkpoint directory, or one of the hub.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Photographs that go through the model together.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Attention = Annotated[
    bool, typer.Option("--attention", help="With --json: where the model looked for each word, and its box.")
]


def _wording(help_text: str, *names: str) -> Any:
    """One of the options of generation, which stand together in the help; None is the model's own default."""
    return typer.Option(*names, help=help_text, rich_help_panel="Wording (by default as suits the model)")


Beams = Annotated[int | None, _wording("Beams of the search; 1 is greedy.", "--beams")]
Alternatives = Annotated[int | None, _wording("Further captions to give, best first.")]
Prompt = Annotated[str | None, _wording("Words that the caption begins with.")]
BadWords = Annotated[list[str] | None, _wording("A word never to use; may be repeated.", "--bad-word")]
MaxLength = Annotated[int | None, _wording("Tokens at most.")]
MinLength = Annotated[int | None, _wording("Tokens at least.")]
LengthPenalty = Annotated[float | None, _wording("Exponent of the length in a beam's score; more is longer.")]
EarlyStopping = Annotated[bool | None, _wording("Stop once each beam has ended.", "--early-stopping")]
RepetitionPenalty = Annotated[float | None, _wording("Above 1, words already used become less likely.")]
NoRepeatNgram = Annotated[
    int | None, _wording("Never say so many words in a row twice.", "--no-repeat-ngram")
]
Sample = Annotated[bool | None, _wording("Draw the words at random.", "--sample")]
Temperature = Annotated[float | None, _wording("With --sample: below 1 is tamer.")]
TopK = Annotated[int | None, _wording("With --sample: from the k likeliest words; 0: from all.")]
TopP = Annotated[
    float | None, _wording("With --sample: from the likeliest words of this probability together.")
]
Seed = Annotated[int | None, _wording("With --sample: draw the same again.")]


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
    try:
        app(args=argv, prog_name="captioner", obj=load or _load)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (CaptionerError, OSError) as error:
        _complain(error)
        return 2 if isinstance(error, OptionsError) else 1
    raise AssertionError("typer ends a command by SystemExit")


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
def caption(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Photographs.", show_default=False)],
    model: Model = "default",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    as_json: Json = False,
    attention: Attention = False,
    heatmap: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Draw where the model looked: .png or .html; may be repeated."),
    ] = None,
    num_beams: Beams = None,
    alternatives: Alternatives = None,
    prompt: Prompt = None,
    bad_words: BadWords = None,
    max_length: MaxLength = None,
    min_length: MinLength = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgram = None,
    do_sample: Sample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
) -> None:
    """Caption photographs: a line for each, its path, a tab and its caption."""
    from captioner.heatmap import check_heatmap_path, write_heatmap
    from captioner.image import decode_image

    heatmaps = heatmap or []
    for file in heatmaps:
        check_heatmap_path(file)
    captioner = ctx.obj(model, device=device, dtype=dtype)
    options = _generation_options(ctx, captioner)
    options = replace(options, attention=options.attention or attention or bool(heatmaps))
    captions: list[tuple[str, Caption]] = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        for path, result in zip(batch, _caption_batch(captioner, batch, options), strict=True):
            _print_result(path, result, as_json=as_json)
            if isinstance(result, Caption):
                captions.append((path, result))
    for file in heatmaps if captions else ():
        write_heatmap(file, ((decode_image(path).pixels, result) for path, result in captions))
        print(f"captioner: where the model looked: {_one_line(file)}", file=sys.stderr)
    raise typer.Exit(0 if len(captions) == len(paths) else 1)


@app.command()
def models() -> None:
    """List the models that --model knows by name: name, size, directory and description, tab-separated."""
    from captioner import list_models

    for model in list_models():
        size = f"{model.megabytes:.0f} MB"
        print(model.name, size, _one_line(str(model.path)), _one_line(model.description), sep="\t")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A directory, or a model of the hub: owner/name[@revision].")],
    dest: Annotated[Path, typer.Argument(help="A new directory for the converted checkpoint.")],
) -> None:
    """Convert a Hugging Face checkpoint, BLIP or ViT-GPT2, to our format."""
    from captioner.convert import convert as run

    checkpoint = run(source, dest)
    print(_one_line(str(dest)), _one_line(checkpoint.description), sep="\t")


for command in (train, evaluate, benchmark, serve):
    app.command()(command)


def _load(name_or_path: str, /, *, device: str, dtype: str) -> Captioner:
    from captioner import load

    return load(name_or_path, device=device, dtype=dtype)


def _generation_options(ctx: typer.Context, captioner: Captioner) -> GenerationOptions:
    """The model's defaults, changed by those parameters of the command that bear the names of options."""
    names = {field.name for field in fields(captioner.default_options)}
    given = {name: value for name, value in ctx.params.items() if name in names and value is not None}
    if "bad_words" in given:
        given["bad_words"] = tuple(given["bad_words"])
    return replace(captioner.default_options, **given)


def _prepare(captioner: Captioner, path: str) -> PreparedImage | ImageError:
    if Path(path).is_dir():
        return ImageError(path, "is a folder; caption what is in it with `captioner batch`")
    try:
        return captioner.prepare(path)
    except ImageError as error:
        return error


def _caption_batch(
    captioner: Captioner, paths: Sequence[str], options: GenerationOptions
) -> list[Caption | ImageError]:
    """A caption for each path, or why there is none."""
    prepared = [_prepare(captioner, path) for path in paths]
    good = [image for image in prepared if not isinstance(image, ImageError)]
    captions = iter(captioner.caption_prepared(good, options) if good else ())
    return [image if isinstance(image, ImageError) else next(captions) for image in prepared]


def _print_result(path: str, result: Caption | ImageError, *, as_json: bool) -> None:
    if isinstance(result, ImageError):
        _complain(result)
        data: dict[str, Any] = {"file": path, "error": result.reason}
    else:
        data = result.to_dict()
    if as_json:
        print(json.dumps(data, ensure_ascii=False), flush=True)
    elif isinstance(result, Caption):
        print(_one_line(path), result.caption, sep="\t", flush=True)


def _complain(error: Exception) -> None:
    print(f"captioner: {_one_line(str(error))}", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    """Text with tabs, line breaks and control characters escaped: one line, harmless to any terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
