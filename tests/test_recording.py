"""What is recorded and replayed gives what the model gives. A tape of operations stands in for a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import RULES, SEARCHES, assert_alike, random_decoder
from tiny import tiny_checkpoint
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captioner.generation import Hypothesis, SearchOptions, generate
from captioner.model import CaptionModel
from captioner.recording import KEPT, RecordedModel

FORBIDDEN = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero"}
"""What waits for a device or takes something from the host."""


class Operations(TorchDispatchMode):
    """Writes down each operation on tensors with the very tensors that it took and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in FORBIDDEN:
            raise RuntimeError(f"{func} cannot be recorded")
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out


class Tape:
    """Replays operations without the code that asked for them, as a CUDA graph does."""

    replays = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with Operations() as operations:
            work()

        def replay() -> None:
            Tape.replays += 1
            for func, args, kwargs, out in operations.done:
                given = {storage(each) for each in tensors([args, kwargs])}
                for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    if storage(old) not in given:  # else it is a view of what it was given
                        old.copy_(new)

        return replay


def tensors(out: Any) -> list[Tensor]:
    return [each for each in tree_leaves(out) if isinstance(each, Tensor)]


def storage(tensor: Tensor) -> int:
    """Where its numbers lie; what oneDNN has packed has no such place."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


class NoGraphs:
    """A device on which nothing can be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("no graphs here")


class WrongGraphs:
    """A device whose recordings do nothing at all."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


def model_with_random_decoder() -> CaptionModel:
    model = tiny_checkpoint().model.eval().requires_grad_(False)
    model.decoder = random_decoder(end=1.5)
    return model


def regions(images: int, seed: int) -> Tensor:
    return 2 * torch.randn(images, 5, 12, generator=torch.Generator().manual_seed(seed))


def assert_all_alike(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("kind", sorted(SEARCHES))
def test_a_recorded_search_gives_what_the_search_gives(kind: str):
    model, options, before = model_with_random_decoder(), SEARCHES[kind], Tape.replays
    recorded = RecordedModel(model, Tape())
    seen = set()
    for seed, images in enumerate([4, 4, 3, 4, 1, 1, 1]):  # 3 share the recording of 4
        region_tokens = regions(images, seed)
        found = recorded.generate(region_tokens, options, RULES)
        assert_all_alike(found, generate(model.decoder, region_tokens, options, RULES))
        seen |= {hypotheses[0].token_ids for hypotheses in found}
    assert len(seen) > 4, "captions that differ"
    assert (Tape.replays > before) == (not options.do_sample)


def test_a_recorded_search_ends_once_all_captions_are_done():
    model = model_with_random_decoder()
    model.decoder.output_bias[RULES.eos_id] = 30
    recorded, options = RecordedModel(model, Tape()), SearchOptions(num_beams=2, max_length=20)
    recorded.generate(regions(2, 0), options, RULES)
    recorded.generate(regions(2, 1), options, RULES)
    before = Tape.replays
    recorded.generate(regions(2, 2), options, RULES)
    assert Tape.replays == before + 1


def test_a_recorded_encoder_gives_what_the_encoder_gives():
    model = tiny_checkpoint().model.eval().requires_grad_(False)
    recorded, before, kept = RecordedModel(model, Tape()), Tape.replays, []
    for seed, images in enumerate([2, 2, 1, 2, 3, 4]):
        pixel_values = torch.randn(images, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        found = recorded.encode(pixel_values)
        with torch.inference_mode():
            expected = model.encode(pixel_values)
        assert (found.grid, found.prefix) == (expected.grid, expected.prefix)
        assert found.tags is not None
        kept.append((found, expected))
    for found, expected in kept:  # a later batch leaves earlier results alone
        torch.testing.assert_close(found.region_tokens, expected.region_tokens)
        torch.testing.assert_close(found.tags, expected.tags)
    assert Tape.replays > before


def test_new_weights_are_noticed():
    model = model_with_random_decoder()
    recorded, options = RecordedModel(model, Tape()), SEARCHES["beams"]
    for seed in range(4):
        if seed == 2:
            model.decoder.load_state_dict(random_decoder(seed=5).state_dict(), assign=True)
        region_tokens = regions(2, seed)
        found = recorded.generate(region_tokens, options, RULES)
        assert_all_alike(found, generate(model.decoder, region_tokens, options, RULES))


def test_where_nothing_can_be_recorded_the_model_runs_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
):
    model, options = model_with_random_decoder(), SEARCHES["beams"]
    recorded = RecordedModel(model, NoGraphs())
    with caplog.at_level(logging.INFO, "captioner"):
        for images in (1, 1, 1, 2, 2):
            found = recorded.generate(regions(images, 0), options, RULES)
            assert_all_alike(found, generate(model.decoder, regions(images, 0), options, RULES))
    assert len(caplog.records) == 1


def test_a_recording_that_gives_something_else_is_not_used(caplog: pytest.LogCaptureFixture):
    model, options = model_with_random_decoder(), SEARCHES["beams"]
    recorded = RecordedModel(model, WrongGraphs())
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for seed in range(4):
            region_tokens = regions(3, seed)
            found = recorded.generate(region_tokens, options, RULES)
            assert_all_alike(found, generate(model.decoder, region_tokens, options, RULES))
            pixel_values = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
            tokens = recorded.encode(pixel_values).region_tokens
            torch.testing.assert_close(tokens, model.encode(pixel_values).region_tokens)
    assert "what was recorded gives" in caplog.text


def test_who_comes_while_a_recording_is_replayed_gets_the_model_itself():
    model, options = model_with_random_decoder(), SEARCHES["beams"]
    meanwhile = []

    class Interrupted(Tape):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(work)

            def interrupted() -> None:
                replay()
                meanwhile.append(recorded.generate(regions(2, 9), options, RULES))

            return interrupted

    recorded = RecordedModel(model, Interrupted())
    for seed in range(3):
        found = recorded.generate(regions(2, seed), options, RULES)
        assert_all_alike(found, generate(model.decoder, regions(2, seed), options, RULES))
    assert meanwhile
    for other in meanwhile:
        assert_all_alike(other, generate(model.decoder, regions(2, 9), options, RULES))


def test_options_that_do_not_touch_the_search_share_a_recording():
    recorded, options = RecordedModel(model_with_random_decoder(), Tape()), SEARCHES["beams"]
    others = {"attention": True, "hedge": True, "min_confidence": 0.5, "prompt": "a"}
    for seed, (name, value) in enumerate(others.items()):
        recorded.generate(regions(2, seed), replace(options, **{name: value}), RULES)
    assert len(recorded._recordings) == 1
    before = Tape.replays
    recorded.generate(regions(2, 9), options, RULES)
    assert Tape.replays > before


def test_few_recordings_are_kept():
    model = model_with_random_decoder()
    recorded = RecordedModel(model, Tape())
    for length in range(1, KEPT + 3):
        for seed in range(3):
            recorded.generate(regions(1, seed), SearchOptions(num_beams=2, max_length=length), RULES)
    assert len(recorded._recordings) == KEPT
