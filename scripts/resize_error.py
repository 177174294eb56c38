"""How far pixel values are from those of the checkpoint's own processor, and what time that saves.

    OMP_NUM_THREADS=1 python scripts/resize_error.py [PHOTO...] [--seed N]

Of each photo and each side of a model, the pixel values of ``decode_image(min_side=side)`` are held against
those of the whole photo, resized at once as the processors of ``transformers`` do: the largest and the mean
difference, in values from -1 to 1. Without photos it is noise of several sizes, which is the worst there is.
Then the CPU time of both for 12 megapixels, in turns.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from statistics import median
from time import process_time

import numpy as np
from PIL import Image

from captioner.image import ImageProcessor, ImageSource, decode_image

SIDES = (80, 224, 320, 384)
SIZES = ((640, 480), (512, 512), (1001, 667), (2003, 1501), (4000, 3000))


def main() -> None:
    """Print both tables, tab-separated."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", nargs="*", help="by default noise of several sizes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("photo", "side", "filter", "largest", "mean", sep="\t")
    for name, source in photos(given.photos, given.seed):
        for side in SIDES:
            for resample in ("bilinear", "bicubic"):
                processor = ImageProcessor(side, (0.5,) * 3, (0.5,) * 3, resample)  # type: ignore[arg-type]
                difference = (
                    np.abs(prepare(source, processor) - prepare(source, processor, reduce=False)) / 127.5
                )
                print(name, side, resample, f"{difference.max():.3f}", f"{difference.mean():.4f}", sep="\t")
    print("\n12 megapixels", "side", "reduced, ms", "whole, ms", sep="\t")
    generator = np.random.default_rng(given.seed)
    large = Image.fromarray(generator.integers(0, 256, (75, 100, 3), dtype=np.uint8)).resize((4000, 3000))
    for format in ("JPEG", "PNG", "TIFF"):
        buffer = io.BytesIO()
        large.save(buffer, format, **({"quality": 90} if format == "JPEG" else {}))
        for side in SIDES:
            processor = ImageProcessor(side, (0.5,) * 3, (0.5,) * 3)
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(5):
                for reduce, taken in times.items():
                    begun = process_time()
                    prepare(buffer.getvalue(), processor, reduce=reduce)
                    taken.append(1000 * (process_time() - begun))
            print(format, side, *(f"{median(taken):.0f}" for taken in times.values()), sep="\t")


def photos(paths: list[str], seed: int) -> Iterator[tuple[str, ImageSource]]:
    """The named photos, or noise: as it is, and as a JPEG."""
    yield from ((path, path) for path in paths)
    generator = np.random.default_rng(seed)
    for width, height in () if paths else SIZES:
        noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG", quality=95)
        yield f"noise {width}×{height}", noise
        yield f"noise {width}×{height} JPEG", buffer.getvalue()


def prepare(source: ImageSource, processor: ImageProcessor, *, reduce: bool = True) -> np.ndarray:
    """The pixel values ``(3, side, side)`` in 0…255."""
    photo = decode_image(source, min_side=processor.size if reduce else None)
    return processor(photo.pixels, photo.box).numpy().astype(np.float64)


if __name__ == "__main__":
    main()
