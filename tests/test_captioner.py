"""Photos in, captions out: the same alone, in a batch, in a stream and from several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import pytest
import torch
from images import draw_noise, draw_scene, encode
from PIL import Image
from tiny import tiny_captioner, tiny_checkpoint

import captioner
from captioner import (
    Caption,
    Captioner,
    GenerationOptions,
    ImageDecodeError,
    ImageSizeError,
    NotWantedError,
    OptionsError,
    SearchOptions,
)
from captioner.checkpoint import Checkpoint
from captioner.recording import RecordedModel
from captioner.runners import CheckpointRunner

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "alternatives": 2},
    "long beams": {"num_beams": 4, "length_penalty": 2.0},
    "samples": {"do_sample": True, "seed": 5, "alternatives": 2, "top_p": 0.9},
    "rules": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_length": 4},
}


def ending_checkpoint() -> Checkpoint:
    """The tiny model, with captions of many lengths."""
    checkpoint = tiny_checkpoint()
    bias = checkpoint.model.decoder.output_bias
    assert bias is not None
    bias[checkpoint.tokenizer.config.eos_id] = 1.5
    return checkpoint


@pytest.fixture(scope="module")
def model() -> Captioner:
    return Captioner(CheckpointRunner(ending_checkpoint()), name="tiny")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Photos with captions of different lengths."""
    return [draw_noise(40 + seed, 90 - seed, seed=seed) for seed in range(24)] + [draw_scene()]


def options(search: str, **more: Any) -> GenerationOptions:
    return GenerationOptions(max_length=10, **SEARCHES[search], **more)


def texts(caption: Caption) -> list[str]:
    return [caption.caption, *(other.caption for other in caption.alternatives)]


def test_every_kind_of_source_gives_the_same_caption(model: Captioner, tmp_path: Path):
    scene = draw_scene()
    (tmp_path / "scene.png").write_bytes(encode(scene, "PNG"))
    sources = [
        scene,
        np.asarray(scene),
        encode(scene, "PNG"),
        str(tmp_path / "scene.png"),
        tmp_path / "scene.png",
    ]
    captions = model.caption(sources, batch_size=2)
    assert len({caption.caption for caption in captions}) == 1
    assert {(c.model, c.width, c.height) for c in captions} == {("tiny", 96, 64)}
    path = str(tmp_path / "scene.png")
    assert [caption.file for caption in captions] == [None, None, None, path, path]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_photo_has_the_same_caption_alone_and_in_a_batch_of_64(
    search: str, model: Captioner, photos: list[Image.Image]
):
    chosen = options(search)
    batch = [model.prepare(photos[index % len(photos)]) for index in range(64)]
    together = model.caption_prepared(batch, chosen)
    assert len({caption.caption for caption in together}) > 10
    assert len({len(caption.words) for caption in together}) > 1
    for index in (0, 7, 13, 31, 63):
        (alone,) = model.caption_prepared([batch[index]], chosen)
        assert texts(alone) == texts(together[index])
        assert alone.logprob == pytest.approx(together[index].logprob, abs=1e-3)
    assert [texts(c) for c in together[25:50]] == [texts(c) for c in together[:25]], (
        "the place does not matter"
    )


@torch.inference_mode()
def test_photos_and_their_tags_are_encoded_alike_alone_and_in_a_batch(photos: list[Image.Image]):
    runner = CheckpointRunner(tiny_checkpoint(words=20, colours=2))
    prepared = [Captioner(runner, name="tiny").prepare(photo) for photo in photos[:10]]
    together, apart = runner.encode(prepared), [runner.encode([photo]) for photo in prepared]
    torch.testing.assert_close(together.region_tokens, torch.cat([one.region_tokens for one in apart]))
    assert together.tags is not None
    scores = torch.cat([one.tags.scores for one in apart if one.tags])
    torch.testing.assert_close(together.tags.scores, scores)
    assert together.grid == apart[0].grid


def test_the_log_probability_is_the_models_own_whatever_the_rules(
    model: Captioner, photos: list[Image.Image]
):
    checkpoint = ending_checkpoint()
    for search in SEARCHES:
        image = model.prepare(photos[3])
        (caption,) = model.caption_prepared([image], options(search))
        ids = checkpoint.tokenizer.encode(caption.caption)
        if len(ids) < 10:
            ids = [*ids, checkpoint.tokenizer.config.eos_id]
        pixel_values = checkpoint.processor.normalize(image.content[None], torch.float32)
        decoder = checkpoint.model.decoder
        cross = decoder.cross_cache(checkpoint.model.encode(pixel_values).region_tokens)
        forced = torch.tensor([[[checkpoint.tokenizer.config.start_ids[0], *ids[:-1]]]])
        logprobs = decoder.logits(decoder(forced, cross)[0]).log_softmax(-1)[0, 0]
        each = logprobs[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        assert caption.logprob == pytest.approx(sum(each), abs=1e-3)
        assert caption.confidence == pytest.approx(math.exp(sum(each) / len(each)), abs=1e-4)
        assert [word.text for word in caption.words] == caption.caption.split()
        assert [word.logprob for word in caption.words] == pytest.approx(each[: len(caption.words)], abs=1e-4)
        assert [word.confidence for word in caption.words] == pytest.approx(
            [math.exp(value) for value in each[: len(caption.words)]], abs=1e-4
        )


def test_threads_that_share_a_model_do_not_disturb_each_other(model: Captioner, photos: list[Image.Image]):
    jobs = [(photo, options(search, attention=True)) for photo in photos[:8] for search in SEARCHES]
    expected = [model.caption([photo], chosen) for photo, chosen in jobs]
    streamed = [list(model.stream(photo, chosen)) for photo, chosen in jobs]
    with ThreadPoolExecutor(4) as pool:
        captions = list(pool.map(lambda job: model.caption([job[0]], job[1]), jobs))
        events = list(pool.map(lambda job: list(model.stream(*job)), jobs))
    assert captions == expected
    assert events == streamed


def models(tmp_path: Path) -> Iterator[Captioner]:
    yield tiny_captioner(seed=1)
    for seed in range(2):
        for name, save in (("blip", huggingface.save_blip), ("gpt2", huggingface.save_vit_gpt2)):
            save(tmp_path / f"{name}{seed}", seed=seed)
            yield captioner.load(tmp_path / f"{name}{seed}", device="cpu")


def test_a_stream_adds_up_to_the_caption(tmp_path: Path, photos: list[Image.Image]):
    pieces = 0
    for each in models(tmp_path):
        for search in SEARCHES:
            for prompt in ("", "a dog"):
                chosen = options(search, prompt=prompt)
                for photo in photos[:2]:
                    *events, last = each.stream(photo, chosen)
                    assert all(event.caption is None for event in events)
                    assert last.caption is not None
                    assert "".join(event.text for event in [*events, last]) == last.caption.caption
                    if search != "samples" or each.name == "tiny":
                        assert texts(last.caption) == texts(each.caption([photo], chosen)[0])
                    pieces += len(events)
    assert pieces > 100


def test_a_greedy_stream_gives_a_word_at_a_time(model: Captioner, photos: list[Image.Image]):
    *events, last = model.stream(photos[0], options("greedy", min_length=8))
    assert len(events) > 5
    assert all(len(event.text.split()) == 1 for event in events)
    assert len(last.text.split()) <= 2, "a word is held back until it cannot grow"


def test_a_stream_leaves_the_callers_mode_of_torch_alone(model: Captioner, photos: list[Image.Image]):
    for _ in model.stream(photos[0], options("greedy")):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_a_streams_errors_come_with_the_call(model: Captioner):
    with pytest.raises(ImageDecodeError):
        model.stream(b"")
    prepared = model.prepare(draw_scene())
    with pytest.raises(OptionsError, match="zebra"):
        model.stream_prepared(prepared, GenerationOptions(prompt="a zebra"))
    with pytest.raises(OptionsError, match="positions"):
        model.stream_prepared(prepared, GenerationOptions(max_length=500))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_caption_begins_with_the_prompt_and_words_are_what_follows(
    search: str, model: Captioner, photos: list[Image.Image]
):
    chosen = options(search, prompt="  A woman in, a black coat ", attention=True)
    for caption in model.caption(photos[:4], chosen):
        assert all(text.startswith("a woman in a black coat") for text in texts(caption))
        rest = caption.caption.removeprefix("a woman in a black coat").split()
        assert [word.text for word in caption.words] == rest
        total = sum(word.logprob for word in caption.words)
        assert total == pytest.approx(caption.logprob, abs=1e-6) or len(rest) < 10, "the end has one as well"
        assert total >= caption.logprob - 1e-6


@pytest.mark.parametrize("prompt", ["a zebra", "<eos>", "a <pad> dog", "a dog <bos>", "日本"])
def test_a_prompt_with_a_word_that_the_model_does_not_know_is_refused(prompt: str, model: Captioner):
    with pytest.raises(OptionsError, match="words that this model does not know"):
        model.caption([draw_scene()], GenerationOptions(prompt=prompt))


@pytest.mark.parametrize("prompt", ["", "  ", "!"])
def test_a_prompt_without_words_is_none(prompt: str, model: Captioner):
    assert model.caption([draw_scene()], GenerationOptions(prompt=prompt)) == model.caption(
        [draw_scene()], GenerationOptions()
    )


def test_a_word_that_goes_on_from_the_prompt_is_whole_but_judged_by_what_was_added(tmp_path: Path):
    """The prompt "a do" makes a byte-pair model continue a word: "do" + "g" is one word of the caption."""
    huggingface.save_vit_gpt2(tmp_path)
    each = captioner.load(tmp_path, device="cpu")
    found = 0
    for seed in range(12):
        chosen = GenerationOptions(num_beams=1, max_length=6, prompt="a do", attention=True)
        (caption,) = each.caption([draw_noise(32, 32, seed=seed)], chosen)
        assert caption.caption.startswith("a do")
        grown = caption.caption.split()[1]
        if caption.words and len(grown) > 2:
            found += 1
            assert caption.words[0].text == grown
            assert caption.words[0].logprob >= caption.logprob - 1e-6
        assert [word.text for word in caption.words] == caption.caption.split()[-len(caption.words) :]
    assert found > 3


def test_a_bad_word_is_avoided_in_every_place_and_vocabulary(tmp_path: Path, photos: list[Image.Image]):
    avoided = 0
    for each in models(tmp_path):
        chosen = GenerationOptions(num_beams=3, max_length=8)
        for photo in photos[:4]:
            (caption,) = each.caption([photo], chosen)
            for word in {word for word in caption.caption.split() if word.isalpha() and word.isascii()}:
                (other,) = each.caption([photo], replace(chosen, bad_words=(word, "zebra crossing")))
                assert word not in other.caption.split()
                avoided += 1
    assert avoided > 20


def test_what_is_not_given_is_as_the_models_own_settings_say(model: Captioner, photos: list[Image.Image]):
    assert model.default_options == SearchOptions(num_beams=2, max_length=12)
    photos = photos[:4]
    captions = model.caption(photos)
    assert captions == model.caption(photos, SearchOptions(num_beams=2, max_length=12))
    assert captions != model.caption(photos, SearchOptions(num_beams=2, max_length=5))
    seen = model.caption(photos, GenerationOptions(attention=True))
    assert [caption.caption for caption in seen] == [caption.caption for caption in captions]
    (*_, last) = model.stream(photos[0], GenerationOptions(attention=True))
    assert last.caption is not None
    assert last.caption.caption == captions[0].caption


def test_any_caption_that_may_be_said_has_maps(model: Captioner):
    runner = CheckpointRunner(tiny_checkpoint())
    images = [model.prepare(draw_scene()), model.prepare(draw_noise(64, 48))]
    options = SearchOptions(num_beams=3, alternatives=2, attention=True)
    with torch.inference_mode():
        for hedge in (False, True):
            for captions in runner.caption(images, replace(options, hedge=hedge)):
                assert [caption.maps is not None for caption in captions] == [True, hedge, hedge]
                assert all(len(c.maps) == len(c.logprobs or ()) for c in captions if c.maps is not None)


def test_maps_and_boxes_are_in_the_photos_own_pixels(model: Captioner):
    (caption,) = model.caption([draw_noise(300, 100)], options("beams", attention=True))
    for word in caption.words:
        assert word.attention is not None
        assert word.box is not None
        assert np.shape(word.attention) == (2, 2)
        assert np.sum(word.attention) == pytest.approx(1, abs=1e-5)
        row, column = np.unravel_index(np.argmax(word.attention), (2, 2))
        left, top, right, bottom = word.box
        assert left <= column * 150 < column * 150 + 150 <= right
        assert top <= row * 50 < row * 50 + 50 <= bottom
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 100
    (plain,) = model.caption([draw_noise(300, 100)], options("beams"))
    assert all(word.attention is None and word.box is None for word in plain.words)
    assert plain.caption == caption.caption


def test_images_are_read_one_batch_ahead_at_most(model: Captioner, photos: list[Image.Image]):
    seen: list[int] = []

    def source() -> Iterator[Image.Image]:
        for index, photo in enumerate(photos[:5]):
            seen.append(index)
            yield photo
        raise ImageDecodeError("image 5", "is empty")

    with pytest.raises(ImageDecodeError, match="image 5"):
        model.caption(source(), batch_size=2)
    assert seen == [0, 1, 2, 3, 4]
    assert model.caption([]) == []
    assert model.caption_prepared([]) == []


@pytest.mark.parametrize("kind", ["path", "pathlike", "bytes", "image", "array", "grey array"])
def test_a_single_photo_for_a_list_is_refused(kind: str, model: Captioner):
    scene = draw_scene()
    single = {
        "path": "scene.png",
        "pathlike": Path("scene.png"),
        "bytes": encode(scene, "PNG"),
        "image": scene,
        "array": np.asarray(scene),
        "grey array": np.asarray(scene.convert("L")),
    }[kind]
    with pytest.raises(TypeError, match="list"):
        model.caption(single)


def test_an_array_of_several_photos_is_a_list(model: Captioner):
    batch = np.stack([np.asarray(draw_noise(32, 32, seed=seed)) for seed in range(3)])
    assert model.caption(batch) == model.caption(list(batch))


def test_no_photo_is_lost_to_an_impossible_batch_size(model: Captioner):
    for batch_size in (0, -1):
        with pytest.raises(OptionsError, match="batch_size"):
            model.caption([draw_scene()], batch_size=batch_size)


def test_preparing_is_told_the_limit_and_the_name(model: Captioner):
    prepared = model.prepare(encode(draw_scene(), "PNG"), name="scene")
    assert (prepared.file, prepared.width, prepared.height) == ("scene", 96, 64)
    assert prepared.content.shape == (3, 64, 64)
    assert prepared.content.dtype == torch.uint8
    with pytest.raises(ImageSizeError, match="scene"):
        model.prepare(encode(draw_scene(), "PNG"), name="scene", max_pixels=96 * 64 - 1)


def test_a_checkpoint_with_impossible_defaults_is_refused():
    checkpoint = tiny_checkpoint()
    broken = Checkpoint(**{**vars(checkpoint), "generation": {"num_beams": 999}})
    with pytest.raises(captioner.CheckpointError, match="num_beams"):
        Captioner(CheckpointRunner(broken), name="broken")


def test_a_model_is_moved_and_converted():
    model = tiny_captioner()
    model.to(torch.device("cpu"), torch.bfloat16)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert model.caption([draw_noise(64, 48)])[0].caption


def test_nothing_is_computed_for_nobody(model: Captioner, photos: list[Image.Image]):
    with pytest.raises(NotWantedError):
        model.caption_prepared([model.prepare(photos[0])], is_wanted=lambda: False)


class Unrecorded:
    """No GPU."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("nothing is recorded here")


def test_a_model_says_what_warms_it_up():
    class OnGpu(CheckpointRunner):
        def _record(self) -> None:
            self._recorded = RecordedModel(self.checkpoint.model, Unrecorded())

    assert Captioner(OnGpu(tiny_checkpoint()), name="tiny").warm_up_sizes(24) == [
        *(1, 1, 2, 2, 4, 4),
        *(8, 8, 16, 16, 24, 24),
    ]
    here = tiny_captioner()
    assert here.warm_up_sizes(32) == [1]
    here.to(torch.device("meta"), torch.float32)
    assert here.warm_up_sizes(32) == [1, 32]
