"""The service as Ray Serve runs it: refused where it would be open to all, and really deployed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from tiny import tiny_checkpoint

from captioner import OptionsError, load
from captioner.checkpoint import save_checkpoint
from service.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

CONFIG = Path(__file__).parents[2] / "deploy" / "ray-serve.yaml"


def test_a_deployment_without_keys_is_refused():
    from service.ray_app import build

    with pytest.raises(OptionsError, match="allow_anonymous"):
        build({})
    with pytest.raises(OptionsError, match="allow_anonymous"):
        build({"host": "127.0.0.1"})  # where Ray Serve listens is not the application's to know
    assert build({"allow_anonymous": True})
    assert build({"api_keys": "secret"})


def test_the_configuration_is_one_of_ray_serve_and_of_ours():
    from ray.serve.schema import ServeDeploySchema

    from service.ray_app import build

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    (application,) = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert set(application.args) <= set(Settings.model_fields)
    variables = {name.removeprefix("CAPTIONER_").lower() for name in application.runtime_env["env_vars"]}
    assert variables <= set(Settings.model_fields)
    names = [deployment.name for deployment in application.deployments]
    assert names == [build({"allow_anonymous": True})._bound_deployment.name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model's directory."""
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def deployed(model: Path) -> Iterator[httpx.Client]:
    """A client of a tiny model on one replica of a Ray of this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from service.ray_app import build

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        address="local",  # never a cluster that somebody else has started
        num_cpus=1,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"model": str(model), "device": "cpu", "allow_anonymous": True}))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
        serve.shutdown()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_replica_has_the_routes_and_answers_of_a_server(deployed: httpx.Client, model: Path, photo: bytes):
    assert deployed.get("/readyz").status_code == 200  # from the first request on
    answer = deployed.post("/v1/captions", files={"image": ("ball.jpg", photo)}, data={"attention": "true"})
    assert answer.status_code == 200
    (expected,) = load(model, device="cpu").caption([photo])
    (caption,) = answer.json()["captions"]
    assert (caption["caption"], caption["file"]) == (expected.caption, "ball.jpg")
    assert sum(map(sum, caption["words"][0]["attention"])) == pytest.approx(1, abs=1e-2)

    with deployed.stream("POST", "/v1/captions/stream", files={"image": ("ball.jpg", photo)}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert len(lines) > 1
    assert json.loads(lines[-1].removeprefix("data: "))["caption"] == expected.caption

    bad = deployed.post("/v1/captions", files={"image": ("cut.jpg", photo[:300])})
    assert (bad.status_code, bad.headers["content-type"]) == (422, "application/problem+json")
    assert deployed.get("/").headers["content-type"].startswith("text/html")
