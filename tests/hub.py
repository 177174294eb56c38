"""A Hugging Face hub of our own on loopback: repositories with commits and pull requests, and with faults.

It answers the hub's client as huggingface.co does: large files have a SHA-256 and come from another server,
which must see no token; small ones have git's digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Callable[[str, str, int], str | None]
"""What goes wrong with the n-th request for a path, by its method; None for nothing."""

LARGE = 2_000
"""Bytes from which a file is given by the second server."""


def no_fault(method: str, path: str, count: int) -> str | None:
    return None


@cache
def sha256_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Commit:
    """The files of a revision; ``name`` is a commit hash to go by in place of that of the files."""

    files: dict[str, bytes]
    name: str = ""

    @property
    def sha(self) -> str:
        if self.name:
            return self.name
        parts = [f"{name} {git_digest(data)}" for name, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Repository:
    """A model.

    Attributes:
        gated: whether only the hub's token may download it.
        private: whether others are told that there is none.
        pulls: pull requests by number: author, status and files.
    """

    revisions: dict[str, Commit]
    gated: bool = False
    private: bool = False
    pulls: dict[int, tuple[str, str, Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        everything = dict(self.revisions)
        everything |= {f"refs/pr/{number}": commit for number, (_, _, commit) in self.pulls.items()}
        by_hash = {commit.sha: commit for commit in everything.values()}
        return everything.get(revision) or by_hash.get(revision)


@dataclass
class LoopbackHub:
    """What the hub has, how it is to behave, and what it was asked.

    Attributes:
        fault: chooses what goes wrong: a status such as ``429``; ``cut``, three quarters of a file and no
            more; ``hang``, three quarters, and then nothing; ``flip``, a wrong byte; ``stall``, no answer for
            five seconds; ``html``, a page.
        token: that it accepts; None for no login at all.
        requests: of all that came, method, path and headers.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    fault: Fault = no_fault
    token: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    files: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, directory: Path, **more: Any) -> Repository:
        """A repository with the files of a directory as its main branch."""
        self.repositories[name] = Repository({"main": read_commit(directory)}, **more)
        return self.repositories[name]

    def asked(self, part: str) -> list[str]:
        """The paths that were asked for and have that in them."""
        return [path for _, path, _ in self.requests if part in path]

    def take(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """Note a request; the fault that its answer has."""
        with self._lock:
            self.requests.append((method, path, headers))
            count = self._counts[method, path] = self._counts.get((method, path), 0) + 1
            return self.fault(method, path, count)

    def blob(self, digest: str) -> bytes | None:
        for repository in self.repositories.values():
            for commit in (*repository.revisions.values(), *(pull[2] for pull in repository.pulls.values())):
                for data in commit.files.values():
                    if sha256_digest(data) == digest:
                        return data
        return None


def read_commit(directory: Path) -> Commit:
    return Commit({path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()})


def tree_entry(file: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": git_digest(data)}
    if len(data) >= LARGE:
        sha256 = sha256_digest(data)
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer_to("HEAD")

    def do_GET(self) -> None:
        self.answer_to("GET")

    def answer_to(self, method: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.take(method, path, headers)
        if fault == "stall":
            self.hub.over.wait(5)
            self.close_connection = True
        elif fault == "html":
            self.send(200, b"<html>a page</html>", {"Content-Type": "text/html"})
        elif fault and fault.isdigit():
            self.send(int(fault), b'{"error": "made up"}', {"Retry-After": "0"})
        elif not path.startswith("/blobs/") and self.hub.token and "authorization" in headers:
            if headers["authorization"] == f"Bearer {self.hub.token}":
                self.route(path, fault, known=True)
            else:
                message = "Invalid credentials in Authorization header"
                self.send(401, b"{}", {"X-Error-Message": message})
        else:
            self.route(path, fault, known=False)

    def route(self, path: str, fault: str | None, *, known: bool) -> None:
        if blob := re.fullmatch("/blobs/([0-9a-f]{64})", path):
            data = self.hub.blob(blob[1])
            return self.send(404, b"") if data is None else self.send_file(data, fault, {})
        if api := re.fullmatch("/api/models/([^/]+/[^/]+)(?:/((?:revision|tree)/.+|discussions))?", path):
            return self.route_api(api[1], api[2] or "revision/main", known=known)
        if file := re.fullmatch("/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path):
            return self.route_file(file[1], file[2], file[3], fault, known=known)
        return self.send(404, b"<html>nothing here</html>")

    def repository(self, name: str, *, known: bool) -> Repository | None:
        """It, or None after the answer that there is none."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not known):
            self.send(401 if not known else 404, b'{"error": "no"}', {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def route_api(self, name: str, what: str, *, known: bool) -> None:
        repository = self.repository(name, known=known)
        if repository is None:
            return
        if what == "discussions":
            return self.send_json(self.discussions(name, repository))
        commit = repository.find(what.partition("/")[2])
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if what.startswith("tree/"):
            return self.send_json([tree_entry(file, data) for file, data in commit.files.items()])
        siblings = []
        for file, data in commit.files.items():
            sibling: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": git_digest(data)}
            if len(data) >= LARGE:
                sha256 = sha256_digest(data)
                sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return self.send_json({"id": name, "sha": commit.sha, "siblings": siblings, "private": False})

    def discussions(self, name: str, repository: Repository) -> dict[str, Any]:
        asked = parse_qs(urlsplit(self.path).query)
        found = [
            {
                "num": number,
                "title": "Adding `safetensors` variant of this model",
                "author": {"name": author},
                "status": status,
                "isPullRequest": True,
                "createdAt": "2024-01-01T00:00:00.000Z",
                "repo": {"name": name, "type": "model"},
            }
            for number, (author, status, _) in repository.pulls.items()
            if asked.get("author", [author]) == [author] and asked.get("status", [status]) == [status]
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def route_file(self, name: str, revision: str, file: str, fault: str | None, *, known: bool) -> None:
        repository = self.repository(name, known=known)
        if repository is None:
            return
        if repository.gated and not known:
            return self.send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        commit = repository.find(revision)
        data = None if commit is None else commit.files.get(file)
        if commit is None or data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit.sha}
        if len(data) < LARGE:
            return self.send_file(data, fault, headers | {"ETag": f'"{git_digest(data)}"'})
        sha256 = sha256_digest(data)
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        return self.send(302, b"", headers | {"Location": f"{self.hub.files}/blobs/{sha256}"})

    def send_json(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, data: bytes, fault: str | None, headers: dict[str, str]) -> None:
        whole, status = len(data), 200
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(asked[1]), 206
            headers |= {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
            data = data[start:]
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send(status, data, headers, fault if fault in ("cut", "hang") else "")

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) * 3 // 4] if fault else body)
        if fault == "hang":
            self.wfile.flush()
            self.hub.over.wait(60)
        self.close_connection = self.close_connection or fault != ""


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """The hub and the server of its large files, each at a port of its own."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.endpoint, hub.files = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
