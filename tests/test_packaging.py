"""What is shipped around the program, its image, its deployments and its release, must agree with it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import tiny_checkpoint

from captioner.checkpoint import save_checkpoint
from captioner.cli import app
from captioner.runners.address import RemoteSettings
from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETTINGS = {f"CAPTIONER_{name.upper()}" for name in Settings.model_fields}
LIBRARY_VARIABLES = {"CAPTIONER_WEIGHTS"} | {
    f"CAPTIONER_REMOTE_{each.name.upper()}" for each in fields(RemoteSettings)
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as instruction and arguments, comments left out and lines joined."""
    lines = [line for line in read("Dockerfile").splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines()]


def final_stage() -> dict[str, list[str]]:
    """The arguments of each kind of instruction in the stage that becomes the image."""
    found: dict[str, list[str]] = {}
    for name, arguments in instructions():
        found = {} if name == "FROM" else found
        found.setdefault(name, []).append(arguments)
    return found


def documents(name: str) -> dict[str, Any]:
    """The Kubernetes objects of a file, by kind."""
    return {item["kind"]: item for item in yaml.safe_load_all(read(name))}


def routes() -> set[str]:
    return set(create_app(Settings()).openapi()["paths"])


class TestDockerfile:
    def test_its_bases_are_pinned_to_a_version(self):
        arguments = [value for name, value in instructions() if name == "ARG"]
        bases = {value for name, value in instructions() if name == "FROM"}
        (base,) = [value.partition("=")[2] for value in arguments if value.startswith("BASE_IMAGE=")]
        assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", base)
        assert {each.partition(" AS ")[0] for each in bases} == {"${BASE_IMAGE}", "dependencies"}

    def test_dependencies_are_installed_before_any_code_is_copied(self):
        names = [value.split()[0] for name, value in instructions() if name == "COPY"]
        install = next(
            i for i, (_, value) in enumerate(instructions()) if "requirements.txt --constraint" in value
        )
        before = [value for name, value in instructions()[:install] if name == "COPY"]
        assert before == ["pyproject.toml constraints.txt ./"]
        assert {"captioner", "service", "weights"} <= set(names)

    def test_its_torch_is_the_one_of_the_constraints(self):
        assert ("ARG", f"TORCH_VERSION={pins()['torch']}") in instructions()

    def test_its_torch_is_for_gpus_too_unless_an_index_is_given(self):
        assert ("ARG", "TORCH_INDEX=") in instructions()
        (install,) = [value for _, value in instructions() if "torch==${TORCH_VERSION}" in value]
        assert '${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"}' in install

    def test_it_runs_without_rights_and_gets_signals_itself(self):
        stage = final_stage()
        assert stage["USER"] == ["10001:10001"]  # a number, so that Kubernetes knows it is not root
        assert json.loads(stage["ENTRYPOINT"][0]) == ["captioner"]  # no shell in between
        assert json.loads(stage["CMD"][0]) == ["serve"]
        assert stage["EXPOSE"] == [str(Settings.model_fields["port"].default)]

    def test_its_variables_are_settings(self):
        names = set(re.findall(r"CAPTIONER_\w+", read("Dockerfile")))
        assert names - LIBRARY_VARIABLES <= SETTINGS
        assert "CAPTIONER_HOST" in names

    def test_its_health_check_is_python_that_asks_a_route(self):
        (check,) = final_stage()["HEALTHCHECK"]
        python, option, code = json.loads(check.partition("CMD ")[2])
        assert (python, option) == ("python", "-c")
        compile(code, "HEALTHCHECK", "exec")
        assert re.search(r"(/\w+)'", code)[1] in routes()

    def test_nothing_of_the_package_index_stays_in_the_image(self):
        installs = [value for name, value in instructions() if name == "RUN" and "pip --python" in value]
        assert len(installs) == 2
        assert all("--mount=type=secret,id=pip.conf" in value for value in installs)
        assert all("--no-cache-dir" in value for value in installs)

    def test_its_context_has_all_that_is_copied(self):
        sources = [
            source
            for name, value in instructions()
            if name == "COPY" and not value.startswith("--from")
            for source in value.split()[:-1]
        ]
        allowed = {line.strip("!/") for line in read(".dockerignore").splitlines() if line.startswith("!")}
        assert set(sources) == allowed


class TestCompose:
    COMPOSE = yaml.safe_load(read("compose.yaml"))

    @pytest.mark.parametrize(("name", "profile"), [("captioner", "cpu"), ("captioner-gpu", "gpu")])
    def test_a_server_for_each_profile(self, name: str, profile: str):
        service = self.COMPOSE["services"][name]
        assert service["profiles"] == [profile]
        assert service["read_only"] is True
        assert service["tmpfs"] == "/tmp"
        assert service["cap_drop"] == ["ALL"]
        assert set(service.get("environment", {})) <= SETTINGS
        grace = 2 * Settings.model_fields["request_timeout_s"].default
        assert int(service["stop_grace_period"].removesuffix("s")) > grace

    def test_the_gpu_profile_takes_a_gpu_for_the_same_image(self):
        service = self.COMPOSE["services"]["captioner-gpu"]
        assert service["image"] == self.COMPOSE["services"]["captioner"]["image"]
        assert service["build"] == "."  # without arguments: torch's build for CPUs and GPUs
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]

    def test_the_key_file_is_read_as_a_setting(self, tmp_path: Path):
        (secret,) = self.COMPOSE["services"]["captioner"]["secrets"]
        (tmp_path / secret["target"]).write_text("first\nsecond\n")
        keys = [key.get_secret_value() for key in Settings(_secrets_dir=tmp_path).api_keys]
        assert keys == ["first", "second"]
        assert secret["source"] in self.COMPOSE["secrets"]

    def test_prometheus_scrapes_every_server_with_a_key(self):
        (job,) = yaml.safe_load(read("deploy/prometheus.yml"))["scrape_configs"]
        services = self.COMPOSE["services"]
        assert job["static_configs"] == [{"targets": ["captioner:8000"]}]
        assert services["captioner-gpu"]["networks"]["default"]["aliases"] == ["captioner"]
        secret = Path(job["authorization"]["credentials_file"])
        assert secret == Path("/run/secrets") / services["prometheus"]["secrets"][0]
        assert job.get("metrics_path", "/metrics") in routes()


class TestKubernetes:
    OBJECTS = documents("deploy/kubernetes.yaml")
    POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
    CONTAINER = POD["containers"][0]

    def test_its_probes_ask_routes(self):
        probes = {name: value for name, value in self.CONTAINER.items() if name.endswith("Probe")}
        paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
        assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
        assert set(paths.values()) <= routes()
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {self.CONTAINER["ports"][0]["name"]}

    def test_it_gets_a_gpu_and_no_rights(self):
        assert self.CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert self.CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
        user = f"{self.POD['securityContext']['runAsUser']}:{self.POD['securityContext']['runAsGroup']}"
        assert final_stage()["USER"] == [user]

    def test_its_variables_and_secrets_are_settings(self):
        assert {item["name"] for item in self.CONTAINER["env"]} <= SETTINGS
        mounts = {Path(mount["mountPath"]) for mount in self.CONTAINER["volumeMounts"]}
        secrets = {path.name.upper() for path in mounts if path.is_relative_to("/run/secrets")}
        assert secrets == {"CAPTIONER_API_KEYS"}

    def test_it_has_time_to_answer_what_it_accepted(self):
        drain = self.CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
        answer = 2 * Settings.model_fields["request_timeout_s"].default
        assert self.POD["terminationGracePeriodSeconds"] > drain + answer

    def test_it_scales_on_a_metric_that_there_is(self):
        (metric,) = self.OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
        name = metric["pods"]["metric"]["name"]
        assert f"\n{name} 0.0" in Metrics().render().decode()
        assert int(metric["pods"]["target"]["averageValue"]) == Settings.model_fields["max_batch"].default

    def test_everything_selects_the_same_pods(self):
        labels = self.OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert self.OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert self.OBJECTS["Service"]["spec"]["selector"] == labels
        assert self.OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def pins() -> dict[str, str]:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


class TestRelease:
    def test_every_dependency_is_pinned_to_a_version_that_it_allows(self):
        extras, known = PROJECT["optional-dependencies"].values(), pins()
        wanted = [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]
        for requirement in wanted:
            if requirement.name != "captioner":
                pin = known.get(canonicalize_name(requirement.name))
                assert pin, f"{requirement} is new: run scripts/constraints.py"
                assert requirement.specifier.contains(pin)

    def test_the_version_stands_in_one_place(self):
        number = PROJECT["version"]
        assert version("captioner") == number
        files = subprocess.run(
            ["git", "grep", "--fixed-strings", "--files-with-matches", f'"{number}"', "--", "*.py", "*.toml"],
            cwd=ROOT, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        assert files == ["pyproject.toml"]

    def test_workflows_call_what_there_is(self):
        targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
        for path in (ROOT / ".github/workflows").glob("*.yml"):
            jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
            steps = [step for job in jobs for step in job.get("steps", [])]
            lines = [line for step in steps for line in step.get("run", "").splitlines()]
            made = [line.partition("#")[0].split()[1:] for line in lines if line.startswith("make ")]
            assert {target for names in made for target in names} <= targets
            assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in steps if "uses" in step)

    def test_ci_tests_every_python_that_is_promised(self):
        jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
        promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
        assert jobs["test"]["strategy"]["matrix"]["python"] == promised


class TestDocumentation:
    PAGES = sorted((ROOT / "docs").rglob("*.md"))

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_commands_and_options_exist(self, path: Path):
        commands = typer.main.get_command(app).commands
        blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        lines = re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            if "captioner" not in words or words[0] in ("docker", "sudo", "kubectl"):
                continue
            name, *arguments = words[words.index("captioner") + 1 :]
            known = {option for param in commands[name].params for option in param.opts}
            assert {word for word in arguments if word.startswith("-") and word != "-"} <= known, line

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_variables_are_settings(self, path: Path):
        names = set(re.findall(r"\bCAPTIONER_[A-Z_]+", path.read_text(encoding="utf-8")))
        assert names - LIBRARY_VARIABLES <= SETTINGS

    def test_every_page_is_in_the_navigation(self):
        named = set(re.findall(r"- ([\w/-]+\.md)$", read("mkdocs.yml"), re.MULTILINE))
        assert named == {path.relative_to(ROOT / "docs").as_posix() for path in self.PAGES}


def files_in_git(*folders: str) -> list[str]:
    """What git has here, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel of the checkout, with a model in miniature for the weights."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    for name in files_in_git():
        if not name.startswith("weights/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    save_checkpoint(tiny_checkpoint(), source / "weights" / "default")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
class TestArchives:
    def test_the_wheel_has_the_program_and_the_weights_and_nothing_else(self, archives: tuple[Path, Path]):
        with zipfile.ZipFile(archives[1]) as wheel:
            names = wheel.namelist()
        assert {name.split("/")[0] for name in names} == {
            "captioner",
            "service",
            f"captioner-{PROJECT['version']}.dist-info",
        }
        assert set(files_in_git("captioner", "service")) <= set(names)
        assert {"config.json", "model.safetensors", "tokenizer.json"} == {
            Path(name).name for name in names if name.startswith("captioner/weights/default/")
        }

    def test_the_source_archive_has_what_a_wheel_is_built_of_and_the_tests(self, archives: tuple[Path, Path]):
        with tarfile.open(archives[0]) as sdist:
            names = {name.partition("/")[2] for name in sdist.getnames()}
        assert {"pyproject.toml", "LICENSE", "NOTICE", "weights/default/model.safetensors"} <= names
        assert {"tests/test_packaging.py", "tests/tiny.py", "Dockerfile", "constraints.txt"} <= names

    def test_the_wheel_captions_outside_the_checkout(
        self, archives: tuple[Path, Path], tmp_path: Path, photo_path: Path
    ):
        python = tmp_path / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
        with zipfile.ZipFile(archives[1]) as wheel:
            wheel.extractall(site)
        # dependencies of this environment, but not Captioner, which only its editable install's .pth adds
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

        def run(*arguments: str | Path) -> str:
            command = [
                python,
                "-I",
                "-c",
                "from captioner.cli import main; raise SystemExit(main())",
                *arguments,
            ]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert run("models").split("\t")[2] == str(site / "captioner" / "weights" / "default")
        path, caption = run("caption", photo_path).rstrip("\n").split("\t")
        assert path == str(photo_path)
        assert caption
