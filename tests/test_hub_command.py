"""``captioner download`` and what loads afterwards, in processes of their own, as users run it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface
import pytest
from hub import Commit, LoopbackHub, Repository, read_commit, serving
from images import draw_noise

import captioner
from captioner.hub import known_model

NAME = "someone/tiny"
AWAY = "http://127.0.0.1:9"
MAIN = "from captioner.cli import main; raise SystemExit(main())"


@pytest.fixture
def server() -> Iterator[LoopbackHub]:
    with serving(LoopbackHub()) as hub:
        yield hub


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    draw_noise(40, 30).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class Machine:
    """A computer with a hub's cache of its own."""

    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.environment.pop("HF_HUB_OFFLINE", None)

    def start(self, *argv: str | Path, program: str = MAIN, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, argv)],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str | Path, **more: Any) -> tuple[int, str, str]:
        process = self.start(*argv, **more)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return process.returncode, out, err


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


@pytest.mark.slow
def test_what_was_downloaded_captions_without_a_network(server, machine, photo, tmp_path):
    huggingface.save_blip(tmp_path / "blip")
    server.token = "hf_right"
    server.add(NAME, tmp_path / "blip", private=True)
    online = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_right"}
    status, out, err = machine.run("download", NAME, **online)
    assert status == 0
    name, _, directory = out.strip().partition("\t")
    assert name == NAME
    assert sorted(os.listdir(directory)) == sorted(path.name for path in (tmp_path / "blip").iterdir())
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"captioner: {NAME}: ")
    assert lines[0].endswith(f" MB, from {server.endpoint}")
    commit = server.repositories[NAME].revisions["main"].sha
    assert lines[1] == f"captioner: {NAME}: commit {commit}, safetensors, in {directory}"
    expected = captioner.load(tmp_path / "blip", device="cpu").caption([photo])[0].caption
    offline = {"HF_ENDPOINT": AWAY, "HF_HUB_OFFLINE": "1"}
    said = f"{photo}\t{expected}\n"
    assert machine.run("caption", photo, "--model", NAME, HF_ENDPOINT=AWAY) == (0, said, "")
    both = (
        "import sys; from captioner.cli import main; photo, name, target = sys.argv[1:]\n"
        "raise SystemExit(main(['caption', photo, '--model', name]) or main(['convert', name, target]))"
    )
    status, out, _ = machine.run(photo, NAME, tmp_path / "ours", program=both, **offline)
    assert status == 0
    assert out.startswith(said)
    assert captioner.load(tmp_path / "ours", device="cpu").caption([photo])[0].caption == expected


@pytest.mark.slow
def test_a_short_name_works_everywhere(server, machine, photo, tmp_path):
    known = known_model("vit-gpt2")
    assert known is not None
    assert known.revision is not None
    huggingface.save_vit_gpt2(tmp_path / "model")
    commit = Commit(read_commit(tmp_path / "model").files, name=known.revision)
    server.repositories[known.repository] = Repository({known.revision: commit})
    status, out, err = machine.run("caption", photo, "--model", "vit-gpt2", HF_ENDPOINT=server.endpoint)
    assert status == 0, err
    assert f"commit {known.revision}, safetensors" in err
    expected = captioner.load(tmp_path / "model", device="cpu").caption([photo])[0].caption
    assert out == f"{photo}\t{expected}\n"
    rows = machine.run("models", "--all")[1].splitlines()
    assert rows[0].split("\t")[:3] == ["name", "model", "revision"]
    (row,) = [row.split("\t") for row in rows if row.startswith("vit-gpt2\t")]
    assert row[1:3] == [known.repository, known.revision]
    assert [row.split("\t")[-1] for row in rows[1:]].count("yes") == 1
    serve = (
        "from fastapi.testclient import TestClient; from service.app import create_app\n"
        "with TestClient(create_app()) as client: print(client.get('/v1/models').json()['data'][0]['id'])"
    )
    settings = {"CAPTIONER_MODEL": "vit-gpt2", "HF_HUB_OFFLINE": "1"}
    assert machine.run(program=serve, **settings)[:2] == (0, "vit-gpt2\n")


@pytest.mark.slow
def test_a_killed_download_goes_on(server, machine, tmp_path):
    huggingface.save_vit_gpt2(tmp_path / "heavy", intermediate_size=60_000)
    server.add(NAME, tmp_path / "heavy")
    online = {"HF_ENDPOINT": server.endpoint}
    digest = hashlib.sha256((tmp_path / "heavy" / "model.safetensors").read_bytes()).hexdigest()
    server.fault = lambda method, path, count: "hang" if digest in path else None
    process = machine.start("download", NAME, **online)
    try:
        partial = None
        deadline = time.monotonic() + 200
        while partial is None:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
            found = tmp_path.glob("home/hub/*/captioner/*.partial")
            partial = next((path for path in found if path.stat().st_size >= 10 * 1024 * 1024), None)
    finally:
        process.kill()
        process.communicate()
    status, out, err = machine.run("download", NAME, HF_HUB_OFFLINE="1")
    assert (status, out) == (1, "")
    assert err == (
        f"captioner: {NAME} is only partly in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it: run "
        f"`captioner download {NAME}` where there is a network, or unset HF_HUB_OFFLINE\n"
    )
    server.fault = lambda method, path, count: None
    server.requests.clear()
    status, out, err = machine.run("download", NAME, **online)
    assert status == 0, err
    large = [headers for _, path, headers in server.requests if "/blobs/" in path]
    ranges = [headers["range"] for headers in large if "range" in headers]
    assert ranges == [f"bytes={10 * 1024 * 1024}-"]
    directory = Path(out.strip().partition("\t")[2])
    weights = "model.safetensors"
    assert (directory / weights).read_bytes() == (tmp_path / "heavy" / weights).read_bytes()


@pytest.mark.slow
def test_a_server_that_stands_still_for_a_while(server, machine, tmp_path):
    huggingface.save_vit_gpt2(tmp_path / "model")
    server.add(NAME, tmp_path / "model")
    server.fault = lambda method, path, count: "stall" if "/blobs/" in path and count == 1 else None
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    assert machine.run("download", NAME, **environment)[0] == 0


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"),
        ({"HF_ENDPOINT": AWAY}, f"is not in the hub's cache, and {AWAY} cannot be reached"),
        ({"HF_ENDPOINT": AWAY, "HTTP_PROXY": AWAY}, "cannot be reached"),
    ],
)
def test_without_a_network_there_is_one_sentence(variables, sentence, machine, photo):
    for command in (["download", NAME], ["caption", str(photo), "--model", NAME]):
        status, out, err = machine.run(*command, **variables)
        assert (status, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith(f"captioner: {NAME} ")
        assert sentence in line
