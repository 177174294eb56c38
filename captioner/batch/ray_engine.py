"""The engine of a cluster: Ray Data, with an actor that holds the model for each GPU, or CPU, of all nodes.

Each actor is a :class:`~captioner.batch.local.LocalEngine` on its part of the items, so what it makes of a
photograph is what one machine makes of it. The model travels from here to the actors: nodes need Captioner
installed and the photographs, but no weights.

An actor that dies, with its node or alone, is not started again by Ray, whose restarts would wait for the
resources of the lost node while the tasks wait for the actor. What it had to do is done in a further round,
on what the cluster has by then. Where rounds bring nothing, a photograph that ends every process is the
likeliest reason: the first one then goes alone, and if that brings nothing either, its record says so.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from captioner.batch.engine import MAX_FAILURES, BatchCaptioner
from captioner.batch.items import Item
from captioner.batch.local import LocalEngine
from captioner.batch.records import Record, encode_record, error_record
from captioner.batch.remote import is_remote
from captioner.errors import CaptionerError, DeviceError, OptionsError
from captioner.load import resolve_device, resolve_dtype

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]
    import ray

__all__ = ["RayEngine"]

WINDOW = 100_000
"""Items taken at a time. Between two windows the actors are started anew, seconds in hours of work."""

PART = {"cpu": 64, "cuda": 512}
"""Items of an actor's task at most: a minute of work or so, which is what the death of a node costs."""

PARTS_A_SLOT = 4

ROUNDS = 2
"""Rounds in a row that may bring nothing before a photograph goes alone."""


@dataclass(frozen=True)
class _Slots:
    """What an actor runs on.

    Attributes:
        device: ``cuda`` or ``cpu``.
        cpus: of each actor, a thread that decodes for each.
        count: actors that the cluster has room for as it is now.
    """

    device: str
    cpus: int
    count: int


class RayEngine:
    """Records in any order, a part of the items at a time, as soon as it is done on some node.

    The cluster is that of ``RAY_ADDRESS``, or the one that this machine is a node of, or else a new one of
    this machine alone.

    Args:
        captioner: what captions; a copy of it goes to each actor.
        device: ``auto`` (the GPUs, if the cluster has any), ``cuda`` or ``cpu``.
        dtype: see :func:`captioner.load`.
        batch_size: photographs that go through the model together; None finds the size that is fastest.
        workers: CPUs of each actor, and threads that decode; None for one, and with GPUs for each one's share
            of the cluster's CPUs.

    Raises:
        DeviceError: there is no such number type on other computers.
        OptionsError: Ray is not installed.
    """

    def __init__(
        self,
        captioner: BatchCaptioner,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise OptionsError("the engine ray needs Ray: pip install 'captioner[scale]'") from error
        resolve_dtype(dtype, resolve_device("cpu"))  # what cannot be is refused here and not on every node
        self.captioner = captioner
        self.device, self.dtype = device, dtype
        self.batch_size, self.workers = batch_size, workers

    def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
        """See :class:`~captioner.batch.engine.Engine`; takes up to :data:`WINDOW` items ahead.

        Raises:
            DeviceError: the cluster has no such device.
            CaptionerError: an actor's captioner cannot go on, or the cluster loses one photograph after
                another.
        """
        import ray

        source = iter(items)
        window = list(islice(source, WINDOW))
        if not window:
            return  # no cluster is needed for a run that was complete
        with _connected():
            captioner = ray.put(self.captioner)
            while window:
                yield from self._caption(window, captioner)
                window = list(islice(source, WINDOW))

    def _caption(
        self, items: Sequence[Item], captioner: ray.ObjectRef[BatchCaptioner]
    ) -> Iterator[list[Record]]:
        """The records of all items, in as many rounds as it takes."""
        import ray

        left = {item.key: item for item in items}
        failures, crashes, reason = 0, 0, "the logs of the cluster's nodes say why"
        while left:
            before, alone = len(left), failures == ROUNDS
            chosen = [*left.values()][: 1 if alone else None]
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            slots = _slots(resources, self.device, self.workers)
            try:
                for records in self._round(chosen, slots, captioner):
                    yield [record for record in records if left.pop(record["file"], None)]
            except ray.exceptions.RayError as error:
                reason = _reason(error)
            if len(left) < before:
                failures = crashes = 0
            elif not alone:
                failures += 1
            elif crashes == MAX_FAILURES:
                raise CaptionerError(f"the cluster lost {crashes + 1} photographs in a row: {reason}")
            else:
                crashes += 1
                del left[chosen[0].key]
                yield [error_record(chosen[0].key, f"the process that captions it dies: {reason}", "crash")]

    def _round(
        self, items: Sequence[Item], slots: _Slots, captioner: ray.ObjectRef[BatchCaptioner]
    ) -> Iterator[list[Record]]:
        """The records of all items but those whose actor died, a part of them at a time."""
        import ray.data

        part = min(PART[slots.device], math.ceil(len(items) / (PARTS_A_SLOT * slots.count)))
        # JSON, since Arrow has no text for a file name that is no UTF-8, nor for records of several forms
        rows = [{"item": json.dumps(astuple(_from_anywhere(item)))} for item in items]
        done = ray.data.from_items(rows, override_num_blocks=math.ceil(len(items) / part)).map_batches(
            _Actor,
            fn_constructor_args=(captioner, slots, self.dtype, self.batch_size),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=slots.cpus,
            num_gpus=1 if slots.device == "cuda" else 0,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, initial_size=slots.count, max_tasks_in_flight_per_actor=2
            ),
            max_restarts=0,  # pyproject.toml keeps to the releases of Ray that take it
        )
        tables: Iterable[Any] = done.iter_batches(batch_size=None, batch_format="pyarrow")
        for table in tables:
            records = [json.loads(record) for record in table["record"].to_pylist()]
            if "failure" in records[0]:
                raise CaptionerError(records[0]["failure"])
            yield records


class _Actor:
    """The model on one GPU or CPU somewhere."""

    def __init__(
        self,
        captioner: ray.ObjectRef[BatchCaptioner],
        slots: _Slots,
        dtype: str,
        batch_size: int | None,
    ) -> None:
        import ray

        batch = ray.get(captioner)
        device = resolve_device(slots.device)
        batch.captioner.to(device, resolve_dtype(dtype, device))
        self.engine = LocalEngine(batch, batch_size=batch_size, workers=slots.cpus)

    def __call__(self, part: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        items = [Item(*json.loads(item)) for item in part["item"].to_pylist()]
        try:
            records = [encode_record(record) for record in chain.from_iterable(self.engine.run(items))]
        except CaptionerError as error:  # raised, it would look like an actor that died
            records = [encode_record({"failure": str(error)})]
        return pyarrow.table({"record": records})


@contextmanager
def _connected() -> Iterator[None]:
    """A connection to the cluster, quiet on stderr; one that was there before stays."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # the parts of actors that died; the next round has them
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
    connected = ray.is_initialized()
    if not connected:
        on_terminate = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's own would end the run without its summary
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()


def _slots(resources: dict[str, float], device: str, workers: int | None) -> _Slots:
    """The cluster's room for actors. Raises DeviceError where it has no such device."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if device == "cpu" or (device == "auto" and not gpus):
        return _Slots("cpu", workers or 1, max(1, cpus // (workers or 1)))
    if device not in ("auto", "cuda"):
        raise DeviceError(
            f"the engine ray picks the GPUs itself: use --device auto, cuda or cpu, not {device}"
        )
    if not gpus:
        raise DeviceError("the cluster has no GPU: use --device cpu or auto")
    return _Slots("cuda", workers or max(1, cpus // gpus), gpus)


def _from_anywhere(item: Item) -> Item:
    """The same photograph for a process in another folder."""
    return item if is_remote(item.path) else replace(item, path=os.path.abspath(item.path))


def _reason(error: Any) -> str:
    """What an actor said last, without the tracebacks of all between it and here."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[-1]
