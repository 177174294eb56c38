"""The OpenAPI document and its page; and schemathesis, which others wrote, over what the document says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from problems import check_problem

ROUTES = {
    "/v1/responses": "post",
    "/api/generate": "post",
    "/api/chat": "post",
    "/api/tags": "get",
    "/api/show": "post",
    "/api/version": "get",
    "/v1/captions": "post",
    "/v1/captions/stream": "post",
    "/v1/chat/completions": "post",
    "/image-to-text": "post",
    "/models/{model}": "post",
    "/v1/models": "get",
    "/v1/models/{model}": "get",
    "/healthz": "get",
    "/readyz": "get",
    "/metrics": "get",
}


def test_the_document_has_every_route(client: httpx.Client):
    document = client.get("/openapi.json").json()
    assert {path: next(iter(operations)) for path, operations in document["paths"].items()} == ROUTES
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert references <= document["components"]["schemas"].keys()
    assert "ValidationError" not in references


def test_the_examples_of_the_document_work(client: httpx.Client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, schema in {
        "/v1/captions": "CaptionsRequest",
        "/v1/captions/stream": "StreamRequest",
        "/v1/chat/completions": "ChatRequest",
        "/v1/responses": "ResponsesRequest",
        "/api/generate": "OllamaGenerate",
        "/api/chat": "OllamaChat",
        "/image-to-text": "InferenceRequest",
    }.items():
        (example,) = schemas[schema]["examples"]
        assert client.post(path, json=example).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client):
    page = client.get("/docs")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 4
    for file in files:
        assert file == "data:," or client.get(f"/{file}").status_code == 200
    assert "script-src 'self';" in page.headers["content-security-policy"]
    check_problem(client.get("/docs/nothing.js"), 404)


def test_it_can_be_tried_below_the_prefix_of_a_proxy(client: httpx.Client):
    """A server's address is relative to the document's (OpenAPI 3.1, 4.8.5); by default it is the root."""
    (server,) = client.get("/openapi.json").json()["servers"]
    assert (
        urljoin("https://example.org/captions/openapi.json", server["url"]) == "https://example.org/captions/"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(client: httpx.Client, tmp_path: Path):
    # Left out: that what fits the schema is accepted. No schema can say which bytes are a photo.
    command = [
        *(Path(sys.executable).parent / "st", "run", f"{client.base_url}/openapi.json", "--no-color"),
        *("--checks=all", "--exclude-checks=positive_data_acceptance", "--continue-on-failure"),
        *("--phases=examples,coverage,fuzzing", "--max-examples=5", "--seed=1", "--workers=3"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Tested: 16" in done.stdout
