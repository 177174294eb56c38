"""uvicorn's HTTP protocol, with an end to the patience for a request's head, which uvicorn has none of."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["limit_heads"]


def limit_heads(limit: float) -> type[HttpToolsProtocol]:
    """A protocol that closes a connection whose next head has not arrived within so many seconds.

    Between two requests, uvicorn's shorter keep-alive timeout holds.
    """

    class Protocol(HttpToolsProtocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.await_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.await_head()

        def on_headers_complete(self) -> None:
            self.stop_timer()
            super().on_headers_complete()

        def connection_lost(self, *args: Any) -> None:
            self.stop_timer()
            super().connection_lost(*args)

        def await_head(self) -> None:
            self.stop_timer()
            self.timer = self.loop.call_later(limit, self.transport.close)

        def stop_timer(self) -> None:
            if self.timer:
                self.timer.cancel()

    return Protocol
