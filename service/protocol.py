"""uvicorn's HTTP protocol, with an end to the patience for a request's head, which uvicorn has none of."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HeadLimitedProtocol"]

HEAD_SECONDS = 10.0


class HeadLimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head has not arrived within HEAD_SECONDS.

    Between two requests, uvicorn's shorter keep-alive timeout holds.
    """

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The head of the first request is awaited."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """The head of a request has begun."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, *args: Any) -> None:
        """Nothing is awaited any more."""
        self._stop_timer()
        super().connection_lost(*args)

    def _await_head(self) -> None:
        self._stop_timer()
        self.timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
