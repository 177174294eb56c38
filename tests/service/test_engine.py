"""The engine's promises, without HTTP: batching, limits, deadlines, failures and the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
from images import draw_noise, encode
from standins import Crashing, Held, Recording, SmallMemory, names

from captioner import (
    Caption,
    Captioner,
    ImageTypeError,
    NamedModel,
    OptionsError,
    PreparedImage,
    SearchOptions,
    StreamEvent,
)
from service.engine import DeadlineError, Engine, NotReadyError, QueueFullError, Upload
from service.metrics import Metrics
from service.models import Models
from service.work import InferenceError

OPTIONS = SearchOptions(num_beams=2, max_length=6)
GREEDY = SearchOptions(num_beams=1, max_length=6)


def upload(name: str = "a") -> Upload:
    """A photo that depends on its name alone."""
    return Upload(encode(draw_noise(40, 30, seed=sum(name.encode())), "PNG"), name)


@contextlib.asynccontextmanager
async def running(captioner: Recording, **options: Any) -> AsyncIterator[Engine]:
    engine = Engine(models_of(captioner), **{"batch_window": 0.05, **options})
    await engine.start()
    await until(lambda: ready(engine))
    yield engine
    await engine.close()


def models_of(captioner: Captioner) -> Models:
    """A server's only model."""
    return Models([NamedModel(name=captioner.name, place="here")], lambda place: captioner)


async def caption(engine: Engine, uploads: Sequence[Upload], options: SearchOptions) -> list[Caption]:
    async with engine.admit(engine.models.first, len(uploads)) as turn:
        return await turn.caption(uploads, options)


async def stream(engine: Engine, photo: Upload, options: SearchOptions) -> AsyncGenerator[StreamEvent]:
    async with (
        engine.admit(engine.models.first, 1) as turn,
        contextlib.aclosing(turn.stream(photo, options)) as events,
    ):
        async for event in events:
            yield event


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.005)


def ready(engine: Engine) -> bool:
    with contextlib.suppress(NotReadyError):
        engine.check_ready()
        return True
    return False


def images(metrics: Metrics, outcome: str) -> float:
    return (
        metrics.registry.get_sample_value("captioner_images_total", {"outcome": outcome, "model": "tiny"})
        or 0.0
    )


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_captions_are_the_librarys_own_in_order():
    async def test() -> None:
        captioner = Recording()
        async with running(captioner) as engine:
            captions = await caption(engine, [upload(name) for name in "abc"], OPTIONS)
            expected = captioner.caption([upload(name).data for name in "abc"], OPTIONS)
            assert [item.file for item in captions] == ["a", "b", "c"]
            assert [replace(item, file=None) for item in captions] == expected

    run(test())


def test_requests_with_equal_options_share_a_batch():
    async def test() -> None:
        captioner = Held()
        async with running(captioner, max_batch=4) as engine:
            first = asyncio.create_task(caption(engine, [upload("first")], OPTIONS))
            await until(captioner.busy.is_set)
            wanted = [("a", OPTIONS), ("b", GREEDY), ("c", OPTIONS), ("d", GREEDY), ("e", OPTIONS)]
            tasks = [asyncio.create_task(caption(engine, [upload(name)], how)) for name, how in wanted]
            await until(lambda: waiting(engine) == 5)
            captioner.go.set()
            await asyncio.gather(first, *tasks)
        assert sorted(map(sorted, captioner.batches)) == [["a", "c", "e"], ["b", "d"], ["first"]]

    run(test())


def test_no_batch_is_larger_than_allowed():
    async def test() -> None:
        captioner = Recording()
        async with running(captioner, max_batch=3) as engine:
            await caption(engine, [upload(name) for name in "abcdefgh"], OPTIONS)
        assert [len(batch) for batch in captioner.batches] == [3, 3, 2]
        assert names(captioner.batches) == list("abcdefgh")

    run(test())


def test_what_does_not_fit_the_queue_is_refused_at_once():
    async def test() -> None:
        captioner = Held()
        async with running(captioner, queue_size=3) as engine:
            tasks = [asyncio.create_task(caption(engine, [upload(name)], OPTIONS)) for name in "abc"]
            await until(captioner.busy.is_set)
            with pytest.raises(QueueFullError) as refusal:
                await caption(engine, [upload("d")], OPTIONS)
            assert 1 <= refusal.value.retry_after <= 60
            captioner.go.set()
            await asyncio.gather(*tasks)
            await caption(engine, [upload("d")], OPTIONS)

    run(test())


def test_a_cancelled_request_costs_no_forward_pass():
    async def test() -> None:
        captioner = Held()
        async with running(captioner) as engine:
            first = asyncio.create_task(caption(engine, [upload("first")], OPTIONS))
            await until(captioner.busy.is_set)
            gone = asyncio.create_task(caption(engine, [upload("gone"), upload("too")], OPTIONS))
            await until(lambda: waiting(engine) == 2)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            captioner.go.set()
            await first
            await caption(engine, [upload("later")], OPTIONS)
            assert names(captioner.batches) == ["first", "later"]
            assert images(engine.metrics, "dropped") == 2

    run(test())


def test_a_batch_that_no_request_wants_any_more_is_broken_off():
    async def test() -> None:
        captioner = Held()
        async with running(captioner) as engine:
            tasks = [asyncio.create_task(caption(engine, [upload(name)], OPTIONS)) for name in "ab"]
            await until(captioner.busy.is_set)
            tasks[0].cancel()
            captioner.go.set()
            assert (await tasks[1])[0].file == "b"
            assert images(engine.metrics, "dropped") == 0, "the batch went on for the other one"
            captioner.go.clear()
            captioner.busy.clear()
            tasks = [asyncio.create_task(caption(engine, [upload(name)], OPTIONS)) for name in "cd"]
            await until(captioner.busy.is_set)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            captioner.go.set()
            await until(lambda: images(engine.metrics, "dropped") == 2)
            assert await caption(engine, [upload("e")], OPTIONS)

    run(test())


def test_a_request_past_its_deadline_is_dropped():
    async def test() -> None:
        captioner = Held()
        async with running(captioner, timeout=1) as engine:
            results = await asyncio.gather(
                caption(engine, [upload("busy")], OPTIONS),
                late(engine, captioner),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [DeadlineError, DeadlineError]
            captioner.go.set()
            await until(lambda: images(engine.metrics, "dropped") == 2)
            assert names(captioner.batches) == ["busy"]

    async def late(engine: Engine, captioner: Held) -> None:
        await until(captioner.busy.is_set)
        await caption(engine, [upload("late")], OPTIONS)

    run(test())


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_a_batch_that_does_not_fit_the_memory_is_halved(fits: int):
    async def test() -> None:
        captioner = SmallMemory(fits=fits)
        async with running(captioner, max_batch=8) as engine:
            captions = await caption(engine, [upload(name) for name in "abcdefgh"], OPTIONS)
            assert [item.file for item in captions] == list("abcdefgh")
        assert {len(batch) for batch in captioner.batches if len(batch) <= fits} == {2 if fits > 1 else 1}
        assert engine.metrics.registry.get_sample_value("captioner_out_of_memory_total")

    run(test())


def test_a_photo_that_alone_does_not_fit_is_an_error_of_its_own():
    async def test() -> None:
        async with running(SmallMemory(fits=0)) as engine:
            with pytest.raises(InferenceError):
                await caption(engine, [upload()], OPTIONS)
            assert engine.alive

    run(test())


def test_a_crash_answers_its_own_batch_and_no_other():
    async def test() -> None:
        async with running(Crashing(), max_batch=1, batch_window=0) as engine:
            calls = [caption(engine, [upload(name)], OPTIONS) for name in ("good", "bad", "fine")]
            good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(bad, InferenceError)
            assert [good[0].file, fine[0].file] == ["good", "fine"]
            assert engine.alive

    run(test())


class HeldCrashing(Held, Crashing):
    def check(self, images: Sequence[PreparedImage]) -> None:
        Held.check(self, images)
        Crashing.check(self, images)


def test_a_model_that_fails_for_good_is_told():
    async def test() -> None:
        captioner = HeldCrashing()
        async with running(captioner, max_batch=1, batch_window=0) as engine:
            fatal = asyncio.create_task(caption(engine, [upload("fatal")], OPTIONS))
            await until(captioner.busy.is_set)
            behind = asyncio.create_task(caption(engine, [upload("behind")], OPTIONS))
            await until(lambda: waiting(engine) == 1)
            captioner.go.set()
            results = await asyncio.gather(fatal, behind, return_exceptions=True)
            assert [type(result) for result in results] == [InferenceError, InferenceError]
            await until(lambda: not engine.alive)
            with pytest.raises(NotReadyError, match="restarted"):
                await caption(engine, [upload()], OPTIONS)

    run(test())


def test_a_photo_that_cannot_be_used_fails_its_request_only():
    async def test() -> None:
        captioner = Recording()
        async with running(captioner) as engine:
            bad = caption(engine, [upload("a"), Upload(b"no photo", "b")], OPTIONS)
            good = caption(engine, [upload("c")], OPTIONS)
            bad_result, good_result = await asyncio.gather(bad, good, return_exceptions=True)
            assert isinstance(bad_result, ImageTypeError)
            assert good_result[0].file == "c"
        assert names(captioner.batches) == ["c"]

    run(test())


def test_options_that_the_model_cannot_follow_fail_their_request():
    async def test() -> None:
        async with running(Recording()) as engine:
            with pytest.raises(OptionsError, match="max_length"):
                await caption(engine, [upload()], replace(OPTIONS, max_length=500))
            assert await caption(engine, [upload()], OPTIONS)

    run(test())


def test_nothing_is_accepted_before_it_is_warm_and_after_the_end():
    async def test() -> None:
        engine = Engine(models_of(Recording()))
        with pytest.raises(NotReadyError):
            engine.check_room()
        await engine.start()
        await until(lambda: ready(engine))
        await engine.close()
        with pytest.raises(NotReadyError, match="shutting down"):
            await caption(engine, [upload()], OPTIONS)
        assert not engine.alive

    run(test())


def test_the_end_waits_for_what_was_accepted():
    async def test() -> None:
        captioner = Held()
        async with running(captioner, max_batch=2) as engine:
            tasks = [asyncio.create_task(caption(engine, [upload(name)], OPTIONS)) for name in "abcde"]
            streamed = asyncio.create_task(collect(engine, "s"))
            await until(captioner.busy.is_set)
            end = asyncio.create_task(engine.close())
            await asyncio.sleep(0.05)
            assert not end.done()
            captioner.go.set()
            assert all(await asyncio.gather(*tasks))
            assert (await streamed)[-1].caption
            await end

    run(test())


async def collect(engine: Engine, name: str, options: SearchOptions = OPTIONS) -> list[StreamEvent]:
    return [event async for event in stream(engine, upload(name), options)]


def test_a_stream_adds_up_to_the_caption():
    async def test() -> None:
        async with running(Recording()) as engine:
            streams = await asyncio.gather(*(collect(engine, name) for name in "abc"))
            captions = await caption(engine, [upload(name) for name in "abc"], OPTIONS)
            assert [events[-1].caption.to_dict() for events in streams] == [
                item.to_dict() for item in captions
            ]
            assert ["".join(event.text for event in events) for events in streams] == [
                item.caption for item in captions
            ]

    run(test())


def test_streams_and_batches_take_turns():
    async def test() -> None:
        async with running(Recording()) as engine:
            results = await asyncio.gather(
                *(collect(engine, name) for name in "abcd"),
                *(caption(engine, [upload(name)], OPTIONS) for name in "efgh"),
            )
            assert all(results)

    run(test())


def test_a_stream_that_is_closed_is_not_computed_on():
    async def test() -> None:
        captioner = Held()
        async with running(captioner) as engine:
            events = stream(engine, upload(), GREEDY)
            await anext(events)
            await events.aclose()
            captioner.go.set()
            await until(lambda: images(engine.metrics, "dropped") == 1)
            assert captioner.steps <= 2

    run(test())


def test_errors_of_a_stream():
    async def test() -> None:
        async with running(Crashing()) as engine:
            with pytest.raises(InferenceError):
                await collect(engine, "bad", GREEDY)
            with pytest.raises(OptionsError):
                await collect(engine, "a", replace(OPTIONS, max_length=500))
            with pytest.raises(ImageTypeError):
                await anext(stream(engine, Upload(b"no photo", "x"), OPTIONS))
            assert (await collect(engine, "a"))[-1].caption

    run(test())


def test_a_stream_past_its_deadline_ends():
    async def test() -> None:
        captioner = Held()
        async with running(captioner, timeout=0.3) as engine:
            with pytest.raises(DeadlineError):
                await collect(engine, "a")
            captioner.go.set()

    run(test())


def waiting(engine: Engine) -> int:
    """Photos in the queue; those of a batch that is being captioned are none of them."""
    return len(engine._device._batcher)
