"""The application: settings in, ASGI out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Protocol

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from captioner import Captioner, NamedModel, named_models
from captioner import load as load_model
from service import compat, docs, ollama, responses, routes
from service.engine import Engine
from service.errors import register_handlers
from service.fetch import Fetcher
from service.inputs import Service
from service.metrics import Metrics
from service.middleware import (
    Authenticate,
    HeadAsGet,
    LimitBody,
    LocalOnly,
    Observe,
    RelativeRedirects,
    SecureHeaders,
)
from service.models import Models
from service.settings import Settings

__all__ = ["Loader", "create_app"]

DESCRIPTION = """Captions for photographs, and where the model looked for each word.

Errors are problem documents (RFC 9457); their `type` names the kind, their `detail` says what to do."""


class Loader(Protocol):
    """What finds a model by name, such as :func:`captioner.load`."""

    def __call__(self, name_or_path: str, /, *, device: str, dtype: str) -> Captioner:
        """Raises CheckpointError or DeviceError."""


def create_app(
    settings: Settings | None = None,
    captioner: Captioner | None = None,
    *,
    load: Loader = load_model,
    warm_first: bool = False,
    local_only: bool = False,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: None for those of the environment.
        captioner: the first model that the settings name, loaded; None loads it when the application starts.
        load: what finds models by their names.
        warm_first: start only once the model is warm, for where others serve meanwhile.
        local_only: refuse requests by another name than localhost and those of other sites' pages, as
            `captioner serve` does without keys.

    The application starts and ends with its lifespan; at the end, all that was accepted is captioned.

    Raises:
        CheckpointError: the settings name a model that cannot be one.
        OptionsError: they name two models alike, or an alias for none.
    """
    settings = settings or Settings()
    metrics = Metrics()
    models = _models(settings, captioner, load, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(
            models,
            max_batch=settings.max_batch,
            batch_window=settings.batch_window_ms / 1000,
            queue_size=settings.queue_size,
            timeout=settings.request_timeout_s,
            max_pixels=settings.max_pixels,
        )
        await engine.start()
        if warm_first:
            await engine.wait_until_warm()
        app.state.service = Service(settings, engine, Fetcher(settings.url_hosts))
        try:
            yield
        finally:
            await engine.close()

    app = FastAPI(
        title="Captioner",
        version=version("captioner"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=_middleware(settings, metrics, local_only=local_only),
    )
    app.openapi = lambda: docs.openapi_document(app)  # type: ignore[method-assign]
    register_handlers(app)
    for module in (routes, compat, responses, ollama, docs):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=routes.STATIC, check_dir=False), name="static")
    return app


def _models(settings: Settings, captioner: Captioner | None, load: Loader, metrics: Metrics) -> Models:
    """The models that clients can choose among; the first may be there already."""
    if captioner is not None and not settings.models:
        choices: Sequence[NamedModel] = [
            NamedModel(name=captioner.name, place=settings.model, sends_photos_to=captioner.sends_photos_to)
        ]
    else:
        choices = named_models(settings.places)

    given = [] if captioner is None else [captioner]  # given away, so that it is gone once it is unloaded

    def find(place: str) -> Captioner:
        return given.pop() if given else load(place, device=settings.device, dtype=settings.dtype)

    return Models(
        choices,
        find,
        aliases=settings.model_aliases,
        memory=settings.models_memory_bytes,
        metrics=metrics,
    )


def _middleware(settings: Settings, metrics: Metrics, *, local_only: bool) -> list[Middleware]:
    """Outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],  # a client's library sends its own; who may call at all is the origin's matter
        allow_private_network=True,  # nor does it matter in which network such a page is
        expose_headers=["Retry-After", "X-Request-ID"],
    )
    return [
        Middleware(HeadAsGet),
        Middleware(Observe, metrics=metrics),
        Middleware(SecureHeaders),
        Middleware(RelativeRedirects),
        *([Middleware(LocalOnly, origins=settings.cors_origins)] if local_only else []),
        *([cors] if settings.cors_origins else []),
        Middleware(Authenticate, settings=settings),
        Middleware(
            LimitBody,
            max_bytes=settings.max_upload_bytes,
            max_pending_bytes=settings.max_pending_bytes,
            seconds=settings.request_timeout_s,
            metrics=metrics,
        ),
    ]
