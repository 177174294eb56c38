"""Requests to a model's server: paced, repeated where that can help, and explained where it cannot."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, TypeVar

import httpx

from captioner.errors import RemoteError, RemoteUnavailableError
from captioner.runners.address import Address, RemoteSettings

__all__ = ["Client", "RefusedError"]

T = TypeVar("T")

MAX_ANSWER = 4_000_000
"""Bytes of an answer; a caption has a thousandth of it."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most."""

LONGEST_PAUSE = 600.0
"""Seconds that a server may ask to be left alone for; after that, it has failed."""

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
        self._http = httpx.Client(
            timeout=httpx.Timeout(settings.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.parallel),
            headers={"Authorization": f"Bearer {settings.key}"} if settings.key else {},
            follow_redirects=False,  # a photo goes where the operator said and nowhere else
        )

    def post(
        self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T], *, stop: threading.Event
    ) -> T:
        """Send JSON and read the JSON that comes back, in as many attempts as are allowed.

        Args:
            path: below the server's base.
            body: to send.
            read: makes of an answer what is returned; where it raises RemoteError, the request is sent again.
            stop: set it where others have found out that it is no use.

        Raises:
            RemoteUnavailableError: the server is not there, knows no such model or key, or has no room.
            RefusedError: it does not take this request.
            RemoteError: it failed on this request each time.
        """
        for attempt in self._attempts(stop):
            with attempt, self._slots, self._open(path, body) as response:
                data = _as_json(self._read(response))
                try:
                    return read(data)
                except RemoteError as error:
                    raise _Fault(error, again=not isinstance(error, RefusedError)) from error
        raise AssertionError("the last attempt raises")

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        """Send JSON and get the lines of a stream. Errors are those of :meth:`post`.

        Once the first line is there, nothing is sent again.
        """
        begun = False
        for attempt in self._attempts(threading.Event()):
            with attempt:
                try:
                    with self._open(path, body) as response:
                        rest = b""
                        for chunk in self._chunks(response):
                            begun = True
                            *lines, rest = (rest + chunk).split(b"\n")
                            yield from (line.decode(errors="replace") for line in lines)
                        yield rest.decode(errors="replace")
                        return
                except _Fault as fault:
                    if begun:
                        raise fault.error from fault.__cause__
                    raise

    def _attempts(self, stop: threading.Event) -> Iterator[_Attempt]:
        for number in range(self.settings.attempts):
            if stop.wait(self._pace.reserve()):
                raise RemoteUnavailableError(f"{self.address.host} was given up")
            attempt = _Attempt(last=number + 1 == self.settings.attempts)
            yield attempt
            assert attempt.fault is not None  # else the caller would have returned
            wait = min(LONGEST_WAIT, self.settings.backoff_s * 2**number) * random.uniform(0.5, 1)
            after = attempt.fault.after
            if after > LONGEST_PAUSE:
                raise RemoteUnavailableError(f"{self.address.host} wants no request for {after:.0f} seconds")
            if after:
                self._pace.pause(after)
            if stop.wait(max(wait, after)):
                raise RemoteUnavailableError(f"{self.address.host} was given up")

    @contextmanager
    def _open(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """A successful response whose body is still to be read. Raises _Fault, also while that is read."""
        host = self.address.host
        try:
            with self._http.stream("POST", self.address.base + path, json=body) as response:
                if response.status_code != 200:
                    raise self._fault_of(response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or type(error).__name__
            raise _Fault(RemoteUnavailableError(f"{host} cannot be reached: {reason}"), again=True) from error
        except httpx.TimeoutException as error:
            limit = f"{self.settings.timeout_s:g} seconds"
            raise _Fault(RemoteError(f"{host} gave no answer within {limit}"), again=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Fault(RemoteError(f"{host} broke off: {error}"), again=True) from error

    def _fault_of(self, response: httpx.Response) -> _Fault:
        status, host = response.status_code, self.address.host
        said = _message(self._read(response))
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

    def _read(self, response: httpx.Response) -> bytes:
        """The whole body, within the time and the size that an answer may have."""
        return b"".join(self._chunks(response))

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        end, size = monotonic() + self.settings.timeout_s, 0
        for chunk in response.iter_bytes():
            size += len(chunk)
            if size > MAX_ANSWER:
                raise _Fault(RemoteError(f"{self.address.host} answers without an end"))
            if monotonic() > end:
                raise httpx.ReadTimeout("the answer does not come to its end")
            yield chunk


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
