"""Puts the service under load on this machine, and compares it with the library and with a naive endpoint.

    python scripts/load_test.py --clients 64 --seconds 60     throughput, latency, memory; ratios of one run
    python scripts/load_test.py --hostile 10000               malformed and hostile requests

Each server is a process of its own on the loopback. Results go to stdout as one JSON object; the exit status
is 1 if a request was lost, a hostile one got a 5xx, or a good one was not answered afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from hostile_requests import send_hostile
from PIL import Image, ImageDraw

NAIVE = """
import sys
import uvicorn
from fastapi import FastAPI, UploadFile
from captioner import load

captioner = load(sys.argv[1], device=sys.argv[2])
app = FastAPI()

@app.get("/readyz")
def ready() -> None: ...

@app.post("/v1/captions")
def caption(image: UploadFile) -> dict:
    return captioner.caption([image.file.read()])[0].to_dict()

uvicorn.run(app, port=int(sys.argv[3]), log_level="error")
"""
"""What one writes first: a photo a request, in the framework's thread pool."""

LIBRARY = """
import io, json, sys, time
from captioner import load

captioner = load(sys.argv[1], device=sys.argv[2])
batch_size, seconds = int(sys.argv[3]), float(sys.argv[4])
photos = [open(path, "rb").read() for path in sys.argv[5:]]
batch = [photos[number % len(photos)] for number in range(batch_size)]
captioner.caption(batch, batch_size=batch_size)
start, cpu, done = time.monotonic(), time.process_time(), 0
while time.monotonic() - start < seconds:
    done += len(captioner.caption(batch, batch_size=batch_size))
seconds, cpu = time.monotonic() - start, time.process_time() - cpu
print(json.dumps({"images_per_second": done / seconds, "cpu_ms_per_image": 1000 * cpu / done}))
"""
"""The library by itself, with full batches."""


@dataclass
class Load:
    """What clients saw.

    Attributes:
        latencies: seconds of each answered request.
        statuses: how many answers of each status, or of each error.
        seconds: from the first request to the last answer.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        """Requests that were not answered with a caption."""
        return self.statuses.total() - self.statuses["200"]

    def to_dict(self) -> dict[str, Any]:
        """The figures."""
        parts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        return {
            "requests": self.statuses.total(),
            "lost": self.lost,
            "images_per_second": round(self.statuses["200"] / self.seconds, 2),
            "p50_ms": round(parts[49] * 1000),
            "p95_ms": round(parts[94] * 1000),
            "statuses": dict(self.statuses),
        }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def draw_photos(folder: Path, count: int = 16) -> list[Path]:
    """JPEGs of 640 × 480 pixels and the weight of a photograph."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        ImageDraw.Draw(image).ellipse((100, 100, 300, 300), fill=tuple(rng.integers(0, 256, 3).tolist()))
        paths.append(folder / f"{number}.jpg")
        image.save(paths[-1], quality=90)
    return paths


@contextlib.contextmanager
def server(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[str]:
    """Run a server until it is ready; gives its URL."""
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                if process.poll() is not None:
                    sys.exit(f"the server ended with status {process.returncode}: {' '.join(command[:3])}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/readyz", timeout=5).status_code < 300:
                        break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


async def put_under_load(url: str, photos: Sequence[bytes], *, clients: int, seconds: float) -> Load:
    """Have clients each send one photo after the other."""
    load, start = Load(), time.monotonic()

    async def client(number: int) -> None:
        turn = number
        while time.monotonic() - start < seconds:
            turn += 1
            files = {"image": ("photo.jpg", photos[turn % len(photos)], "image/jpeg")}
            begin = time.monotonic()
            try:
                response = await session.post(f"{url}/v1/captions", files=files)
            except httpx.HTTPError as error:
                load.statuses[type(error).__name__] += 1
                continue
            load.statuses[str(response.status_code)] += 1
            load.latencies.append(time.monotonic() - begin)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as session:
        await asyncio.gather(*map(client, range(clients)))
    load.seconds = time.monotonic() - start
    return load


@dataclass(frozen=True)
class Usage:
    """What the server's process has taken so far, as its metrics tell it."""

    resident_mb: float
    cpu_seconds: float

    @classmethod
    def of(cls, url: str) -> Usage:
        """The usage right now."""
        text = httpx.get(f"{url}/metrics", timeout=60).text
        found = dict(re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE))
        memory, cpu = found["process_resident_memory_bytes"], found["process_cpu_seconds_total"]
        return cls(round(float(memory) / 1e6, 1), float(cpu))


def measure_load(options: argparse.Namespace, photos: Sequence[Path]) -> tuple[dict[str, Any], bool]:
    """The figures of a run, and whether no request was lost."""
    data = [path.read_bytes() for path in photos]
    python, model = sys.executable, (options.model, options.device)
    command = [python, "-c", LIBRARY, *model, str(options.batch_size), str(options.baseline_seconds)]
    library = json.loads(
        subprocess.run([*command, *map(str, photos)], check=True, capture_output=True).stdout
    )
    naive_command = [python, "-c", NAIVE, *model, str(options.port)]
    with server(naive_command, options.port, {}) as url:
        naive = asyncio.run(
            put_under_load(url, data, clients=options.clients, seconds=options.baseline_seconds)
        )
    with serving(options) as url:
        asyncio.run(put_under_load(url, data, clients=options.clients, seconds=min(5.0, options.seconds)))
        before = Usage.of(url)
        load = asyncio.run(put_under_load(url, data, clients=options.clients, seconds=options.seconds))
        after = Usage.of(url)
    service, plain = load.to_dict(), naive.to_dict()
    service["cpu_ms_per_image"] = 1000 * (after.cpu_seconds - before.cpu_seconds) / load.statuses["200"]
    report = {
        "service": service,
        "rss_mb": {"before": before.resident_mb, "after": after.resident_mb},
        "library": library,
        "naive": plain,
        "service_to_library": round(service["images_per_second"] / library["images_per_second"], 2),
        "service_to_naive": round(service["images_per_second"] / plain["images_per_second"], 2),
    }
    return report, load.lost == 0


def measure_hostile(options: argparse.Namespace, photos: Sequence[Path]) -> tuple[dict[str, Any], bool]:
    """What became of hostile requests, and whether the server took them as it should."""
    photo = photos[0].read_bytes()
    limits = {"CAPTIONER_REQUEST_TIMEOUT_S": str(options.timeout), "CAPTIONER_MAX_UPLOAD_MB": "4"}
    with serving(options, limits) as url:
        asyncio.run(attack(url, photo, max(100, options.hostile // 20), seed=1))
        before = Usage.of(url)
        outcomes = asyncio.run(attack(url, photo, options.hostile, seed=2))
        after = Usage.of(url)
        good = httpx.post(f"{url}/v1/captions", files={"image": photo}, timeout=60).status_code
    report = {
        "hostile": {kind: dict(found) for kind, found in sorted(outcomes.items())},
        "rss_mb": {"before": before.resident_mb, "after": after.resident_mb},
        "good_request_afterwards": good,
    }
    failed = any(status.startswith("5") for found in outcomes.values() for status in found)
    return report, good == 200 and not failed


async def attack(url: str, photo: bytes, count: int, *, seed: int) -> dict[str, Counter[str]]:
    """Send hostile requests, 32 at a time; what came of each kind."""
    outcomes: dict[str, Counter[str]] = {}
    rng, left = random.Random(seed), iter(range(count))

    async def attacker() -> None:
        for _ in left:
            kind, status = await send_hostile(url, photo, random.Random(rng.random()))
            outcomes.setdefault(kind, Counter())[status] += 1

    await asyncio.gather(*(attacker() for _ in range(32)))
    return outcomes


def serving(
    options: argparse.Namespace, environment: dict[str, str] | None = None
) -> contextlib.AbstractContextManager[str]:
    """Our server."""
    captioner = str(Path(sys.executable).parent / "captioner")
    command = [captioner, "serve", "--model", options.model, "--device", options.device]
    command += ["--port", str(options.port)]
    settings = {"CAPTIONER_MAX_BATCH": str(options.batch_size), "CAPTIONER_LOG_LEVEL": "WARNING"}
    return server(command, options.port, settings | (environment or {}))


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--baseline-seconds", type=float, default=20, help="for the library and the naive endpoint"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hostile", type=int, default=0, metavar="N", help="send N hostile requests instead")
    parser.add_argument(
        "--timeout", type=float, default=10, help="seconds that a hostile request may take in all"
    )
    options = parser.parse_args()
    options.port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder))
        report, well = (measure_hostile if options.hostile else measure_load)(options, photos)
    print(json.dumps(report, indent=2))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
