"""One process for each device, all behind one port, under uvicorn's supervisor.

The supervisor starts processes that are all alike, and new ones for those that die. Which device is whose,
they settle among themselves: each locks the file of one that is free, and a lock ends with its process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from service.settings import Settings

__all__ = ["claim", "create_process_app", "run_processes"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where the processes keep the locks, and where prometheus_client looks to keep what they count together."""

logger = logging.getLogger(__name__)


def run_processes(
    config: uvicorn.Config, settings: Settings, devices: Sequence[str], listener: socket.socket
) -> None:
    """Serve with a process for each device until SIGTERM or Ctrl-C.

    Args:
        config: of :func:`create_process_app`.
        settings: which the processes read from the environment again, but for what is set here.
        devices: torch's names; one that stands there twice gets two processes.
        listener: bound to the address.
    """
    with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
        os.environ[FOLDER_VARIABLE] = folder
        os.environ["CAPTIONER_DEVICE"] = ",".join(devices)
        os.environ["CAPTIONER_ALLOW_ANONYMOUS"] = str(settings.allow_anonymous)
        os.environ["CAPTIONER_MODEL"], os.environ["CAPTIONER_DTYPE"] = settings.model, settings.dtype
        os.environ["CAPTIONER_MODELS"] = ",".join(settings.models)
        Multiprocess(config, [listener]).run()


def create_process_app() -> FastAPI:
    """The application of one of the processes."""
    from service.app import create_app  # not before the variable is set: prometheus_client reads it once
    from service.logs import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    device = claim(settings.devices, Path(os.environ[FOLDER_VARIABLE]))
    logger.info("process %d serves with %s", os.getpid(), device)
    settings = settings.model_copy(update={"device": device})
    return create_app(settings, warm_first=True, local_only=settings.local_only)


def claim(devices: Sequence[str], folder: Path) -> str:
    """The first device that no other process has; it is this process's until that ends.

    Raises:
        RuntimeError: all are taken.
    """
    from prometheus_client.multiprocess import mark_process_dead

    for number, device in enumerate(devices):
        file = os.open(folder / f"device-{number}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        if before := os.read(file, 32):
            mark_process_dead(int(before), path=str(folder))  # type: ignore[no-untyped-call]
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        return device  # and the file stays open, for closing it would end the lock
    raise RuntimeError(f"each of {', '.join(devices)} has its process already")
