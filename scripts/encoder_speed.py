"""The image encoder in torch and in what could run it instead, in turns: milliseconds a photo, medians.

    pip install openvino
    python scripts/encoder_speed.py openvino [--repeats 10]
    python scripts/encoder_speed.py int8 FOLDER [--repeats 10]

Each gives a photo its two looks. OpenVINO runs the network that torch exports, with as many threads as torch,
and with as many photos at once as is fastest for it. int8 are the convolutions that oneDNN has for 8-bit
numbers: a scale for each channel of the weights, one for each layer's output, found on the first 32
photographs of the folder. How many captions stay the same is counted on up to 400 others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner import Captioner, load
from captioner.convolution import SameConv2d
from captioner.model import CaptionModel
from captioner.vision import Backbone, EfficientNetLite, InvertedResidual

PHOTOS = (1, 8, 32)
AT_ONCE = 2  # photos, in OpenVINO
CALIBRATION = 32  # photos
OUTLIERS = 1e-4  # the share of a layer's outputs at either end that may be cut off


def main() -> None:
    """Print a table, tab-separated."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", choices=("openvino", "int8"))
    parser.add_argument("folder", type=Path, nargs="?", help="of photographs, for int8")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.engine == "openvino":
        measure_openvino(arguments.repeats)
        return
    photos = sorted(arguments.folder.glob("*")) if arguments.folder else []
    if len(photos) <= CALIBRATION:
        parser.error(f"int8 needs a folder of more than {CALIBRATION} photographs")
    measure_int8(photos, arguments.repeats)


def measure_openvino(repeats: int) -> None:
    """In both number types, from one photo to 32."""
    import openvino

    models = {name: model_of(load(device="cpu", dtype=name)) for name in ("float32", "bfloat16")}
    model = models["float32"]
    side = model.config.backbone.image_size
    exported = torch.export.export(Pixels(model).eval(), (torch.zeros(2, 3, side, side),))
    network = openvino.convert_model(exported)
    print("photos", "number type", "torch, ms", "OpenVINO, ms", "difference", sep="\t")
    for photos in PHOTOS:
        at_once = min(photos, AT_ONCE)
        network.reshape([2 * at_once, 3, side, side])
        pixel_values = torch.randn(photos, 3, side, side)
        for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
            settings = {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": "LATENCY",
            }
            request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
            theirs = partial(features, request, pixel_values, at_once)
            with torch.inference_mode():
                ours = partial(in_torch, models[name], pixel_values.to(getattr(torch, name)))
                times = in_turns([ours, theirs], repeats)
                expected = model.features(pixel_values)
            difference = (theirs() - expected).norm() / expected.norm()
            each = [f"{1000 * seconds / photos:.1f}" for seconds in times]
            print(photos, name, *each, f"{difference:.0e}", sep="\t", flush=True)


class Pixels(nn.Module):
    """A model's backbone as a function of pixels alone, which can be exported."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.backbone.run(pixel_values)


def features(request: Any, pixel_values: Tensor, at_once: int) -> Tensor:
    """What ``CaptionModel.features`` gives. No operator of torch runs, whose threads would go on spinning."""
    found = []
    for photos in np.split(pixel_values.numpy(), len(pixel_values) // at_once):
        looks = np.concatenate([photos, photos[..., ::-1]])
        plain, mirrored = np.split(request.infer([looks], share_inputs=True)[0], 2)
        found.append((plain + mirrored[..., ::-1]) / 2)
    return torch.from_numpy(np.concatenate(found))


@torch.inference_mode()
def measure_int8(photos: Sequence[Path], repeats: int) -> None:
    """Beside float32 and bfloat16, and the share of captions that are those in float32."""
    captioners = {name: load(device="cpu", dtype=name) for name in ("float32", "bfloat16")}
    captioners["int8"] = load(device="cpu", dtype="float32")
    first, others = photos[:CALIBRATION], photos[CALIBRATION:][:400]
    pixel_values = pixels_of(captioners["float32"], first)
    model = model_of(captioners["int8"])
    assert isinstance(model.backbone, EfficientNetLite)
    model.backbone = Int8Backbone(model.backbone, torch.cat([pixel_values, pixel_values.flip(3)]))
    print("photos", *(f"{name}, ms" for name in captioners), sep="\t")
    for count in PHOTOS:
        some = pixel_values[:count]
        runs = [
            partial(
                in_torch, model_of(each), some.to(torch.bfloat16 if name == "bfloat16" else torch.float32)
            )
            for name, each in captioners.items()
        ]
        times = in_turns(runs, repeats)
        print(count, *(f"{1000 * seconds / count:.1f}" for seconds in times), sep="\t", flush=True)
    captions = {name: [one.caption for one in each.caption(others)] for name, each in captioners.items()}
    same = [np.mean(np.equal(captions["float32"], found)) for found in captions.values()]
    print(f"same of {len(others)}", *(f"{share:.1%}" for share in same), sep="\t")


class Int8Backbone(Backbone):
    """An EfficientNet-Lite whose maps and weights are 8-bit numbers, from the pixels to the features."""

    large_maps = EfficientNetLite.large_maps

    def __init__(self, backbone: EfficientNetLite, pixel_values: Tensor) -> None:
        super().__init__()
        self.num_stages = backbone.num_stages
        maps = Maps(backbone, pixel_values)
        self.pixels = previous = scale_of(pixel_values.min().item(), pixel_values.max().item())
        self.stages: list[list[Int8Block]] = []
        for stage in ([backbone.stem], *backbone.groups, [backbone.head]):
            blocks = []
            for block in stage:
                layers = list(layers_of(block))
                skips = isinstance(block, InvertedResidual) and block.skip
                blocks.append(Int8Block(maps, layers, previous, skips=skips, last=block is backbone.head))
                previous = maps.scales[layers[-1]]
            self.stages.append(blocks)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        if start == 0:
            scale, zero = self.pixels
            x = (x / scale + zero).round_().clamp_(0, 255).to(torch.uint8)
            x = x.contiguous(memory_format=torch.channels_last)
        for blocks in self.stages[start:stop]:
            for block in blocks:
                x = block(x)
        return x


Scale = tuple[float, int]
"""What a step of 1 stands for, and the number that stands for 0."""


def scale_of(low: float, high: float) -> Scale:
    """That of 256 numbers between two, with 0 among them."""
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    return scale, round(-min(low, 0.0) / scale)


def layers_of(block: nn.Module) -> Iterator[SameConv2d]:
    """The convolutions of a block in order, or the one that it is."""
    yield from (each for each in block.modules() if isinstance(each, SameConv2d))


class Maps:
    """The scales and sizes of all maps, as they are for some photos.

    Attributes:
        scales: of each layer's output.
        sizes: rows and columns of each layer's input.
    """

    def __init__(self, backbone: EfficientNetLite, pixel_values: Tensor) -> None:
        self.sizes: dict[nn.Module, torch.Size] = {}
        ranges: dict[nn.Module, tuple[float, float]] = {}

        def see(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            values = out.flatten()
            values = values[:: 1 + len(values) // 1_000_000]
            low, high = torch.quantile(values, torch.tensor([OUTLIERS, 1 - OUTLIERS])).tolist()
            before = ranges.get(layer, (0.0, 0.0))
            self.sizes[layer] = given[0].shape[-2:]
            ranges[layer] = (min(low, before[0]), max(high, before[1]))

        hooks = [layer.register_forward_hook(see) for layer in layers_of(backbone)]
        for part in pixel_values.split(8):
            backbone.run(part)
        for hook in hooks:
            hook.remove()
        self.scales = {layer: scale_of(*between) for layer, between in ranges.items()}


class Int8Block:
    """Convolutions one after the other. The range of a map's numbers cuts off what a ReLU6 would."""

    def __init__(
        self, maps: Maps, layers: Sequence[SameConv2d], scale: Scale, *, skips: bool, last: bool
    ) -> None:
        self.skipped = scale if skips else None
        self.runs = []
        for layer in layers:
            to = None if last else maps.scales[layer]
            self.runs.append(int8_convolution(layer, maps.sizes[layer], scale, to))
            scale = maps.scales[layer]

    def __call__(self, x: Tensor) -> Tensor:
        *runs, last = self.runs
        y = x
        for run in runs:
            y = run(y)
        return last(y) if self.skipped is None else last(y, x, self.skipped)


def int8_convolution(
    layer: SameConv2d, size: torch.Size, given: Scale, to: Scale | None
) -> Callable[..., Tensor]:
    """A layer for maps of that size, in oneDNN; without a scale ``to``, it gives float32 after a ReLU6."""
    onednn = torch.ops.onednn
    before, after = layer._padding(size)
    more = after[0] - before[0]
    weight = F.pad(layer.weight, (more, 0, more, 0))  # else the padding would differ from side to side
    scales = weight.abs().amax((1, 2, 3)).clamp(min=1e-8) / 127
    rounded = (weight / scales[:, None, None, None]).round().to(torch.int8)
    how = (list(layer.stride), after, [1, 1], layer.groups)
    packed = onednn.qconv_prepack(rounded, scales, *given, *how, None)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    out = (1.0, 0, torch.float32) if to is None else (*to, torch.uint8)
    end = ("hardtanh", [0.0, 6.0], "") if to is None else ("none", [], "")

    def run(x: Tensor, skip: Tensor | None = None, scale: Scale | None = None) -> Tensor:
        common = (x, *given, packed, scales, zeros)
        if skip is None or scale is None:
            y: Tensor = onednn.qconv2d_pointwise(*common, layer.bias, *how, *out, *end)
        else:  # the sum comes to lie in the place of ``skip``, which nothing else needs
            y = onednn.qconv2d_pointwise.binary(
                *common, skip, layer.bias, *how, *out, *scale, "sum", 1.0, "none", [], ""
            )
        return y

    return run


def model_of(captioner: Captioner) -> CaptionModel:
    """The network that it runs."""
    assert captioner.checkpoint is not None
    return captioner.checkpoint.model


def in_torch(model: CaptionModel, pixel_values: Tensor) -> Tensor:
    """The features, of as many photos at once as the library takes."""
    at_once = model.photos_at_once(pixel_values.device, pixel_values.dtype) or len(pixel_values)
    return torch.cat([model.features(part) for part in torch.split(pixel_values, at_once)])


def pixels_of(captioner: Captioner, photos: Sequence[Path]) -> Tensor:
    """``(B, 3, H, W)`` float32."""
    assert captioner.checkpoint is not None
    contents = torch.stack([captioner.prepare(photo).content for photo in photos])
    return captioner.checkpoint.processor.normalize(contents, torch.float32)


def in_turns(runs: Sequence[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Median seconds of each, after two runs that are not counted."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 2):
        for run, each in zip(runs, times, strict=True):
            begun = time.perf_counter()
            run()
            each.append(time.perf_counter() - begun)
    return [statistics.median(each[2:]) for each in times]


if __name__ == "__main__":
    main()
