"""LoRA (Hu et al. 2021): small additions to linear layers are trained, and the weights themselves stay.

The additions are `peft`'s. What a run keeps has them added to the weights: a plain checkpoint, which loads
without `peft`.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch
from torch import nn

from captioner.errors import OptionsError
from captioner.model import CaptionModel, model_without_weights

__all__ = ["add_lora", "merged"]

ADAPTER = "default"  # peft's name for the only one of a model


def add_lora(model: CaptionModel, *, rank: int, seed: int) -> None:
    """Give all linear layers whose weights are to be trained an addition, which is then trained instead.

    Its first matrix is drawn at random by the seed and its second is 0, so that nothing changes at first.
    All other parameters of the model no longer take a gradient.

    Raises:
        OptionsError: `peft` is missing.
    """
    if find_spec("peft") is None:
        raise OptionsError("--lora needs peft: pip install 'captioner[lora]'")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft imports, and which has much to say
    from peft import LoraConfig, inject_adapter_in_model

    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def merged(model: CaptionModel) -> CaptionModel:
    """The plain model that one with additions is, in memory of its own where the two differ.

    Additions are added to copies, never to the weights and taken off again, which would change their last
    bits.
    """
    from peft.tuners.lora import Linear

    tensors = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Linear):
                weight = f"{name}.weight"
                tensors[weight] = tensors[weight] + module.get_delta_weight(ADAPTER)
    plain = model_without_weights(model.config)
    plain.load_state_dict(tensors, assign=True)
    return plain.eval().requires_grad_(False)
