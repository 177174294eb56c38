"""VisionEncoderDecoderModels in miniature: every encoder before every decoder, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import transformers as hf
from huggingface import VISION, bert_tokenizer, byte_pairs, gpt2_tokenizer, randomise

SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
ENCODERS: dict[str, Callable[..., Any]] = {
    "vit": lambda **more: hf.ViTConfig(**VISION, **more),
    "deit": lambda **more: hf.DeiTConfig(**VISION, **more),
    "beit": lambda **more: hf.BeitConfig(**VISION, use_relative_position_bias=True, **more),
    "swin": lambda **more: hf.SwinConfig(**{**SWIN, **more}),
}
GRIDS = {"vit": (4, 4), "deit": (4, 4), "beit": (4, 4), "swin": (4, 4)}
PREFIX = {"vit": 1, "deit": 2, "beit": 1, "swin": 0}


def roberta_tokenizer() -> hf.RobertaTokenizer:
    return hf.RobertaTokenizer(**byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2_tokenizer,
    "bert": bert_tokenizer,
    "roberta": roberta_tokenizer,
}


def decoder(kind: str, width: int, **more: Any) -> Any:
    tokenizer = TOKENIZERS[kind]()
    if kind == "gpt2":
        end = tokenizer.eos_token_id
        return hf.GPT2Config(
            vocab_size=len(tokenizer), n_positions=40, n_embd=width, n_layer=2, n_head=4, bos_token_id=end,
            eos_token_id=end, **more,
        )  # fmt: skip
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "pad_token_id": tokenizer.pad_token_id,
        "is_decoder": True,
        "add_cross_attention": True,
        **more,
    }
    return (hf.BertConfig if kind == "bert" else hf.RobertaConfig)(**settings)


def save(
    folder: Path,
    encoder: str,
    text: str,
    *,
    seed: int = 0,
    width: int = 24,
    vision: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> hf.VisionEncoderDecoderModel:
    """``width`` is the decoder's; the encoders' is 24. ``vision`` and ``more`` are for their settings."""
    tokenizer = TOKENIZERS[text]()
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ENCODERS[encoder](**vision), decoder(text, width, **more)
    )
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    config.decoder_start_token_id = tokenizer.eos_token_id if first is None else first
    config.eos_token_id = tokenizer.eos_token_id if last is None else last
    config.pad_token_id = config.eos_token_id if text == "gpt2" else tokenizer.pad_token_id
    model = hf.VisionEncoderDecoderModel(config).eval()
    randomise(model, seed)
    model.decoder.get_input_embeddings().weight.data[config.eos_token_id] *= 3  # so that captions end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model
