"""The OpenAPI document, and a page at ``/docs`` that shows it without loading anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.compat_schemas import ChatRequest, InferenceRequest
from service.ollama_schemas import OllamaChat, OllamaGenerate, OllamaShow
from service.responses_schemas import ResponsesRequest
from service.schemas import (
    CaptionsForm,
    CaptionsRequest,
    ProblemOut,
    StreamForm,
    StreamRequest,
    TextOut,
)

__all__ = ["body_of", "events_of", "openapi_document", "problems", "router"]

router = APIRouter(include_in_schema=False)

SCHEMAS: list[type[BaseModel]] = [
    CaptionsForm,
    CaptionsRequest,
    ChatRequest,
    InferenceRequest,
    OllamaChat,
    OllamaGenerate,
    OllamaShow,
    ProblemOut,
    ResponsesRequest,
    StreamForm,
    StreamRequest,
    TextOut,
]
"""Those that routes name by themselves, since they read their bodies by themselves."""

REF = "#/components/schemas/{model}"

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI writes styles into its elements."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captioner: API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""

START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route can answer with, for the OpenAPI document."""
    schema = {"schema": {"$ref": REF.format(model="ProblemOut")}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": schema},
        }
        for status in sorted(statuses)
    }


def body_of(schemas: Mapping[str, type[BaseModel] | type[bytes]]) -> dict[str, Any]:
    """A request's body, by media type, for the OpenAPI document; bytes are a file as it is."""
    content = {
        kind: {"schema": {} if type_ is bytes else {"$ref": REF.format(model=type_.__name__)}}
        for kind, type_ in schemas.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def events_of(schemas: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Server-sent events with JSON as their data, by name, for the OpenAPI document (3.2.0, 4.14.4)."""
    kinds = []
    for name, model in schemas.items():
        content = {"$ref": REF.format(model=model.__name__)}
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
        properties = {"event": {"const": name}, "data": data}
        kinds.append({"type": "object", "properties": properties, "required": ["event", "data"]})
    return {"text/event-stream": {"itemSchema": {"oneOf": kinds}}}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of bodies that FastAPI does not read itself."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, definitions = models_json_schema([(model, "validation") for model in SCHEMAS], ref_template=REF)
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        document["servers"] = [
            {"url": ".", "description": "beside this document, so also below a proxy's prefix"}
        ]
        _remove_validation_errors(document)
        app.openapi_schema = document
    return app.openapi_schema


def _remove_validation_errors(document: dict[str, Any]) -> None:
    """Take out what FastAPI says of itself of every route with parameters, but which is never sent."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": DOCS_POLICY})


@router.get("/docs/{name}")
async def docs_file(request: Request, name: str) -> Response:
    """What Swagger UI is made of."""
    kinds = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
    if name == "start.js":
        return Response(START, media_type="text/javascript")
    if name not in kinds:
        raise HTTPException(404)
    data = (files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(data, media_type=kinds[name], headers={"Cache-Control": "max-age=3600"})
