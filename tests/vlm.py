"""Vision-language models in miniature, with random weights and processors of their own: no hub is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers as hf
from huggingface import byte_pairs

SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<end>",
    "<image>",
    "<video>",
    "<fake>",
    "<global>",
    "<start>",
    "<stop>",
]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<end>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


WORDS = byte_pairs(SPECIAL)


def tokenizer(**more: Any) -> Any:
    more = {"end_token": "<end>", **more}
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.GPT2Tokenizer(**WORDS, **special, extra_special_tokens=more)


def ids() -> dict[str, int]:
    return {name: SPECIAL.index(name) for name in SPECIAL}


def text(**more: Any) -> dict[str, Any]:
    known = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**TEXT, **known, **more}


def save(directory: Path, model: Any, processor: Any, *, seed: int = 0) -> Any:
    """Weights with which captions differ from photo to photo, and end, with one of two tokens."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() or "ln_" in name
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
        elif norm and name.endswith("weight"):
            parameter.data.normal_(1.0, 0.1)
        else:
            parameter.data.normal_(0.0, 0.1)
    model.generation_config = hf.GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 4], pad_token_id=0, do_sample=True, temperature=0.1
    )
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return model


def template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def qwen2_5_vl(directory: Path, **how: Any) -> Any:
    known = {"image_token_id": ids()["<image>"], "video_token_id": ids()["<video>"]}
    known |= {"vision_start_token_id": ids()["<start>"], "vision_end_token_id": ids()["<stop>"]}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
    config = hf.Qwen2_5_VLConfig(text_config=text(**rope), vision_config=vision, **known)
    return save(
        directory,
        hf.Qwen2_5_VLForConditionalGeneration(config),
        qwen_processor(hf.Qwen2_5_VLProcessor),
        **how,
    )


def qwen3_vl(directory: Path, **how: Any) -> Any:
    known = {"image_token_id": ids()["<image>"], "video_token_id": ids()["<video>"]}
    known |= {"vision_start_token_id": ids()["<start>"], "vision_end_token_id": ids()["<stop>"]}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {
        "patch_size": 4,
        "spatial_merge_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
    config = hf.Qwen3VLConfig(text_config=text(**rope), vision_config=vision, **known)
    return save(
        directory, hf.Qwen3VLForConditionalGeneration(config), qwen_processor(hf.Qwen3VLProcessor), **how
    )


def qwen_processor(kind: Any) -> Any:
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 16 * 16, "longest_edge": 40 * 40}}
    words = tokenizer(
        image_token="<image>", video_token="<video>", vision_bos_token="<start>", vision_eos_token="<stop>"
    )
    videos = hf.Qwen2VLVideoProcessor() if kind is hf.Qwen2_5_VLProcessor else hf.Qwen3VLVideoProcessor()
    chat = template("<start><image><stop>")
    return kind(hf.Qwen2VLImageProcessor(**sizes), words, videos, chat_template=chat)


def siglip(**more: Any) -> dict[str, Any]:
    known = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**known, "image_size": 32, "patch_size": 8, **more}


def smolvlm(directory: Path, *, split: bool = True, **how: Any) -> Any:
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", **text()},
        vision_config=siglip(),
        image_token_id=ids()["<image>"],
        scale_factor=2,
        pad_token_id=0,
    )
    images = hf.SmolVLMImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=split
    )
    words = tokenizer(
        image_token="<image>",
        fake_image_token="<fake>",
        global_image_token="<global>",
        end_of_utterance_token="<end>",
    )
    processor = hf.SmolVLMProcessor(
        images, words, hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template("<image>")
    )
    return save(directory, hf.SmolVLMForConditionalGeneration(config), processor, **how)


def gemma3(directory: Path, **how: Any) -> Any:
    config = hf.Gemma3Config(
        text_config=text(
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=8,
        ),
        vision_config=siglip(image_size=32, patch_size=4),
        mm_tokens_per_image=16,
        boi_token_index=ids()["<start>"],
        eoi_token_index=ids()["<stop>"],
        image_token_index=ids()["<image>"],
        image_token_id=ids()["<image>"],
    )
    words = tokenizer(image_token="<image>", boi_token="<start>", eoi_token="<stop>")
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = hf.Gemma3Processor(images, words, image_seq_length=16, chat_template=template("<start>"))
    return save(directory, hf.Gemma3ForConditionalGeneration(config), processor, **how)


def paligemma(directory: Path, **how: Any) -> Any:
    words = tokenizer(image_token="<image>")
    config = hf.PaliGemmaConfig(
        text_config={"model_type": "gemma2", **text(sliding_window=64, query_pre_attn_scalar=8)},
        vision_config=siglip(model_type="siglip_vision_model", projection_dim=32),
        projection_dim=32,
        image_token_index=ids()["<image>"],
    )
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return save(
        directory, hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, words), **how
    )


def llava(
    directory: Path, *, crop: bool = False, sizes: Mapping[str, Any] = MappingProxyType({}), **how: Any
) -> Any:
    """``sizes`` are those of the text decoder."""
    config = hf.LlavaConfig(
        text_config={"model_type": "llama", **text(**sizes)},
        vision_config={"model_type": "clip_vision_model", **siglip()},
        image_token_id=ids()["<image>"],
        vision_feature_layer=-1,
    )
    images = hf.CLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=crop
    )
    processor = hf.LlavaProcessor(
        images,
        tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    return save(directory, hf.LlavaForConditionalGeneration(config), processor, **how)


def llava_onevision(directory: Path, **how: Any) -> Any:
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text()},
        vision_config={"model_type": "siglip_vision_model", **siglip()},
        image_token_index=ids()["<image>"],
        video_token_index=ids()["<video>"],
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
    )
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        tokenizer(image_token="<image>", video_token="<video>"),
        hf.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    return save(directory, hf.LlavaOnevisionForConditionalGeneration(config), processor, **how)


def internvl(directory: Path, **how: Any) -> Any:
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **text()},
        vision_config=siglip(image_size=[32, 32], patch_size=[4, 4]),
        image_token_id=ids()["<image>"],
        image_seq_length=16,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, max_patches=4)
    words = tokenizer(
        start_image_token="<start>",
        end_image_token="<stop>",
        context_image_token="<image>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        images, words, hf.InternVLVideoProcessor(), image_seq_length=16, chat_template=template("<image>")
    )
    return save(directory, hf.InternVLForConditionalGeneration(config), processor, **how)


def q_former() -> dict[str, Any]:
    known = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**known, "encoder_hidden_size": 16, "vocab_size": len(tokenizer())}


def opt() -> dict[str, Any]:
    known = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 4}
    known |= {"num_attention_heads": 4, "max_position_embeddings": 512, "vocab_size": len(tokenizer())}
    return {"model_type": "opt", **known, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def blip_2(directory: Path, **how: Any) -> Any:
    config = hf.Blip2Config(
        vision_config=siglip(),
        qformer_config=q_former(),
        text_config=opt(),
        num_query_tokens=9,
        image_token_index=ids()["<image>"],
    )
    words = tokenizer()
    processor = hf.Blip2Processor(
        hf.BlipImageProcessor(size={"height": 32, "width": 32}), words, num_query_tokens=9
    )
    return save(directory, hf.Blip2ForConditionalGeneration(config), processor, **how)


def instructblip(directory: Path, **how: Any) -> Any:
    config = hf.InstructBlipConfig(
        vision_config=siglip(),
        qformer_config=q_former(),
        text_config=opt(),
        num_query_tokens=9,
        image_token_index=ids()["<image>"],
    )
    words = tokenizer()
    processor = hf.InstructBlipProcessor(
        hf.BlipImageProcessor(size={"height": 32, "width": 32}), words, tokenizer(), num_query_tokens=9
    )
    return save(directory, hf.InstructBlipForConditionalGeneration(config), processor, **how)


FAMILIES: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        qwen2_5_vl,
        qwen3_vl,
        smolvlm,
        gemma3,
        paligemma,
        llava,
        llava_onevision,
        internvl,
        blip_2,
        instructblip,
    )
}
