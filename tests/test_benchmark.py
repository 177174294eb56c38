"""The benchmark: it measures what it says, against a twin that is the same model. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
from model_servers import model_server
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
from captioner.captioner import Captioner
from captioner.checkpoint import Checkpoint, save_checkpoint
from captioner.cli import main
from captioner.convert import read_hugging_face
from captioner.decoder import TextDecoder
from captioner.evaluation.architectures import random_checkpoint
from captioner.evaluation.benchmark import BenchmarkResult, benchmark
from captioner.evaluation.measure import Measurements, bare_products
from captioner.evaluation.processor import find_processor
from captioner.evaluation.twin import build_twin
from captioner.generation import generate
from captioner.runners import CheckpointRunner, PreparedImage, WrittenCaption


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


def test_a_decoder_of_another_shape_is_refused():
    checkpoint = tiny_checkpoint()
    config = replace(checkpoint.model.config.decoder, norm="post")
    checkpoint.model.decoder = TextDecoder(config)
    checkpoint.model.config = replace(checkpoint.model.config, decoder=config)
    with pytest.raises(OptionsError, match="cannot build a model of this shape"):
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


def saved(folder: Path, name: str = "tiny") -> list[str]:
    """The command for a model, each time measured once."""
    if name == "tiny":
        save_checkpoint(tiny_checkpoint(), folder / name, dtype=torch.float32)
    else:
        (folder / name).mkdir()
        SAVED[name](folder / name, seed=1)
    return ["benchmark", "--model", str(folder / name), "--device", "cpu", "--repeats", "1"]


SAVED: dict[str, Callable[..., object]] = {
    "blip": huggingface.save_blip,
    "florence2": huggingface.save_florence2,
    "git": huggingface.save_git,
    "vit-gpt2": huggingface.save_vit_gpt2,
}


def test_a_grid_is_measured_cell_by_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    argv, plot = saved(tmp_path), tmp_path / "plot.png"
    assert main([*argv, "--grid", GRID, "--json", "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    cells = [json.loads(line) for line in out.splitlines()]
    expected = product(("float32", "bfloat16"), (1, 3), (1, 2))
    assert [(cell["dtype"], cell["beams"], cell["batch"]) for cell in cells] == list(expected)
    assert {(cell["length"], cell["runner"]) for cell in cells} == {(4, "captioner")}
    for cell in cells:
        milliseconds = cell["encode_ms"] + cell["length"] * cell["step_ms"]
        assert cell["images_per_second"] == pytest.approx(1000 * cell["batch"] / milliseconds)
    assert "(8 of 8)" in err
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert (
        main([*argv, "--grid", "beams=3,3", "--batch-sizes", "2", "--dtype", "bfloat16", "--markdown"]) == 0
    )
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| batch | beams | length | dtype | runner | encode ms |")
    assert [row.split(" | ")[:5] for row in table[2:]] == [["| 2", "3", "12", "bfloat16", "captioner"]]


@pytest.mark.parametrize("name", ["tiny", *SAVED])
def test_a_grid_has_both_runners_of_a_model_in_turns(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runners = ("transformers",) if name == "git" else ("captioner", "transformers")
    argv = [*saved(tmp_path, name), "--grid", f"batch=1,2 length=4 runner={','.join(runners)}"]
    assert main([*argv, "--json"]) == 0
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(cell["batch"], cell["runner"]) for cell in cells] == list(product((1, 2), runners))
    for cell in cells:
        theirs = cell["runner"] == "transformers"
        assert cell["images_per_second"] > 0
        assert (cell["encode_ms"] is None) == (theirs and name in ("tiny", "git")), "it has no such encoder"
        assert (cell["step_ms"] is None) == (cell["products_ms"] is None) == (name == "git"), "run as a whole"
    for batch in (1, 2):
        assert len({cell["products_ms"] for cell in cells if cell["batch"] == batch}) == 1, "one floor"
    if name == "git":
        assert main([*argv[:-1], "runner=captioner"]) == 2
        assert "run by transformers alone" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_both_runners_take_as_many_steps(kind: str, tmp_path: Path):
    """Else the time of a step would not be one."""
    captioner = Captioner(CheckpointRunner(KINDS[kind][0](tmp_path)), name=kind)
    options = replace(captioner.resolve(), num_beams=3, max_length=6, min_length=6)
    measurements = Measurements(captioner, options, 1)
    ours = measurements.ours(2, options)
    assert captioner.checkpoint is not None
    theirs = measurements.theirs(build_twin(captioner.checkpoint), 2, options, ours)
    steps = {len(ids) for parts in (ours, theirs) for ids in parts.search()}
    assert steps == {measurements.steps()}


def test_runs_in_turns_are_not_one_after_the_other():
    ran: list[str] = []
    runs = [partial(ran.append, name) for name in "ab"]
    times = Measurements(tiny_captioner(), SearchOptions(), 3).in_turns(*runs, runs[0])
    assert "".join(ran).endswith("ababab")
    assert list(times) == runs, "what is given twice runs once"


def test_what_has_no_twin_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = saved(tmp_path)
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    config["generation"]["repetition_penalty"] = 1.5
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    for wanted in (["--grid", "batch=1 runner=captioner,transformers"], ["--against", "transformers"]):
        assert main([*argv, *wanted]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "penalty cannot be compared" in err
        assert len(err.splitlines()) == 1
    assert main([*argv, "--grid", "batch=1 length=4"]) == 0, "alone it can be measured"


class Terminal(StringIO):
    """What stderr is when a person watches."""

    def isatty(self) -> bool:
        return True


def test_results_go_where_they_are_meant_while_a_bar_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    terminal = Terminal()
    with redirect_stderr(terminal):
        assert main([*saved(tmp_path), "--grid", "batch=1,2 length=4", "--json"]) == 0
    assert [json.loads(line)["batch"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert "batch=2" in terminal.getvalue()
    assert "images_per_second" not in terminal.getvalue()


class Small(CheckpointRunner):
    """Has memory for one photo."""

    def caption(self, images: Sequence[PreparedImage], *args: Any, **how: Any) -> list[list[WrittenCaption]]:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().caption(images, *args, **how)


def test_what_is_known_when_memory_runs_out_is_printed(capsys: pytest.CaptureFixture[str]):
    def load(*_: object, **__: object) -> Captioner:
        return Captioner(Small(tiny_checkpoint()), name="tiny")

    assert main(["benchmark", "--batch-sizes", "1,2", "--repeats", "1", "--json"], load=load) == 1
    out, err = capsys.readouterr()
    assert list(json.loads(out)["images_per_second"]) == ["1"]
    assert "memory ran out" in err.splitlines()[-1]


def test_a_grid_that_ends_early_is_drawn_as_far_as_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("matplotlib")

    def load(*_: object, dtype: str, **__: object) -> Captioner:
        if dtype == "bfloat16":
            raise KeyboardInterrupt
        return tiny_captioner()

    plot = tmp_path / "plot.png"
    argv = ["benchmark", "--repeats", "1", "--json", "--plot", str(plot)]
    assert main([*argv, "--grid", "batch=1 length=4 dtype=float32,bfloat16"], load=load) == 130
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert plot.stat().st_size > 0


@pytest.mark.parametrize(
    "wrong",
    [
        "batch",
        "batch=",
        "batch=0",
        "batch=two",
        "batch=1 batch=2",
        "width=3",
        "dtype=int8",
        "runner=vllm",
        "beams=65",
        "batch=1 length=4,47 beams=2000",
        "batch=1 length=4,900",
    ],
)
def test_a_grid_of_what_there_is_not_is_refused(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*saved(tmp_path), "--grid", wrong]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("captioner: ")
    assert len(output.err.splitlines()) == 1, "nothing is measured before"
    assert output.out == ""


def test_a_model_on_a_server_has_no_parts(capsys: pytest.CaptureFixture[str]):
    with model_server() as server:
        argv = ["benchmark", "--model", server.openai, "--batch-sizes", "1,2", "--repeats", "1"]
        assert main(argv) == 0
        out = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [name for name, _ in out] == ["model", "device", "one photo", "batch of 1", "batch of 2"]
        assert out[1][1].startswith("the server 127.0.0.1:")
        for more in (["--grid", "batch=1"], ["--against", "transformers"]):
            assert main([*argv, *more]) == 2
            assert "is on a server" in capsys.readouterr().err


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
    [
        ["--against", "whisper"],
        ["--batch-sizes", "many"],
        ["--batch-sizes", "1,0"],
        ["--random", "blip-base"],
        ["--plot", "grid.png"],
        ["--grid", "batch=1", "--against", "transformers"],
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    assert main(["benchmark", "--model", str(tmp_path / "tiny"), *wrong]) == 2
    assert wrong[-1] in capsys.readouterr().err


def test_the_command_has_two_random_models(capsys: pytest.CaptureFixture[str]):
    assert main(["benchmark", "--random", "git"]) == 2
    assert "blip-base, vit-gpt2" in capsys.readouterr().err
