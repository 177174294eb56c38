"""Requests that no good client sends, one of a kind at random, for ``load_test.py --hostile``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import struct
import zlib
from collections.abc import Callable

__all__ = ["send_hostile"]

STRANGERS = (
    b"",
    b"%PDF-1.7\n",
    b"<svg onload='x'/>",
    b"\x7fELF",
    b"PK\x03\x04",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBP",
    b"BM",
)
OPTIONS = (
    "num_beams",
    "max_length",
    "alternatives",
    "prompt",
    "top_p",
    "seed",
    "attention",
    "bad_words",
    "colour",
)
VALUES = (-1, 0, 10**30, 1e308, "", "x" * 20_000, None, [], {}, [[]], True, "NaN", "\u0000", "\U0001f600")
URLS = (
    "http://127.0.0.1:22/",
    "https://169.254.169.254/",
    "file:///etc/passwd",
    "https://[::1]/",
    "data:,x",
    "//",
)

Request = tuple[bytes, bytes, float]
"""The head, the body, and seconds between its bytes; 0 sends them at once."""


async def send_hostile(url: str, photo: bytes, rng: random.Random) -> tuple[str, str]:
    """Send one; its kind, and the status of the answer or that the connection was closed without one."""
    make = rng.choice(KINDS)
    head, body, pause = make(photo, rng)
    return make.__name__.strip("_"), await exchange(url, head, body, pause)


async def exchange(url: str, head: bytes, body: bytes, pause: float) -> str:
    """Send bytes, and read the status of the answer."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(head + b"\r\n\r\n" + (b"" if pause else body))
            await writer.drain()
            for index in range(len(body) if pause else 0):
                writer.write(body[index : index + 1])
                await writer.drain()
                await asyncio.sleep(pause)
        if b"X-Leave: now" in head:
            return "left"
        async with asyncio.timeout(60):
            line = await reader.readline()
        return line.split(b" ")[1].decode() if line else "closed"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes, kind: str, *, length: int | None = None, extra: str = "") -> Request:
    """A request with any length in its head."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"Content-Length: {len(body) if length is None else length}", *([extra] if extra else [])]
    return "\r\n".join(lines).encode(), body, 0.0


def form(data: bytes, rng: random.Random, *, fields: str = "") -> Request:
    """A photo, or what stands for one, in a form."""
    head = 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = fields.encode() + f"--x\r\n{head}".encode() + data + b"\r\n--x--\r\n"
    return post(rng.choice(["/v1/captions", "/v1/captions/stream"]), body, "multipart/form-data; boundary=x")


def _random_bytes(photo: bytes, rng: random.Random) -> Request:
    return form(rng.randbytes(rng.randrange(3000)), rng)


def _raw_random_bytes(photo: bytes, rng: random.Random) -> Request:
    return post("/image-to-text", rng.choice(STRANGERS) + rng.randbytes(rng.randrange(3000)), "image/jpeg")


def _truncated(photo: bytes, rng: random.Random) -> Request:
    return form(photo[: rng.randrange(len(photo))], rng)


def _damaged(photo: bytes, rng: random.Random) -> Request:
    damaged = bytearray(photo)
    for _ in range(rng.randrange(1, 50)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return form(bytes(damaged), rng)


def _bomb(photo: bytes, rng: random.Random) -> Request:
    """A PNG of a few bytes that announces, and may have, a great many pixels."""
    side = rng.choice([10_000, 30_000, 65_000, 2**31 - 1])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(10_000_000), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return form(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""), rng)


def _wrong_type(photo: bytes, rng: random.Random) -> Request:
    return form(rng.choice(STRANGERS), rng)


def _wrong_body_type(photo: bytes, rng: random.Random) -> Request:
    kind = rng.choice(
        ["text/plain", "application/xml", "", "multipart/form-data", "application/json; charset=x"]
    )
    return post("/v1/captions", photo, kind)


def _bad_form(photo: bytes, rng: random.Random) -> Request:
    body = rng.choice(
        [b"--x\r\n", b"--x--", b"\r\n" * 500, b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"]
    )
    return post("/v1/captions", body + rng.randbytes(50), "multipart/form-data; boundary=x")


def _bad_json(photo: bytes, rng: random.Random) -> Request:
    body = rng.choice(
        [b"{", b"[" * 100_000, b'{"images":' * 1000, b"\xff\xfe", b"nul", b'{"images": "a"}', b"1e999"]
    )
    path = rng.choice(["/v1/captions", "/v1/captions/stream", "/v1/chat/completions", "/image-to-text"])
    return post(path, body, "application/json")


def _bad_options(photo: bytes, rng: random.Random) -> Request:
    images = [{"base64": base64.b64encode(photo).decode()}]
    body = {
        "images": images,
        rng.choice(OPTIONS): rng.choice(VALUES),
        rng.choice(OPTIONS): rng.choice(VALUES),
    }
    return post("/v1/captions", json.dumps(body).encode(), "application/json")


def _bad_fields(photo: bytes, rng: random.Random) -> Request:
    name, value = rng.choice(OPTIONS), rng.choice(VALUES)
    fields = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' * rng.choice(
        [1, 2, 200]
    )
    return form(photo, rng, fields=fields)


def _bad_url(photo: bytes, rng: random.Random) -> Request:
    body = json.dumps({"images": [{"url": rng.choice(URLS)}]}).encode()
    return post("/v1/captions", body, "application/json")


def _too_large(photo: bytes, rng: random.Random) -> Request:
    length = rng.choice([5_000_000, 10**12])
    return post("/v1/captions", b"x" * 100_000, "application/json", length=length)


def _too_large_in_chunks(photo: bytes, rng: random.Random) -> Request:
    head, _, _ = post("/image-to-text", b"", "image/png", extra="Transfer-Encoding: chunked")
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    return (
        head,
        b"10000\r\n" + b"x" * 65_536 + (b"\r\n10000\r\n" + b"x" * 65_536) * 80 + b"\r\n0\r\n\r\n",
        0.0,
    )


def _length_too_long(photo: bytes, rng: random.Random) -> Request:
    return post("/image-to-text", photo, "image/jpeg", length=len(photo) + 100, extra="X-Leave: now")


def _length_too_short(photo: bytes, rng: random.Random) -> Request:
    return post("/image-to-text", photo, "image/jpeg", length=rng.randrange(len(photo)))


def _length_of_nothing(photo: bytes, rng: random.Random) -> Request:
    head, body, pause = post("/image-to-text", photo, "image/jpeg")
    return (
        head.replace(str(len(photo)).encode(), rng.choice([b"-1", b"x", b"1, 2", b"1e9", b""])),
        body,
        pause,
    )


def _slow_body(photo: bytes, rng: random.Random) -> Request:
    leave = rng.choice(["X-Leave: now", ""])
    head, _, _ = post("/v1/captions", b"", "application/json", length=1000, extra=leave)
    return head, b"{" * rng.randrange(1, 40), 0.05


def _leaves(photo: bytes, rng: random.Random) -> Request:
    head, body, _ = form(photo, rng)
    return head + b"\r\nX-Leave: now", body[: rng.choice([0, 100, len(body)])], 0.0


def _nonsense(photo: bytes, rng: random.Random) -> Request:
    lines = [
        b"\x16\x03\x01",
        b"GET",
        b"G\0T / HTTP/1.1",
        b"GET / HTTP/9.9",
        b"PRI * HTTP/2.0",
        rng.randbytes(99),
    ]
    return rng.choice(lines), rng.randbytes(20), 0.0


def _unknown(photo: bytes, rng: random.Random) -> Request:
    target = rng.choice(
        ["/../../etc/passwd", "/static/%2e%2e/app.py", "/" + "a" * 8000, "/%ff", "/v1/models/%00"]
    )
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close".encode(), b"", 0.0


KINDS: list[Callable[[bytes, random.Random], Request]] = [
    *(_random_bytes, _raw_random_bytes, _truncated, _damaged, _bomb, _wrong_type, _wrong_body_type),
    *(_bad_form, _bad_json, _bad_options, _bad_fields, _bad_url),
    *(_too_large, _too_large_in_chunks, _length_too_long, _length_too_short, _length_of_nothing),
    *(_slow_body, _leaves, _nonsense, _unknown),
]
