"""A page of another origin in a real browser: who may call the API, and with which headers."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from images import draw_scene, encode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HEADERS = {
    "Authorization": "Bearer any",
    "Content-Type": "application/json",
    "X-Stainless-Arch": "unknown",
    "X-Stainless-Lang": "js",
    "X-Stainless-OS": "Unknown",
    "X-Stainless-Package-Version": "6.0.0",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Runtime": "browser:chrome",
    "X-Stainless-Runtime-Version": "140.0.0",
    "X-Stainless-Timeout": "600",
}
"""What OpenAI's package for JavaScript sends from a browser."""

ASK = """async ([url, headers, body]) => {
    try {
        const answer = await fetch(url, {method: "POST", headers, body: JSON.stringify(body)});
        return {status: answer.status, id: answer.headers.get("X-Request-ID"), body: await answer.json()};
    } catch (error) {
        return {error: error.name};
    }
}"""


class Blank(BaseHTTPRequestHandler):
    """An empty page at every path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def origin() -> Iterator[str]:
    """The origin of somebody else's page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_page_of_an_allowed_origin_may_ask(page: Page, serve: Callable[..., str], origin: str):
    url = serve(cors_origins=origin)
    page.goto(origin)
    photo = base64.b64encode(encode(draw_scene(), "JPEG")).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{photo}"}}]
    body = {"model": "default", "messages": [{"role": "user", "content": content}]}
    answer = page.evaluate(ASK, [f"{url}v1/chat/completions", HEADERS, body])
    assert answer["status"] == 200, answer
    assert "a photo" in answer["body"]["choices"][0]["message"]["content"]
    assert answer["id"]
    refused = page.evaluate(ASK, [f"{url}v1/chat/completions", HEADERS, {}])
    assert refused["body"]["detail"].startswith("`messages` is missing"), "errors can be read as well"


def test_a_page_of_another_origin_may_not(browser: Browser, serve: Callable[..., str], origin: str):
    url = serve(cors_origins="https://page.example")
    with browser.new_context() as context:  # not the fixture's page, to which a refusal in the log is a fault
        page = context.new_page()
        page.goto(origin)
        assert page.evaluate(ASK, [f"{url}v1/chat/completions", HEADERS, {}]) == {"error": "TypeError"}


FORM = """async (url) => {
    const body = new FormData();
    body.append("image", new Blob(["a photo"]), "a.png");
    await fetch(url, {method: "POST", body, mode: "no-cors"});
}"""


def test_a_page_of_another_site_has_nothing_done_by_a_form(browser: Browser, serve: Callable[..., str]):
    url = serve(local_only=True)
    with browser.new_context() as context:
        page, statuses = context.new_page(), list[int]()
        page.on("response", lambda response: statuses.append(response.status))
        page.evaluate(FORM, f"{url}v1/captions")  # an empty page is of no site
        page.goto(url)
        page.evaluate(FORM, f"{url}v1/captions")
        assert [status for status in statuses if status >= 400] == [403, 415], "its own page was heard"
