"""A batch that is killed again and again, against one that is left alone; also a program for the full size.

``python tests/batch_kill.py --files 5000 --bad 200 --kills 20`` takes some minutes; what stands after ``--``
is given to ``captioner batch``.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from images import encode
from PIL import Image
from tiny import tiny_checkpoint

from captioner.checkpoint import save_checkpoint

BAD = ("empty", "cut", "text", "missing")
TOLERANCE = 2e-4
"""Numbers are rounded to 1e-4, and in another batch a float's last bit can be another one."""


def make_library(folder: Path, *, files: int, bad: int, seed: int = 0) -> None:
    """Photographs of mixed sizes in nested folders; a tenth are copies of others, ``bad`` are unusable."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    bad_ones = dict(zip(draw.sample(range(files), bad), BAD * bad, strict=False))
    photos: list[bytes] = []
    for number in range(files):
        path = folder.joinpath(
            *(str(draw.randrange(4)) for _ in range(draw.randrange(4))), f"{number:05}.jpg"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not photos or draw.random() < 0.9:
            coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            size = draw.randrange(40, 640), draw.randrange(40, 480)
            photos.append(encode(coarse.resize(size, Image.Resampling.BICUBIC), "JPEG"))
        photo, kind = draw.choice(photos[-50:]), bad_ones.get(number)
        if kind == "missing":
            path.symlink_to(folder / "nowhere.jpg")
        else:
            contents = {"empty": b"", "cut": photo[: len(photo) // 20], "text": b"no photograph"}
            path.write_bytes(contents.get(kind or "", photo))


class Job:
    """A command that captions ``folder / "library"`` with a tiny model into a file of its own.

    Args:
        folder: where the library and the model are.
        name: of the output.
        more: further arguments of ``captioner batch``.
    """

    def __init__(self, folder: Path, name: str, more: Sequence[str] = ()) -> None:
        self.output = folder / name
        self.records = self.output if self.output.suffix == ".jsonl" else folder / f"{name}.jsonl"
        program = [sys.executable, "-c", "import sys; from captioner.cli import main; sys.exit(main())"]
        options = ["--recursive", "--model", str(folder / "model"), "--device", "cpu"]
        self.argv = [
            *program,
            "batch",
            str(folder / "library"),
            "--output",
            str(self.output),
            *options,
            *more,
        ]

    def run(self) -> dict[str, Any]:
        """Run it to its end; its summary."""
        done = subprocess.run(self.argv, stderr=subprocess.PIPE, text=True)
        summary: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
        assert done.returncode == int(bool(summary["errors"])), done.stderr
        return summary

    def run_and_kill(self, size: int, wait: float) -> bool:
        """Run it until its records are so large, and ``wait`` seconds more; whether it had to be killed."""
        with subprocess.Popen(self.argv, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and self._size() < size:
                time.sleep(0.002)
            time.sleep(wait)
            process.kill()
        return process.returncode < 0

    def _size(self) -> int:
        return self.records.stat().st_size if self.records.exists() else 0

    def kill_at_random(self, kills: int, size: int, seed: int = 0) -> int:
        """Kill it at random moments while its records grow to ``size`` bytes; how often that was."""
        draw = random.Random(seed)
        return sum(
            self.run_and_kill(moment, draw.random() * 0.2)
            for moment in sorted(draw.randrange(size) for _ in range(kills))
        )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file of whole lines."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two structures differ; numbers that are no integers may do so by their rounding."""
    if isinstance(a, float) and isinstance(b, float):
        return [] if abs(a - b) <= TOLERANCE else [f"{place}: {a} and {b}"]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for index, (x, y) in pairs for found in differences(x, y, f"{place}[{index}]")]
    return [] if a == b else [f"{place}: {a!r} and {b!r}"]


def prepare(folder: Path, *, files: int, bad: int) -> None:
    """Make the library and the model."""
    make_library(folder / "library", files=files, bad=bad)
    save_checkpoint(tiny_checkpoint(), folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--bad", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("more", nargs="*", help="for captioner batch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, files=args.files, bad=args.bad)
        whole, killed = (Job(folder, f"{name}.jsonl", args.more) for name in ("whole", "killed"))
        print("undisturbed", whole.run(), sep="\t")
        kills = killed.kill_at_random(args.kills, whole.records.stat().st_size)
        print("killed", f"{kills} times", sep="\t")
        print("at last", killed.run(), sep="\t")
        expected, found = read_records(whole.records), read_records(killed.records)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        print("records", f"{len(expected)} and {len(found)}, {same} equal to the last digit", sep="\t")
        wrong = differences(expected, found)
        print("differences", len(wrong), *wrong[:9], sep="\t")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
