"""Florence-2: the captions, scores and maps of `transformers`, on our own decode loop, at each detail."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
from images import draw_noise
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor

import captioner
from captioner import Captioner, CheckpointError, GenerationOptions, SearchOptions
from captioner.cli import main
from captioner.convert import convert, read_hugging_face, their_tensors
from captioner.generation import generate
from captioner.runners import CheckpointRunner
from captioner.runners.text import decode_rules

TASKS = {"brief": "<CAPTION>", "detailed": "<DETAILED_CAPTION>", "full": "<MORE_DETAILED_CAPTION>"}
PHOTOS = [draw_noise(50 + seed, 90 - seed, seed=seed) for seed in range(6)]


@dataclass
class Both:
    """One checkpoint as `transformers` loads it, where ours is, and as we load it."""

    theirs: Florence2ForConditionalGeneration
    processor: Florence2Processor
    folder: Path
    ours: Captioner

    @classmethod
    def at(cls, folder: Path, **kind: Any) -> Both:
        theirs = huggingface.save_florence2(folder, **kind)
        processor = Florence2Processor.from_pretrained(folder)
        return cls(theirs, processor, folder, captioner.load(folder, device="cpu"))

    def inputs(self, pixel_values: Tensor, detail: str) -> dict[str, Tensor]:
        """What their network takes, with the question as their processor asks it."""
        (ids,) = self.processor(text=TASKS[detail], images=PHOTOS[0])["input_ids"]
        rows = torch.tensor(ids).expand(len(pixel_values), -1)
        return {"pixel_values": pixel_values, "input_ids": rows, "attention_mask": torch.ones_like(rows)}

    def pixel_values(self) -> Tensor:
        """The photos as our processor makes them."""
        prepared = torch.stack([self.ours.prepare(photo).content for photo in PHOTOS])
        return self.ours.checkpoint.processor.normalize(prepared, torch.float32)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.at(tmp_path_factory.mktemp("florence2") / "florence")


def random_kind(seed: int) -> dict[str, Any]:
    """A configuration of any kind: heads, widths, activations, scaled embeddings, and what is forced."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 4])
    width = 4 * draw.choice([2, 3, 4])
    return {
        "seed": seed,
        "width": width,
        "text": {
            "encoder_layers": draw.choice([1, 3]),
            "decoder_layers": draw.choice([1, 3]),
            "encoder_attention_heads": heads,
            "decoder_attention_heads": draw.choice([1, 2, 4]),
            "encoder_ffn_dim": draw.choice([16, 40]),
            "decoder_ffn_dim": draw.choice([16, 40]),
            "activation_function": draw.choice(["gelu", "relu", "gelu_new", "silu", "quick_gelu"]),
            "scale_embedding": draw.choice([True, False]),
        },
        "vision": {"qkv_bias": draw.choice([True, False]), "depths": (1, draw.choice([1, 2]))},
        "special": {
            "decoder_start_token_id": draw.choice([2, 0, 7]),
            "forced_bos_token_id": draw.choice([0, 9, None]),
            "forced_eos_token_id": draw.choice([2, None]),
        },
    }


@pytest.mark.parametrize("seed", range(8))
def test_captions_are_those_of_generate_whatever_the_configuration(seed: int, tmp_path: Path):
    both, draw = Both.at(tmp_path, **random_kind(seed)), random.Random(seed)
    checkpoint, pixel_values = both.ours.checkpoint, torch.randn(6, 3, 32, 32)
    ids = set()
    for detail in TASKS:
        num_beams, min_length = draw.choice([1, 3, 5]), draw.choice([0, 4])
        options = SearchOptions(
            num_beams=num_beams,
            max_length=draw.choice([6, 14]),
            min_length=min_length,
            length_penalty=draw.choice([1.0, 0.5, 2.0, 0.0, -1.0]),
            no_repeat_ngram_size=draw.choice([3, 2, 0]),
            early_stopping=num_beams > 1 and draw.choice([True, True, False]),
        )
        rules = decode_rules(checkpoint.tokenizer, options, 64)
        with torch.inference_mode():
            region_tokens = checkpoint.model.encode(pixel_values, detail=detail).region_tokens
        found = generate(checkpoint.model.decoder, region_tokens, options, rules)
        expected = both.theirs.generate(
            **both.inputs(pixel_values, detail),
            num_beams=num_beams,
            max_new_tokens=options.max_length,  # which counts a forced first token, and so do we
            min_new_tokens=max(0, min_length - 1),  # theirs does not count the end token
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            early_stopping=options.early_stopping or (num_beams > 1 and "never"),
            do_sample=False,
        )
        for (best, *_), row in zip(found, expected.tolist(), strict=True):
            row = row[len(rules.prompt_ids) :]
            assert best.token_ids == tuple(row[: row.index(2) + 1] if 2 in row else row)
            ids.add(best.token_ids)
    assert len(ids) > 3


@pytest.mark.parametrize("detail", TASKS)
@torch.inference_mode()
def test_scores_and_maps_are_those_of_transformers(both: Both, detail: str):
    checkpoint, pixel_values = both.ours.checkpoint, both.pixel_values()
    ids = torch.randint(0, checkpoint.tokenizer.vocab_size, (len(PHOTOS), 9))
    both.theirs.set_attn_implementation("eager")
    expected = both.theirs(**both.inputs(pixel_values, detail), decoder_input_ids=ids, output_attentions=True)
    encoded = checkpoint.model.encode(pixel_values, detail=detail)
    assert (encoded.grid, encoded.prefix) == ((4, 4), 1)
    torch.testing.assert_close(encoded.region_tokens, expected.encoder_last_hidden_state)
    decoder = checkpoint.model.decoder
    hidden, maps = decoder(ids[:, None], decoder.cross_cache(encoded.region_tokens), weights=True)
    torch.testing.assert_close(decoder.logits(hidden)[:, 0], expected.logits)
    for ours, theirs in zip(maps, expected.cross_attentions, strict=True):
        torch.testing.assert_close(ours[:, 0], theirs.mean(1))


@pytest.mark.parametrize("detail", TASKS)
def test_a_word_has_the_attention_of_transformers_to_the_photos_places(both: Both, detail: str):
    options = GenerationOptions(detail=detail, num_beams=1, max_length=12, attention=True)
    captions = both.ours.caption(PHOTOS, options)
    inputs = both.inputs(both.pixel_values(), detail)
    both.theirs.set_attn_implementation("eager")
    out = both.theirs.generate(
        **inputs,
        num_beams=1,
        max_new_tokens=12,
        early_stopping=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    # of each step, of each layer: (photos, heads, 1, tokens of photo and question)
    steps = torch.stack([torch.stack(layers).mean((0, 2))[:, -1] for layers in out.cross_attentions], dim=1)
    places = steps[:, 1:, 1 : 1 + 16]  # the first step is forced, the first token is the mean of all places
    places = (places / places.sum(-1, keepdim=True)).unflatten(-1, (4, 4))
    checkpoint, words = both.ours.checkpoint, 0
    for caption, row, attention in zip(captions, out.sequences.tolist(), places, strict=True):
        generated = row[2:]
        assert caption.caption == both.processor.decode(row, skip_special_tokens=True).strip()
        for word, span in zip(caption.words, checkpoint.tokenizer.words(generated), strict=True):
            found = torch.tensor(word.attention)
            torch.testing.assert_close(found, attention[span.start : span.stop].mean(0))
            torch.testing.assert_close(found.sum(), torch.tensor(1.0))
            words += 1
    assert words > len(PHOTOS)


def test_the_maps_stand_where_the_photo_has_what_they_look_at(both: Both):
    """What changes in one corner of the feature map changes the attention's key there and nowhere else."""
    question = both.ours.checkpoint.model.question
    features = torch.randn(1, 16, 4, 4)
    changed = features.clone()
    changed[:, :, 1, 3] += 1
    with torch.inference_mode():
        difference = (question.photo_tokens(changed) - question.photo_tokens(features)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [0, 1 + 1 * 4 + 3], (
        "the mean, and second row, last column"
    )


def test_a_photo_is_asked_as_the_processor_asks(both: Both):
    asked = both.ours.checkpoint.model.config.question.token_ids
    for detail, task in TASKS.items():
        (ids,) = both.processor(text=task, images=PHOTOS[0])["input_ids"]
        assert asked[detail] == tuple(ids[17:])


def test_the_detail_decides_on_the_caption_and_brief_is_the_default(both: Both):
    found = {
        detail: [c.caption for c in both.ours.caption(PHOTOS, GenerationOptions(detail=detail, max_length=9))]
        for detail in (None, *TASKS)
    }
    assert found[None] == found["brief"]
    assert len({tuple(captions) for captions in found.values()}) == 3


def test_a_caption_is_the_same_alone_in_a_batch_and_streamed(both: Both):
    options = GenerationOptions(detail="detailed", num_beams=3, alternatives=2, max_length=12)
    together = both.ours.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = both.ours.caption([photo], options)
        *_, last = both.ours.stream(photo, options)
        for other in (alone, last.caption):
            assert other.caption == caption.caption
            assert other.logprob == pytest.approx(caption.logprob, abs=1e-3)
            assert [a.caption for a in other.alternatives] == [a.caption for a in caption.alternatives]


def test_a_seed_draws_the_same_alone_and_in_a_batch(both: Both):
    options = GenerationOptions(do_sample=True, alternatives=2, max_length=9, seed=4, detail="full")
    together = both.ours.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = both.ours.caption([photo], options)
        assert alone.caption == caption.caption
    other = both.ours.caption(PHOTOS, replace(options, seed=5))
    assert [caption.caption for caption in other] != [caption.caption for caption in together]


def test_a_greedy_stream_comes_word_by_word(both: Both):
    options = GenerationOptions(num_beams=1, max_length=12)
    *events, last = both.ours.stream(PHOTOS[0], options)
    assert "".join(event.text for event in [*events, last]) == last.caption.caption
    assert len(events) >= len(last.caption.caption.split()) - 2


def test_the_checkpoints_own_settings_are_defaults(both: Both):
    assert both.ours.default_options == SearchOptions(
        num_beams=3, no_repeat_ngram_size=3, early_stopping=True, detail="brief", max_length=64
    )
    special = both.ours.checkpoint.tokenizer.config
    assert (special.start_ids, special.counted_start, special.forced_end) == ((2, 0), 1, 2)
    (caption,) = both.ours.caption(PHOTOS[:1], GenerationOptions(max_length=5, min_length=5))
    assert (caption.tokens, caption.finished) == (4, False), "the first of five is forced, the last ends it"


def test_what_is_forced_is_as_the_text_model_says_where_no_file_does(tmp_path: Path):
    huggingface.save_florence2(tmp_path, special={"decoder_start_token_id": 7})
    (tmp_path / "generation_config.json").unlink()
    special = read_hugging_face(tmp_path).tokenizer.config
    assert (special.start_ids, special.counted_start, special.forced_end) == ((7,), 0, 2)
    (tmp_path / "generation_config.json").write_text('{"max_length": 30}')
    special = read_hugging_face(tmp_path).tokenizer.config
    assert (special.start_ids, special.counted_start, special.forced_end) == ((7,), 0, None)


def test_a_converted_checkpoint_captions_alike(both: Both, tmp_path: Path):
    convert(both.folder, tmp_path / "ours")
    converted = captioner.load(tmp_path / "ours", device="cpu")
    for detail in TASKS:
        options = GenerationOptions(detail=detail, max_length=9, attention=True)
        for one, other in zip(
            converted.caption(PHOTOS, options), both.ours.caption(PHOTOS, options), strict=True
        ):
            assert one.words == other.words
    half = captioner.load(tmp_path / "ours", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.caption(PHOTOS[:2], GenerationOptions(detail="full", max_length=5, attention=True))


def test_no_weight_is_lost_on_the_way_here_and_back(both: Both):
    back = their_tensors(both.ours.checkpoint.model)
    on_disk = load_file(both.folder / "model.safetensors")
    assert back.keys() == on_disk.keys()
    for name, tensor in on_disk.items():
        read = slice(2, None) if name.endswith("embed_positions.weight") else slice(None)
        assert back[name].shape == tensor.shape
        assert back[name][read].equal(tensor[read])


@pytest.mark.parametrize(
    "copy",
    [
        "lm_head.weight",
        *(f"model.language_model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")),
    ],
)
def test_the_word_embedding_may_stand_under_any_of_its_names(both: Both, copy: str, tmp_path: Path):
    huggingface.save_florence2(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors.pop("model.language_model.shared.weight")
    save_file({**tensors, copy: embedding}, tmp_path / "model.safetensors")
    assert read_hugging_face(tmp_path).model.decoder.word_embedding.weight.equal(embedding)
    original = {"model.language_model.shared.weight": embedding + 1}
    save_file({**tensors, **original, copy: embedding}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="untied"):
        read_hugging_face(tmp_path)


def test_microsofts_own_layout_is_read_without_its_code(both: Both, tmp_path: Path):
    huggingface.save_florence2(tmp_path / "theirs")
    folder = tmp_path / "microsoft"
    huggingface.save_florence2_of_microsoft(folder)
    names = set(load_file(folder / "model.safetensors"))
    assert not names & set(load_file(tmp_path / "theirs" / "model.safetensors"))
    expected = read_hugging_face(tmp_path / "theirs").model.state_dict()
    found = read_hugging_face(folder).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    own, options = captioner.load(folder, device="cpu"), GenerationOptions(detail="full", max_length=9)
    assert own.default_options == both.ours.default_options
    ours = captioner.load(tmp_path / "theirs", device="cpu")
    assert own.caption(PHOTOS, options)[0].words == ours.caption(PHOTOS, options)[0].words


def test_what_microsofts_layout_can_have_and_nothing_reads_is_refused(tmp_path: Path):
    huggingface.save_florence2_of_microsoft(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.final_logits_bias"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="final_logits_bias is not zero"):
        read_hugging_face(tmp_path)
    change(tmp_path, "config.json", "vision_config", image_feature_source=["last_frame"])
    with pytest.raises(CheckpointError, match="made of \\['last_frame'\\]"):
        read_hugging_face(tmp_path)


def change(folder: Path, file: str, part: str | None = None, **values: Any) -> None:
    data = json.loads((folder / file).read_text())
    (data[part] if part else data).update(values)
    (folder / file).write_text(json.dumps(data))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another activation": (
        {"file": "config.json", "part": "text_config", "activation_function": "tanh"},
        "'tanh'.*Supported",
    ),
    "two widths": (
        {"file": "config.json", "part": "vision_config", "projection_dim": 24},
        "24 channels and its words 16",
    ),
    "photos that are no squares": (
        {"file": "processor_config.json", "part": "image_processor", "size": {"height": 32, "width": 64}},
        "not of a square",
    ),
    "several ends": ({"file": "generation_config.json", "eos_token_id": [2, 3]}, "several.*eos_token_id"),
    "heads that do not fit": (
        {"file": "config.json", "part": "text_config", "decoder_attention_heads": 5},
        "does not describe a model",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_one_clear_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    huggingface.save_florence2(tmp_path / "model")
    values, message = REFUSED[what]
    change(tmp_path / "model", **values)
    with pytest.raises(CheckpointError, match=message):
        captioner.load(tmp_path / "model", device="cpu")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "ours")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_line_takes_a_detail_and_draws_a_heatmap(
    both: Both, photo_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["caption", "--json", "--model", str(both.folder), "--device", "cpu", str(photo_path)]
    logprobs = set()
    for detail in TASKS:
        assert main([*argv, "--detail", detail, "--heatmap", str(tmp_path / f"{detail}.png")]) == 0
        assert (tmp_path / f"{detail}.png").stat().st_size > 0
        logprobs.add(json.loads(capsys.readouterr().out)["logprob"])
    assert len(logprobs) == 3
    assert main(["models", str(both.folder)]) == 0
    assert {"attention\tyes", "details\tyes", "seeds\tyes"} <= set(capsys.readouterr().out.splitlines())
    assert main([*argv, "--detail", "short"]) == 2


def test_a_runner_encodes_for_a_detail(both: Both):
    runner = CheckpointRunner(both.ours.checkpoint)
    images = [both.ours.prepare(photo) for photo in PHOTOS[:2]]
    brief, full = (runner.encode(images, detail=detail).region_tokens for detail in ("brief", "full"))
    assert brief.shape[1] != full.shape[1], "one question is longer than the other"
    assert runner.encode(images).region_tokens.equal(brief)
