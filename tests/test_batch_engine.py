"""Items to records on one machine: order, bad photographs, too little memory, the search for a batch size."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from fakes import FakeCaptioner
from images import draw_noise
from tiny import tiny_captioner

from captioner import CaptionerError, GenerationOptions, OptionsError, SearchOptions
from captioner.batch.engine import MAX_FAILURES, BatchCaptioner
from captioner.batch.finding import find_items
from captioner.batch.items import Item
from captioner.batch.local import BatchSize, LocalEngine
from captioner.batch.prefetch import prefetch
from captioner.caption import Caption
from captioner.image import ImageProcessor, Photo


class Limited(FakeCaptioner):
    """A captioner whose memory holds so many photographs, of so many pixels each."""

    def __init__(self, photos: int, pixels: int = 10**6, error: Exception | None = None) -> None:
        super().__init__()
        self.photos, self.pixels = photos, pixels
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def caption_prepared(self, images: Sequence[Photo], options: SearchOptions) -> list[Caption]:
        captions = super().caption_prepared(images, options)
        if len(images) > self.photos or any(photo.width * photo.height > self.pixels for photo in images):
            raise self.error
        return captions


@pytest.fixture
def photos(tmp_path: Path) -> list[Item]:
    """Twenty photographs, each as wide as its name says, and some that are none."""
    for number in range(20):
        draw_noise(60 + number, 50, seed=number).save(tmp_path / f"{60 + number}.png")
    (tmp_path / "61.png").write_bytes(b"nothing")
    (tmp_path / "67.png").write_bytes((tmp_path / "67.png").read_bytes()[:500])
    return [*find_items([str(tmp_path)]), Item(str(tmp_path / "missing"), str(tmp_path / "missing"))]


def run(
    captioner: FakeCaptioner, items: Sequence[Item], batch_size: int | None = None
) -> list[dict[str, object]]:
    engine = LocalEngine(BatchCaptioner(captioner), batch_size=batch_size, workers=3)  # type: ignore[arg-type]
    return [record for records in engine.run(items) for record in records]


@pytest.mark.parametrize("batch_size", [None, 1, 7, 100])
def test_a_record_for_each_item_in_order(photos: list[Item], batch_size: int | None):
    records = run(FakeCaptioner(), photos, batch_size)
    assert [record["file"] for record in records] == [item.key for item in photos]
    kinds = [record.get("error_kind") for record in records]
    assert [(index, kind) for index, kind in enumerate(kinds) if kind] == [
        (1, "type"),
        (7, "damaged"),
        (20, "unreadable"),
    ]
    assert records[5]["caption"] == "a photo 65 wide and 50 high"
    assert records[20] == {
        "file": photos[20].key,
        "error": "cannot be read: No such file or directory",
        "error_kind": "unreadable",
    }


def test_records_are_what_captioning_one_by_one_gives(photos: list[Item]):
    model = tiny_captioner()
    options = GenerationOptions(num_beams=2, max_length=9, alternatives=1, attention=True)
    engine = LocalEngine(BatchCaptioner(model, options), batch_size=6)
    records = [record for records in engine.run(photos[8:20]) for record in records]
    expected = [model.caption([item.path], options)[0].to_dict() for item in photos[8:20]]
    assert [record["caption"] for record in records] == [caption["caption"] for caption in expected]
    assert records[0].keys() == expected[0].keys()
    assert records[0]["words"][0]["box"] == expected[0]["words"][0]["box"]


def test_too_large_a_batch_is_halved_and_stays_so(photos: list[Item]):
    limited = Limited(5)
    records = run(limited, photos[8:20] * 4, 16)
    assert all("caption" in record for record in records)
    assert limited.batches[:4] == [16, 8, 4, 4]
    assert max(limited.batches[4:]) == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("can't allocate memory: you tried"),
    ],
)
def test_other_devices_say_it_in_words(photos: list[Item], error: Exception):
    limited = Limited(2, error=error)
    assert all("caption" in record for record in run(limited, photos[8:16], 8))
    assert limited.batches == [8, 4, 2, 2, 2, 2]


def test_a_photograph_that_fits_no_memory_fails_alone(photos: list[Item]):
    records = run(Limited(9, pixels=3900), photos[8:20], 12)
    assert [record.get("error_kind") for record in records] == [None] * 11 + ["memory"]


def test_a_photograph_that_the_model_fails_on_fails_alone(photos: list[Item]):
    limited = Limited(99, pixels=3900, error=ValueError("a bug\nof the model"))
    engine = BatchCaptioner(limited)  # type: ignore[arg-type]
    records = engine.records(photos[8:20], [engine.prepare(item) for item in photos[8:20]])
    assert [record.get("error") for record in records] == [None] * 11 + [
        "the model failed: a bug of the model"
    ]
    assert engine.max_batch is None


def test_a_model_that_fails_on_everything_ends_the_run(photos: list[Item]):
    good = [item for item in photos if item not in (photos[1], photos[7], photos[20])]
    with pytest.raises(CaptionerError, match=f"failed on {MAX_FAILURES + 1} photographs in a row: lost"):
        run(Limited(0, error=RuntimeError("lost")), good, 4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [(GenerationOptions(prompt="xylophone"), "xylophone"), (GenerationOptions(max_length=400), "positions")],
)
def test_options_that_do_not_suit_are_refused_before_anything_is_done(
    options: GenerationOptions, problem: str
):
    with pytest.raises(OptionsError, match=problem):
        BatchCaptioner(tiny_captioner(), options)


def test_items_are_taken_a_bounded_number_ahead(photos: list[Item]):
    taken = []

    def endless() -> Iterator[Item]:
        while True:
            taken.append(1)
            yield photos[0]

    engine = LocalEngine(BatchCaptioner(FakeCaptioner()), batch_size=4, workers=2)  # type: ignore[arg-type]
    batches = engine.run(endless())
    for _ in range(3):
        next(batches)
    assert len(taken) <= 3 * 4 + 2 * 4 + 1
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's threads")
@pytest.mark.parametrize(("side", "margin"), [(288, 0), (400, 0), (400, 16)])
def test_threads_that_decode_start_no_others(side: int, margin: int):
    """Torch starts a team of threads for each thread that calls it with so many numbers."""
    torch.set_num_threads(2)
    processor = ImageProcessor(size=288, mean=(0.5,) * 3, std=(0.5,) * 3, margin=margin)
    square = draw_noise(side, side)

    def work(_: int) -> int:
        before = len(os.listdir("/proc/self/task"))
        pixel_values = processor(square)
        assert pixel_values.is_contiguous()
        return len(os.listdir("/proc/self/task")) - before

    assert [more for _, more in prefetch(work, range(3), workers=1, ahead=1)] == [0, 0, 0]


def test_prefetch_works_ahead_in_order():
    order: list[int] = []
    third = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            third.wait(10)  # the first is done last
        order.append(number)
        if number == 2:
            third.set()
        return number * number

    assert list(prefetch(work, range(6), workers=3, ahead=4)) == [(n, n * n) for n in range(6)]
    assert order.index(0) > order.index(2)


def test_prefetch_raises_at_the_place_of_what_failed():
    def work(number: int) -> int:
        return 1 // (number - 3)

    results = prefetch(work, range(9), workers=2, ahead=2)
    assert len(list(islice(results, 3))) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def search(speeds: dict[int, float], largest: int = 64) -> list[int]:
    """The sizes that are tried when the batch of each size is so fast, in images/s."""
    size, tried = BatchSize(largest), []
    for _ in range(12):
        tried.append(size.next)
        size.measure(size.next, size.next / speeds.get(size.next, 1.0))
    return tried


def test_the_batch_size_doubles_as_long_as_that_is_faster():
    assert search({8: 100, 16: 150, 32: 151})[::2] == [8, 16, 32, 16, 16, 16]
    assert search({8: 100, 16: 90})[::2] == [8, 16, 8, 8, 8, 8]
    assert search({8: 1, 16: 2, 32: 3, 64: 4})[::2] == [8, 16, 32, 64, 64, 64]
    assert search({4: 1, 8: 2}, largest=4) == [4] * 12


def test_a_first_batch_that_warms_up_does_not_count():
    size = BatchSize(64)
    for seconds in (10.0, 0.08, 0.16, 0.16):  # of 8, 8, 16 and 16 photographs
        size.measure(size.next, seconds)
    assert size.next == 8


def test_batches_that_are_not_full_say_nothing():
    size = BatchSize(64)
    for _ in range(9):
        size.measure(3, 0.001)
    assert size.next == 8


def test_decoding_goes_on_while_the_model_works(photos: list[Item]):
    """While the model has the first batch, all of the second is decoded."""
    prepared = []

    class Watching(FakeCaptioner):
        def prepare(self, image: object, *, name: str | None = None) -> Photo:
            photo = super().prepare(image, name=name)  # type: ignore[arg-type]
            prepared.append(name)
            return photo

        def caption_prepared(self, images: Sequence[Photo], options: SearchOptions) -> list[Caption]:
            deadline = time.monotonic() + 20
            while len(prepared) < min(8, 4 * (len(self.batches) + 2)) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(prepared) >= min(8, 4 * (len(self.batches) + 2))
            return super().caption_prepared(images, options)

    assert len(run(Watching(), photos[8:16], 4)) == 8
