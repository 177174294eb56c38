"""How cost grows: a model measured over a grid of batch sizes, beams, lengths, number types and runners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from captioner.captioner import Captioner
from captioner.errors import OptionsError
from captioner.evaluation.measure import Measurements, Parts
from captioner.evaluation.twin import Twin, build_twin, check_twin
from captioner.load import DTYPES
from captioner.options import GenerationOptions, SearchOptions

__all__ = ["AXES", "RUNNERS", "Cell", "Grid", "measure_grid", "parse_grid", "parse_numbers", "plot_grid"]

RUNNERS = ("captioner", "transformers")
_NAMES = {"dtype": DTYPES, "runner": RUNNERS}
AXES = ("batch", "beams", "length", *_NAMES)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to measure: all combinations.

    Attributes:
        batch: photos together.
        beams: of the search; empty for the model's own number.
        length: tokens of every caption; empty for the longest that the model's own settings allow.
        dtype: number types, as :func:`captioner.load` takes them.
        runner: ``captioner`` is our own encoder and decode loop, ``transformers`` the same weights there;
            empty for the first that can run the model.
    """

    batch: tuple[int, ...] = (1, 8, 32)
    beams: tuple[int, ...] = ()
    length: tuple[int, ...] = ()
    dtype: tuple[str, ...] = ("auto",)
    runner: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        batch: photos together.
        beams: of the search.
        length: tokens of every caption: none ends early.
        dtype: number type.
        runner: what ran the model.
        encode_ms: the image encoder for the batch, median. None where the runner has none, and ours runs
            before its search; also where another library runs the model as a whole.
        step_ms: one step of its search, median; None where another library runs the model as a whole.
        products_ms: the bare matrix products of that step in our decoder; None likewise.
        images_per_second: from prepared photos to the last token, our encoder's time included where the
            runner has none.
    """

    batch: int
    beams: int
    length: int
    dtype: str
    runner: str
    encode_ms: float | None
    step_ms: float | None
    products_ms: float | None
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON-ready data."""
        return asdict(self)


def parse_grid(text: str, otherwise: Grid) -> Grid:
    """``"batch=1,8 beams=1,5 length=16 dtype=float32 runner=captioner"``, or some of these axes.

    Args:
        text: the values.
        otherwise: those of the axes that the text leaves out.

    Raises:
        OptionsError: an axis or a value is none.
    """
    values: dict[str, Any] = {}
    for part in text.split():
        axis, _, listed = part.partition("=")
        if axis not in AXES or not listed:
            raise OptionsError(f"--grid takes {', '.join(f'{axis}=…' for axis in AXES)}, not {part!r}")
        if axis in values:
            raise OptionsError(f"--grid has {axis} twice: list all its values after one {axis}=")
        if axis in _NAMES:
            values[axis] = tuple(dict.fromkeys(listed.split(",")))
            unknown = sorted(set(values[axis]) - set(_NAMES[axis]))
            if unknown:
                raise OptionsError(f"--grid {axis} takes {', '.join(_NAMES[axis])}, not {', '.join(unknown)}")
        else:
            values[axis] = parse_numbers(listed, f"--grid {axis}")
    return replace(otherwise, **values)


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """``"1,8,32"`` as numbers of at least 1, each once. Raises OptionsError where it is anything else."""
    if not all(number.isdecimal() and int(number) for number in text.split(",")):
        raise OptionsError(f"{option} takes whole numbers from 1 such as 1,8,32, not {text!r}")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def measure_grid(
    load: Callable[[str], Captioner],
    grid: Grid,
    options: GenerationOptions,
    *,
    repeats: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[Cell]:
    """Measure all combinations, each given as soon as it is known, and the runners of each in turns.

    Args:
        load: the model in a number type.
        grid: what to measure.
        options: of all searches, where the grid does not say otherwise.
        repeats: how often each time is taken.
        progress: told what is measured next, how many combinations are done, and how many there are; those
            that differ in nothing but the runner are one.

    Raises:
        OptionsError: a number of beams or a length is out of range, or a runner cannot run the model; before
            anything is measured.
    """
    done, total = 0, len(grid.batch) * len(grid.beams or " ") * len(grid.length or " ") * len(grid.dtype)
    for dtype in grid.dtype:
        captioner = load(dtype)
        searches = _searches(captioner, grid, captioner.resolve(options))
        runners = _runners(captioner, grid, searches[0])
        twin = None
        if captioner.checkpoint is not None and "transformers" in runners:
            twin = build_twin(captioner.checkpoint)
        name = str(captioner.dtype).removeprefix("torch.") if dtype == "auto" else dtype
        for search, batch in product(searches, grid.batch):
            progress(f"batch={batch} beams={search.num_beams} length={search.max_length} {name}", done, total)
            measurements = Measurements(captioner, search, repeats)
            if measurements.runner is None:
                yield _whole(measurements, batch, name)
            else:
                yield from _apart(measurements, batch, name, runners, twin)
            done += 1


def _searches(captioner: Captioner, grid: Grid, own: SearchOptions) -> list[SearchOptions]:
    """Those of the grid, in which no caption ends early."""
    if captioner.sends_photos_to is not None:
        raise OptionsError(
            f"{captioner.name} is on a server, which decides how long its captions are: leave out --grid"
        )
    searches = [
        replace(own, num_beams=beams, max_length=length, min_length=length, attention=False, alternatives=0)
        for beams, length in product(grid.beams or (own.num_beams,), grid.length or (own.max_length,))
    ]
    for search in searches:
        captioner.check_options(search)
    return searches


def _runners(captioner: Captioner, grid: Grid, search: SearchOptions) -> tuple[str, ...]:
    """Those of the grid, which can all run the model."""
    if captioner.checkpoint is None:
        if "captioner" in grid.runner:
            raise OptionsError(f"{captioner.name} is run by transformers alone: leave out runner=captioner")
        return ("transformers",)
    if "transformers" in grid.runner:
        check_twin(captioner.checkpoint, search)
    return grid.runner or ("captioner",)


def _apart(
    measurements: Measurements, batch: int, dtype: str, runners: tuple[str, ...], twin: Twin | None
) -> Iterator[Cell]:
    """A cell for each runner; encoders, searches and bare products run in turns."""
    options = measurements.options
    ours = measurements.ours(batch, options)
    parts: dict[str, Parts] = {"captioner": ours}
    if twin is not None:
        parts["transformers"] = measurements.theirs(twin, batch, options, ours)
    products = measurements.products(batch)
    # our own search comes just before the products, so that the caches hold our weights and not the twin's
    order = sorted(runners, key=RUNNERS.index, reverse=True)
    runs = [run for runner in order for run in (parts[runner].encode, parts[runner].search)]
    instead = [] if "captioner" in runners else [measurements.products(batch)]
    times = measurements.in_turns(*runs, *instead, products)
    for runner in runners:
        encode, search = times[parts[runner].encode], times[parts[runner].search]
        yield Cell(
            batch=batch,
            beams=options.num_beams,
            length=options.max_length,
            dtype=dtype,
            runner=runner,
            encode_ms=encode if parts[runner].own_encoder else None,
            step_ms=search / measurements.steps(),
            products_ms=times[products],
            images_per_second=1000 * batch / (encode + search),
        )


def _whole(measurements: Measurements, batch: int, dtype: str) -> Cell:
    """The cell of a model that another library runs."""
    return Cell(
        batch=batch,
        beams=measurements.options.num_beams,
        length=measurements.options.max_length,
        dtype=dtype,
        runner="transformers",
        encode_ms=None,
        step_ms=None,
        products_ms=None,
        images_per_second=measurements.images_per_second(batch),
    )


def plot_grid(path: Path, cells: list[Cell], *, title: str) -> None:
    """Draw images per second over the axis with most values, a line for each other combination; as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {axis: {getattr(cell, axis) for cell in cells} for axis in AXES}
    across = max((axis for axis in AXES if axis not in _NAMES), key=lambda axis: len(values[axis]))
    others = [axis for axis in AXES if axis != across and len(values[axis]) > 1]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        label = ", ".join(f"{axis}={getattr(cell, axis)}" for axis in others)
        lines.setdefault(label, []).append(cell)
    for label, line in lines.items():
        line.sort(key=lambda cell: getattr(cell, across))
        x = [getattr(cell, across) for cell in line]
        plot.plot(x, [cell.images_per_second for cell in line], marker="o", label=label or None)
    plot.set(xlabel=across, ylabel="images per second", ylim=(0, None), title=title)
    plot.grid(alpha=0.3)
    if others:
        plot.legend()
    figure.savefig(path, dpi=150)
