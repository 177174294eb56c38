"""How cost grows: a model measured over a grid of batch sizes, beams, lengths and number types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from captioner.captioner import Captioner
from captioner.errors import OptionsError
from captioner.evaluation.measure import Measurements
from captioner.load import DTYPES
from captioner.options import SearchOptions

__all__ = ["AXES", "Cell", "Grid", "measure_grid", "parse_grid", "plot_grid"]

AXES = ("batch", "beams", "length", "dtype")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to measure: all combinations.

    Attributes:
        batch: photos together.
        beams: of the search.
        length: tokens of every caption.
        dtype: number types.
    """

    batch: tuple[int, ...] = (1, 8, 32)
    beams: tuple[int, ...] = ()
    length: tuple[int, ...] = ()
    dtype: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        batch: photos together.
        beams: of the search.
        length: tokens of every caption: none ends early.
        dtype: number type.
        encode_ms: the image encoder for the batch, median.
        step_ms: one step of its search, median.
        products_ms: the bare matrix products of that step.
        images_per_second: by the encoder's time and that of ``length`` steps.
    """

    batch: int
    beams: int
    length: int
    dtype: str
    encode_ms: float
    step_ms: float
    products_ms: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON-ready data."""
        return asdict(self)


def parse_grid(text: str) -> Grid:
    """``"batch=1,8 beams=1,5 length=16 dtype=float32"``; what it leaves out has the model's own value.

    Raises:
        OptionsError: an axis or a value is none.
    """
    values: dict[str, Any] = {}
    for part in text.split():
        axis, _, listed = part.partition("=")
        if axis not in AXES or not listed:
            raise OptionsError(f"--grid takes {', '.join(f'{axis}=…' for axis in AXES)}, not {part!r}")
        if axis == "dtype":
            unknown = set(listed.split(",")) - set(DTYPES)
            if unknown:
                raise OptionsError(
                    f"--grid dtype takes {', '.join(DTYPES)}, not {', '.join(sorted(unknown))}"
                )
            values[axis] = tuple(listed.split(","))
        elif all(number.isdecimal() and int(number) for number in listed.split(",")):
            values[axis] = tuple(map(int, listed.split(",")))
        else:
            raise OptionsError(f"--grid {axis} takes numbers such as 1,8,32, not {listed!r}")
    return Grid(**values)


def measure_grid(
    load: Callable[[str | None], Captioner],
    grid: Grid,
    options: Callable[[Captioner], SearchOptions],
    *,
    repeats: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[Cell]:
    """Measure all combinations, each given as soon as it is known.

    Args:
        load: the model in a number type; None for its own.
        grid: what to measure.
        options: the search that the grid changes.
        repeats: how often each time is taken.
        progress: told what is measured next, how many combinations are done, and how many there are.

    Raises:
        OptionsError: a number of beams or a length is out of range, or another library runs the model.
    """
    done, dtypes = 0, grid.dtype or (None,)
    total = len(grid.batch) * len(grid.beams or " ") * len(grid.length or " ") * len(dtypes)
    for dtype in dtypes:
        captioner = load(dtype)
        if captioner.checkpoint is None:
            raise OptionsError(f"{captioner.name} is run by another library, whose steps cannot be timed")
        own = replace(options(captioner), attention=False, alternatives=0)
        axes = product(grid.beams or (own.num_beams,), grid.length or (own.max_length,), grid.batch)
        for beams, length, batch in axes:
            number = str(captioner.dtype).removeprefix("torch.")
            progress(f"batch of {batch}, {beams} beams, {length} tokens, {number}", done, total)
            chosen = replace(own, num_beams=beams, max_length=length, min_length=0)
            measurements = Measurements(captioner, chosen, repeats)
            encode, step = measurements.encode(batch), measurements.step(batch)
            done += 1
            yield Cell(
                batch=batch,
                beams=beams,
                length=length,
                dtype=number,
                encode_ms=encode,
                step_ms=step.step,
                products_ms=step.products,
                images_per_second=1000 * batch / (encode + length * step.step),
            )


def plot_grid(path: Path, cells: list[Cell], *, title: str) -> None:
    """Draw images per second over the axis with most values, a line for each other combination; as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {axis: {getattr(cell, axis) for cell in cells} for axis in AXES}
    across = max(AXES[:3], key=lambda axis: len(values[axis]))
    others = [axis for axis in AXES if axis != across and len(values[axis]) > 1]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        label = ", ".join(f"{getattr(cell, axis)} {axis}".removesuffix(" dtype") for axis in others)
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
