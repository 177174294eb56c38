"""``scripts/load_test.py``, for seconds instead of minutes: figures that add up, and no harm from attacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from captioner.checkpoint import save_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "load_test.py"


def report(tmp_path: Path, *flags: str) -> dict[str, Any]:
    """What the script prints."""
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    command = [sys.executable, SCRIPT, "--model", tmp_path / "tiny", "--device", "cpu", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_load(tmp_path: Path):
    found = report(tmp_path, "--clients", "8", "--seconds", "1", "--baseline-seconds", "0.5")
    service = found["service"]
    assert service["lost"] == 0
    assert service["requests"] == service["statuses"]["200"] >= 8
    assert 0 < service["p50_ms"] <= service["p95_ms"]
    assert found["service_to_library"] > 0
    assert found["service_to_naive"] > 0


@pytest.mark.slow
def test_hostile_requests(tmp_path: Path):
    found = report(tmp_path, "--hostile", "200", "--timeout", "4")
    statuses = {status for kind in found["hostile"].values() for status in kind}
    assert statuses <= {"200", "400", "404", "405", "408", "413", "415", "422", "429", "left", "closed"}
    assert sum(sum(kind.values()) for kind in found["hostile"].values()) == 200
    assert found["good_request_afterwards"] == 200
