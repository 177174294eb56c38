"""Weights in 4 bits: NF4 by `bitsandbytes` (Dettmers et al. 2023), a quarter of the memory of bfloat16.

Only the linear layers of the text decoder are stored so, nearly all the weights of such a model. The image
encoder and the output layer, where rounding costs most, keep the type of number that all is computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captioner.errors import DeviceError

__all__ = ["check_int4", "how_to_load", "lay_out"]

ROWS, COLUMNS = 32, 64
"""A matrix's sides are multiples of these, else it stays as it is: blocks of weights that share a scale, and
what the fast kernel for CPUs takes."""


def check_int4(device: torch.device, *, needs: Sequence[str] = ("accelerate", "bitsandbytes")) -> None:
    """Raise DeviceError where the device cannot use weights in 4 bits, or a package is missing."""
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"int4 runs on a CPU or on CUDA, not on {device.type}: use another --dtype")
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        raise DeviceError(
            f"int4 needs {' and '.join(missing)}: pip install 'captioner[int4]', or use another --dtype"
        )


def how_to_load(directory: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` of a vision-language model in 4 bits takes besides."""
    library: Any = import_module("transformers")
    config = library.AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        network = library.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    small = {module for module in network.get_decoder().modules() if _fits(module)}
    whole = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module not in small
    ]
    return {
        "device_map": {"": device},
        "quantization_config": library.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=whole,
        ),
    }


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not (module.out_features % ROWS or module.in_features % COLUMNS)


def lay_out(network: nn.Module) -> None:
    """Let each layer lay out its weights as the CPU wants them, which its first use does, for one thread."""
    layers: Any = import_module("bitsandbytes.nn")
    for module in network.modules():
        if isinstance(module, layers.Linear4bit):
            module(
                torch.zeros(1, module.in_features, dtype=module.compute_dtype, device=module.weight.device)
            )
