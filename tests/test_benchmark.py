"""The benchmark: it measures what it says, against a twin that is the same model. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import huggingface
import pytest
import torch
from PIL import Image
from tiny import tiny_captioner, tiny_checkpoint
from torch import nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from captioner import GenerationOptions, OptionsError, SearchOptions
from captioner.checkpoint import Checkpoint, save_checkpoint
from captioner.cli import main
from captioner.convert import read_hugging_face
from captioner.decoder import TextDecoder
from captioner.evaluation.architectures import random_checkpoint
from captioner.evaluation.benchmark import BenchmarkResult, benchmark
from captioner.evaluation.measure import bare_products
from captioner.evaluation.processor import find_processor
from captioner.evaluation.twin import build_twin
from captioner.generation import generate
from captioner.runners import CheckpointRunner


def converted(save: Callable[..., object], **options: int) -> Callable[[Path], Checkpoint]:
    def build(folder: Path) -> Checkpoint:
        save(folder, seed=1, **options)
        return read_hugging_face(folder)

    return build


KINDS: dict[str, tuple[Callable[[Path], Checkpoint], str]] = {
    "ours": (lambda _: tiny_checkpoint(), "the decoder, after our encoder"),
    "blip": (converted(huggingface.save_blip), "the whole model"),
    "vit-gpt2": (converted(huggingface.save_vit_gpt2), "the whole model"),
    "florence2": (converted(huggingface.save_florence2), "the whole model"),
    "vit-gpt2 of two widths": (converted(huggingface.save_vit_gpt2, width=16), "the whole model"),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_twin_is_the_same_model(kind: str, tmp_path: Path):
    build, scope = KINDS[kind]
    checkpoint = build(tmp_path)
    twin = build_twin(checkpoint)
    assert twin.scope == scope
    rules = CheckpointRunner(checkpoint).rules
    side = checkpoint.model.config.backbone.image_size
    pixel_values, seen = torch.randn(6, 3, side, side), set[tuple[int, ...]]()
    for num_beams, min_length in ((1, 0), (3, 0), (3, 5)):
        options = SearchOptions(
            num_beams=num_beams, max_length=10, min_length=min_length, early_stopping=True
        )
        found = generate(
            checkpoint.model.decoder,
            checkpoint.model.encode(pixel_values).region_tokens,
            options,
            rules(options),
        )
        ours = [list(hypotheses[0].token_ids) for hypotheses in found]
        assert twin.search(twin.encode(pixel_values), options) == ours
        seen |= set(map(tuple, ours))
    assert len(seen) > 3


def test_a_decoder_that_transformers_does_not_have_is_refused():
    checkpoint = tiny_checkpoint()
    config = replace(checkpoint.model.config.decoder, norm="post")
    checkpoint.model.decoder = TextDecoder(config)
    checkpoint.model.config = replace(checkpoint.model.config, decoder=config)
    with pytest.raises(OptionsError, match="no decoder of this model's shape"):
        build_twin(checkpoint)


def test_a_benchmark_says_what_it_measured():
    steps: list[tuple[str, int, int]] = []
    found: list[BenchmarkResult] = []
    options = GenerationOptions(num_beams=2, max_length=7, min_length=7, attention=True)
    result = benchmark(
        tiny_captioner(),
        options=options,
        batch_sizes=(1, 3),
        repeats=2,
        against_transformers=True,
        progress=lambda *step: steps.append(step),
        found=found.append,
    )
    assert (result.model, result.device, result.dtype, result.num_beams) == ("tiny", "cpu", "float32", 2)
    assert result.tokens == 7
    assert list(result.images_per_second) == [1, 3]
    assert [comparison.batch_size for comparison in result.comparisons] == [1, 3]
    for comparison in result.comparisons:
        assert comparison.same == 1
        speeds = comparison.images_per_second, comparison.transformers_images_per_second
        assert comparison.ratio == pytest.approx(speeds[0] / speeds[1])
    assert result.scope == "the decoder, after our encoder"
    assert result.transformers is not None
    numbers = (
        result.latency_p50_ms,
        result.latency_p95_ms,
        result.tokens_per_second,
        *vars(result.stages_ms or object).values(),
        *result.images_per_second.values(),
    )
    assert all(number > 0 for number in numbers)
    assert result.latency_p50_ms <= result.latency_p95_ms
    assert 10 < result.peak_memory_mb < 100_000
    assert steps[0] == ("one photo at a time", 0, 8)
    assert [done for _, done, _ in steps] == list(range(8))
    assert found[-1] == result
    assert [len(each.images_per_second) for each in found] == [0, 1, 2, 2, 2, 2, 2, 2], "as they come"
    assert list(result.steps_ms) == [1, 3]
    for step in result.steps_ms.values():
        assert step.ratio == pytest.approx(step.step / step.products)
    assert json.loads(json.dumps(result.to_dict()))["comparisons"][1]["batch_size"] == 3


def test_the_bare_products_are_those_of_a_step():
    """All the decoder's linear layers but those of the region tokens, which are no part of a step."""
    decoder = tiny_checkpoint().model.decoder
    ran: list[tuple[int, int]] = []
    for name, layer in decoder.named_modules():
        if isinstance(layer, nn.Linear) and not name.endswith(".kv"):
            layer.register_forward_hook(lambda layer, _, out: ran.append((id(layer), out.shape[-2])))
    bare_products(decoder, 6)()
    assert len({layer for layer, _ in ran}) == len(ran) == 6 * decoder.config.layers
    assert {rows for _, rows in ran} == {6}


GRID = "batch=1,2 beams=1,3 length=4 dtype=float32,bfloat16"


def test_a_grid_is_measured_cell_by_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    argv = ["benchmark", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--repeats", "1"]
    plot = tmp_path / "plot.png"
    assert main([*argv, "--grid", GRID, "--json", "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    cells = [json.loads(line) for line in out.splitlines()]
    expected = product(("float32", "bfloat16"), (1, 3), (1, 2))
    assert [(cell["dtype"], cell["beams"], cell["batch"]) for cell in cells] == list(expected)
    assert {cell["length"] for cell in cells} == {4}
    for cell in cells:
        milliseconds = cell["encode_ms"] + cell["length"] * cell["step_ms"]
        assert cell["images_per_second"] == pytest.approx(1000 * cell["batch"] / milliseconds)
    assert "(8 of 8)" in err
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert main([*argv, "--grid", "batch=2", "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| batch | beams | length | dtype | encode ms |")
    assert [row.split(" | ")[:4] for row in table[2:]] == [["| 2", "2", "12", "float32"]]


@pytest.mark.parametrize(
    "wrong",
    ["batch", "batch=", "batch=0", "batch=two", "width=3", "dtype=int8", "beams=65", "length=47 beams=2000"],
)
def test_a_grid_of_what_there_is_not_is_refused(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    assert main(["benchmark", "--model", str(tmp_path / "tiny"), "--grid", wrong]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("captioner: ")
    assert len(output.out.splitlines()) <= 1, "the table's head at most"


def test_the_processor_is_the_one_that_torch_runs_on(monkeypatch: pytest.MonkeyPatch):
    found, kernels = find_processor(), torch.backends.cpu.get_cpu_capability().lower()
    assert found.name
    if kernels.startswith("avx"):
        assert any(name.startswith(kernels) for name in found.instruction_sets)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in an older torch
    assert find_processor().name
    assert find_processor().instruction_sets == (kernels,)


def test_nothing_is_compared_unless_asked_for():
    result = benchmark(tiny_captioner(), batch_sizes=(2,), repeats=1)
    assert result.comparisons == ()
    assert result.transformers is None
    assert result.num_beams == 2, "the model's own default"


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch_sizes": ()}, {"batch_sizes": (0, 1)}])
def test_impossible_numbers_are_refused(wrong: dict[str, int]):
    with pytest.raises(OptionsError, match="at least 1"):
        benchmark(tiny_captioner(), **wrong)


def test_the_random_models_have_the_true_sizes():
    """Counted without memory: tensors on the meta device have shapes alone."""
    with torch.device("meta"):
        ours = {name: random_checkpoint(name).model for name in ("blip-base", "vit-gpt2")}
        settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
        theirs = {
            "blip-base": BlipForConditionalGeneration(BlipConfig()),
            "vit-gpt2": VisionEncoderDecoderModel(settings),
        }
    for name, model in ours.items():
        expected = {
            id(parameter): parameter.numel()
            for key, parameter in theirs[name].named_parameters()
            if "pooler" not in key and "predictions.decoder" not in key and "lm_head" not in key
        }
        assert sum(parameter.numel() for parameter in model.parameters()) == sum(expected.values())
    with pytest.raises(OptionsError, match="blip-base, vit-gpt2"):
        random_checkpoint("git")


def test_the_command_prints_or_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    argv = ["benchmark", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--repeats", "1"]
    argv += ["--batch-sizes", "1,2", "--against", "transformers", "--beams", "3"]
    assert main(argv) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    measured = [name for name, _ in lines]
    assert measured == [
        "model",
        "device",
        "processor",
        "one photo",
        "its stages",
        "batch of 1",
        "batch of 2",
        "step for 1",
        "step for 2",
        "decode loop",
        "peak memory",
        "against",
        "batch of 1",
        "apart",
        "batch of 2",
        "apart",
    ]
    assert lines[0][1] == "tiny, 3 beams"
    assert lines[-2][1].endswith(" of the captions the same")
    assert lines[-1][1].startswith("search ")
    assert main([*argv, "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[:2] == ["| measure | result |", "| --- | --- |"]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table[2:]] == measured
    assert main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["num_beams"] == 3
    assert lines[2] == ["processor", ", ".join([data["processor"], *data["instruction_sets"]])]
    assert [comparison["batch_size"] for comparison in data["comparisons"]] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [["--against", "whisper"], ["--batch-sizes", "many"], ["--random", "git"], ["--plot", "grid.png"]],
)
def test_the_command_refuses_what_it_does_not_know(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    assert main(["benchmark", "--model", str(tmp_path / "tiny"), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err
