"""GIT: the captions of `transformers`, behind the interface of our own models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import pytest
import torch
from images import draw_noise
from PIL import Image
from transformers import AutoProcessor, GitForCausalLM

import captioner
from captioner import Captioner, CheckpointError, GenerationOptions, OptionsError, SearchOptions
from captioner.cli import main
from captioner.evaluation.benchmark import benchmark
from captioner.runners.sequence import SequenceRunner, read_sequence_model

PHOTOS = [draw_noise(50 + seed, 90 - seed, seed=seed) for seed in range(6)]


@dataclass
class Both:
    """One checkpoint as we load it and as `transformers` does."""

    folder: Path
    ours: Captioner
    runner: SequenceRunner
    theirs: GitForCausalLM
    processor: Any

    def prompt(self, text: str = "") -> list[int]:
        """What every sequence of theirs begins with."""
        return list(self.runner.rules(SearchOptions(prompt=text)).prompt_ids)

    def inputs(self, photos: list[Image.Image], ids: list[list[int]]) -> dict[str, Any]:
        """Photos and the token ids of text that has begun."""
        pixel_values = self.processor(images=photos, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "input_ids": torch.tensor(ids)}

    def captions(self, prompt: str, **settings: Any) -> list[tuple[str, float]]:
        """Theirs of all photos, with the summed log-probs that a forced pass gives."""
        start = self.prompt(prompt)
        eos = self.theirs.generation_config.eos_token_id
        given = self.inputs(PHOTOS, [start] * len(PHOTOS))
        rows = self.theirs.generate(**given, **settings).tolist()
        found = []
        for photo, row in zip(PHOTOS, rows, strict=True):
            ids = row[: row.index(eos, len(start)) + 1] if eos in row[len(start) :] else row
            logits = self.theirs(**self.inputs([photo], [ids])).logits[0, -len(ids) :]
            logprobs = logits.log_softmax(-1)
            total = sum(logprobs[at - 1, ids[at]].item() for at in range(len(start), len(ids)))
            found.append((self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip(), total))
        return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("adapted") / "git"
    theirs = huggingface.save_git(folder)
    processor = AutoProcessor.from_pretrained(folder)
    runner = read_sequence_model(folder, name=folder.name, device=torch.device("cpu"), dtype=torch.float32)
    return Both(folder, captioner.load(folder, device="cpu"), runner, theirs, processor)


@pytest.mark.parametrize("prompt", ["", "a dog"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_are_those_of_transformers(both: Both, num_beams: int, prompt: str):
    expected = both.captions(
        prompt,
        num_beams=num_beams,
        max_new_tokens=8,
        min_new_tokens=3,  # without the end token
        no_repeat_ngram_size=2,
        early_stopping="never" if num_beams > 1 else False,
        length_penalty=0.5,
    )
    options = GenerationOptions(
        num_beams=num_beams,
        max_length=8,
        min_length=4,
        no_repeat_ngram_size=2,
        length_penalty=0.5,
        prompt=prompt,
    )
    captions = both.ours.caption(PHOTOS, options)
    assert [caption.caption for caption in captions] == [text for text, _ in expected]
    assert [caption.logprob for caption in captions] == pytest.approx([p for _, p in expected], abs=1e-3)
    assert len({round(caption.logprob, 3) for caption in captions}) == len(PHOTOS), "they depend on the photo"
    assert all(caption.caption.startswith(prompt) for caption in captions)


def test_nothing_is_blocked_that_no_option_forbids(both: Both):
    (caption,) = both.ours.caption(
        PHOTOS[:1], GenerationOptions(num_beams=1, max_length=20, no_repeat_ngram_size=0)
    )
    ids = both.processor.tokenizer.encode(caption.caption, add_special_tokens=False)
    triples = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(set(triples)) < len(triples)


def test_a_caption_is_the_same_alone_and_in_a_batch(both: Both):
    options = GenerationOptions(num_beams=3, alternatives=2, max_length=8)
    together = both.ours.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = both.ours.caption([photo], options)
        assert alone.caption == caption.caption
        assert [a.caption for a in alone.alternatives] == [a.caption for a in caption.alternatives]
        assert len(caption.alternatives) == 2


def test_words_have_no_attention_also_where_it_is_asked_for(both: Both):
    (caption,) = both.ours.caption(PHOTOS[:1], GenerationOptions(max_length=6, attention=True))
    assert caption.words
    assert all(word.attention is None and word.box is None for word in caption.words)
    assert (caption.width, caption.height, caption.model) == (50, 90, both.folder.name)


def test_samples_differ_and_come_best_first(both: Both):
    options = GenerationOptions(do_sample=True, alternatives=7, max_length=6, top_k=20, top_p=0.95)
    (caption,) = both.ours.caption(PHOTOS[:1], options)
    scores = [caption.confidence, *(other.confidence for other in caption.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert len({other.caption for other in caption.alternatives}) > 1


def test_a_seed_draws_the_same_alone_and_in_a_batch(both: Both):
    options = GenerationOptions(do_sample=True, alternatives=2, max_length=6, seed=4)
    together = both.ours.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = both.ours.caption([photo], options)
        assert alone.caption == caption.caption
        assert [a.caption for a in alone.alternatives] == [a.caption for a in caption.alternatives]
    other = both.ours.caption(PHOTOS, replace(options, seed=5))
    assert [caption.caption for caption in other] != [caption.caption for caption in together]


def test_a_greedy_stream_comes_word_by_word(both: Both):
    options = GenerationOptions(num_beams=1, max_length=8)
    (whole,) = both.ours.caption(PHOTOS[:1], options)
    *events, last = both.ours.stream(PHOTOS[0], options)
    assert last.caption is not None
    assert [word.text for word in last.caption.words] == [word.text for word in whole.words]
    assert last.caption.logprob == pytest.approx(whole.logprob, rel=1e-4)  # another thread rounds by itself
    assert "".join(event.text for event in [*events, last]) == whole.caption
    assert len(events) >= len(whole.caption.split()) - 2
    stream = both.ours.stream(PHOTOS[0], options)
    next(stream)
    stream.close()  # a search that nobody listens to ends
    assert both.ours.caption(PHOTOS[:1], options) == [whole]


def test_a_caption_ends_before_a_stop_text(both: Both):
    (whole,) = both.ours.caption(PHOTOS[:1], GenerationOptions(num_beams=1, max_length=8))
    stop = whole.caption[len(whole.caption) // 2 :][:2]
    (caption,) = both.ours.caption(PHOTOS[:1], GenerationOptions(num_beams=1, max_length=8, stop=(stop,)))
    assert caption.caption == whole.caption[: whole.caption.find(stop)].rstrip()


def test_a_bad_word_is_avoided(both: Both):
    options = GenerationOptions(num_beams=3, max_length=6)
    (caption,) = both.ours.caption(PHOTOS[:1], options)
    first = caption.caption.split()[0]
    (other,) = both.ours.caption(PHOTOS[:1], replace(options, bad_words=(first,)))
    assert other.caption.split()[0] != first


def test_a_stream_is_the_whole_caption_at_once(both: Both):
    options = GenerationOptions(num_beams=2, max_length=6)
    (event,) = both.ours.stream(PHOTOS[0], options)
    assert event.caption is not None
    assert event.text == event.caption.caption == both.ours.caption(PHOTOS[:1], options)[0].caption


def test_what_cannot_be_had_is_refused_with_the_call(both: Both):
    with pytest.raises(OptionsError, match="cannot be asked"):
        both.ours.stream(PHOTOS[0], GenerationOptions(instruction="What is it?"))
    with pytest.raises(OptionsError, match="positions"):
        both.ours.caption(PHOTOS[:1], GenerationOptions(max_length=200))


def test_a_benchmark_measures_what_can_be_told_apart(both: Both):
    result = benchmark(both.ours, options=GenerationOptions(max_length=4), batch_sizes=(1,), repeats=1)
    assert result.images_per_second[1] > 0
    assert (result.stages_ms, result.tokens, result.tokens_per_second) == (None, None, None)
    with pytest.raises(OptionsError, match="leave out the comparison"):
        benchmark(both.ours, against_transformers=True)


def test_photos_are_prepared_as_the_checkpoints_processor_does(both: Both):
    prepared = both.ours.prepare(PHOTOS[0])
    expected = both.processor.image_processor(
        PHOTOS[0], return_tensors="np", do_rescale=False, do_normalize=False
    )
    assert np.array_equal(prepared.content.numpy(), expected["pixel_values"][0])
    assert prepared.content.dtype == torch.uint8


def test_a_number_type_is_as_asked_for(both: Both):
    model = captioner.load(both.folder, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.caption(PHOTOS[:2], GenerationOptions(num_beams=2, max_length=4))
    assert model.parameters == sum(parameter.numel() for parameter in both.theirs.parameters())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors missing"),
    "weights that lack one": (huggingface.drop_a_weight, "do not fit config.json"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\1"), "cannot be loaded"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded|tokenizer.json"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    huggingface.save_git(tmp_path / "git")
    change, message = DAMAGE[damage]
    change(tmp_path / "git")
    with pytest.raises(CheckpointError, match=message):
        captioner.load(tmp_path / "git", device="cpu")
    capsys.readouterr()
    assert main(["caption", "--model", str(tmp_path / "git"), "photo.jpg"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_line_captions_and_says_why_there_is_no_heatmap(
    both: Both, photo_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["caption", "--model", str(both.folder), "--device", "cpu", str(photo_path)]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{photo_path}\t")
    assert main([*argv, "--heatmap", str(tmp_path / "map.png")]) == 2
    assert "has no attention to draw" in capsys.readouterr().err


def test_the_command_line_says_what_it_gives_and_why_not_more(both: Both, capsys: pytest.CaptureFixture[str]):
    assert main(["models", str(both.folder)]) == 0
    gives = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert gives["beams"] == "yes"
    assert gives["attention"].startswith("no\t")
    assert "one sequence" in gives["attention"]
