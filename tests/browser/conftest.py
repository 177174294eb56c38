"""The application on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from playwright.sync_api import expect
from scripted import ScriptedCaptioner

from captioner import Captioner
from captioner import load as load_model
from service.app import Loader, create_app
from service.settings import Settings

expect.set_options(timeout=30_000)  # a test machine can be busy


@pytest.fixture
def captioner() -> Iterator[ScriptedCaptioner]:
    captioner = ScriptedCaptioner()
    yield captioner
    captioner.release()


@pytest.fixture
def serve(captioner: ScriptedCaptioner) -> Iterator[Callable[..., str]]:
    """Starts the application with settings, maybe with another captioner, and gives the page's URL."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        model: Captioner | ScriptedCaptioner | None = captioner,
        load: Loader = load_model,
        *,
        local_only: bool = False,
        **settings: object,
    ) -> str:
        app = create_app(Settings(**settings), model, load=load, local_only=local_only)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    captioner.release()
    for server, thread in started:
        server.should_exit = True
        thread.join()
