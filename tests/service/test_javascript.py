"""OpenAI's package for JavaScript against a running server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from tiny import tiny_captioner

HERE = Path(__file__).parent
NODE = shutil.which("node")


def node(*arguments: object) -> subprocess.CompletedProcess[str]:
    assert NODE
    command = [NODE, *map(str, arguments)]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60)


def test_openai_of_javascript(client: httpx.Client, photo_path: Path):
    if not NODE or node("-e", "require('openai')").returncode:
        pytest.skip(
            "npm's package openai is not installed: `npm install openai`, and NODE_PATH=…/node_modules"
        )
    answer = node("openai_client.js", f"{client.base_url}/v1", photo_path)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    caption = tiny_captioner().caption([photo_path])[0].caption
    assert (found["whole"], found["streamed"], found["models"]) == (caption, caption, ["tiny"])
    assert found["refused"]["status"] == 400
    assert "there is no photo" in found["refused"]["message"]
