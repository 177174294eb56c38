"""The image encoder in torch and in OpenVINO, in turns: milliseconds a photo, medians.

    pip install openvino
    python scripts/openvino_speed.py [--repeats 10]

Both give each photo its two looks. OpenVINO runs the network that torch exports, with as many threads as
torch, and with as many photos at once as is fastest for it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from captioner import load
from captioner.model import CaptionModel

AT_ONCE = 2  # photos, in OpenVINO


class Backbone(nn.Module):
    """A model's backbone as a function of pixels alone, which can be exported."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.backbone.run(pixel_values)


def main() -> None:
    """Print a table, tab-separated."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    models = {name: shipped_model(name) for name in ("float32", "bfloat16")}
    model = models["float32"]
    side = model.config.backbone.image_size
    exported = torch.export.export(Backbone(model).eval(), (torch.zeros(2, 3, side, side),))
    network = openvino.convert_model(exported)
    print("photos", "number type", "torch, ms", "OpenVINO, ms", "difference", sep="\t")
    for photos in (1, 8, 32):
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
                ours = partial(models[name].features, pixel_values.to(getattr(torch, name)))
                times = in_turns([ours, theirs], repeats)
                expected = model.features(pixel_values)
            difference = (theirs() - expected).norm() / expected.norm()
            each = [f"{1000 * seconds / photos:.1f}" for seconds in times]
            print(photos, name, *each, f"{difference:.0e}", sep="\t", flush=True)


def shipped_model(dtype: str) -> CaptionModel:
    """It in a number type."""
    checkpoint = load(device="cpu", dtype=dtype).checkpoint
    assert checkpoint is not None
    return checkpoint.model


def features(request: openvino.InferRequest, pixel_values: Tensor, at_once: int) -> Tensor:
    """What ``CaptionModel.features`` gives. No operator of torch runs, whose threads would go on spinning."""
    found = []
    for photos in np.split(pixel_values.numpy(), len(pixel_values) // at_once):
        looks = np.concatenate([photos, photos[..., ::-1]])
        plain, mirrored = np.split(request.infer([looks], share_inputs=True)[0], 2)
        found.append((plain + mirrored[..., ::-1]) / 2)
    return torch.from_numpy(np.concatenate(found))


def in_turns(runs: list[Callable[[], Tensor]], repeats: int) -> list[float]:
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
