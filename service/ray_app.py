"""The service on a Ray cluster: the same routes on replicas, on as many machines as there is work for.

Each replica is a whole server, with the batching, the limits and the answers of one that runs alone; Ray
Serve spreads requests over them, replaces those that fail and adjusts their number. ``deploy/ray-serve.yaml``
is a configuration of it. The extra ``scale`` installs Ray.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from captioner import OptionsError
from service.app import create_app
from service.engine import NotReadyError
from service.inputs import Service
from service.logs import configure_logging
from service.settings import Settings

__all__ = ["build"]

SETTLING_SECONDS = 0.1


class Replica:
    """One server, as Ray Serve runs it: it is built where it runs, and asked from time to time how it is.

    Args:
        given: settings that count more than those of the environment.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        settings = Settings(**given)
        configure_logging(settings.log_level)
        self.application = create_app(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve's name for it; the application's lifespan is then the replica's."""
        return self.application

    async def check_health(self) -> None:
        """Return once the model is warm, so that no request comes before; a replica that raises is replaced.

        Raises:
            RuntimeError: the thread that has the model has ended.
        """
        service: Service = self.application.state.service
        while service.engine.alive:
            try:
                return service.engine.check_ready()
            except NotReadyError:
                await asyncio.sleep(SETTLING_SECONDS)
        raise RuntimeError("the inference thread has ended; the replica's log says why")


def build(given: dict[str, Any]) -> Application:
    """The application that a Ray Serve configuration names as ``service.ray_app:build``.

    Args:
        given: the configuration's ``args``: settings in small letters, which count more than the
            ``CAPTIONER_*`` variables of the replicas' environment. ``host`` and ``port`` mean nothing here.

    Raises:
        OptionsError: there are no API keys and no ``allow_anonymous``, and Ray's address may be open to all.
        pydantic.ValidationError: a setting is not valid.
    """
    if Settings(**{**given, "host": "0.0.0.0"}).exposed():
        raise OptionsError(
            "there are no API keys: set CAPTIONER_API_KEYS, or let everybody in with allow_anonymous: true"
        )
    deployment = serve.deployment(
        name="captioner",
        max_ongoing_requests=64,  # two full batches: one that is computed, and one that gathers
        autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 32},
        graceful_shutdown_timeout_s=130,
    )
    application: Application = deployment(serve.ingress()(Replica)).bind(given)
    return application
