"""Hugging Face checkpoints in miniature, saved as the real ones are, with random weights.

Everything is built from configurations and a few sentences, so no hub is asked for anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

END_OF_TEXT = "<|endoftext|>"
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def bert_tokenizer() -> BertTokenizer:
    """BERT's special tokens, the words of the sentences, their letters and a few endings."""
    words = sorted({word for sentence in SENTENCES for word in sentence.replace("'", " ' ").split()})
    letters = [chr(ord("a") + i) for i in range(26)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*letters, *(f"##{letter}" for letter in letters), "##ing", "##ed", ".", ",", "!"]
    return BertTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys([*special, *words, *pieces]))}
    )


def gpt2_tokenizer() -> GPT2Tokenizer:
    """Byte pairs merged as the sentences have them, over all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def blip(*, seed: int = 0) -> BlipForConditionalGeneration:
    """BLIP; as in the real ones, the tokenizer does not know the start token [DEC]."""
    words = len(bert_tokenizer())
    text: dict[str, Any] = {
        "vocab_size": words + 2,
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "bos_token_id": words,
        "eos_token_id": 2,
        "sep_token_id": bert_tokenizer().sep_token_id,
        "pad_token_id": 0,
    }
    config = BlipConfig(text_config=text, vision_config=VISION)
    model = BlipForConditionalGeneration(config).eval()
    randomise(model, seed)
    embedding = model.text_decoder.get_input_embeddings().weight.data
    embedding[config.text_config.sep_token_id] *= 2  # so that captions end
    return model


def vit_gpt2(*, seed: int = 0, width: int = 24, **encoder: Any) -> VisionEncoderDecoderModel:
    """ViT and GPT-2; of another width than the encoder's 24 it has a projection between the two."""
    end = gpt2_tokenizer().eos_token_id
    decoder = GPT2Config(
        vocab_size=len(gpt2_tokenizer()),
        n_positions=40,
        n_embd=width,
        n_layer=2,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
    )
    vision = ViTConfig(**{**VISION, **encoder})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = end
    model = VisionEncoderDecoderModel(config).eval()
    randomise(model, seed)
    model.decoder.get_input_embeddings().weight.data[end] *= 4
    return model


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough for captions that differ from photo to photo; no bias is 0, no norm is neutral."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() or "ln_" in name
        torch.nn.init.normal_(parameter, mean=float(norm and name.endswith("weight")), std=0.3)


def save_blip(directory: Path, *, seed: int = 0) -> BlipForConditionalGeneration:
    """A BLIP checkpoint as ``transformers`` writes it now: one file for all processors."""
    model = blip(seed=seed)
    model.save_pretrained(directory)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, bert_tokenizer()).save_pretrained(directory)
    return model


def save_vit_gpt2(directory: Path, *, seed: int = 0, **model: Any) -> VisionEncoderDecoderModel:
    """A ViT-GPT2 checkpoint with an image processor's file of its own, as most on the hub have it."""
    built = vit_gpt2(seed=seed, **model)
    built.save_pretrained(directory)
    gpt2_tokenizer().save_pretrained(directory)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return built
