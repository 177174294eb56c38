"""Server-sent events (WHATWG HTML, 9.2) that end when the client goes away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.inputs import until_gone

__all__ = ["EventStream", "format_event"]


def format_event(data: Any, *, name: str | None = None) -> bytes:
    """An event with JSON as its data."""
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=name)


class EventStream(Response):
    """Events as they come. The generator is closed at the end, however that comes about.

    Starlette's own StreamingResponse leaves that to the garbage collector.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.request = request
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        await until_gone(self.request, self._send(send))

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.events) as events:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
