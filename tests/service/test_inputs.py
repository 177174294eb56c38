"""Photos in every spelling of clients, and refusals that name the field, what came and what to send."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from images import draw_noise, encode
from problems import check_problem
from tiny import tiny_captioner


def caption_of(photo: bytes) -> str:
    """What the library says."""
    return tiny_captioner().caption([photo])[0].caption


def spellings(photo: bytes) -> dict[str, str]:
    plain = base64.b64encode(photo).decode()
    lines = base64.encodebytes(photo).decode()
    uri = f"data:image/jpeg;base64,{plain}"
    return {
        "plain": plain,
        "trailing newline": f"{plain}\n",
        "lines": lines,
        "Windows lines": lines.replace("\n", "\r\n"),
        "URL-safe": base64.urlsafe_b64encode(photo).decode(),
        "no padding": plain.rstrip("="),
        "URL-safe without padding": base64.urlsafe_b64encode(photo).decode().rstrip("="),
        "URI": uri,
        "URI in capitals": uri.replace("data:image/jpeg;base64", "DATA:IMAGE/JPEG;BASE64"),
        "URI with parameters": uri.replace(";base64", ";name=a.jpg;base64"),
        "URI with lines": f"data:image/jpeg;base64,{lines}",
        "URI, percent-encoded": f"data:image/jpeg;base64,{quote(plain, safe='')}",
        "URI, all percent-encoded": quote(uri, safe=""),
        "URI of bytes": f"data:image/jpeg,{quote(photo)}",
    }


@pytest.fixture(scope="module")
def odd_photo() -> bytes:
    """A JPEG whose base64 has padding and characters that are not safe in URLs."""
    photo = encode(draw_noise(60, 40), "JPEG")
    photo += b"\0" * (-(len(photo) + 1) % 3)
    plain = base64.b64encode(photo).decode()
    assert {"+", "/"} < set(plain)
    assert plain.endswith("=")
    return photo


@pytest.mark.parametrize("name", spellings(b"x"))
def test_every_spelling_of_a_photo_is_taken(client: httpx.Client, odd_photo: bytes, name: str):
    text, expected = spellings(odd_photo)[name], caption_of(odd_photo)
    images = [{"base64": text}, {"url": text}, text]
    answer = client.post("/v1/captions", json={"images": images}).json()
    assert [caption["caption"] for caption in answer["captions"]] == [expected] * 3
    for part in ({"url": text}, text):
        content = [{"type": "image_url", "image_url": part}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == expected
    answer = client.post("/image-to-text", json={"inputs": text}).json()
    assert answer == [{"generated_text": expected}]


def part(photo: bytes, disposition: str, kind: str | None = "image/jpeg") -> bytes:
    """A form of one part."""
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n"
    head += f"Content-Type: {kind}\r\n" if kind else ""
    return head.encode() + b"\r\n" + photo + b"\r\n--x--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "text/plain", None])
@pytest.mark.parametrize("disposition", ['name="image"', "name=image", 'name="image"; filename=""'])
def test_a_photo_without_a_file_name_is_taken(client: httpx.Client, disposition: str, kind: str | None):
    photo = encode(draw_noise(640, 480), "JPEG", quality=90)
    assert len(photo) > 100_000
    answer = client.post("/v1/captions", content=part(photo, disposition, kind), headers=FORM)
    (caption,) = answer.json()["captions"]
    assert (caption["file"], caption["caption"]) == ("image 1", caption_of(photo))


@pytest.mark.parametrize("name", ["file", "files", "images", "photo", "image[]", "mask"])
def test_a_photo_under_another_name_is_told_its_name(client: httpx.Client, photo: bytes, name: str):
    for body in (
        part(photo, f'name="{name}"; filename="a.jpg"'),
        part(photo, f'name="{name}"'),
    ):
        detail = check_problem(client.post("/v1/captions", content=body, headers=FORM), 400)["detail"]
        assert detail == f"the file came as `{name}`: call its field `image`"
    text = check_problem(
        client.post("/v1/captions", content=part(b"a", f'name="{name}"', None), headers=FORM), 400
    )
    assert name == "mask" or "`image` in a form" in text["detail"]


@pytest.mark.parametrize("name", ["file", "files", "image", "photo"])
def test_a_photo_under_another_name_in_json_is_told_its_name(client: httpx.Client, name: str):
    problem = check_problem(client.post("/v1/captions", json={"images": ["eA=="], name: "eA=="}), 400)
    assert problem["detail"].startswith(f"`{name}` is no field here: photos are called")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 0}, "`num_beams` must be 1 or more, not 0"),
    ({"num_beams": 65}, "`num_beams` must be 64 or less, not 65"),
    ({"num_beams": "3"}, "`num_beams` must be a whole number, not '3'"),
    ({"num_beams": 2.5}, "`num_beams` must be a whole number, not 2.5"),
    ({"length_penalty": [1]}, "`length_penalty` must be a number, not a list of 1"),
    ({"attention": "perhaps"}, "`attention` must be true or false, not 'perhaps'"),
    ({"prompt": 3}, "`prompt` must be a text, not 3"),
    (
        {"prompt": "x" * 301},
        "`prompt` must have 300 or fewer characters, not 'xxxxxxxxxxxxxxxxxxxx…' (301 characters)",
    ),
    ({"bad_words": "dog"}, "`bad_words` must be a list, not 'dog'"),
    ({"bad_words": ["a"] * 65}, "`bad_words` must have 64 or fewer entries, not 65"),
    ({"colour": "red"}, "`colour` is no field here: leave it out"),
    ({"images": {}}, "`images` must be a list, not an object"),
    ({"images": []}, "`images` must have 1 or more entries, not 0"),
    ({"images": [3]}, "`images.0` must be an object, not 3"),
    ({"images": [{}]}, "`images.0` has neither `base64` nor `url`: send one of them"),
    ({"images": [{"base64": "x", "url": "y"}]}, "`images.0` has both `base64` and `url`: send one of them"),
    ({"images": [{"path": "/etc/passwd", "url": ""}]}, "`images.0.path` is no field here: leave it out"),
    (
        {"images": [{"url": "####"}]},
        "`images.0.url` is '####', which is neither base64 nor an address: "
        "send the photo's bytes as base64 or as `data:image/jpeg;base64,…`",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSALS, ids=str)
def test_a_refusal_is_a_sentence(client: httpx.Client, options: dict[str, Any], sentence: str):
    body = {"images": ["eA=="], **options}
    assert check_problem(client.post("/v1/captions", json=body), 400)["detail"] == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            [{"type": "image_url", "image_url": 5}],
            "`messages.0.content.0.image_url` must be an object, not 5",
        ),
        ([{"type": "image_url"}], "`messages.0.content.0.image_url` is missing: send it"),
        ([{"type": "text", "text": 5}], "`messages.0.content.0.text` must be a text, not 5"),
        (
            [{"type": "input_audio"}],
            "`messages.0.content.0` has 'type' 'input_audio': send one of 'text', 'image_url'",
        ),
        (5, "`messages.0.content` must be a list, not 5"),
        (
            [{"type": "image_url", "image_url": "a photo!"}],
            "`image_url.url` is 'a photo!', which is neither base64 nor an address: "
            "send the photo's bytes as base64 or as `data:image/jpeg;base64,…`",
        ),
    ],
    ids=str,
)
def test_a_refusal_of_a_chat_is_a_sentence(client: httpx.Client, content: Any, sentence: str):
    body = {"messages": [{"role": "user", "content": content}]}
    assert check_problem(client.post("/v1/chat/completions", json=body), 400)["detail"] == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            part(b"a dog", 'name="image"', None),
            "`image` came as a text of 5 characters: send the photo as a file",
        ),
        (
            part(b"x" * 20_000, 'name="prompt"', None),
            "`prompt` came as a text of more than 16 KB: send photos as",
        ),
        (part(b"a dog", 'name="prompt"', None), "the form brings no photo: send it as a file called `image`"),
        (
            part(b"a", "filename=a"),
            "a part came without a name: send each with `Content-Disposition: form-data",
        ),
        (b"nothing of a form", "the form is cut off or damaged: send multipart/form-data"),
    ],
)
def test_a_refusal_of_a_form_is_a_sentence(client: httpx.Client, body: bytes, sentence: str):
    problem = check_problem(client.post("/v1/captions", content=body, headers=FORM), 400)
    assert problem["detail"].startswith(sentence)


def test_other_refusals_say_what_to_do(client: httpx.Client):
    def detail(status: int, method: str, path: str, **given: Any) -> str:
        return str(check_problem(client.request(method, path, **given), status)["detail"])

    text = {"Content-Type": "text/plain"}
    assert detail(415, "POST", "/v1/captions", content=b"a", headers=text) == (
        "the body came as text/plain: send multipart/form-data or application/json"
    )
    assert detail(415, "POST", "/v1/chat/completions", content=b"a") == (
        "the body came without a Content-Type: send application/json"
    )
    assert "there is nothing at this path" in detail(404, "GET", "/v1/caption")
    assert detail(405, "PUT", "/v1/captions") == "this path does not take this method: use POST"
    assert (
        detail(400, "POST", "/v1/captions?partial=perhaps")
        == "`partial` must be true or false, not 'perhaps'"
    )
    json = {"Content-Type": "application/json"}
    assert detail(400, "POST", "/v1/captions", content=b"{", headers=json).startswith(
        "the body is not valid JSON"
    )


def test_one_bad_photo_among_good_ones(client: httpx.Client, photo: bytes):
    files = [("image", ("a.jpg", photo)), ("image", ("b.txt", b"hello")), ("image", ("c.jpg", photo))]
    check_problem(client.post("/v1/captions", files=files), 415)
    answer = client.post("/v1/captions?partial=true", files=files)
    assert answer.status_code == 200
    first, bad, last = answer.json()["captions"]
    assert (first["file"], first["caption"]) == ("a.jpg", caption_of(photo))
    assert (last["file"], last["caption"]) == ("c.jpg", caption_of(photo))
    assert (bad["file"], bad["type"], bad["status"]) == ("b.txt", "urn:captioner:problem:image-type", 415)
    assert "not an image" in bad["error"]
    images = [
        {"url": "https://example.org/a.jpg", "name": "far.jpg"},
        {"base64": "####"},
        base64.b64encode(photo).decode(),
    ]
    captions = client.post("/v1/captions?partial=true", json={"images": images}).json()["captions"]
    assert [caption.get("type", "").rpartition(":")[2] for caption in captions] == [
        "url-refused",
        "base64",
        "",
    ]
    assert [caption["file"] for caption in captions] == ["far.jpg", "image 2", "image 3"]
    check_problem(client.post("/v1/captions?partial=true", json={"images": images, "num_beams": 0}), 400)
    check_problem(client.post("/v1/captions?partial=true", json={"images": images, "prompt": "zebra"}), 400)


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/v1/models", "/docs", "/metrics", "/openapi.json"]
)
def test_head_is_get_without_a_body(client: httpx.Client, path: str):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which has changed meanwhile
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/v1/captions").status_code == 405
    assert client.head("/no/such/path").status_code == 404


def test_json_as_windows_writes_it(client: httpx.Client, photo: bytes):
    """Its editors and shells put a byte order mark before a text in UTF-8 (RFC 8259, 8.1)."""
    body = b"\xef\xbb\xbf" + json.dumps({"images": [base64.b64encode(photo).decode()]}).encode()
    answer = client.post("/v1/captions", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["captions"][0]["caption"] == caption_of(photo)


@pytest.mark.skipif(not shutil.which("wget"), reason="wget is not installed")
def test_wget(client: httpx.Client, photo_path: Path):
    def wget(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["wget", "--no-proxy", "-q", "-O", "-", *arguments], capture_output=True, text=True, timeout=60
        )

    assert wget("--spider", f"{client.base_url}/healthz").returncode == 0
    posted = wget(
        f"--post-file={photo_path}", "--header=Content-Type: image/jpeg", f"{client.base_url}/image-to-text"
    )
    assert caption_of(photo_path.read_bytes()) in posted.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("form", ["image=@{}", "image=@{};filename=", "image=<{}"])
def test_curl(client: httpx.Client, photo_path: Path, form: str):
    command = [
        "curl",
        "--noproxy",
        "*",
        "-sS",
        "-F",
        form.format(photo_path),
        f"{client.base_url}/v1/captions",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert caption_of(photo_path.read_bytes()) in answer.stdout, answer
