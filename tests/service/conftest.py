"""The application under uvicorn on a port of its own, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from tiny import tiny_captioner

from captioner import Captioner
from service.app import Loader, create_app
from service.server import uvicorn_config
from service.settings import Settings

Serve = Callable[..., contextlib.AbstractContextManager[httpx.Client]]


@contextlib.contextmanager
def _serve(
    captioner: Captioner | None = None, *, ready: bool = True, load: Loader | None = None, **settings: object
) -> Iterator[httpx.Client]:
    chosen = Settings(**{"batch_window_ms": 1, **settings})
    listener = socket.create_server(("127.0.0.1", 0))
    if load:
        app = create_app(chosen, captioner, load=load, local_only=chosen.local_only)
    else:
        app = create_app(chosen, captioner or tiny_captioner(), local_only=chosen.local_only)
    config = uvicorn_config(app, chosen)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            while ready and client.get("/readyz").status_code != 200:
                time.sleep(0.01)
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Starts a server with a captioner and settings; gives a client of it once it is ready."""
    return _serve


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    """A client of a server with a tiny model that stays as it is."""
    with _serve() as client:
        yield client


@pytest.fixture
def photo(photo_path: Path) -> bytes:
    """The bytes of a JPEG of 120 × 80 pixels."""
    return photo_path.read_bytes()
