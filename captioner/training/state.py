"""The state of a run that changes as it goes: weights, their average, the optimiser, and where it stands."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioner.errors import CheckpointError
from captioner.model import CaptionModel
from captioner.training.digest import digest
from captioner.training.lora import add_lora
from captioner.training.options import TrainingOptions

__all__ = ["TrainingState"]

LOWER_RATE = 0.25  # of the backbone's, in the lower half of its stages: edges and textures serve all photos
HELPER_RATE = 10 / 3  # of the decoder's: a linear layer from nothing


class TrainingState:
    """What a killed run is resumed from.

    Args:
        model: to be trained in place.
        options: of the run.
        output: the run's folder.
        helper: what is trained along with the model, but is no part of it.

    Attributes:
        frozen_stages: backbone stages that stay as they are.
        trained: all parameters that are trained in some epoch.
        average: their exponential moving average, or the mean of the last ones of self-critical training.
        base: digest of the weights that no epoch trains.
        epoch: epochs done.
        step: optimiser steps done.
        averaged: of how many steps the average is the plain mean; 0 for a moving one.
        best: validation CIDEr of the weights that are kept.
        history: what ``metrics.jsonl`` holds.
    """

    def __init__(
        self, model: CaptionModel, options: TrainingOptions, output: Path, *, helper: nn.Module | None = None
    ) -> None:
        self.model, self.options, self.output = model, options, output
        self.helper = helper
        self.frozen_stages = options.fixed_stages(model.backbone.num_stages)
        self.trained = self._trained()
        self.base = self._base()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=options.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}
        self.epoch, self.step, self.averaged, self.best = 0, 0, 0, -1.0
        self.history: list[dict[str, Any]] = []

    def _trained(self) -> dict[str, nn.Parameter]:
        """All but what the backbone's features are read by, and those of its stages that stay as they are.

        With LoRA, the additions to their linear layers.
        """
        options, model = self.options, self.model
        upper = model.backbone.stage_parameters(self.frozen_stages) if options.backbone_rate > 0 else []
        fixed = {id(p) for p in model.backbone.parameters()} - {id(p) for p in upper}
        for name, parameter in model.named_parameters():
            is_reader = "classifier" in name or "word_head" in name
            parameter.requires_grad_(id(parameter) not in fixed and not is_reader)
        if options.lora:
            add_lora(model, rank=options.lora, seed=options.seed)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        helper = dict(self.helper.named_parameters()) if self.helper is not None else {}
        return {**trained, **{f"helper.{name}": p for name, p in helper.items()}}

    def _base(self) -> str:
        """Without the word head, which may be fitted each time a run begins or goes on."""
        fixed = {name: value for name, value in self.model.state_dict().items() if name not in self.trained}
        fitted = ("word_head.weight", "word_head.bias", "word_prior")
        return digest(value for name, value in sorted(fixed.items()) if not name.endswith(fitted))

    def train_backbone(self, on: bool) -> None:
        """Let those parameters of the backbone that are trained take a gradient, or not."""
        for name, parameter in self.trained.items():
            if name.startswith("backbone."):
                parameter.requires_grad_(on)

    def _groups(self) -> list[dict[str, Any]]:
        options, backbone = self.options, self.model.backbone
        rates = {
            id(p): LOWER_RATE * options.backbone_rate for p in backbone.stage_parameters(self.frozen_stages)
        }
        upper = backbone.stage_parameters(max(self.frozen_stages, backbone.num_stages // 2))
        rates |= {id(p): options.backbone_rate for p in upper}
        if self.helper is not None:
            rates |= {id(p): HELPER_RATE for p in self.helper.parameters()}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in self.trained.values():
            rate = rates.get(id(parameter), 1.0)
            decay = options.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": ps, "rate": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]

    @property
    def epochs(self) -> int:
        """All epochs of the run."""
        return self.options.all_epochs

    @property
    def kept(self) -> int:
        """The epoch with the best validation, the first of several."""
        best = max(self.history, key=lambda record: float(record["cider"]))
        return int(best["epoch"])

    @property
    def phase(self) -> Literal["text", "xe", "scst"]:
        """What the next epoch learns from: text alone, captions by cross-entropy, or rewards."""
        if self.epoch < self.options.text_epochs:
            return "text"
        return "xe" if self.epoch < self.options.text_epochs + self.options.epochs else "scst"

    @property
    def tunes_backbone(self) -> bool:
        """Whether this epoch trains the backbone's upper stages."""
        options = self.options
        done = self.epoch - options.text_epochs
        return options.backbone_rate > 0 and self.phase == "xe" and done >= options.frozen_epochs

    def set_rate(self, step: int, steps: int) -> None:
        """For one of the steps of this epoch, from 0.

        In cross-entropy training linear warm-up over half an epoch, then cosine to 2 %; in that on text alone
        constant after the warm-up; always constant in self-critical training.
        """
        options = self.options
        if self.phase == "scst":
            rate = options.scst_rate
        else:
            first = 0 if self.phase == "text" else options.text_epochs
            taken = (self.epoch - first) * steps + step
            rate = options.learning_rate * min(1.0, (taken + 1) / max(1, steps // 2))
            if self.phase == "xe":
                done = taken / max(1, steps * options.epochs)
                rate = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]

    def in_mean(self, step: int, steps: int) -> bool:
        """Whether one of the steps of this epoch, from 0, is among those whose weights are all averaged."""
        options = self.options
        first = options.text_epochs + options.epochs
        taken, all_of_them = (self.epoch - first) * steps + step, options.scst_epochs * steps
        return self.phase == "scst" and taken >= all_of_them - round(options.scst_mean * all_of_them)

    def update(self, loss: Tensor, *, in_mean: bool = False) -> None:
        """One optimiser step, and the average follows: a moving one, or the mean since ``in_mean`` began."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.averaged = self.averaged + 1 if in_mean else 0
        decay = (
            1 - 1 / self.averaged if in_mean else min(self.options.ema, (1 + self.step) / (10 + self.step))
        )
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.values()], [*self.trained.values()], 1 - decay)

    def exchange_weights(self) -> None:
        """Swap the weights with their average; twice is as before."""
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def save(self) -> None:
        """Write everything a resumed run needs, in one file that is replaced at once."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        names = ("base", "epoch", "step", "averaged", "best", "history")
        where = {name: getattr(self, name) for name in names}
        partial = self.output / "state.safetensors.partial"
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial, {"run": json.dumps(where)}
        )
        os.replace(partial, self.output / "state.safetensors")
        self.write_history()

    def write_history(self) -> None:
        """``metrics.jsonl``, a line an epoch; the state has it all, so a kill in between loses nothing."""
        lines = [json.dumps(record) + "\n" for record in self.history]
        (self.output / "metrics.jsonl").write_text("".join(lines))

    def load(self) -> None:
        """Go on from a saved state, where there is one. Raises CheckpointError if it is another model's."""
        path = self.output / "state.safetensors"
        if not path.exists():
            return

        def refuse(difference: str) -> NoReturn:
            raise CheckpointError(
                f"{path} is the state of another model ({difference}): "
                "give the options it began with, or another --output"
            )

        targets = {f"model.{name}": parameter.data for name, parameter in self.trained.items()}
        targets |= {f"average.{name}": value for name, value in self.average.items()}
        state: dict[int, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            where = json.loads(file.metadata()["run"])
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(key)
                if key.startswith("optimizer."):
                    _, index, part = key.split(".")
                    state.setdefault(int(index), {})[part] = tensor
                elif key in targets and targets[key].shape == tensor.shape:
                    targets[key].copy_(tensor)
                else:
                    refuse(f"{key} differs")
        if where.pop("base", None) != self.base:
            refuse("weights that are not trained differ")
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        for name, value in where.items():
            setattr(self, name, value)
        self.write_history()
