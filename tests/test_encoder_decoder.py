"""VisionEncoderDecoderModels of every encoder and decoder, and BLIP's maps, against `transformers`."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pairs
import pytest
import torch
from huggingface import save_blip
from images import draw_noise
from safetensors.torch import load_file, save_file
from test_convert import until_end
from torch import Tensor
from transformers import AutoTokenizer, DeiTImageProcessor, ViTImageProcessor

import captioner
from captioner import CheckpointError, GenerationOptions
from captioner.attention import token_maps
from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.convert import convert, read_hugging_face
from captioner.decoder import KVCache
from captioner.generation import DecodeRules, SearchOptions, generate

PAIRS = sorted(product(pairs.ENCODERS, pairs.TOKENIZERS))


def rules_of(checkpoint: Checkpoint) -> DecodeRules:
    special = checkpoint.tokenizer.config
    return DecodeRules(prompt_ids=special.start_ids, eos_id=special.eos_id, pad_id=special.pad_id)


@pytest.mark.parametrize(("encoder", "text"), PAIRS)
@torch.inference_mode()
def test_searches_and_maps_are_those_of_transformers(encoder: str, text: str, tmp_path: Path):
    seen: set[tuple[int, ...]] = set()
    for seed in range(2):
        folder = tmp_path / str(seed)
        theirs = pairs.save(folder, encoder, text, seed=seed, width=(24, 16)[seed])
        ours = read_hugging_face(folder)
        pixel_values = torch.randn(6, 3, 32, 32)
        encoded = ours.model.encode(pixel_values)
        assert (encoded.grid, encoded.prefix) == (pairs.GRIDS[encoder], pairs.PREFIX[encoder])
        features = theirs.encoder(pixel_values).last_hidden_state
        torch.testing.assert_close(encoded.region_tokens, features, rtol=1e-4, atol=1e-4)
        for num_beams in (1, 4):
            options = SearchOptions(num_beams=num_beams, max_length=12)
            found = generate(ours.model.decoder, encoded.region_tokens, options, rules_of(ours))
            expected = theirs.generate(
                pixel_values=pixel_values,
                num_beams=num_beams,
                max_new_tokens=12,
                do_sample=False,
                early_stopping=num_beams > 1 and "never",
            )
            ids = [hypotheses[0].token_ids for hypotheses in found]
            assert ids == [until_end(row[1:], ours.tokenizer.config.eos_id) for row in expected.tolist()]
            seen.update(ids)
        special, texts = ours.tokenizer.config, [[caption] for caption in ids]
        maps = token_maps(ours.model.decoder, encoded, special.start_ids, texts, special.pad_id)
        for photo, caption, (attention,) in zip(pixel_values, ids, maps, strict=True):
            by_hand = maps_by_hand(theirs, photo, caption, encoder)
            torch.testing.assert_close(attention, by_hand, rtol=1e-3, atol=1e-5)
    assert len(seen) > 6


def maps_by_hand(theirs: Any, photo: Tensor, ids: tuple[int, ...], encoder: str) -> Tensor:
    """``(tokens, h, w)`` from all cross-attentions that `transformers` gives, with eager attention."""
    theirs.set_attn_implementation("eager")
    start = theirs.config.decoder_start_token_id
    out = theirs(
        pixel_values=photo[None], decoder_input_ids=torch.tensor([[start, *ids[:-1]]]), output_attentions=True
    )
    mean = torch.stack(out.cross_attentions).mean((0, 2))[0, :, pairs.PREFIX[encoder] :]
    return (mean / mean.sum(-1, keepdim=True)).view(-1, *pairs.GRIDS[encoder])


@torch.inference_mode()
def test_blips_maps_are_those_of_transformers(tmp_path: Path):
    theirs = save_blip(tmp_path)
    theirs.set_attn_implementation("eager")
    ours = read_hugging_face(tmp_path)
    special, ids = ours.tokenizer.config, (7, 9, 12, 5)
    encoded = ours.model.encode(torch.randn(2, 3, 32, 32))
    maps = token_maps(ours.model.decoder, encoded, special.start_ids, [[ids], [ids]], special.pad_id)
    out = theirs.text_decoder(
        torch.tensor([[*special.start_ids, *ids[:-1]]]).expand(2, -1),
        encoder_hidden_states=encoded.region_tokens,
        output_attentions=True,
    )
    mean = torch.stack(out.cross_attentions).mean((0, 2))[:, :, 1:]
    expected = (mean / mean.sum(-1, keepdim=True)).view(2, len(ids), 4, 4)
    torch.testing.assert_close(torch.stack([each for (each,) in maps]), expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.parametrize(
    ("encoder", "vision"),
    [
        ("beit", {"use_mean_pooling": False, "use_absolute_position_embeddings": True}),
        ("beit", {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0}),
        ("swin", {"use_absolute_embeddings": True, "qkv_bias": False, "image_size": 40}),
    ],
)
@torch.inference_mode()
def test_encoders_of_transformers_keep_their_settings(encoder: str, vision: dict[str, Any], tmp_path: Path):
    theirs = pairs.save(tmp_path, encoder, "gpt2", vision=vision)
    side = theirs.config.encoder.image_size
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(tmp_path)
    convert(tmp_path, tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours", device=torch.device("cpu"), dtype=torch.float32)
    pixel_values = torch.randn(2, 3, side, side)
    encoded = ours.model.encode(pixel_values)
    features = theirs.encoder(pixel_values).last_hidden_state
    torch.testing.assert_close(encoded.region_tokens, features, rtol=1e-4, atol=1e-4)
    assert encoded.grid[0] * encoded.grid[1] + encoded.prefix == features.shape[1]


@pytest.mark.parametrize(("encoder", "text"), [("deit", "bert"), ("beit", "roberta"), ("swin", "gpt2")])
def test_a_directory_captions_as_its_parts_do_before_and_after_it_is_converted(
    encoder: str, text: str, tmp_path: Path
):
    theirs = pairs.save(tmp_path / "theirs", encoder, text, seed=1, width=16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    processor = ViTImageProcessor.from_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    photos = [draw_noise(32, 32, seed=seed) for seed in range(4)]
    expected = []
    for photo in photos:
        inputs = processor(photo, return_tensors="pt")
        (ids,) = theirs.generate(**inputs, max_new_tokens=8, num_beams=3, early_stopping="never")
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    options = GenerationOptions(num_beams=3, max_length=8, attention=True)
    for name in ("theirs", "ours"):
        model = captioner.load(tmp_path / name, device="cpu")
        assert model.lacks.attention is None
        captions = model.caption(photos, options)
        assert [caption.caption for caption in captions] == expected
        words = [word for caption in captions for word in caption.words]
        assert words
        assert all(torch.tensor(word.attention).shape == pairs.GRIDS[encoder] for word in words)
    assert len(set(expected)) > 1


@torch.inference_mode()
def test_robertas_padding_has_no_position(tmp_path: Path):
    """A search may generate it as any other token; those after it go on as if it had one."""
    theirs = pairs.save(tmp_path, "vit", "roberta")
    padding = theirs.config.pad_token_id
    theirs.decoder.roberta.embeddings.position_embeddings.weight.data[padding].normal_()
    theirs.save_pretrained(tmp_path)
    decoder = read_hugging_face(tmp_path).model.decoder
    assert decoder.config.max_positions == 40 - padding - 1
    regions = theirs.encoder(torch.randn(1, 3, 32, 32)).last_hidden_state
    ids = [0, 9, padding, 7, padding, 8]
    cache, past = KVCache(decoder.config, images=1, rows=1, prompt=1, length=6, like=regions), None
    for token in ids:
        hidden, _ = decoder(torch.tensor([[[token]]]), decoder.cross_cache(regions), cache=cache)
        out = theirs.decoder(
            torch.tensor([[token]]), encoder_hidden_states=regions, cache=past, use_cache=True
        )
        past = out.cache
        torch.testing.assert_close(decoder.logits(hidden)[0, 0], out.logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@torch.inference_mode()
def test_berts_activation_is_that_of_its_output_too(activation: str, tmp_path: Path):
    theirs = pairs.save(tmp_path, "vit", "bert", hidden_act=activation)
    ours = read_hugging_face(tmp_path).model
    pixel_values, ids = torch.randn(2, 3, 32, 32), torch.randint(1, 20, (2, 7))
    expected = theirs(pixel_values=pixel_values, decoder_input_ids=ids).logits
    cross = ours.decoder.cross_cache(ours.encode(pixel_values).region_tokens)
    found = ours.decoder.logits(ours.decoder(ids[:, None], cross)[0])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def set_part(folder: Path, part: str, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, part: {**config[part], **values}}))


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path):
    pairs.save(tmp_path, "swin", "roberta")
    weights = load_file(tmp_path / "model.safetensors")
    for change, reason in (
        ({"encoder.extra": torch.ones(1)}, r"encoder\.extra is unknown|extra is unknown"),
        ({"encoder.layernorm.bias": None}, r"layernorm\.bias is missing"),
        ({"encoder.layernorm.bias": torch.ones(3)}, "shape|size|mismatch"),
        ({"decoder.lm_head.decoder.weight": torch.ones(2, 2)}, "untied"),
    ):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=reason):
            read_hugging_face(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    set_part(tmp_path, "decoder", hidden_act="relu")
    with pytest.raises(CheckpointError, match="'relu'"):
        read_hugging_face(tmp_path)
    set_part(tmp_path, "decoder", hidden_act="gelu")
    set_part(tmp_path, "encoder", image_size=[32, 64])
    with pytest.raises(CheckpointError, match="its images are"):
        read_hugging_face(tmp_path)


def test_a_crop_is_made_and_maps_lie_on_the_whole_photo(tmp_path: Path):
    """DeiT's image processor squashes photos to 256 pixels a side and takes the middle 224."""
    pairs.save(tmp_path, "deit", "gpt2")
    theirs = DeiTImageProcessor(size={"height": 48, "width": 48}, crop_size={"height": 32, "width": 32})
    theirs.save_pretrained(tmp_path)
    model = captioner.load(tmp_path, device="cpu")
    photo = draw_noise(90, 70)
    pixels = model.prepare(photo).content
    assert pixels.shape == (3, 32, 32)
    ours = model.checkpoint.processor
    expected = theirs(photo, return_tensors="pt")["pixel_values"][0]
    step = 1 / (255 * min(ours.std))
    torch.testing.assert_close(
        ours.normalize(pixels[None], torch.float32)[0], expected, rtol=0, atol=2.1 * step
    )
    (caption,) = model.caption([photo], GenerationOptions(attention=True))
    for word in caption.words:
        attention = torch.tensor(word.attention)
        assert attention.shape == (6, 6)
        assert attention[1:5, 1:5].sum() == pytest.approx(1, abs=1e-5)
        assert attention.sum() == pytest.approx(1, abs=1e-5)
        left, top, right, bottom = word.box
        assert 15 <= left < right <= 75
        assert 11 <= top < bottom <= 59


@pytest.mark.parametrize("size", [40, 31, 24])
def test_a_crop_through_cells_is_refused(size: int, tmp_path: Path):
    pairs.save(tmp_path, "deit", "gpt2")
    DeiTImageProcessor(
        size={"height": size, "width": size}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"do_center_crop True|size \{"):
        read_hugging_face(tmp_path)
