"""Every command of the README runs as it stands there, in a folder that holds what it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hub import Commit, LoopbackHub, Repository, read_commit, serving
from huggingface import save_blip
from skimage import data as photographs
from skimage.io import imsave

from captioner.hub import known_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

# What this machine lacks, and what stands in for it
STAND_INS = {
    "s3://bucket/photos": "photos",
    "--output mine": "--output mine --epochs 1 --frozen-epochs 0 --scst-epochs 1 --views 1 --photos 4",
    "--output fine-tuned": "--output fine-tuned --epochs 1 --views 1 --photos 4",
    "--device all": "--device cpu",
    '"dogs on grass"': "a",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """The README's lines that run a program, without what is said of them behind two spaces and a #."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [
        re.sub(r"\s{2,}#.*", "", line) for line in lines if re.match(rf'([A-Z_]+="[^"]*" )?{program}\b', line)
    ]


SERVERS = [command for command in commands("captioner") if "captioner serve" in command]
WATCHERS = [command for command in commands("captioner") if "captioner watch" in command]
OTHERS = [command for command in commands("captioner") if command not in SERVERS + WATCHERS]


def test_the_readme_has_what_is_tested_here() -> None:
    shell = [line for block in blocks("sh") for line in block.splitlines() if line]
    tested = [commands(name) for name in ("captioner", "curl", "docker", "make")]
    assert sum(map(len, tested)) == len(shell)
    assert all(any(old in line for line in shell) for old in STAND_INS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that scikit-image ships, and a captions file of them."""
    folder = tmp_path_factory.mktemp("readme")
    imsave(folder / "dog.jpg", photographs.chelsea())
    imsave(folder / "kitchen.png", photographs.coffee())
    (folder / "photos").mkdir()
    for number in range(4):
        imsave(folder / "photos" / f"{number}.jpg", photographs.astronaut()[64 * number :])
    for name, count in {"train.json": 4, "val.json": 100}.items():  # fewer cannot calibrate
        coco = {
            "images": [{"id": number, "file_name": f"{number % 4}.jpg"} for number in range(count)],
            "annotations": [
                {"image_id": number, "caption": caption}
                for number in range(count)
                for caption in ("a woman in an orange suit smiles", "an astronaut stands before a flag")
            ],
        }
        (folder / name).write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Where blip-base is a small BLIP."""
    known, directory = known_model("blip-base"), tmp_path_factory.mktemp("blip")
    assert known is not None
    assert known.revision is not None
    save_blip(directory)
    commit = Commit(read_commit(directory).files, name=known.revision)
    with serving(LoopbackHub({known.repository: Repository({known.revision: commit})})) as hub:
        yield hub


def offline(command: str) -> list[str]:
    """The command for this machine, with stand-ins for what it lacks."""
    for old, new in STAND_INS.items():
        command = command.replace(old, new)
    return ["bash", "-c", command]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", **more}


def run(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        offline(command), cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_runs(command: str, folder: Path, hub: LoopbackHub) -> None:
    """In the README's order: a later command may use what an earlier one wrote."""
    asked = len(hub.requests)
    result = run(command, folder, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert len(hub.requests) == asked or "blip-base" in command, "nothing is downloaded unasked"
    for file in re.findall(r"--(?:output|heatmap|report) (\S+)", command):
        assert (folder / file).exists()
    if "captioner caption" in command:
        photos = len(list(folder.glob(re.search(r"\S+\.jpg", command).group()))) + ("kitchen" in command)  # type: ignore[union-attr]
        assert len(result.stdout.splitlines()) == photos


@pytest.mark.parametrize("command", WATCHERS)
def test_a_folder_is_watched(command: str, folder: Path) -> None:
    process = subprocess.Popen(
        offline(command.replace("captioner watch", "exec captioner watch")),
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("{"))  # the summary of what was there
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert json.loads(said)["finished"]


@pytest.mark.parametrize("command", commands("make"))
def test_a_target_exists(command: str) -> None:
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", commands("docker"))
def test_docker_gets_what_the_dockerfile_has(command: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG TORCH_INDEX\b", dockerfile, re.MULTILINE)
    for port in re.findall(r"-p \d+:(\d+)", command):
        assert f"EXPOSE {port}" in dockerfile
    for mounted in re.findall(r"-v \S+:(/\w+):ro", command):
        assert f"WORKDIR {mounted}" in dockerfile


class Server:
    """`captioner serve` as the README has it, on a free port."""

    def __init__(self, command: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            offline(command.replace("captioner serve", "exec captioner serve")),
            cwd=folder,
            env=environment(CAPTIONER_PORT=str(self.port)),
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Server:
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.process.kill()
        raise AssertionError("the server was not ready in time")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(SERVERS[0], folder) as server:
        yield server


@pytest.mark.parametrize("command", SERVERS[1:])
def test_a_server_starts(command: str, folder: Path) -> None:
    with Server(command, folder) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/v1/models")
        assert answer.status_code == (401 if "API_KEYS" in command else 200)


@pytest.mark.parametrize("command", commands("curl"))
def test_curl_gets_captions(command: str, folder: Path, server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    result = run(
        command.replace("curl", "curl --fail-with-body -s").replace(":8000", f":{server.port}"), folder
    )
    assert result.returncode == 0, result.stdout
    if "stream" in command:
        assert "event: caption" in result.stdout
    elif "image-to-text" in command:
        assert json.loads(result.stdout)[0]["generated_text"]
    else:
        captions = json.loads(result.stdout)["captions"]
        assert [caption["file"] for caption in captions] == re.findall(r"image=@(\S+)", command)
        assert ("attention" in captions[0]["words"][0]) == ("attention" in command)


@pytest.mark.parametrize("program", blocks("python"))
def test_a_python_program_prints_a_caption(program: str, folder: Path, server: Server) -> None:
    program = program.replace(":8000", f":{server.port}")
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) > 3


@pytest.mark.parametrize("program", blocks("js"))
def test_a_javascript_program_prints_a_caption(program: str, folder: Path, server: Server) -> None:
    if shutil.which("node") is None:
        pytest.skip("no Node.js on this machine")
    program = program.replace(":8000", f":{server.port}")
    command = ["node", "--input-type=module", "--eval", program]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) > 3


def test_the_answer_shown_has_the_keys_of_a_real_one(folder: Path, server: Server) -> None:
    shown = json.loads(blocks("json")[0].replace("…", ""))
    files = {"image": ("dog.jpg", (folder / "dog.jpg").read_bytes())}
    url = f"http://127.0.0.1:{server.port}/v1/captions"
    real = httpx.post(url, files=files, data={"attention": "true"}, timeout=60).json()
    assert real.keys() == shown.keys()
    assert real["captions"][0].keys() == shown["captions"][0].keys()
    assert real["captions"][0]["words"][0].keys() == shown["captions"][0]["words"][0].keys()
