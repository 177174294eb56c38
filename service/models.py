"""The models of a server: loaded when first asked for, unloaded when their memory is wanted for another.

All of it happens in the event loop, but for the loading itself, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from captioner import Captioner, NamedModel, OptionsError, free_unloaded, is_out_of_memory
from service.metrics import Metrics

__all__ = ["About", "LoadError", "Model", "Models", "UnknownModelError", "in_thread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class UnknownModelError(Exception):
    """The server has no model of this name."""


class LoadError(Exception):
    """The model cannot be loaded; the log says why."""


@dataclass(frozen=True)
class About:
    """What is known of a model once it has been loaded.

    Attributes:
        description: one line.
        parameters: its weights; None for a model on a server.
        device: where it runs; None likewise.
        dtype: its number type; None likewise.
        default_options: what it captions by where nothing is asked for.
        lacks: what it cannot give, with the reason why; None for what it can.
    """

    description: str
    parameters: int | None
    device: str | None
    dtype: str | None
    default_options: Mapping[str, Any]
    lacks: Mapping[str, str | None]

    @classmethod
    def of(cls, captioner: Captioner) -> About:
        """What a loaded model tells of itself."""
        return cls(
            description=captioner.description,
            parameters=captioner.parameters,
            device=None if captioner.sends_photos_to else str(captioner.device),
            dtype=str(captioner.dtype).removeprefix("torch.") if captioner.dtype else None,
            default_options=captioner.default_options.to_dict(),
            lacks=captioner.lacks.to_dict(),
        )


@dataclass(eq=False)
class Model:
    """One of a server's models.

    Attributes:
        name: what clients call it.
        place: what it is loaded from.
        sends_photos_to: the server that photos are sent to; None where none are.
        captioner: it, while it is loaded.
        about: what is known of it; None if it was never loaded.
        size: bytes of its weights, likewise; 0 before.
        users: requests that use it or wait for it.
        used: grows with each use.
        loading: the task that loads it.
    """

    name: str
    place: str
    sends_photos_to: str | None
    captioner: Captioner | None = None
    about: About | None = None
    size: int = 0
    users: int = 0
    used: int = 0
    loading: asyncio.Task[None] | None = field(default=None, repr=False)


class Models:
    """All models that clients can choose among.

    Where there is a limit of memory, those that no request uses are unloaded, the longest unused first, until
    the weights of the loaded ones fit: before a model is loaded whose size is known from an earlier time,
    after one is loaded, and when a request ends. The one that was used last stays, even if it is too large
    alone. If memory runs out while a model is loaded, all that no request uses are unloaded, and it is tried
    once more. Models on other servers take no memory, and stay.

    Args:
        choices: the models; clients that name none get the first.
        load: loads what a choice has as its place.
        aliases: further names, ``alias`` for the first model or ``alias=name`` for another.
        memory: bytes that the weights of loaded models may take together; None for no limit.
        metrics: where to count.

    Raises:
        OptionsError: an alias is for no model, or is the name of one.
    """

    def __init__(
        self,
        choices: Sequence[NamedModel],
        load: Callable[[str], Captioner],
        *,
        aliases: Iterable[str] = (),
        memory: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.memory = memory
        self.metrics = metrics or Metrics()
        self.all = [Model(item.name, item.place, item.sends_photos_to) for item in choices]
        self.first = self.all[0]
        self._by_name = {model.name: model for model in self.all}
        for alias in aliases:
            self._add_alias(alias)
        self._load_place = load
        self._clock = count(1)
        self._turn = asyncio.Lock()
        for model in self.all:
            self.metrics.expect(model.name)

    @property
    def names(self) -> Mapping[str, Model]:
        """All names and aliases, in order."""
        return self._by_name

    def find(self, name: str) -> Model:
        """The model of a name. "" is the first, and so is ``default`` where none is called so.

        Raises:
            UnknownModelError: there is none.
        """
        found = self._by_name.get(name)
        if found is None and name in ("", "default"):
            return self.first
        if found is None:
            known = ", ".join(map(repr, self._by_name))
            raise UnknownModelError(f"this server has {known}, not {name[:100]!r}")
        return found

    async def start(self, warm_up: Callable[[Captioner], Awaitable[None]]) -> None:
        """Load the first model and those on other servers, which takes no time.

        Args:
            warm_up: makes the later ones ready to use.

        Raises:
            CaptionerError: one cannot be loaded.
        """
        self._warm_up = warm_up
        for model in self.all:
            if model.captioner is None and (model is self.first or model.sends_photos_to):
                self._keep(model, await self._load_with_room(model))

    @contextlib.asynccontextmanager
    async def use(self, model: Model) -> AsyncIterator[Captioner]:
        """The model, which stays loaded meanwhile. Cancel it while it loads, and it loads for the next.

        Raises:
            LoadError: it cannot be loaded.
        """
        model.users += 1
        try:
            if model.captioner is None:
                model.loading = model.loading or asyncio.create_task(self._load(model))
                await asyncio.shield(model.loading)
            assert model.captioner is not None, "no model in use is unloaded"
            model.used = next(self._clock)
            yield model.captioner
        finally:
            model.users -= 1
            self._make_room()

    async def _load(self, model: Model) -> None:
        model.users += 1
        try:
            captioner = await self._load_with_room(model)
            captioner.name = model.name
            await self._warm_up(captioner)
            self._keep(model, captioner)
        except Exception as error:
            logger.exception("the model %s cannot be loaded", model.name)
            detail = f"the model {model.name!r} cannot be loaded; the server's log says why"
            raise LoadError(detail) from error
        finally:
            model.users -= 1
            model.loading = None
            self._make_room()

    async def _load_with_room(self, model: Model) -> Captioner:
        async with self._turn:  # one at a time
            self._make_room(model.size)
            try:
                return await in_thread(lambda: self._load_place(model.place))
            except Exception as error:
                if not is_out_of_memory(error) or not any(map(self._is_idle, self.all)):
                    raise
            # outside of the except clause: its traceback holds on to what was loaded
            logger.warning("memory ran out while %s was loaded: unloading others", model.name)
            for other in filter(self._is_idle, self.all):
                self._unload(other)
            await in_thread(free_unloaded)
            return await in_thread(lambda: self._load_place(model.place))

    def _keep(self, model: Model, captioner: Captioner) -> None:
        captioner.name = model.name
        model.captioner, model.about, model.size = captioner, About.of(captioner), captioner.weight_bytes
        model.used = next(self._clock)
        self.metrics.loads.labels(model.name).inc()
        self.metrics.model_bytes.labels(model.name).set(model.size)

    def _make_room(self, wanted: int = 0) -> None:
        """Unload what is not used until all, and so many more bytes, fit."""
        if self.memory is None:
            return
        idle = sorted(filter(self._is_idle, self.all), key=lambda model: model.used)
        latest = max((model.used for model in self.all if model.captioner), default=0)
        for model in idle:
            if sum(each.size for each in self.all if each.captioner) + wanted <= self.memory:
                return
            if wanted or model.used < latest:
                self._unload(model)

    def _is_idle(self, model: Model) -> bool:
        return bool(model.captioner and not model.users and not model.sends_photos_to)

    def _unload(self, model: Model) -> None:
        logger.info("unloading the model %s", model.name)
        model.captioner = None
        self.metrics.model_bytes.labels(model.name).set(0)
        threading.Thread(target=free_unloaded, name="collect", daemon=True).start()

    def _add_alias(self, alias: str) -> None:
        name, _, target = alias.partition("=")
        model = self._by_name.get(target or self.first.name)
        if model is None or self._by_name.get(name, model) is not model:
            known = ", ".join(each.name for each in self.all)
            raise OptionsError(
                f"the alias {alias!r} fits no model: give a new name, or NAME=MODEL with one of {known}"
            )
        self._by_name[name] = model


async def in_thread(work: Callable[[], T]) -> T:
    """The result of work in a daemon thread: whoever ends the process need not wait until it is done."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="load", daemon=True).start()
    await done.wait()
    if errors:
        raise errors.pop()
    return results.pop()
