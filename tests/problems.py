"""What every answer of the service that is no success must be."""

from __future__ import annotations

from typing import Any

import httpx


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The RFC 9457 document, which says in its body what the response says in its head."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:captioner:problem:")
    assert problem["title"]
    assert problem["detail"]
    return problem
