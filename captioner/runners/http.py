"""Requests to a model's server: paced, repeated where that can help, and explained where it cannot.

Threads ask and wait; the connections belong to an event loop in a thread of its own, since only there can a
request be broken off whenever nobody waits for its answer any more.
"""

from __future__ import annotations

import asyncio
import json
import queue
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, TypeVar

import httpx

from captioner.errors import RemoteError, RemoteUnavailableError
from captioner.runners.address import Address, RemoteSettings
from captioner.runners.base import IsWanted, always, check_wanted

__all__ = ["Client", "RefusedError"]

T = TypeVar("T")

MAX_ANSWER = 4_000_000
"""Bytes of an answer; a caption has a thousandth of it."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most."""

LONGEST_PAUSE = 600.0
"""Seconds that a server may ask to be left alone for; after that, it has failed."""

LOOK = 0.25
"""Seconds between two looks at whether an answer is still wanted."""

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""

NOT_THE_PHOTO = {401, 403, 404, 405, 429, 503, 529}
"""Statuses that every other photo would have as well."""


class RefusedError(RemoteError):
    """The server does not take the request as it is, with status 400 or 422, or its model refuses it."""


@dataclass
class _Fault(Exception):  # noqa: N818 - never leaves this file
    """Why an attempt failed."""

    error: RemoteError
    again: bool = False
    after: float = 0.0


class Pace:
    """When a request may begin; shared by all threads.

    Args:
        per_minute: requests that begin in a minute at most; 0 for no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Seconds to wait before the request that asks."""
        with self._lock:
            now = monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def pause(self, seconds: float) -> None:
        """Let no request begin for so long."""
        with self._lock:
            self._next = max(self._next, monotonic() + seconds)


class Client:
    """Talks to one server; threads can share it, and all their posts together are ``parallel`` at most.

    Args:
        address: of the server.
        settings: how patient to be, and the key.
    """

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        self.address, self.settings = address, settings
        self._pace = Pace(settings.per_minute)
        self._slots = threading.BoundedSemaphore(settings.parallel)
        self._loop = _Loop()
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.parallel),
            headers={"Authorization": f"Bearer {settings.key}"} if settings.key else {},
            follow_redirects=False,  # a photo goes where the operator said and nowhere else
        )
        weakref.finalize(self, self._loop.close, self._http.aclose).atexit = False

    def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[dict[str, Any]], T],
        *,
        stop: threading.Event,
        is_wanted: IsWanted = always,
    ) -> T:
        """Send JSON and read the JSON that comes back, in as many attempts as are allowed.

        Args:
            path: below the server's base.
            body: to send.
            read: makes of an answer what is returned; where it raises RemoteError, the request is sent again.
            stop: set it where others have found out that it is no use to send anything more.
            is_wanted: asked several times a second; once it is false, the request is broken off.

        Raises:
            RemoteUnavailableError: the server is not there, knows no such model or key, or has no room.
            RefusedError: it does not take this request.
            RemoteError: it failed on this request each time.
            NotWantedError: nobody waits for the answer.
        """
        for attempt in self._attempts(stop, is_wanted):
            with attempt, self._slot(is_wanted):
                data = _as_json(b"".join(self._answer(path, body, is_wanted)))
                try:
                    return read(data)
                except RemoteError as error:
                    raise _Fault(error, again=not isinstance(error, RefusedError)) from error
        raise AssertionError("the last attempt raises")

    def lines(self, path: str, body: dict[str, Any], *, is_wanted: IsWanted = always) -> Iterator[str]:
        """Send JSON and get the lines of a stream. Errors are those of :meth:`post`.

        Once the first line is there, nothing is sent again. Close the iterator, and the rest is not read.
        """
        begun = False
        for attempt in self._attempts(threading.Event(), is_wanted):
            with attempt:
                try:
                    with closing(self._answer(path, body, is_wanted)) as chunks:
                        rest = b""
                        for chunk in chunks:
                            begun = True
                            *lines, rest = (rest + chunk).split(b"\n")
                            yield from (line.decode(errors="replace") for line in lines)
                        yield rest.decode(errors="replace")
                        return
                except _Fault as fault:
                    if begun:
                        raise fault.error from fault.__cause__
                    raise

    def _attempts(self, stop: threading.Event, is_wanted: IsWanted) -> Iterator[_Attempt]:
        for number in range(self.settings.attempts):
            self._wait(self._pace.reserve(), stop, is_wanted)
            attempt = _Attempt(last=number + 1 == self.settings.attempts)
            yield attempt
            assert attempt.fault is not None  # else the caller would have returned
            wait = min(LONGEST_WAIT, self.settings.backoff_s * 2**number) * random.uniform(0.5, 1)
            after = attempt.fault.after
            if after > LONGEST_PAUSE:
                raise RemoteUnavailableError(f"{self.address.host} wants no request for {after:.0f} seconds")
            if after:
                self._pace.pause(after)
            self._wait(max(wait, after), stop, is_wanted)

    def _wait(self, seconds: float, stop: threading.Event, is_wanted: IsWanted) -> None:
        """Let time pass before the next request. Raises what says that there will be none."""
        end = monotonic() + seconds
        while True:
            check_wanted(is_wanted)
            left = end - monotonic()
            if stop.wait(max(0.0, min(LOOK, left))):
                raise RemoteUnavailableError(f"{self.address.host} was given up")
            if left <= LOOK:
                return

    @contextmanager
    def _slot(self, is_wanted: IsWanted) -> Iterator[None]:
        """One of the requests that may be under way at a time."""
        while not self._slots.acquire(timeout=LOOK):
            check_wanted(is_wanted)
        try:
            yield
        finally:
            self._slots.release()

    def _answer(self, path: str, body: dict[str, Any], is_wanted: IsWanted) -> Generator[bytes]:
        """Send JSON and get the body of a successful response as it comes.

        The connection is closed if the generator is, before its end. Raises _Fault and NotWantedError.
        """
        came: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self._loop.start(self._receive(path, body, came.put))
        call.add_done_callback(lambda call: came.put(None))
        try:
            while True:
                check_wanted(is_wanted)
                try:
                    chunk = came.get(timeout=LOOK)
                except queue.Empty:
                    continue
                if chunk is None:
                    return call.result()
                yield chunk
        finally:
            call.cancel()

    async def _receive(self, path: str, body: dict[str, Any], put: Callable[[bytes], None]) -> None:
        """Send JSON and hand over what comes back. Raises _Fault."""
        host = self.address.host
        try:
            async with self._http.stream("POST", self.address.base + path, json=body) as response:
                if response.status_code != 200:
                    said = b"".join([chunk async for chunk in self._chunks(response)])
                    raise self._fault_of(response, said)
                async for chunk in self._chunks(response):
                    put(chunk)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or type(error).__name__
            raise _Fault(RemoteUnavailableError(f"{host} cannot be reached: {reason}"), again=True) from error
        except httpx.TimeoutException as error:
            limit = f"{self.settings.timeout_s:g} seconds"
            raise _Fault(RemoteError(f"{host} gave no answer within {limit}"), again=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Fault(RemoteError(f"{host} broke off: {error}"), again=True) from error

    def _fault_of(self, response: httpx.Response, data: bytes) -> _Fault:
        status, host, said = response.status_code, self.address.host, _message(data)
        text = f"{host} answers {status}{f': {said}' if said else ''}"
        if response.is_redirect:
            return _Fault(
                RemoteUnavailableError(f"{text}; a photo goes nowhere else, so give the right address")
            )
        if status in (401, 403):
            return _Fault(RemoteUnavailableError(f"{text}; set CAPTIONER_REMOTE_KEY to a key that it knows"))
        if status == 404:
            hint = f"has it {self.address.model!r}, and is {self.address.base} its base?"
            return _Fault(RemoteUnavailableError(f"{text}; {hint}"))
        kind = RemoteUnavailableError if status in NOT_THE_PHOTO else RemoteError
        kind = RefusedError if status in (400, 422) else kind
        return _Fault(kind(text), again=status in AGAIN, after=_retry_after(response.headers))

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body, within the time and the size that an answer may have."""
        end, size = monotonic() + self.settings.timeout_s, 0
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > MAX_ANSWER:
                raise _Fault(RemoteError(f"{self.address.host} answers without an end"))
            if monotonic() > end:
                raise httpx.ReadTimeout("the answer does not come to its end")
            yield chunk


class _Loop:
    """An event loop in a daemon thread, from the first call on."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have work done there; cancel the future, and it is broken off."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="connections", daemon=True).start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """End the thread after this last work; nothing else may be under way."""
        loop = self._loop
        if loop is not None:
            self.start(last()).add_done_callback(lambda future: loop.call_soon_threadsafe(loop.stop))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


@dataclass
class _Attempt:
    """A context in which a request is made; a fault that may pass is kept unless it is the last one."""

    last: bool
    fault: _Fault | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, _Fault):
            return False
        if self.last or not error.again:
            raise error.error from error.__cause__
        self.fault = error
        return True


def _as_json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Fault(RemoteError("the server's answer is not JSON as its API has it"), again=True)
    return found


def _message(data: bytes) -> str:
    """What a server says of an error, in one short line."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "detail", "message"):
        if isinstance(found, dict):
            found = found.get(name, found)
    return " ".join(found.split())[:200] if isinstance(found, str) else ""


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds, which the header gives or follow from its date (RFC 9110, 10.2.3); 0 for none."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())
