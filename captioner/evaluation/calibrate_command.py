"""The command ``captioner calibrate``: which photographs, where the numbers go, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.commandline import Device, Dtype, Model
from captioner.errors import OptionsError
from captioner.evaluation.command import Json, progress_bar

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.evaluation.calibrate import CalibrationResult

__all__ = ["calibrate"]


def calibrate(
    ctx: typer.Context,
    images: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder of photographs; repeat both for more sets.")
    ],
    captions: Annotated[list[Path], typer.Option(metavar="COCO.json", help="What people wrote about them.")],
    model: Model = "default",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a calibrated copy here; needed unless --model is a directory."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many photographs of each set.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photographs that go through together.")] = 32,
    as_json: Json = False,
) -> None:
    """Fit a checkpoint's confidence to photographs that it was not trained on, a few hundred at least.

    From then on a word's confidence is the probability that some of five people who describe the photograph
    say it, and a caption's that they say all its content words. Printed is how good that is on photographs
    of each set that are not fitted to: each half is judged by a fit to the other.
    """
    from captioner.coco import CocoCaptions
    from captioner.evaluation.calibrate import calibrate as run

    if len(images) != len(captions):
        raise OptionsError(
            "give --images and --captions once for each photo set, "
            f"not {len(images)} and {len(captions)} times"
        )
    target = _target(model, output)
    sets = [(folder, CocoCaptions.from_file(path)) for folder, path in zip(images, captions, strict=True)]
    captioner = ctx.obj(model, device=device, dtype=dtype)
    if captioner.checkpoint is None:
        raise OptionsError(
            f"{model} has no checkpoint in Captioner's format to write to: it cannot be calibrated"
        )
    with progress_bar() as progress:
        result = run(captioner, sets, limit=limit, batch_size=batch_size, progress=progress)
    _write(captioner, result, target, is_copy=output is not None)
    _print(result, captions, target, as_json=as_json)


def _target(model: str, output: Path | None) -> Path:
    """Where the calibration goes; OptionsError where it may not."""
    from captioner.checkpoint import read_config
    from captioner.load import list_models

    if output is not None:
        if output.exists():
            raise OptionsError(f"{output} is there already: give a new directory")
        return output
    if model in {known.name for known in list_models()} or not Path(model).is_dir():
        raise OptionsError(f"{model!r} is no directory of yours: give --output DIR for a calibrated copy")
    read_config(Path(model))
    return Path(model)


def _write(captioner: Captioner, result: CalibrationResult, target: Path, *, is_copy: bool) -> None:
    from captioner.checkpoint import save_checkpoint, write_calibration

    if is_copy:
        assert captioner.checkpoint is not None
        save_checkpoint(replace(captioner.checkpoint, calibration=result.calibration), target)
    else:
        write_calibration(target, result.calibration)


def _print(result: CalibrationResult, captions: list[Path], target: Path, *, as_json: bool) -> None:
    from captioner.evaluation.command import print_figures

    if as_json:
        held_out = [
            {"captions": str(path), **scores.to_dict()}
            for path, scores in zip(captions, result.held_out, strict=True)
        ]
        print(json.dumps({"calibration": result.calibration.to_dict(), "held_out": held_out}))
        return
    for path, scores in zip(captions, result.held_out, strict=True):
        judged = (
            "fitted to other photographs" if scores.words else "one caption a photo is too few to judge by"
        )
        print(f"{path}: {judged}")
        print_figures(scores.to_dict())
    print("written to", target, sep="\t")
