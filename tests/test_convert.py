"""Hugging Face checkpoints: converted, they encode, score and caption as ``transformers`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
from images import draw_noise
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from torch import Tensor
from transformers import BlipProcessor, PreTrainedModel, ViTImageProcessor

import captioner
from captioner import CheckpointError, GenerationOptions
from captioner.checkpoint import load_checkpoint
from captioner.cli import main
from captioner.convert import convert, is_hugging_face, read_hugging_face, their_tensors
from captioner.generation import DecodeRules, SearchOptions, generate
from captioner.runners import CheckpointRunner

KINDS: dict[str, Callable[..., PreTrainedModel]] = {
    "blip": huggingface.save_blip,
    "vit-gpt2": huggingface.save_vit_gpt2,
    "vit-gpt2 of two widths": lambda folder, **kw: huggingface.save_vit_gpt2(folder, width=16, **kw),
    "vit-gpt2 with relu": lambda folder, **kw: huggingface.save_vit_gpt2(folder, activation="relu", **kw),
    "vit-gpt2 with swish": lambda folder, **kw: huggingface.save_vit_gpt2(folder, activation="swish", **kw),
    "vit-gpt2 with quick_gelu": lambda folder, **kw: huggingface.save_vit_gpt2(
        folder, activation="quick_gelu", **kw
    ),
    "vit-gpt2 without biases": lambda folder, **kw: huggingface.save_vit_gpt2(folder, qkv_bias=False, **kw),
}


def encode(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    encoder = model.vision_model if hasattr(model, "vision_model") else model.encoder
    return encoder(pixel_values).last_hidden_state


def score(model: PreTrainedModel, pixel_values: Tensor, ids: Tensor) -> Tensor:
    if hasattr(model, "vision_model"):
        return model(pixel_values, ids).logits
    return model(pixel_values=pixel_values, decoder_input_ids=ids).logits


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_features_and_scores_are_those_of_transformers(kind: str, tmp_path: Path):
    theirs = KINDS[kind](tmp_path)
    ours = read_hugging_face(tmp_path).model
    pixel_values = torch.randn(3, 3, 32, 32)
    features = encode(theirs, pixel_values)
    assert features.std() > 0.1
    encoded = ours.encode(pixel_values)
    assert (encoded.grid, encoded.prefix) == ((4, 4), 1)
    torch.testing.assert_close(encoded.region_tokens, features, rtol=1e-4, atol=1e-5)
    ids = torch.randint(1, ours.config.decoder.vocab_size, (3, 12))
    expected = score(theirs, pixel_values, ids)
    hidden, _ = ours.decoder(ids[:, None], ours.decoder.cross_cache(encoded.region_tokens))
    torch.testing.assert_close(ours.decoder.logits(hidden)[:, 0], expected, rtol=1e-4, atol=1e-4)
    changed = score(theirs, pixel_values.flip(0), ids)
    assert (changed - expected).abs().max() > 0.1, "the scores depend on the photo"


@pytest.mark.parametrize("num_beams", [1, 3, 5])
@pytest.mark.parametrize("kind", list(KINDS)[:3])
def test_captions_are_those_of_transformers_generate(kind: str, num_beams: int, tmp_path: Path):
    seen: set[tuple[int, ...]] = set()
    ended = 0
    for seed in range(3):
        theirs = KINDS[kind](tmp_path / str(seed), seed=seed)
        ours = read_hugging_face(tmp_path / str(seed))
        special, decoder = ours.tokenizer.config, ours.model.decoder
        rules = DecodeRules(prompt_ids=special.start_ids, eos_id=special.eos_id, pad_id=special.pad_id)
        pixel_values = torch.randn(8, 3, 32, 32)
        with torch.inference_mode():
            region_tokens = ours.model.encode(pixel_values).region_tokens
        for early_stopping in [False, True] if num_beams > 1 else [False]:
            options = SearchOptions(num_beams=num_beams, max_length=12, early_stopping=early_stopping)
            found = generate(decoder, region_tokens, options, rules)
            expected = theirs.generate(
                pixel_values=pixel_values,
                num_beams=num_beams,
                max_new_tokens=12,
                do_sample=False,
                # "never" is the exact search, which ours is; with False it stops on a guess
                early_stopping=early_stopping or (num_beams > 1 and "never"),
            )
            for hypotheses, row in zip(found, expected.tolist(), strict=True):
                ids = hypotheses[0].token_ids
                assert ids == until_end(row[1:], special.eos_id)
                seen.add(ids)
                ended += hypotheses[0].finished
    assert len(seen) > 8
    assert ended > 2


def until_end(ids: list[int], eos_id: int) -> tuple[int, ...]:
    """Without what fills a row after its end, which is not the same in all of ``transformers``' searches."""
    return tuple(ids[: ids.index(eos_id) + 1] if eos_id in ids else ids)


def test_blip_captions_a_photo_after_a_prompt_as_its_processor_and_generate_do(tmp_path: Path):
    theirs = huggingface.save_blip(tmp_path, seed=1)
    processor = BlipProcessor.from_pretrained(tmp_path)
    ours = captioner.load(tmp_path, device="cpu")
    for prompt in ("", "a Man in the park"):
        for seed in range(4):
            photo = draw_noise(32, 32, seed=seed)
            text = {"text": prompt} if prompt else {}
            inputs = processor(images=photo, return_tensors="pt", **text)
            (ids,) = theirs.generate(**inputs, max_new_tokens=8)
            expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
            options = SearchOptions(num_beams=1, max_length=8, prompt=prompt)
            (caption,) = ours.caption([photo], options)
            assert caption.caption == expected
            assert caption.caption.startswith(prompt.lower())


def test_vit_gpt2_captions_a_photo_as_its_parts_do(tmp_path: Path):
    theirs = huggingface.save_vit_gpt2(tmp_path, seed=2)
    tokenizer = huggingface.gpt2_tokenizer()
    ours = captioner.load(str(tmp_path), device="cpu")
    for seed in range(4):
        photo = draw_noise(32, 32, seed=seed)
        inputs = ViTImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")
        (ids,) = theirs.generate(**inputs, max_new_tokens=8)
        (caption,) = ours.caption([photo], GenerationOptions(num_beams=1, max_length=8))
        assert caption.caption == tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["blip", "vit-gpt2"])
def test_photos_are_prepared_as_by_the_image_processor(kind: str, tmp_path: Path):
    KINDS[kind](tmp_path)
    theirs = (BlipProcessor if kind == "blip" else ViTImageProcessor).from_pretrained(tmp_path)
    theirs = getattr(theirs, "image_processor", theirs)
    ours = read_hugging_face(tmp_path).processor
    photo = draw_noise(
        57, 43
    )  # noise shows the filter: bilinear is not bicubic, nor either without antialiasing
    pixel_values = ours.normalize(ours(photo)[None], torch.float32)
    step = 1 / (255 * min(ours.std))
    expected = theirs(photo, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected, rtol=0, atol=2.1 * step)
    torch.testing.assert_close(pixel_values.mean(), expected.mean(), rtol=0, atol=0.1 * step)


def test_a_converted_checkpoint_is_one_of_ours_and_captions_alike(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    huggingface.save_blip(source, seed=1)
    convert(source, target)
    assert is_hugging_face(source)
    assert not is_hugging_face(target)
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert str(tmp_path) not in (target / "config.json").read_text()
    photos = [draw_noise(40, 30, seed=seed) for seed in range(4)]
    converted, in_memory = (captioner.load(folder, device="cpu") for folder in (target, source))
    assert (converted.name, in_memory.name) == ("target", "source")
    assert [c.words for c in converted.caption(photos)] == [c.words for c in in_memory.caption(photos)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_number_type_of_the_weights_is_kept(dtype: torch.dtype, tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    huggingface.save_vit_gpt2(source, width=16)
    change_tensors(source, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    convert(source, target)
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {dtype}


def test_weights_may_come_in_several_files(tmp_path: Path):
    theirs = huggingface.save_blip(tmp_path)
    whole = read_hugging_face(tmp_path).model.state_dict()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    parts = read_hugging_face(tmp_path).model.state_dict()
    assert all(parts[name].equal(tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("tied", ["lm_head", "both"])
def test_a_tied_output_layer_may_stand_under_either_name_or_both(tied: str, tmp_path: Path):
    huggingface.save_vit_gpt2(tmp_path)
    before = read_hugging_face(tmp_path).model.state_dict()

    def add_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding = tensors["decoder.transformer.wte.weight"]
        if tied == "lm_head":
            del tensors["decoder.transformer.wte.weight"]
        return {**tensors, "decoder.lm_head.weight": embedding.clone()}

    change_tensors(tmp_path, add_head)
    after = read_hugging_face(tmp_path).model.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_settings_of_generation_become_the_models_defaults(tmp_path: Path):
    huggingface.save_vit_gpt2(tmp_path)
    change_json(
        tmp_path / "generation_config.json",
        num_beams=4,
        max_length=16,
        min_length=3,
        length_penalty=0.5,
        no_repeat_ngram_size=3,
        early_stopping=True,
        repetition_penalty=1.5,
    )
    assert captioner.load(tmp_path, device="cpu").default_options == SearchOptions(
        num_beams=4,
        max_length=15,
        min_length=3,
        length_penalty=0.5,
        no_repeat_ngram_size=3,
        early_stopping=True,
    )
    change_json(tmp_path / "generation_config.json", max_new_tokens=7, max_length=1000)
    assert captioner.load(tmp_path, device="cpu").default_options.max_length == 7
    change_json(tmp_path / "generation_config.json", max_new_tokens=None)
    assert captioner.load(tmp_path, device="cpu").default_options.max_length == 40, "its positions"


@pytest.mark.parametrize("kind", ["blip", "vit-gpt2"])
def test_captions_by_a_checkpoints_own_settings_are_those_of_generate_without_arguments(
    kind: str, tmp_path: Path
):
    for seed in range(3):
        folder = tmp_path / str(seed)
        theirs = KINDS[kind](folder, seed=seed)
        settings = {
            "num_beams": 3,
            "max_length": 11,
            "min_length": 4 + seed,
            "length_penalty": 0.7,
            "no_repeat_ngram_size": 2,
            "early_stopping": True,
        }
        change_json(folder / "generation_config.json", **settings)
        ours = captioner.load(folder, device="cpu")
        images = [ours.prepare(draw_noise(32, 32, seed=number)) for number in range(8)]
        runner, options = CheckpointRunner(ours.checkpoint), ours.default_options
        regions = runner.encode(images).region_tokens
        found = generate(ours.checkpoint.model.decoder, regions, options, runner.rules(options))
        pixel_values = torch.stack([image.content for image in images])
        pixel_values = ours.checkpoint.processor.normalize(pixel_values, torch.float32)
        theirs = type(theirs).from_pretrained(folder).eval()
        for part in (theirs, theirs.text_decoder if kind == "blip" else theirs):
            part.generation_config.update(**settings)
        for hypotheses, row in zip(found, theirs.generate(pixel_values=pixel_values).tolist(), strict=True):
            assert hypotheses[0].token_ids == until_end(row[1:], ours.checkpoint.tokenizer.config.eos_id)


@pytest.mark.parametrize("kind", ["blip", "vit-gpt2"])
@torch.inference_mode()
def test_the_way_back_gives_transformers_the_same_weights(kind: str, tmp_path: Path):
    theirs = KINDS[kind](tmp_path)
    back = their_tensors(read_hugging_face(tmp_path).model)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert {name for name in on_disk if "pooler" not in name} == back.keys()
    assert all(tensor.equal(on_disk[name]) for name, tensor in back.items())
    assert theirs is not None


def test_the_decoder_has_a_way_back_whatever_the_encoder():
    model = tiny_checkpoint().model
    back = their_tensors(model)
    assert all(name.startswith("decoder.") for name in back)
    assert sum(map(torch.numel, back.values())) == sum(map(torch.numel, model.decoder.parameters()))
    assert back["decoder.lm_head.bias"].equal(model.decoder.output_bias)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_config(file: str = "config.json", **values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / file, **values)


def set_part(part: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change_json(folder / "config.json", **{part: {**config[part], **values}})

    return change


def set_tensor(name: str, value: Tensor | None) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors.pop(name, None)
        return tensors if value is None else {**tensors, name: value}

    return lambda folder: change_tensors(folder, change)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled weights": (pickle_only, r"model\.safetensors missing"),
    "no weights": (drop("model.safetensors"), r"model\.safetensors missing"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "damaged"),
    "no tokenizer": (drop("tokenizer.json"), r"no tokenizer\.json.*save_pretrained"),
    "a damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "damaged"),
    "no configuration": (drop("config.json"), r"config\.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
    "another architecture": (
        set_config(model_type="git", architectures=["GitForCausalLM"]),
        r"GitForCausalLM.*Supported: BlipForConditionalGeneration.*GPT-2",
    ),
    "a BLIP that answers": (
        set_config(model_type="blip", architectures=["BlipForQuestionAnswering"]),
        r"BlipForQuestionAnswering.*Supported",
    ),
    "another decoder": (set_part("decoder", model_type="opt"), r"'vit'.*'opt'.*Supported"),
    "another activation": (set_part("decoder", activation_function="tanh"), r"'tanh'.*Supported"),
    "another scaling": (set_part("decoder", scale_attn_by_inverse_layer_idx=True), r"scales.*Supported"),
    "several ends": (set_config("generation_config.json", eos_token_id=[0, 1]), r"several.*eos_token_id"),
    "a wrong number": (set_part("decoder", n_head=0), "does not describe a model"),
    "heads that do not fit": (set_part("decoder", n_head=5), "does not describe a model"),
    "heads of the encoder that do not fit": (
        set_part("encoder", num_attention_heads=5),
        "does not describe a model",
    ),
    "another width": (set_part("decoder", n_embd=20), "has shape"),
    "an unknown tensor": (set_tensor("decoder.extra", torch.ones(2)), r"decoder\.extra is unknown"),
    "a missing tensor": (set_tensor("decoder.transformer.ln_f.bias", None), r"final_norm\.bias is missing"),
    "half of a missing pair": (
        set_tensor("encoder.encoder.layer.1.attention.attention.key.weight", None),
        r"backbone\.blocks\.1\.qkv\.weight is missing",
    ),
    "an untied output": (set_tensor("decoder.lm_head.weight", torch.ones(2, 2)), "untied"),
    "a crop": (set_config("preprocessor_config.json", do_center_crop=True), "do_center_crop True"),
    "another size": (set_config("preprocessor_config.json", size={"shortest_edge": 32}), "shortest_edge"),
    "another filter": (set_config("preprocessor_config.json", resample=0), "resample 0"),
    "another range": (set_config("preprocessor_config.json", rescale_factor=1.0), r"rescale_factor 1\.0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_converted_is_refused_with_the_reason(damage: str, tmp_path: Path):
    huggingface.save_vit_gpt2(tmp_path)
    harm, reason = DAMAGE[damage]
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=f"(?s){reason}"):
        read_hugging_face(tmp_path)


def test_sizes_of_older_image_processors_are_read(tmp_path: Path):
    huggingface.save_vit_gpt2(tmp_path)
    change_json(tmp_path / "preprocessor_config.json", size=32, feature_extractor_type="ViTFeatureExtractor")
    assert read_hugging_face(tmp_path).processor.size == 32
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_hugging_face(tmp_path).processor.resample == "bilinear"


def test_a_destination_that_has_files_is_left_alone(tmp_path: Path):
    huggingface.save_blip(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="not empty"):
        convert(tmp_path, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_of_the_hub_comes_from_its_cache_without_a_network(tmp_path: Path):
    """In a process of its own, since the hub's library reads its environment when it is imported."""
    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / "0123abc"
    huggingface.save_vit_gpt2(snapshot, seed=1)
    for reference in ("main", "refs/pr/4"):
        path = snapshot.parent.parent / "refs" / reference
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0123abc")
    program = """
import shutil, sys
import captioner
for name in ("someone/tiny", "someone/tiny@refs/pr/4"):
    print(captioner.load(name, device="cpu").name)
shutil.rmtree(sys.argv[1])
captioner.load("someone/tiny", device="cpu")
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(snapshot)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "someone/tiny\nsomeone/tiny@refs/pr/4\n", done.stderr
    assert (
        "CheckpointError: someone/tiny is only partly in the hub's cache, and HF_HUB_OFFLINE" in done.stderr
    )


def test_a_loaded_hugging_face_checkpoint_has_the_number_type_asked_for(tmp_path: Path):
    huggingface.save_blip(tmp_path)
    assert captioner.load(tmp_path, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_our_loader_refuses_what_only_the_converter_reads(tmp_path: Path):
    huggingface.save_blip(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(tmp_path, device=torch.device("cpu"), dtype=torch.float32)


def test_the_command_converts_and_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "blip", tmp_path / "ours"
    huggingface.save_blip(source)
    capsys.readouterr()
    assert main(["convert", str(source), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\tblip, converted from Hugging Face (blip)\n"
    assert captioner.load(target, device="cpu").caption([draw_noise(32, 32)])
    assert main(["convert", str(source), str(target)]) == 1
    assert "is not empty" in capsys.readouterr().err
    pickle_only(source)
    assert main(["convert", str(source), str(tmp_path / "other")]) == 1
    assert "pytorch_model.bin cannot be read as weights" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
