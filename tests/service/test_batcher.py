"""Which jobs go together and when, with a clock of the tests' own."""

from __future__ import annotations

from service.batcher import Batcher


def take(batcher: Batcher[str], now: float, *, unwanted: str = "") -> str:
    return "".join(batcher.take(now, is_wanted=lambda job: job not in unwanted))


def batcher_of(*jobs: tuple[str, str, float], max_batch: int = 3, window: float = 1.0) -> Batcher[str]:
    batcher: Batcher[str] = Batcher(max_batch=max_batch, window=window)
    for job, key, now in jobs:
        batcher.add(job, key=key, now=now)
    return batcher


def test_nothing_is_due_when_nothing_waits():
    batcher = batcher_of()
    assert batcher.due(5.0) is None
    assert take(batcher, 5.0) == ""


def test_a_batch_waits_for_its_window_and_no_longer():
    batcher = batcher_of(("a", "k", 10.0), ("b", "k", 10.5))
    assert batcher.due(10.5) == 0.5
    assert take(batcher, 10.9) == ""
    assert batcher.due(11.0) == 0.0
    assert take(batcher, 11.0) == "ab"
    assert len(batcher) == 0


def test_a_full_batch_does_not_wait():
    batcher = batcher_of(*((job, "k", 0.0) for job in "abcd"))
    assert batcher.due(0.0) == 0.0
    assert take(batcher, 0.0) == "abc"
    assert batcher.due(0.0) == 1.0
    assert len(batcher) == 1


def test_keys_do_not_mix():
    batcher = batcher_of(("a", "k", 0.0), ("b", "l", 0.1), ("c", "k", 0.2))
    assert take(batcher, 2.0) == "ac"
    assert take(batcher, 2.0) == "b"


def test_a_full_batch_overtakes_one_that_still_waits():
    batcher = batcher_of(("a", "k", 0.0), *((job, "l", 0.1) for job in "bcd"))
    assert take(batcher, 0.5) == "bcd"
    assert take(batcher, 1.0) == "a"


def test_no_key_starves_another():
    batcher = batcher_of(("a", "k", 0.0), *((job, "l", 0.1) for job in "bcdefg"))
    assert take(batcher, 1.0) == "a"


def test_unwanted_jobs_give_their_places_to_the_next():
    batcher = batcher_of(*((job, "k", 0.0) for job in "abcde"))
    assert take(batcher, 1.0, unwanted="ac") == "bde"


def test_a_batch_that_nobody_wants_is_empty():
    batcher = batcher_of(("a", "k", 0.0), ("b", "l", 0.0))
    assert take(batcher, 1.0, unwanted="a") == ""
    assert take(batcher, 1.0) == "b"


def test_clear_gives_all():
    batcher = batcher_of(("a", "k", 0.0), ("b", "l", 0.0), ("c", "k", 0.0))
    assert sorted(batcher.clear()) == ["a", "b", "c"]
    assert (len(batcher), batcher.due(9.0)) == (0, None)
