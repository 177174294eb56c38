"""What every request passes on its way in and every answer on its way out, as plain ASGI.

From the outside in: :class:`HeadAsGet`, :class:`Observe`, :class:`SecureHeaders`, :class:`RelativeRedirects`,
:class:`LocalOnly`, Starlette's CORS, :class:`Authenticate`, :class:`LimitBody`. Plain ASGI, since Starlette's
``BaseHTTPMiddleware`` hides a client's going away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Collection, Mapping
from http import HTTPStatus
from time import monotonic
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, problem_of, problem_response
from service.logs import REQUEST_ID
from service.metrics import Metrics
from service.settings import Settings, is_this_machine

__all__ = [
    "PAGE_POLICY",
    "Authenticate",
    "HeadAsGet",
    "LimitBody",
    "LocalOnly",
    "Observe",
    "RelativeRedirects",
    "SecureHeaders",
]

logger = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing from elsewhere; blob: and data: are the photos that a user just picked."""

OPEN_PATHS = {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}
"""What a GET needs no key for, besides what is below ``/static/`` and ``/docs/``."""

DRAIN = 4
"""Times the largest body that is read and thrown away of one that is too large."""

CLIENT_GONE = 499
"""The status in logs and metrics of a request that nobody waits for any more; nginx's number for it."""


class HeadAsGet:
    """Answers HEAD as GET without a body (RFC 9110, 9.3.2), which FastAPI leaves to each route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


class Observe:
    """Gives each request an id, a log line and its metrics, and answers what nobody else has answered.

    A client may send its own id as ``X-Request-ID``; the answer has it either way.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)  # each request is a task, and so has a context, of its own
        start, status = monotonic(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            if problem_of(error).status == 500:
                logger.exception("a request failed")
            if status:
                raise  # half an answer is out: the server must cut the connection
            await problem_response(error)(scope, receive, observed)
        finally:
            self._record(scope, status or 500, monotonic() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # not the path: anybody can invent paths
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.latency.labels(route).observe(seconds)
        level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") else logging.INFO
        fields = {
            "method": scope["method"],
            "path": scope["path"][:200],  # without the query: it can hold anything
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        logger.log(level, "request", extra=fields)


class SecureHeaders:
    """Tells browsers what an answer may do; a route that needs more says so itself."""

    HEADERS: Mapping[str, str] = {
        "Cache-Control": "no-cache",  # ask again: after an update the page must not run yesterday's script
        "Content-Security-Policy": PAGE_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, secured)


class RelativeRedirects:
    """Leads from a path with a slash too many, or too few, to the right one by a relative reference.

    Starlette makes an absolute one of what it knows. Behind a proxy that is not enough: it would lead past
    the proxy's prefix, and from https to http, over which a client would then send its photo.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""

        async def relative(message: Message) -> None:
            if (
                message["type"] == "http.response.start"
                and message["status"] == HTTPStatus.TEMPORARY_REDIRECT
            ):
                headers, path = MutableHeaders(scope=message), scope["path"]
                name = quote(path.rstrip("/").rpartition("/")[2])
                query = scope["query_string"].decode("latin-1")
                place = f"../{name}" if path.endswith("/") else f"{name}/"
                headers["Location"] = place + (f"?{query}" if query else "")
            await send(message)

        await self.app(scope, receive, relative)


class LocalOnly:
    """Answers this machine's own programs and pages, for a server that needs no key.

    A web page can have its name point here after it has been loaded ("DNS rebinding"); to a browser, server
    and page are then one, but its requests still carry the page's name. And any page can have a browser send
    a form here. It cannot read the answer, but the work would be done, and perhaps paid for.

    Args:
        app: what is behind.
        origins: of other pages that may ask, too; ``*`` for all.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http" and (problem := self._problem(scope["method"], Headers(scope=scope))):
            return await problem_response(problem)(scope, receive, send)
        await self.app(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "localhost")  # only HTTP/1.0 has none: no browser
        if not is_this_machine(re.sub(r":\d*$", "", host)):
            detail = (
                "this server has no API keys, so it answers only as localhost: use http://localhost, "
                "or set CAPTIONER_API_KEYS, or CAPTIONER_ALLOW_ANONYMOUS=true to let everybody in"
            )
            return Problem(421, "host", "Asked by another machine's name", detail)
        # what only browsers send, and no page can change; "none" is what the user did, such as a bookmark
        if method != "POST" or headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
            return None
        origin = headers.get("origin", "null")
        if not {origin, "*"}.isdisjoint(self.origins) or is_this_machine(_host_of(origin)):
            return None
        detail = (
            f"this server has no API keys, so it captions nothing for pages of {origin[:200]}: "
            "add that to CAPTIONER_CORS_ORIGINS, or set CAPTIONER_API_KEYS"
        )
        return Problem(403, "origin", "Asked by another site's page", detail)


def _host_of(origin: str) -> str:
    """The host in an origin; "" where there is none, as for a file's page."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


class Authenticate:
    """Lets only those with a key in, where there are keys; what a browser must load first is open."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http" and self.settings.api_keys and not self._is_open(scope):
            header = Headers(scope=scope).get("authorization", "").encode("latin-1")  # as it came
            kind, _, key = header.partition(b" ")
            if kind.lower() != b"bearer" or not self.settings.knows(key.strip()):
                detail = "send one of the server's API keys as `Authorization: Bearer KEY`"
                headers = {"WWW-Authenticate": 'Bearer realm="captioner"'}
                problem = Problem(401, "key", "No API key, or a wrong one", detail, headers=headers)
                return await problem_response(problem)(scope, receive, send)
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (
            path in OPEN_PATHS or path.startswith(("/static/", "/docs/"))
        )


class LimitBody:
    """Refuses bodies that are too large or too slow, while they arrive.

    Args:
        app: what is behind.
        max_bytes: of one body.
        max_pending_bytes: of the bodies of all requests that are not answered yet.
        seconds: for a body to arrive.
        metrics: where to count.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, max_pending_bytes: int, seconds: float, metrics: Metrics
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.max_bytes = max_bytes
        self.max_pending_bytes = max_pending_bytes
        self.seconds = seconds
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            problem = Problem(415, "body-encoding", "Not a body that is read", "send the body uncompressed")
            return await problem_response(problem)(scope, receive, send)
        length = headers.get("content-length", "")
        deadline, taken, ended = asyncio.get_running_loop().time() + self.seconds, 0, False
        if length.isdecimal() and int(length) > self.max_bytes:
            if "expect" not in headers and int(length) <= DRAIN * self.max_bytes:
                await self._drain(receive, deadline)
            return await problem_response(self._too_large())(scope, receive, send)

        async def limited() -> Message:
            nonlocal taken, ended
            if ended:  # what can still come is that the client goes away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise self._too_slow() from error
            size = len(message.get("body", b""))
            taken += size
            self._hold(size)
            ended = not message.get("more_body", False)
            if refusal := self._refusal(taken):
                if not ended:
                    await self._drain(receive, deadline)
                raise refusal
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self._hold(-taken)

    def _refusal(self, taken: int) -> Problem | None:
        if taken > self.max_bytes:
            return self._too_large()
        return self._too_many() if self._pending > self.max_pending_bytes else None

    async def _drain(self, receive: Receive, deadline: float) -> None:
        """Let a client finish sending, for else it would meet a closed connection, not the answer."""
        left = DRAIN * self.max_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _hold(self, size: int) -> None:
        self._pending += size
        self.metrics.pending_bytes.set(self._pending)

    def _too_large(self) -> Problem:
        detail = f"the body has more than {self.max_bytes / 1e6:g} MB: send smaller or fewer photos"
        return Problem(413, "body-size", "The request is too large", detail, headers={"Connection": "close"})

    def _too_slow(self) -> Problem:
        detail = f"the body did not arrive within {self.seconds:g} seconds"
        return Problem(408, "body-slow", "Too slow", detail, headers={"Connection": "close"})

    def _too_many(self) -> Problem:
        headers = {"Connection": "close", "Retry-After": "1"}
        detail = "the server is receiving as much as it can hold: try again later"
        return Problem(429, "queue-full", "Too many photos at once", detail, headers=headers)
