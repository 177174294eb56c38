"""The engine of a cluster: the same records as one machine's, also where a node dies half-way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from images import draw_noise
from ray.exceptions import RayActorError
from tiny import tiny_captioner

from captioner.batch.counts import Counts
from captioner.batch.engine import MAX_FAILURES, BatchCaptioner
from captioner.batch.finding import find_items
from captioner.batch.items import Item
from captioner.batch.local import LocalEngine
from captioner.batch.log import RecordLog
from captioner.batch.ray_engine import RayEngine, _slots
from captioner.batch.records import Record
from captioner.batch.run import run_batch
from captioner.errors import CaptionerError, DeviceError
from captioner.options import GenerationOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

STORE = 80 * 2**20
"""Bytes of a node's object store: the least that Ray takes."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node of which this process is a part, without a CPU for actors; each test adds those it needs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photographs, one of them damaged and one with a name that is no UTF-8."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(22):
        draw_noise(96, 64, seed=seed).save(folder / f"{seed:02}.png")
    (folder / "22.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    draw_noise(64, 96, seed=23).save(folder / os.fsdecode(b"caf\xe9.png"))
    return folder


def items(folder: Path) -> list[Item]:
    return list(find_items([str(folder)]))


def by_file(records: Iterator[Record] | list[Record]) -> dict[str, Record]:
    """Records as they are compared: a batch's size may change the last digit of a number."""
    return {record["file"]: rounded(record) for record in records}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


@pytest.mark.slow
def test_a_node_that_dies_half_way_changes_nothing(cluster: Any, folder: Path, tmp_path: Path):
    gate, options = tmp_path / "gate", GenerationOptions(num_beams=2, max_length=12, attention=True)

    class Gated(BatchCaptioner):
        """Waits with its second part of the work for the gate to be opened."""

        def records(self, *batch: Any) -> list[Record]:
            begun = gate.with_name(f"{os.getpid()}.begun")
            while begun.exists() and not gate.exists():
                time.sleep(0.05)
            begun.touch()
            return super().records(*batch)

    def lose_a_node(_: Counts) -> None:
        if not gate.exists():
            while len(list(tmp_path.glob("*.begun"))) < 2:
                time.sleep(0.05)
            cluster.remove_node(nodes[1], allow_graceful=False)
            gate.touch()

    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    with RecordLog(tmp_path / "captions.jsonl") as log:
        counts = run_batch(
            items(folder), RayEngine(Gated(tiny_captioner(), options)), log, progress=lose_a_node
        )
        found = list(log)
    assert all(record.pop("photo")["bytes"] for record in found)
    cluster.remove_node(nodes[0])
    assert (counts.captioned, counts.failed) == (23, 1)
    local = LocalEngine(BatchCaptioner(tiny_captioner(), options), batch_size=8).run(items(folder))
    assert len(found) == 24
    assert by_file(found) == by_file([record for records in local for record in records])


@pytest.mark.slow
def test_what_an_actor_cannot_go_on_with_ends_the_run(cluster: Any, folder: Path):
    class Broken(BatchCaptioner):
        def records(self, *batch: Any) -> list[Record]:
            raise CaptionerError("the model failed on 9 photographs in a row: it is broken")

    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    with pytest.raises(CaptionerError, match=r"^the model failed on 9 photographs in a row: it is broken$"):
        list(RayEngine(Broken(tiny_captioner())).run(items(folder)))
    cluster.remove_node(node)


class Deadly(RayEngine):
    """Its cluster is a process that some photographs end, and then gives nothing of what it had."""

    def __init__(self, *deadly: str) -> None:
        super().__init__(BatchCaptioner(tiny_captioner()))
        self.deadly = deadly

    def _round(self, items: Sequence[Item], slots: Any, captioner: Any) -> Iterator[list[Record]]:
        for item in items:
            if item.key.endswith(self.deadly):
                raise RayActorError
            yield [{"file": item.key, "caption": "a photo"}]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})


@pytest.mark.usefixtures("room")
def test_a_photograph_that_ends_every_process_is_a_record(folder: Path):
    engine = Deadly("00.png", "07.png")
    found = [record for records in engine._caption(items(folder), None) for record in records]  # type: ignore[arg-type]
    assert sorted(record["file"] for record in found) == sorted(item.key for item in items(folder))
    crashed = {Path(r["file"]).name: r["error"] for r in found if r.get("error_kind") == "crash"}
    assert crashed.keys() == {"00.png", "07.png"}
    assert all(error.startswith("the process that captions it dies: ") for error in crashed.values())


@pytest.mark.usefixtures("room")
def test_a_cluster_that_loses_every_photograph_ends_the_run(folder: Path):
    records = Deadly(".png")._caption(items(folder), None)  # type: ignore[arg-type]
    with pytest.raises(CaptionerError, match=f"^the cluster lost {MAX_FAILURES + 1} photographs in a row: "):
        list(records)


def test_nothing_to_do_needs_no_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where nobody listens
    assert list(RayEngine(BatchCaptioner(tiny_captioner())).run([])) == []


@pytest.mark.parametrize(
    ("resources", "device", "workers", "slots"),
    [
        ({"CPU": 8.0}, "auto", None, ("cpu", 1, 8)),
        ({"CPU": 8.0}, "cpu", 3, ("cpu", 3, 2)),
        ({"CPU": 2.0}, "cpu", 4, ("cpu", 4, 1)),
        ({}, "auto", None, ("cpu", 1, 1)),
        ({"CPU": 64.0, "GPU": 4.0}, "auto", None, ("cuda", 16, 4)),
        ({"CPU": 2.0, "GPU": 4.0}, "cuda", None, ("cuda", 1, 4)),
        ({"CPU": 64.0, "GPU": 4.0}, "cuda", 2, ("cuda", 2, 4)),
        ({"CPU": 64.0, "GPU": 4.0}, "cpu", None, ("cpu", 1, 64)),
    ],
)
def test_an_actor_for_each_gpu_or_cpu(
    resources: dict[str, float], device: str, workers: int | None, slots: tuple[str, int, int]
):
    found = _slots(resources, device, workers)
    assert (found.device, found.cpus, found.count) == slots


@pytest.mark.parametrize(
    ("device", "problem"), [("cuda", "no GPU"), ("cuda:1", "auto, cuda or cpu"), ("mps", "mps")]
)
def test_devices_that_a_cluster_lacks_are_refused(device: str, problem: str):
    with pytest.raises(DeviceError, match=problem):
        _slots({"CPU": 8.0}, device, None)
