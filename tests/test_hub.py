"""Models of the hub: the real client against a hub of our own on loopback, with real files and faults."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface
import pytest
import torch
import vlm
from hub import Commit, LoopbackHub, Repository, git_digest, read_commit, serving
from images import draw_noise
from safetensors.torch import load_file

import captioner
from captioner import CheckpointError
from captioner.cli import main
from captioner.hub import CATALOGUE, Hub, fetch, is_local, known_model, record_of, with_safetensors

NAME = "someone/tiny"


@pytest.fixture(scope="module")
def vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vit-gpt2")
    huggingface.save_vit_gpt2(directory)
    return directory


@pytest.fixture(scope="module")
def pickled(vit_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its weights as a pickle only, as nlpconnect/vit-gpt2-image-captioning has them."""
    directory = tmp_path_factory.mktemp("pickled")
    shutil.copytree(vit_gpt2, directory, dirs_exist_ok=True)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of 24 MB, since the client writes pieces of 10 MB."""
    directory = tmp_path_factory.mktemp("heavy")
    huggingface.save_vit_gpt2(directory, intermediate_size=60_000)
    return directory


@pytest.fixture
def server() -> Iterator[LoopbackHub]:
    with serving(LoopbackHub()) as hub:
        yield hub


@pytest.fixture
def hub(server: LoopbackHub, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "cache", patience_s=20)


def captions(directory: Path) -> list[str]:
    model = captioner.load(directory, device="cpu")
    return [
        caption.caption for caption in model.caption([draw_noise(40, 30, seed=seed) for seed in range(3)])
    ]


def blobs(server: LoopbackHub) -> list[dict[str, str]]:
    """The headers of all requests to the second server."""
    return [headers for method, path, headers in server.requests if "/blobs/" in path and method == "GET"]


def refusal(name: str, hub: Hub, **options: bool) -> str:
    with pytest.raises(CheckpointError) as error:
        fetch(name, hub=hub, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


class TestFetching:
    def test_what_comes_is_what_the_hub_has_and_comes_once(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2).revisions["main"].files["README.md"] = b"not wanted"
        directory = fetch(NAME, hub=hub)
        for path in directory.iterdir():
            assert path.read_bytes() == (vit_gpt2 / path.name).read_bytes()
        assert "README.md" not in os.listdir(directory)
        assert captions(directory) == captions(vit_gpt2)
        asked = len(server.requests)
        assert fetch(NAME, hub=hub) == directory
        assert len(server.requests) == asked, "no network is asked for what is there"

    def test_files_in_folders_and_weights_of_others_are_left_out(self, server, hub, vit_gpt2):
        commit = server.add(NAME, vit_gpt2).revisions["main"]
        commit.files |= {
            "onnx/config.json": b"{}",
            "model.fp16.safetensors": b"x",
            "tf_model.h5": b"x" * 9000,
        }
        assert set(os.listdir(fetch(NAME, hub=hub))) == {
            path.name for path in vit_gpt2.iterdir() if path.suffix in (".json", ".safetensors")
        }

    def test_shards_come_all(self, server, hub, vit_gpt2, tmp_path):
        model = huggingface.vit_gpt2()
        shutil.copytree(vit_gpt2, tmp_path / "shards")
        (tmp_path / "shards" / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
        server.add(NAME, tmp_path / "shards")
        directory = fetch(NAME, hub=hub)
        assert len(list(directory.glob("model-*.safetensors"))) > 1
        assert captions(directory) == captions(vit_gpt2)

    def test_the_token_goes_to_the_hub_and_nowhere_else(self, server, hub, vit_gpt2):
        server.token = "hf_right"
        server.add(NAME, vit_gpt2, gated=True)
        fetch(NAME, hub=replace(hub, token="hf_right"))
        seen = [headers.get("authorization") for _, path, headers in server.requests if "/blobs/" not in path]
        assert set(seen) == {"Bearer hf_right"}
        assert blobs(server)
        assert not any("authorization" in headers for headers in blobs(server))

    def test_what_another_program_downloaded_is_used(self, server, hub, vit_gpt2):
        from huggingface_hub import snapshot_download

        server.add(NAME, vit_gpt2)
        snapshot_download(NAME, cache_dir=hub.cache, endpoint=server.endpoint)
        loaded = len(blobs(server))
        server.fault = lambda method, path, count: "503"
        directory = fetch(NAME, hub=hub)
        assert captions(directory) == captions(vit_gpt2)
        server.fault = lambda method, path, count: None
        fetch(NAME, hub=hub)
        assert len(blobs(server)) == loaded, "no large file came twice"

    def test_a_damaged_file_in_the_cache_comes_anew(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        weights = (fetch(NAME, hub=hub) / "model.safetensors").resolve()
        weights.write_bytes(weights.read_bytes()[:-5])
        fetch(NAME, hub=hub)
        assert weights.read_bytes() == (vit_gpt2 / "model.safetensors").read_bytes()


def weights(directory: Path) -> dict[str, bytes]:
    return {"model.safetensors": (directory / "model.safetensors").read_bytes()}


class TestPins:
    def test_the_hubs_own_tools_find_a_tidy_cache(self, server, hub, pickled, vit_gpt2):
        from huggingface_hub import scan_cache_dir

        repository = server.add(NAME, pickled)
        repository.pulls[1] = (
            "SFconvertbot",
            "open",
            Commit({**read_commit(pickled).files, **weights(vit_gpt2)}),
        )
        server.add("someone/other", vit_gpt2)
        fetch(NAME, hub=hub)
        fetch("someone/other", hub=hub)
        found = scan_cache_dir(hub.cache)
        assert not found.warnings
        revisions = [revision for repo in found.repos for revision in repo.revisions]
        assert len(revisions) == 3
        assert all(revision.refs for revision in revisions), "pruning leaves them there"

    def test_what_main_was_first_is_kept_until_an_update(self, server, hub, vit_gpt2, caplog):
        repository = server.add(NAME, vit_gpt2)
        first = fetch(NAME, hub=hub)
        record = record_of(NAME, hub)
        assert record is not None
        assert record.commit == repository.revisions["main"].sha
        changed = {**repository.revisions["main"].files, "generation_config.json": b'{"num_beams": 2}'}
        repository.revisions["main"] = Commit(changed)
        assert fetch(NAME, hub=hub) == first
        second = fetch(NAME, hub=hub, update=True)
        assert json.loads((second / "generation_config.json").read_text()) == {"num_beams": 2}
        assert fetch(NAME, hub=hub) == second
        large = len(blobs(server))
        assert fetch(NAME, hub=hub, update=True) == second
        assert len(blobs(server)) == large

    def test_each_revision_has_its_own(self, server, hub, vit_gpt2):
        repository = server.add(NAME, vit_gpt2)
        files = repository.revisions["main"].files
        repository.revisions["v1"] = Commit({**files, "generation_config.json": b"{}"})
        main, first = fetch(NAME, hub=hub), fetch(f"{NAME}@v1", hub=hub)
        assert main != first
        assert fetch(f"{NAME}@{repository.revisions['v1'].sha}", hub=hub) == first
        assert "no revision v2" in refusal(f"{NAME}@v2", hub)

    def test_a_short_name_is_one_commit(self, server, hub, vit_gpt2):
        known = known_model("vit-gpt2")
        assert known is not None
        assert known.revision is not None
        files = read_commit(vit_gpt2).files
        other = Commit({**files, "generation_config.json": b"{}"})
        pinned = Commit(files, name=known.revision)
        server.repositories[known.repository] = Repository({"main": other, known.revision: pinned})
        directory = fetch("vit-gpt2", hub=hub)
        assert directory.name == known.revision
        assert captions(directory) == captions(vit_gpt2)

    def test_a_hub_that_gives_another_commit_is_not_trusted(self, server, hub, vit_gpt2):
        known = known_model("vit-gpt2")
        assert known is not None
        assert known.revision is not None
        server.repositories[known.repository] = Repository({known.revision: read_commit(vit_gpt2)})
        assert "do not trust it" in refusal("vit-gpt2", hub)
        assert not blobs(server)

    def test_a_damaged_record_is_none(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        directory = fetch(NAME, hub=hub)
        path = hub.shelf(NAME).own / "main.json"
        for damaged in (
            '{"commit": 3',
            "[]",
            "{}",
            path.read_text().replace('"files": {', '"files": 3, "x": {'),
        ):
            path.write_text(damaged)
            assert record_of(NAME, hub) is None
        assert fetch(NAME, hub=hub) == directory


REFUSALS = {
    "401": "has no model someone/tiny, or it is a private one, for which HF_TOKEN must be set",
    "403": "refuses someone/tiny: set HF_TOKEN to a token that has the right to read it",
    "404": "has no model someone/tiny, or it is no hub: check the name and HF_ENDPOINT",
    "410": "does not give someone/tiny (status 410)",
    "429": "too many requests came from here: wait some minutes, or set HF_TOKEN",
    "500": "is out of order (status 500): try again later; what has come is kept",
    "503": "is out of order (status 503)",
}


class TestFaults:
    @pytest.mark.parametrize("place", ["/api/", "/resolve/"])
    @pytest.mark.parametrize("fault", REFUSALS)
    def test_a_refusal_is_one_true_sentence(self, fault, place, server, hub, vit_gpt2):
        if fault == "429":  # the client itself waits for files, and tries again five times
            place = "/api/"
        server.add(NAME, vit_gpt2)
        server.fault = lambda method, path, count: fault if place in path else None
        message = refusal(NAME, hub)
        assert REFUSALS[fault] in message
        server.fault = lambda method, path, count: None
        fetch(NAME, hub=hub)

    def test_too_many_requests_are_waited_for(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        server.fault = lambda method, path, count: "429" if "config.json" in path and count == 1 else None
        fetch(NAME, hub=hub)

    def test_gated_models_say_what_to_do(self, server, hub, vit_gpt2):
        server.token = "hf_right"
        server.add(NAME, vit_gpt2, gated=True)
        message = refusal(NAME, hub)
        assert (
            f"{NAME} is gated: accept its conditions at {server.endpoint}/{NAME}, then set HF_TOKEN"
            in message
        )

    def test_a_wrong_token_says_so(self, server, hub, vit_gpt2):
        server.token = "hf_right"
        server.add(NAME, vit_gpt2)
        message = refusal(NAME, replace(hub, token="hf_wrong"))
        assert "does not accept the token in HF_TOKEN" in message
        assert "hf_wrong" not in message

    def test_private_models_are_as_if_there_were_none(self, server, hub, vit_gpt2):
        server.token = "hf_right"
        server.add(NAME, vit_gpt2, private=True)
        assert "for which HF_TOKEN must be set" in refusal(NAME, hub)
        fetch(NAME, hub=replace(hub, token="hf_right"))

    def test_a_mistyped_path_is_none_of_the_networks_business(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("weights").mkdir()
        assert main(["download", "weights/three"]) == 1
        assert "no model 'weights/three'" in capsys.readouterr().err
        assert main(["download", "default"]) == 0
        assert capsys.readouterr().out.startswith("default\t")

    def test_a_name_that_no_model_has(self, hub):
        assert "no name that a model of the hub can have" in refusal("a..b/--c", hub)
        assert "neither a directory nor a model" in refusal("nothing", hub)

    def test_a_hub_out_of_reach(self, server, hub, tmp_path):
        away = replace(hub, endpoint="http://127.0.0.1:9")
        assert "someone/tiny is not in the hub's cache, and http://127.0.0.1:9 cannot be reached" in refusal(
            NAME, away
        )
        assert not (tmp_path / "cache").exists(), "no trace of what was never there"

    def test_a_server_that_is_no_hub(self, server, hub):
        server.repositories[NAME] = Repository({"main": Commit({})})
        strange = replace(hub, endpoint=f"{server.endpoint}/elsewhere")
        assert "or it is no hub: check the name and HF_ENDPOINT" in refusal(NAME, strange)
        server.fault = lambda method, path, count: "html"
        assert "does not answer as a Hugging Face hub does" in refusal(NAME, hub)

    def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        server.fault = lambda method, path, count: "stall"
        assert "broke or stood still" in refusal(NAME, replace(hub, patience_s=0.2))

    def test_no_room_on_the_disk(self, server, hub, vit_gpt2):
        from captioner.hub.listing import HubFile
        from captioner.hub.transfer import check_room

        with (
            hub.shelf(NAME).lock(),
            pytest.raises(CheckpointError, match=r"are to come, and .* has room for"),
        ):
            check_room(hub.shelf(NAME), [HubFile("model.safetensors", 10**18, "")])

    def test_a_repository_without_weights(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2).revisions["main"].files.pop("model.safetensors")
        assert "has no weights that Captioner reads" in refusal(NAME, hub)


class TestResuming:
    def test_a_download_that_is_cut_goes_on_by_itself(self, server, hub, heavy):
        server.add(NAME, heavy)
        digest = hashlib.sha256((heavy / "model.safetensors").read_bytes()).hexdigest()
        server.fault = lambda method, path, count: "cut" if digest in path and count == 1 else None
        directory = fetch(NAME, hub=hub)
        assert (directory / "model.safetensors").read_bytes() == (heavy / "model.safetensors").read_bytes()
        assert [headers["range"] for headers in blobs(server) if "range" in headers] == ["bytes=10485760-"]

    def test_a_command_that_was_stopped_goes_on_with_what_has_come(self, server, hub, heavy):
        server.add(NAME, heavy)
        digest = hashlib.sha256((heavy / "model.safetensors").read_bytes()).hexdigest()
        faults = {1: "cut", 2: "500"}
        server.fault = lambda method, path, count: faults.get(count) if digest in path else None
        assert "out of order" in refusal(NAME, hub)
        (partial,) = hub.shelf(NAME).own.glob("*.partial")
        assert partial.stat().st_size == 10 * 1024 * 1024
        assert record_of(NAME, hub) is None
        server.requests.clear()
        directory = fetch(NAME, hub=hub)
        assert (directory / "model.safetensors").read_bytes() == (heavy / "model.safetensors").read_bytes()
        assert [headers["range"] for headers in blobs(server) if "range" in headers] == ["bytes=10485760-"]
        assert not list(hub.shelf(NAME).own.glob("*.partial"))

    def test_wrong_bytes_are_not_kept(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        server.fault = lambda method, path, count: "flip" if "/blobs/" in path and count == 1 else None
        message = refusal(NAME, hub)
        assert "came damaged: its digest is" in message
        assert not list(hub.shelf(NAME).own.glob("*.partial"))
        messages = [message]
        while True:  # each large file comes wrong once
            try:
                directory = fetch(NAME, hub=hub)
                break
            except CheckpointError as error:
                messages.append(str(error))
        assert 1 <= len(messages) <= 3
        assert captions(directory) == captions(vit_gpt2)

    def test_wrong_bytes_of_small_files_are_found_as_well(self, server, hub, vit_gpt2):
        server.add(NAME, vit_gpt2)
        data = (vit_gpt2 / "config.json").read_bytes()
        server.fault = lambda method, path, count: "flip" if path.endswith("/config.json") else None
        if len(data) < 2_000:
            assert f"lists {git_digest(data)}" in refusal(NAME, hub)
        else:
            fetch(NAME, hub=hub)


class TestPickles:
    def test_the_hubs_own_conversion_comes_first(self, server, hub, pickled, vit_gpt2, caplog):
        caplog.set_level("INFO", "captioner.hub")
        repository = server.add(NAME, pickled)
        files = read_commit(pickled).files
        repository.pulls[2] = ("somebody", "open", Commit({**files, "model.safetensors": b"evil"}))
        repository.pulls[3] = ("SFconvertbot", "closed", Commit({**files, "model.safetensors": b"old"}))
        repository.pulls[4] = (
            "SFconvertbot",
            "open",
            Commit({**files, "pytorch_model.bin": b"other weights" * 999, "model.safetensors": b"of those"}),
        )
        repository.pulls[7] = ("SFconvertbot", "open", Commit({**files, **weights(vit_gpt2)}))
        directory = fetch(NAME, hub=hub)
        assert captions(directory) == captions(vit_gpt2)
        assert "safetensors of pull request 7 by SFconvertbot" in caplog.text
        assert not server.asked("pytorch_model.bin"), "the pickle did not even come"
        record = record_of(NAME, hub)
        assert record is not None
        assert record.commit == repository.revisions["main"].sha
        assert (directory / "model.safetensors").is_symlink()

    def test_files_beside_the_weights_are_those_of_the_revision(self, server, hub, pickled, vit_gpt2):
        repository = server.add(NAME, pickled)
        stale = {**read_commit(pickled).files, **weights(vit_gpt2), "config.json": b"{}"}
        repository.pulls[7] = ("SFconvertbot", "open", Commit(stale))
        directory = fetch(NAME, hub=hub)
        assert (directory / "config.json").read_bytes() == (pickled / "config.json").read_bytes()

    def test_a_pickle_that_nobody_converted_is_converted_here(self, server, hub, pickled, vit_gpt2, caplog):
        caplog.set_level("INFO", "captioner.hub")
        server.add(NAME, pickled)
        directory = fetch(NAME, hub=hub)
        assert "safetensors written here from its pickle, of which nothing was run" in caplog.text
        assert captions(directory) == captions(vit_gpt2)
        before = (directory / "model.safetensors").stat().st_mtime_ns
        assert fetch(NAME, hub=hub) == directory
        assert (directory / "model.safetensors").stat().st_mtime_ns == before, "converted once"

    def test_pull_requests_that_cannot_be_read_are_none(self, server, hub, pickled):
        server.add(NAME, pickled)
        server.fault = lambda method, path, count: "403" if path.endswith("/discussions") else None
        assert (fetch(NAME, hub=hub) / "model.safetensors").is_file()

    def test_sharded_pickles_become_shards(self, pickled, vit_gpt2, tmp_path):
        tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
        names = sorted(tensors)
        shutil.copytree(pickled, tmp_path / "shards")
        (tmp_path / "shards" / "pytorch_model.bin").unlink()
        files = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
        for file, part in zip(files, (names[::2], names[1::2]), strict=True):
            torch.save({name: tensors[name] for name in part}, tmp_path / "shards" / file)
        index = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
        (tmp_path / "shards" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        directory = with_safetensors(tmp_path / "shards", cache=tmp_path / "cache")
        assert captions(directory) == captions(vit_gpt2)
        assert "pytorch_model.bin.index.json" not in os.listdir(directory)

    def test_tensors_keep_their_values_types_and_ties(self, vit_gpt2, tmp_path):
        shared = torch.arange(6.0).view(2, 3)
        tensors = {
            "a": shared,
            "b": shared,
            "transposed": shared.T,
            "half": torch.ones(2, dtype=torch.bfloat16),
            "whole": torch.tensor(3),
            "learned": torch.nn.Parameter(torch.ones(3)),
        }
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text("{}")
        found = load_file(with_safetensors(tmp_path, cache=tmp_path / "cache") / "model.safetensors")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].equal(tensor.detach())
            assert found[name].dtype == tensor.dtype

    def test_a_program_in_a_pickle_is_refused_and_not_run(self, server, hub, pickled, tmp_path):
        mark = tmp_path / "the program ran"
        evil = tmp_path / "evil"
        shutil.copytree(pickled, evil)
        torch.save({"weight": torch.ones(2), "more": Program(mark)}, evil / "pytorch_model.bin")
        torch.load(evil / "pytorch_model.bin", weights_only=False)  # what others would do
        assert mark.exists()
        mark.rmdir()
        with pytest.raises(
            CheckpointError, match=r"is refused, and nothing of it was run.*asks for (posix|nt).mkdir"
        ):
            captioner.load(evil, device="cpu")
        server.add(NAME, evil)
        assert "is refused, and nothing of it was run" in refusal(NAME, hub)
        assert not mark.exists()
        assert record_of(NAME, hub) is None

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({"model": {"a": torch.ones(1)}}, "holds more than plain tensors"),
            ([torch.ones(1)], "holds more than plain tensors"),
            ({1: torch.ones(1)}, "holds more than plain tensors"),
            ({"sparse": torch.ones(1).to_sparse()}, "holds more than plain tensors"),
            (None, "cannot be read as weights"),
        ],
    )
    def test_what_holds_no_weights(self, content, sentence, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        if content is None:
            (tmp_path / "pytorch_model.bin").write_bytes(b"abc")
        else:
            torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=sentence) as error:
            with_safetensors(tmp_path, cache=tmp_path / "cache")
        assert "\n" not in str(error.value)
        assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}

    def test_an_old_torch_opens_none(self):
        from captioner.hub.pickles import check_torch

        for version in ("2.9.1", "2.9.1+cpu", "1.13.0"):
            with pytest.raises(CheckpointError, match=r"only torch 2\.10 or newer"):
                check_torch("some/model", version)
        for version in ("2.10.0", "2.14.1+cu130", "2.10.0a0+git123", "3.0"):
            check_torch("some/model", version)

    def test_a_directory_with_only_a_pickle_is_converted_once(self, pickled, vit_gpt2, tmp_path):
        cache = tmp_path / "cache"
        first = with_safetensors(pickled, cache=cache)
        assert captions(first) == captions(vit_gpt2)
        assert captions(pickled) == captions(vit_gpt2)
        changed = (first / "model.safetensors").stat().st_mtime_ns
        assert with_safetensors(pickled, cache=cache) == first
        assert (first / "model.safetensors").stat().st_mtime_ns == changed
        assert sorted(os.listdir(pickled)) == sorted(
            {*os.listdir(first), "pytorch_model.bin"} - {"model.safetensors"}
        )


class Program:
    """What makes a pickle a program: it says what to call when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.mark,)


class TestCatalogue:
    def test_names_are_names_and_revisions_are_commits(self):
        names = [model.name for model in CATALOGUE]
        assert len(set(names)) == len(names)
        for model in CATALOGUE:
            assert "/" not in model.name
            assert model.repository.count("/") == 1
            assert model.revision is None or (len(model.revision) == 40 and int(model.revision, 16))
            assert (model.cider is None) == (model.source == "")
        assert known_model("blip-base") is not None
        assert known_model("Salesforce/blip-image-captioning-base") is None

    @pytest.mark.parametrize(
        ("name", "save"),
        [
            ("vit-gpt2", huggingface.save_vit_gpt2),
            ("blip-base", huggingface.save_blip),
            ("git-base", huggingface.save_git),
            ("florence-2-base", huggingface.save_florence2),
            ("blip-2", vlm.blip_2),
            ("smolvlm2-500m", vlm.smolvlm),
            ("qwen3-vl-2b", vlm.qwen3_vl),
        ],
    )
    def test_what_it_says_of_a_model_is_what_the_model_says_of_itself(self, name, save, tmp_path):
        known = known_model(name)
        assert known is not None
        save(tmp_path / "model")
        lacks = captioner.load(tmp_path / "model", device="cpu").lacks.to_dict()
        assert set(known.gives) == {name for name, reason in lacks.items() if reason is None}

    def test_a_short_name_is_no_directory_unless_there_is_a_checkpoint(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("blip-base").mkdir()
        Path("photos").mkdir()
        assert not is_local(Path("blip-base"))
        assert is_local(Path("photos"))
        (tmp_path / "blip-base" / "config.json").write_text("{}")
        assert is_local(Path("blip-base"))
        assert not is_local(Path("git-base"))
