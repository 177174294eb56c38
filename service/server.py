"""Runs the application under uvicorn: in this process, or in one for each device."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import uvicorn
from pydantic import ValidationError

from captioner import OptionsError, named_models
from service.app import Loader, create_app
from service.logs import configure_logging
from service.models import in_thread
from service.protocol import HeadLimitedProtocol
from service.settings import Settings

__all__ = ["run", "uvicorn_config"]

logger = logging.getLogger(__name__)


def run(given: Mapping[str, Any], load: Loader) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    Args:
        given: settings that count more than those of the environment.
        load: what finds the models.

    Raises:
        OptionsError: the settings are not valid, or would let strangers in.
        OSError: the address cannot be listened on.
        CaptionerError: the first model cannot be loaded, or another one cannot be one.
    """
    settings = _settings(given)
    listener = _bind(settings.host, settings.port)
    with listener:
        configure_logging(settings.log_level)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        logger.info("serving at http://%s:%d", host, listener.getsockname()[1])
        devices, (first, *_) = _devices(settings), named_models(settings.places)
        if len(devices) > 1:
            from service.processes import run_processes  # Windows has no locks of the kind

            config = uvicorn_config(
                "service.processes:create_process_app",
                settings,
                factory=True,
                workers=len(devices),
                timeout_worker_healthcheck=15,  # a process that loads a model answers late
            )
            return run_processes(config, settings, devices, listener)
        settings = settings.model_copy(update={"device": devices[0]})
        app = create_app(
            settings,
            # in a thread that ends: each that has computed with torch keeps a team of OpenMP threads, and
            # where two have one, both sleep whenever they wait, so that inference takes a fifth longer
            asyncio.run(in_thread(partial(load, first.place, device=settings.device, dtype=settings.dtype))),
            load=load,
            local_only=settings.local_only,
        )
        config = uvicorn_config(app, settings)
        uvicorn.Server(config).run([listener])


def uvicorn_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=HeadLimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(2 * settings.request_timeout_s) + 5,
        **options,
    )


def _devices(settings: Settings) -> Sequence[str]:
    if settings.device != "all":
        return settings.devices
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if count else ["auto"]


def _settings(given: Mapping[str, Any]) -> Settings:
    try:
        settings = Settings(**({**given, "models": ()} if "model" in given else given))
    except ValidationError as error:
        found = [
            f"CAPTIONER_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()
        ]
        raise OptionsError("; ".join(found)) from error
    if settings.exposed():
        raise OptionsError(
            f"{settings.host} is open to other machines and there are no API keys: set CAPTIONER_API_KEYS, "
            "listen on 127.0.0.1, or let everybody in with --allow-anonymous"
        )
    return settings


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens once uvicorn does, so that a port in use is known before a model is loaded."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
        ) from error
    return listener
