"""Vision-language models: text, scores and maps against `transformers`, alone and in mixed batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
import transformers as hf
import vlm
from huggingface import save_git
from images import draw_noise
from PIL import Image
from tiny import tiny_checkpoint
from torch import Tensor

import captioner
from captioner import (
    Captioner,
    CheckpointError,
    DeviceError,
    GenerationOptions,
    NotWantedError,
    OptionsError,
)
from captioner.checkpoint import save_checkpoint
from captioner.cli import main
from captioner.runners import read_vision_language
from captioner.runners.grid import photo_grids
from captioner.runners.instruction import DEFAULT_INSTRUCTION
from captioner.runners.int4 import check_int4, how_to_load, lay_out

PHOTOS = [draw_noise(60, 40, seed=1), draw_noise(30, 70, seed=2), draw_noise(50, 50, seed=3)]
EOS = [2, 4]
WITH_MAPS = ["qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "llava"]
TILED = {"smolvlm": ("do_image_splitting", (2, 2)), "internvl": ("crop_to_patches", (4, 4))}
"""Their processors' setting for tiles, and the grid of a photo without them."""
WITHOUT_MAPS = {"llava_onevision": "tiles", "blip_2": "queries", "instructblip": "queries"}
assert sorted([*WITH_MAPS, *TILED, *WITHOUT_MAPS]) == sorted(vlm.FAMILIES)


@dataclass
class Both:
    """One checkpoint as we load it and as `transformers` does."""

    folder: Path
    ours: Captioner
    theirs: Any
    processor: Any

    def inputs(self, photo: Image.Image, instruction: str, **how: Any) -> dict[str, Any]:
        """One photo, asked for as each model's page on the hub says; ``how`` is for the processor."""
        kind = self.folder.name
        if kind == "paligemma":
            return self.processor(images=photo, text=f"<image>{instruction}", return_tensors="pt")
        if kind == "blip_2":
            return self.processor(images=photo, text=f"Question: {instruction} Answer:", return_tensors="pt")
        if kind == "instructblip":
            return self.processor(images=photo, text=instruction, return_tensors="pt")
        content = [{"type": "image", "image": photo}, {"type": "text", "text": instruction}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=how,
        )

    def generate(self, photo: Image.Image, instruction: str = "What is it?", **settings: Any) -> Any:
        """Theirs, with the prompt's length as ``given``."""
        inputs = self.inputs(photo, instruction)
        config = hf.GenerationConfig(
            **{"max_new_tokens": 10, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": False, **settings},
            return_dict_in_generate=True,
            output_logits=True,
        )
        out = self.theirs.generate(**inputs, generation_config=config)
        return out, inputs["input_ids"].shape[1]

    def captions(self, photo: Image.Image, **settings: Any) -> list[tuple[str, float]]:
        """Their texts with their summed log-probs."""
        out, given = self.generate(photo, **settings)
        scores = self.theirs.compute_transition_scores(
            out.sequences, out.logits, out.get("beam_indices"), normalize_logits=True
        )
        found = []
        for row, logprobs in zip(out.sequences[:, given:].tolist(), scores.tolist(), strict=True):
            length = next((at + 1 for at, token in enumerate(row) if token in EOS), len(row))
            ids = [token for token in row[:length] if token not in EOS]
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            found.append((text, sum(logprobs[:length])))
        return found


@pytest.fixture(scope="module", params=vlm.FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return load_both(tmp_path_factory.mktemp("vlm") / request.param)


def load_both(folder: Path, **how: Any) -> Both:
    vlm.FAMILIES[folder.name](folder, **how)
    theirs = hf.AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    theirs.generation_config = hf.GenerationConfig()
    return Both(
        folder, captioner.load(folder, device="cpu"), theirs, hf.AutoProcessor.from_pretrained(folder)
    )


@pytest.fixture(scope="module", params=["qwen2_5_vl", "gemma3", "paligemma", "blip_2"])
def some(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A family for each way of asking, of putting a prompt, and of masking."""
    return load_both(tmp_path_factory.mktemp("vlm") / request.param)


def asked(**options: Any) -> GenerationOptions:
    return GenerationOptions(**{"instruction": "What is it?", "max_length": 10, **options})


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_are_those_of_transformers_one_by_one(both: Both, num_beams: int):
    settings = {"num_beams": num_beams, "early_stopping": "never"} if num_beams > 1 else {}
    expected = [both.captions(photo, **settings, num_return_sequences=min(2, num_beams)) for photo in PHOTOS]
    options = asked(num_beams=num_beams, alternatives=min(2, num_beams) - 1)
    together = both.ours.caption(PHOTOS, options)
    alone = [both.ours.caption([photo], options)[0] for photo in PHOTOS]
    for captions in (together, alone):
        for caption, theirs in zip(captions, expected, strict=True):
            found = [caption, *caption.alternatives]
            assert [each.caption for each in found] == [text for text, _ in theirs]
            assert [each.logprob for each in found] == pytest.approx([p for _, p in theirs], abs=2e-3)
    assert len({round(caption.logprob, 3) for caption in alone}) == len(PHOTOS), "they depend on the photo"


def test_a_stream_is_the_caption_step_by_step(some: Both):
    for options in (asked(), asked(do_sample=True, seed=5), asked(num_beams=2)):
        (whole,) = some.ours.caption(PHOTOS[:1], options)
        *events, last = some.ours.stream(PHOTOS[0], options)
        assert last.caption is not None
        assert [word.text for word in last.caption.words] == [word.text for word in whole.words]
        assert last.caption.logprob == pytest.approx(
            whole.logprob, rel=1e-4
        )  # another thread rounds by itself
        assert "".join(event.text for event in [*events, last]) == whole.caption


@pytest.mark.parametrize("options", [asked(), asked(num_beams=2), asked(do_sample=True, alternatives=1)])
def test_a_search_that_nobody_waits_for_ends_with_its_next_token(some: Both, options: GenerationOptions):
    looks = iter([True] * 3)
    photos = [some.ours.prepare(photo) for photo in PHOTOS]
    with pytest.raises(NotWantedError):
        some.ours.caption_prepared(photos, options, is_wanted=lambda: next(looks, False))
    assert next(looks, None) is None, "it went on while it was wanted"


def test_samples_are_the_same_alone_and_in_a_batch(some: Both):
    options = asked(do_sample=True, alternatives=2, seed=1, top_k=50, temperature=1.5)
    together = some.ours.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = some.ours.caption([photo], options)
        assert alone.caption == caption.caption
        assert [each.caption for each in alone.alternatives] == [
            each.caption for each in caption.alternatives
        ]
        assert len({caption.caption, *(each.caption for each in caption.alternatives)}) == 3
    other = some.ours.caption(PHOTOS, replace(options, seed=2))
    assert [caption.caption for caption in other] != [caption.caption for caption in together]


def test_an_instruction_is_what_the_model_is_asked(some: Both):
    (default,) = some.ours.caption(PHOTOS[:1], GenerationOptions(max_length=10))
    (asked_for,) = some.ours.caption(PHOTOS[:1], asked())
    assert default.logprob != pytest.approx(asked_for.logprob, abs=1e-6)
    if hasattr(some.processor, "chat_template") and some.processor.chat_template:
        (same,) = some.ours.caption(PHOTOS[:1], asked(instruction=DEFAULT_INSTRUCTION))
        assert same == default


def test_a_prompt_begins_the_answer(some: Both):
    first, second = some.ours.caption(PHOTOS[:2], asked(prompt="a brown dog", max_length=5))
    for caption in (first, second):
        assert caption.caption.startswith("a brown dog")
        assert not any(word.text in ("a", "brown") for word in caption.words[:1])
    (alone,) = some.ours.caption(PHOTOS[1:2], asked(prompt="a brown dog", max_length=5))
    assert alone.caption == second.caption


def test_rules_and_both_end_tokens_are_obeyed(some: Both):
    for caption in some.ours.caption(PHOTOS, asked(min_length=10)):
        tokens = some.processor.tokenizer(caption.caption, add_special_tokens=False)["input_ids"]
        assert not set(EOS) & set(tokens)
    first, *_ = some.ours.caption(PHOTOS[:1], asked(num_beams=2))[0].caption.split()
    if first.isalpha():
        (other,) = some.ours.caption(PHOTOS[:1], asked(num_beams=2, bad_words=(first,)))
        assert first not in other.caption.split()


def test_a_caption_ends_before_a_stop_text(some: Both):
    (whole,) = some.ours.caption(PHOTOS[:1], asked())
    middle = len(whole.caption) // 2
    stop = whole.caption[middle : middle + 2]
    for options in (asked(stop=(stop,)), asked(stop=("never said", stop), num_beams=1)):
        (caption, other) = some.ours.caption(PHOTOS[:2], options)
        assert caption.caption == whole.caption[: whole.caption.find(stop)].rstrip()
        assert stop not in other.caption
        assert [word.text for word in caption.words] == caption.caption.split()[: len(caption.words)]
        *events, last = some.ours.stream(PHOTOS[0], options)
        assert "".join(event.text for event in [*events, last]) == caption.caption


def maps_by_hand(both: Both, photo: Image.Image, grid: tuple[int, int]) -> Tensor:
    """``(tokens, h, w)`` from all the weights that `transformers` gives, with eager attention."""
    out, given = both.generate(photo, output_attentions=True)
    ids = both.inputs(photo, "What is it?")["input_ids"][0]
    places = (ids == vlm.ids()["<image>"]).nonzero()[:, 0]
    found = []
    for step, layers in enumerate(out.attentions):
        middle = layers[len(layers) // 4 : len(layers) - len(layers) // 4]
        total = torch.zeros(len(places))
        for weights in middle:
            row = weights[0, :, -1].mean(0)  # of the keys that are left in the layer's window
            whole = torch.zeros(given + step)
            whole[given + step - len(row) :] = row
            total += whole[places]
        found.append((total / total.sum()).view(grid))
    return torch.stack(found)


@pytest.mark.parametrize("kind", TILED)
def test_a_photo_seen_in_tiles_has_the_maps_of_the_whole_photo(kind: str, tmp_path: Path):
    setting, grid = TILED[kind]
    both = load_both(tmp_path / kind)
    runner = read_vision_language(both.folder, name=kind, device=torch.device("cpu"), dtype=torch.float32)
    assert runner.lacks.attention is None
    options = asked(attention=True).resolve(GenerationOptions(num_beams=1))
    photos = PHOTOS[:2]
    prepared = [both.ours.prepare(photo) for photo in photos]
    together = runner.caption(prepared, options)
    for photo, image, (in_batch,) in zip(photos, prepared, together, strict=True):
        out, given = both.generate(photo)  # the caption is that of the tiles
        ids = out.sequences[0, given:].tolist()
        ids = ids[: next((at + 1 for at, token in enumerate(ids) if token in EOS), len(ids))]
        inputs = both.inputs(photo, "What is it?", **{setting: False})
        start = inputs["input_ids"].shape[1]
        places = (inputs["input_ids"][0] == vlm.ids()["<image>"]).nonzero()[:, 0]
        assert len(places) == grid[0] * grid[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            layers = both.theirs(**inputs, output_attentions=True).attentions
        middle = torch.stack(layers[1:3])[:, 0, :, start - 1 : -1].mean((0, 1))[:, places]
        expected = (middle / middle.sum(-1, keepdim=True)).view(-1, *grid)
        ((alone,),) = runner.caption([image], options)
        for found in (in_batch, alone):
            assert found.maps is not None
            torch.testing.assert_close(found.maps, expected, atol=1e-4, rtol=1e-2)


GRIDS = {"qwen2_5_vl": [(4, 6), (7, 3), (5, 5)], "qwen3_vl": [(4, 6), (7, 3), (5, 5)]}


@pytest.mark.parametrize("kind", WITH_MAPS)
def test_maps_are_the_attention_of_transformers(kind: str, tmp_path: Path):
    both = load_both(tmp_path / kind)
    runner = read_vision_language(both.folder, name=kind, device=torch.device("cpu"), dtype=torch.float32)
    options = asked(attention=True).resolve(GenerationOptions(num_beams=1))
    prepared = [both.ours.prepare(photo) for photo in PHOTOS]
    together = runner.caption(prepared, options)
    grids = GRIDS.get(kind, [(4, 4)] * 3)
    for photo, image, (in_batch,), grid in zip(PHOTOS, prepared, together, grids, strict=True):
        expected = maps_by_hand(both, photo, grid)
        ((alone,),) = runner.caption([image], options)
        for found in (in_batch, alone):
            assert found.maps is not None
            assert found.maps.shape == (len(found.logprobs or ()), *grid)
            torch.testing.assert_close(found.maps, expected, atol=1e-4, rtol=1e-2)
    captions = both.ours.caption(PHOTOS, asked(attention=True, num_beams=2, alternatives=1))
    for caption, grid in zip(captions, grids, strict=True):
        for word in caption.words:
            assert torch.tensor(word.attention).shape == grid
            assert word.box is not None
            left, top, right, bottom = word.box
            assert 0 <= left < right <= caption.width
            assert 0 <= top < bottom <= caption.height


@pytest.mark.parametrize("kind", [*WITH_MAPS, "smolvlm"])
def test_a_photos_tokens_stand_in_rows_from_the_top(kind: str, tmp_path: Path):
    """The token that changes most with a corner of the photo is that corner of the grid."""
    both = load_both(tmp_path / kind, **({"split": False} if kind == "smolvlm" else {}))
    torch.manual_seed(0)
    for name, parameter in both.theirs.named_parameters():
        if "vision" in name or "visual" in name:  # an encoder that hardly mixes places
            parameter.data *= 0.1 if parameter.ndim > 1 and "embed" not in name else 1
    plain = Image.new("RGB", (64, 64), "gray")
    marked = plain.copy()
    marked.paste((255, 40, 0), (48, 0, 64, 16))  # top right
    features = []
    for photo in (plain, marked):
        inputs = both.inputs(photo, "x")
        given = {name: inputs[name] for name in PICTURES if name in inputs}
        with torch.inference_mode():
            found = both.theirs.get_image_features(**given)
        found = getattr(found, "pooler_output", found)
        features.append(torch.cat(list(found)).reshape(-1, found[0].shape[-1]))
    change = (features[0] - features[1]).norm(dim=-1)
    side = int(len(change) ** 0.5)
    assert side * side == len(change)
    row, column = divmod(int(change.argmax()), side)
    assert (row, column) == (0, side - 1)


PICTURES = ("pixel_values", "image_grid_thw", "pixel_attention_mask")


@pytest.mark.parametrize("kind", WITHOUT_MAPS)
def test_without_a_grid_there_are_no_maps_and_the_reason_is_told(kind: str, tmp_path: Path):
    vlm.FAMILIES[kind](tmp_path)
    model = captioner.load(tmp_path, device="cpu")
    assert WITHOUT_MAPS[kind] in (model.lacks.attention or "")
    captions = model.caption(PHOTOS, asked(attention=True))
    assert all(word.attention is None and word.box is None for each in captions for word in each.words)


def test_a_cropped_photo_has_no_maps_and_a_photo_in_one_view_has(tmp_path: Path):
    vlm.llava(tmp_path / "crop", crop=True)
    model = captioner.load(tmp_path / "crop", device="cpu")
    assert "middle" in (model.lacks.attention or "")
    (caption,) = model.caption(PHOTOS[:1], asked(attention=True))
    assert caption.words[0].attention is None
    vlm.smolvlm(tmp_path / "whole", split=False)
    model = captioner.load(tmp_path / "whole", device="cpu")
    for caption in model.caption(PHOTOS, asked(attention=True)):
        assert torch.tensor(caption.words[0].attention).shape == (2, 2)


def test_photos_that_keep_their_shape_are_not_taken_for_squares():
    """16 tokens may be 2 × 8 as well as 4 × 4."""
    config = hf.LlavaConfig()
    pixel_values = {"pixel_values": torch.ones(2, 3, 64, 64)}
    assert photo_grids(config, None, pixel_values, [16, 16]) == [(4, 4), (4, 4)]
    padded = {**pixel_values, "image_sizes": torch.tensor([[64, 64], [16, 64]])}
    assert photo_grids(config, None, padded, [16, 16]) == [None, None]
    assert photo_grids(config, None, {"pixel_values": torch.ones(1, 3, 16, 64)}, [16]) == [None]


WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "head_dim": 32}


def test_a_text_decoder_in_4_bits_captions_with_maps(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    vlm.llava(tmp_path / "llava", sizes=WIDE)
    model = captioner.load(tmp_path / "llava", device="cpu", dtype="int4")
    assert "4 bits" in model.description
    assert model.dtype == torch.float32
    assert model.parameters == captioner.load(tmp_path / "llava", device="cpu").parameters
    captions = model.caption(PHOTOS, asked(attention=True, num_beams=2))
    assert all(torch.tensor(caption.words[0].attention).shape == (4, 4) for caption in captions)
    with pytest.raises(DeviceError, match="load the model anew"):
        model.to(torch.device("cpu"), torch.float32)


def test_layers_in_4_bits_are_those_of_the_text_decoder_with_its_weights_rounded(tmp_path: Path):
    four_bits = pytest.importorskip("bitsandbytes")
    network = vlm.llava(tmp_path, sizes=WIDE)
    how = how_to_load(tmp_path, torch.device("cpu"), torch.float32)
    small = hf.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32, **how)
    lay_out(small)
    layers = {
        name: layer for name, layer in small.named_modules() if isinstance(layer, four_bits.nn.Linear4bit)
    }
    assert len(layers) == 4 * 7
    assert all(".language_model.layers." in name for name in layers)
    for name, layer in layers.items():
        weight = network.get_submodule(name).weight.data
        rounded = four_bits.functional.dequantize_4bit(
            *four_bits.functional.quantize_4bit(weight, quant_type="nf4")
        )
        rows = torch.randn(5, layer.in_features)
        with torch.inference_mode():
            found = layer(rows)
        error = (found - rows @ rounded.T).norm() / found.norm()
        assert error < 0.02, "some processors multiply in bfloat16"
        assert (found - rows @ weight.T).norm() / found.norm() > 0.04


def test_4_bits_are_refused_in_one_sentence_where_they_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(DeviceError, match=r"needs no_such_package.*pip install 'captioner\[int4\]'"):
        check_int4(torch.device("cpu"), needs=("torch", "no_such_package"))
    with pytest.raises(DeviceError, match="not on mps"):
        check_int4(torch.device("mps"))
    save_git(tmp_path / "git")
    save_checkpoint(tiny_checkpoint(), tmp_path / "ours")
    for name in ("git", "ours"):
        capsys.readouterr()
        command = ["caption", "--model", str(tmp_path / name), "--device", "cpu", "--dtype", "int4"]
        assert main([*command, "photo.jpg"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "int4 is for vision-language models" in line


DAMAGE: dict[str, tuple[Any, str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors missing"),
    "weights that lack one": (huggingface.drop_a_weight, "do not fit config.json"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\1"), "cannot be loaded"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    vlm.llava(tmp_path / "llava")
    change, message = DAMAGE[damage]
    change(tmp_path / "llava")
    with pytest.raises(CheckpointError, match=message):
        captioner.load(tmp_path / "llava", device="cpu")
    capsys.readouterr()
    assert main(["caption", "--model", str(tmp_path / "llava"), "photo.jpg"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_line_asks_and_says_what_it_gives(
    tmp_path: Path, photo_path: Path, capsys: pytest.CaptureFixture[str]
):
    vlm.qwen2_5_vl(tmp_path / "qwen")
    model = ["--model", str(tmp_path / "qwen"), "--device", "cpu"]
    capsys.readouterr()
    asked_for = ["--instruction", "What is it?", "--max-length", "6", "--stop", "zebra"]
    assert main(["caption", *model, *asked_for, str(photo_path), "--heatmap", str(tmp_path / "map.png")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{photo_path}\t")
    assert (tmp_path / "map.png").exists()
    assert len(err.splitlines()) == 1, "nothing of what transformers says"
    assert main(["models", str(tmp_path / "qwen")]) == 0
    gives = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines()[1:])
    for name in ("attention", "streaming", "seeds", "beams", "stops", "instructions"):
        assert gives[name] == "yes"
    assert gives["details"].startswith("no\t")


def test_a_number_type_and_a_move(tmp_path: Path):
    vlm.gemma3(tmp_path)
    model = captioner.load(tmp_path, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.caption(PHOTOS, asked(attention=True))[0].words[0].attention
    model.to(torch.device("cpu"), torch.float32)
    assert model.caption(PHOTOS, asked(attention=True))[0].words[0].attention
    with pytest.raises(OptionsError, match="min_length"):
        model.caption(PHOTOS, asked(min_length=20))
