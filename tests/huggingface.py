"""Hugging Face checkpoints in miniature, saved as the real ones are, with random weights.

Everything is built from configurations and a few sentences, so no hub is asked for anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedModel,
    RobertaTokenizer,
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


def byte_pairs(special_tokens: list[str]) -> dict[str, Any]:
    """Byte pairs merged as the sentences have them, over all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special_tokens,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def gpt2_tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer(**byte_pairs([END_OF_TEXT]))


def florence2_tokenizer() -> RobertaTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]
    return RobertaTokenizer(**byte_pairs(special), extra_special_tokens={"image_token": "<image>"})


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


def vit_gpt2(
    *, seed: int = 0, width: int = 24, activation: str = "gelu_new", **encoder: Any
) -> VisionEncoderDecoderModel:
    """ViT and GPT-2; of another width than the encoder's 24 it has a projection between the two."""
    end = gpt2_tokenizer().eos_token_id
    decoder = GPT2Config(
        vocab_size=len(gpt2_tokenizer()),
        n_positions=40,
        n_embd=width,
        n_layer=2,
        n_head=4,
        activation_function=activation,
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


def save_git(directory: Path, *, seed: int = 0) -> GitForCausalLM:
    """GIT, whose image processor crops the middle of a photo."""
    tokenizer = bert_tokenizer()
    config = GitConfig(
        vision_config=VISION,
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GitForCausalLM(config).eval()
    randomise(model, seed)
    model.output.weight.data *= 4
    model.save_pretrained(directory)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer).save_pretrained(directory)
    return model


def save_florence2(
    directory: Path,
    *,
    seed: int = 0,
    width: int = 16,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    special: Mapping[str, Any] | None = None,
) -> Florence2ForConditionalGeneration:
    """Florence-2, with the settings of generation that the real ones have.

    Args:
        directory: where to.
        seed: of the weights.
        width: channels of its text.
        text: settings of BART that differ.
        vision: settings of the vision tower that differ.
        special: ids of tokens that differ.
    """
    tokenizer = florence2_tokenizer()
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
        "forced_bos_token_id": tokenizer.bos_token_id,
        "forced_eos_token_id": tokenizer.eos_token_id,
        **(special or {}),
    }
    bart: dict[str, Any] = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": width}
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 32}
    stages = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    stages |= {"embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2)}
    stages |= {"patch_prenorm": (False, True), "window_size": 4, "projection_dim": width}
    config = Florence2Config(
        text_config={**bart, "max_position_embeddings": 64, **ids, **(text or {})},
        vision_config={**stages, "drop_path_rate": 0.0, **(vision or {})},
        image_token_id=tokenizer.image_token_id,
    )
    model = Florence2ForConditionalGeneration(config).eval()
    randomise(model, seed)
    for name, value in {**ids, "num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(directory)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 17  # the 4 × 4 grid and its mean
    Florence2Processor(images, tokenizer).save_pretrained(directory)
    return model


def save_florence2_of_microsoft(directory: Path, *, seed: int = 0) -> None:
    """The same in the layout of those whose code is in their repository."""
    model = save_florence2(directory, seed=seed)
    tower = [
        (".conv.", ".proj."),
        (".conv1.", ".conv1.fn.dw."),
        (".conv2.", ".conv2.fn.dw."),
        (".window_attn.", ".window_attn.fn."),
        (".channel_attn.", ".channel_attn.fn."),
        (".ffn.", ".ffn.fn.net."),
        ("spatial_block.norm1.", "spatial_block.window_attn.norm."),
        ("channel_block.norm1.", "channel_block.channel_attn.norm."),
        (".norm2.", ".ffn.norm."),
    ]
    others = [
        ("model.multi_modal_projector.image_position_embed.", "image_pos_embed."),
        ("model.multi_modal_projector.", ""),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("lm_head.", "language_model.lm_head."),
    ]
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for theirs, own in [*others, *(tower if ".vision_tower." in name else [])]:
            name = name.replace(theirs, own, 1)
        projects = name == "image_projection.weight"
        tensors["image_projection" if projects else name] = (tensor.T if projects else tensor).clone()
    words = len(tensors["language_model.lm_head.weight"])
    tensors["language_model.final_logits_bias"] = torch.zeros(1, words)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    config = json.loads((directory / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    vision |= {
        "model_type": "davit",
        "dim_embed": vision.pop("embed_dim"),
        "image_pos_embed": {
            "type": "learned_abs_2d",
            "max_pos_embeddings": vision.pop("max_position_embeddings"),
        },
        "visual_temporal_embedding": {
            "type": "COSINE",
            "max_temporal_embeddings": vision.pop("max_temporal_embeddings"),
        },
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    text["model_type"] = "florence2_language"
    own = {"auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"}, "projection_dim": 16}
    (directory / "config.json").write_text(json.dumps({**config, **own}))


def drop_a_weight(folder: Path) -> None:
    """Leave the first of a checkpoint's tensors out."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
