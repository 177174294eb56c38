"""Does a GPU give the same captions when its work is recorded, and how fast is it then?

    python scripts/gpu_check.py [--seconds 140] [--device cuda]

Run it in the root of a checkout. It needs torch, safetensors, tokenizers, httpx, numpy and pillow; its last
part needs `transformers` too. Results go to stdout line by line. The exit status is 1 if captions differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image, ImageDraw

from captioner import load
from captioner.captioner import Captioner
from captioner.generation import generate
from captioner.runners import CheckpointRunner, PreparedImage

BEGUN = time.monotonic()


def say(*words: object) -> None:
    print(f"{time.monotonic() - BEGUN:5.0f} s", *words, sep="\t", flush=True)


def photo(seed: int) -> Image.Image:
    """Shapes on a ground, other ones for each seed."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (480, 360), tuple(draw.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = draw.integers(0, 400), draw.integers(0, 280)
        box = (left, top, left + draw.integers(20, 200), top + draw.integers(20, 160))
        (pen.ellipse if draw.random() < 0.5 else pen.rectangle)(
            tuple(map(int, box)), fill=tuple(draw.integers(0, 256, 3).tolist())
        )
    return image


class Check:
    """One model on the device: as it is, and recorded."""

    def __init__(self, device: str, dtype: str) -> None:
        self.captioner: Captioner = load("default", device=device, dtype=dtype)
        assert self.captioner.checkpoint is not None
        self.runner = CheckpointRunner(self.captioner.checkpoint)
        self.model = self.captioner.checkpoint.model
        self.options = replace(self.captioner.resolve(None), attention=False)
        self.rules = self.runner.rules(self.options)
        self.photos = [self.captioner.prepare(photo(seed)) for seed in range(128)]

    def plain(self, photos: list[PreparedImage]) -> list[tuple[int, ...]]:
        """Every kernel started by itself."""
        pixels = torch.stack([each.content for each in photos]).to(self.runner.device)
        with torch.inference_mode():
            pixel_values = self.runner.checkpoint.processor.normalize(pixels, self.runner.dtype)
            tokens = self.model.encode(pixel_values).region_tokens
            found = generate(self.model.decoder, tokens, self.options, self.rules)
        return [hypotheses[0].token_ids for hypotheses in found]

    def recorded(self, photos: list[PreparedImage]) -> list[tuple[int, ...]]:
        """As the product runs."""
        found = self.runner.search(self.runner.encode(photos).region_tokens, self.options, self.rules)
        return [hypotheses[0].token_ids for hypotheses in found]

    def time(self, *runs: Callable[[], Any], repeats: int = 10) -> list[float]:
        """Median milliseconds of each, in turns, after two runs that are not counted."""
        times: list[list[float]] = []
        for _ in range(repeats + 2):
            times.append([])
            for run in runs:
                self.wait()
                begun = time.perf_counter()
                run()
                self.wait()
                times[-1].append(1000 * (time.perf_counter() - begun))
        return [statistics.median(each) for each in zip(*times[2:], strict=True)]

    def wait(self) -> None:
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize()


def same(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)


def equality(check: Check, dtype: str, least: float) -> bool:
    """Recorded against plain, and alone against in a batch; whether the shares are large enough."""
    good = True
    plain = check.plain(check.photos[:32])
    for turn in range(3):  # the second time records, the third replays with other photos
        photos = check.photos[32 * turn : 32 * turn + 32]
        share = same(check.recorded(photos), check.plain(photos))
        good &= share >= least
        say(dtype, f"recorded = plain, batch of 32, time {turn + 1}", f"{share:.1%}")
    turns = [check.photos[size:][:size] for size in (1, 4, 32, 1, 32, 4, 1, 4, 32)]  # they share memory
    share = statistics.mean(same(check.recorded(photos), check.plain(photos)) for photos in turns)
    good &= share >= least
    say(dtype, "batches of 1, 4 and 32 in turns, recorded = plain", f"{share:.1%}")
    odd = check.photos[:19]
    share = same(check.recorded(odd), plain[:19])
    good &= share >= 0.8  # another batch size may round otherwise
    say(dtype, "19 photos in the recording of 32 = plain", f"{share:.1%}")
    alone = [check.recorded([each])[0] for each in check.photos[:32]]
    share = same(alone, plain)
    good &= share >= 0.8
    say(dtype, "alone = in a batch", f"{share:.1%}", f"{len(set(plain))} different captions")
    return good


def speed(check: Check, size: int, dtype: str) -> None:
    photos = check.photos[:size]
    tokens = check.runner.encode(photos).region_tokens
    search = lambda: check.runner.search(tokens, check.options, check.rules)  # noqa: E731
    plain, recorded, encode, found = check.time(
        lambda: check.plain(photos),
        lambda: check.recorded(photos),
        lambda: check.runner.encode(photos),
        search,
    )
    say(
        dtype,
        f"batch of {size}",
        f"recorded {recorded:.1f} ms, {1000 * size / recorded:.0f} images/s",
        f"plain {plain:.1f} ms, {1000 * size / plain:.0f} images/s",
        f"encode {encode:.1f} ms, search {found:.1f} ms",
    )


def against(check: Check, size: int) -> None:
    """The search alone, 3 beams, in turns with `transformers`."""
    from captioner.evaluation.twin import build_twin

    twin = build_twin(check.captioner.checkpoint)
    options = replace(check.options, num_beams=3)
    tokens = check.runner.encode(check.photos[:size]).region_tokens
    ours, theirs = check.time(
        lambda: check.runner.search(tokens, options, check.rules),
        lambda: twin.search(tokens, options),
        repeats=5,
    )
    say(
        "search against transformers",
        f"batch of {size}",
        f"{theirs / ours:.2f} x",
        f"{ours:.1f} / {theirs:.1f} ms",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=140, help="skip what would begin later")
    arguments = parser.parse_args()
    device = arguments.device
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    say(f"torch {torch.__version__}", name)
    kind = "float16" if device.startswith("cuda") else "float32"
    check = Check(device, kind)
    say("loaded")
    good = equality(check, kind, 0.98)
    for size in (1, 32, 128):
        if time.monotonic() - BEGUN < arguments.seconds:
            speed(check, size, kind)
    if device.startswith("cuda"):
        say(f"peak memory {torch.cuda.max_memory_allocated() / 1e6:.0f} MB")
    for size in (1, 32):
        if time.monotonic() - BEGUN < arguments.seconds - 20:
            try:
                against(check, size)
            except Exception as error:  # another version of that library, say
                say("search against transformers", repr(error)[:300])
    if device.startswith("cuda") and time.monotonic() - BEGUN < arguments.seconds - 15:
        good &= equality(Check(device, "float32"), "float32", 1.0)
    say("all well" if good else "captions differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
