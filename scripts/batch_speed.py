"""How fast `captioner batch` is beside the model alone, stage by stage.

``python scripts/batch_speed.py --photos 5000`` draws photographs of mixed sizes, or of the one that
``--size 500x375`` gives, or takes those of ``--images``. In each round the model captions a share of them
from tensors in memory, and the batch command's engine the same ones from files to records on disk; so
whatever else the machine does slows both. Each round begins with nothing decoded, so make rounds long.

On a CPU the model and the decoding share the cores. The last line says how fast the whole can be at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import captioner
from captioner.batch.engine import BatchCaptioner
from captioner.batch.finding import find_items
from captioner.batch.items import Item
from captioner.batch.local import LocalEngine
from captioner.batch.log import RecordLog
from captioner.batch.prefetch import prefetch
from captioner.batch.run import run_batch
from captioner.image import decode_image

SIZES = ((640, 480), (500, 375), (1024, 768), (1600, 1200), (3264, 2448))
SHARES = (0.35, 0.25, 0.2, 0.1, 0.1)


@dataclass
class Time:
    """Seconds by the clock, and of all the CPU's cores together."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def measured() -> Iterator[Time]:
    spent = Time()
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def draw_photos(folder: Path, count: int, size: tuple[int, int] | None) -> None:
    """JPEGs of one size or of mixed ones, smooth with some grain; twenty different ones under many names."""
    draw = np.random.default_rng(0)
    sizes = [size or SIZES[number] for number in draw.choice(len(SIZES), 20, p=SHARES)]
    for number in range(count):
        path, first = folder / f"{number:06}.jpg", folder / f"{number % 20:06}.jpg"
        if path != first:
            os.link(first, path)
            continue
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(sizes[number], Image.Resampling.BICUBIC), dtype=np.float32)
        Image.fromarray((smooth + draw.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)).save(
            path, quality=90
        )


def size_of(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"give pixels, as in 500x375, not {text!r}")
    return int(width), int(height)


def stage(name: str, items: Sequence[Item], work: Callable[[Item], object], workers: int) -> float:
    """Print how fast it is; seconds of the CPU for each item."""
    with measured() as spent:
        for _ in prefetch(work, items, workers=workers, ahead=64):
            pass
    print(
        name,
        f"{len(items) / spent.wall:.1f} images/s, {spent.cpu / len(items) * 1000:.1f} ms of CPU each",
        sep="\t",
    )
    return spent.cpu / len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--size", type=size_of, metavar="WIDTHxHEIGHT", help="of all that are drawn")
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.images is None:
            draw_photos(folder, args.photos, args.size)
        items = list(find_items([str(args.images or folder)], recursive=True))[: args.photos]
        if not items:
            parser.error(f"no photographs in {args.images}")
        measure(items, folder / "records.jsonl", args)


def measure(items: Sequence[Item], output: Path, args: argparse.Namespace) -> None:
    model = captioner.load(args.model, device=args.device)
    batch, workers = BatchCaptioner(model), args.workers
    share = max(args.batch_size, len(items) // args.rounds)
    processor = model.checkpoint.processor
    photos = [decode_image(item.path, min_side=processor.size).pixels for item in items[:20]]
    first = items[:share]
    stage("read and decode", first, lambda item: decode_image(item.path, min_side=processor.size), workers)
    stage("resize", first, lambda item: processor(photos[hash(item.key) % len(photos)]), workers)
    prepare_cpu = stage("both", first, batch.prepare, workers)
    batch.records(first[:1], [batch.prepare(first[0])])
    alone, whole = [], []
    for start in range(0, len(items) - share + 1, share):
        part = items[start : start + share]
        prepared = [batch.prepare(item) for item in part]
        with measured() as spent:
            for at in range(0, share, args.batch_size):
                end = at + args.batch_size
                batch.records(part[at:end], prepared[at:end])
        alone.append(spent)
        engine = LocalEngine(batch, batch_size=args.batch_size, workers=workers)
        with measured() as spent, RecordLog(output) as log:
            run_batch(part, engine, log)
        whole.append(spent)
    for title, times in (("the model alone", alone), ("the whole", whole)):
        wall = statistics.median(spent.wall for spent in times)
        cpu = statistics.median(spent.cpu for spent in times)
        print(title, f"{share / wall:.2f} images/s, {cpu / share * 1000:.1f} ms of CPU each", sep="\t")
    ratio = statistics.median(a.wall / w.wall for a, w in zip(alone, whole, strict=True))
    print("the whole is", f"{ratio:.2f} as fast as the model alone", sep="\t")
    if model.device.type == "cpu":
        model_cpu = statistics.median(spent.cpu for spent in alone) / share
        bound = model_cpu / (model_cpu + prepare_cpu)
        print("at most, since decoding takes the same cores", f"{bound:.2f}", sep="\t")


if __name__ == "__main__":
    main()
